"""Studies that are not a grid of attacks on classes: each a function of a config.

A config names its study by the field `system`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.systems import outputs, private, secrets, written
from protojax.pipelines import Watch


class System(NamedTuple):
    """A kind of study.

    Attributes:
        run: computes what is missing of the results, one a line of results.jsonl.
        table_of: the header and the lines of the table of results.
    """

    run: Callable[[ConfigDict, Path, Watch], list[dict[str, Any]]]
    table_of: Callable[[Sequence[dict[str, Any]]], list[list[str]]]


SYSTEMS = {
    "outputs": System(outputs.run, outputs.table_of),
    "private": System(private.run, private.table_of),
    "secrets": System(secrets.run, secrets.table_of),
    "written": System(written.run, written.table_of),
}
