"""Studies that are not a grid of attacks on classes: each a function of a config.

A config names its study by the field `system`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.study.parts import Parts
from experiments.systems import (
    distillability,
    outputs,
    private,
    private_page,
    secrets,
    written,
)
from protojax.pipelines import Watch


class System(NamedTuple):
    """A kind of study.

    Attributes:
        run: computes what is missing of the results, one a line of results.jsonl.
        parts: what tells these lines apart, and how parts of a study may differ.
        table_of: the header and the lines of the table of results.
        report: writes report.html of the config, workdir and results, and is its path;
            None where a study has none.
        notes_of: sentences about the results, shown below the table, or None.
        overview_of: the header and the lines of a shorter table, or None.
    """

    run: Callable[[ConfigDict, Path, Watch], list[dict[str, Any]]]
    parts: Parts
    table_of: Callable[[Sequence[dict[str, Any]]], list[list[str]]]
    report: Callable[[ConfigDict, Path, Sequence[dict[str, Any]]], Path] | None = None
    notes_of: Callable[[Sequence[dict[str, Any]]], list[str]] | None = None
    overview_of: Callable[[Sequence[dict[str, Any]]], list[list[str]]] | None = None


SYSTEMS = {
    "distillability": System(
        distillability.run,
        distillability.PARTS,
        distillability.table_of,
        notes_of=distillability.notes_of,
        overview_of=distillability.overview_of,
    ),
    "outputs": System(outputs.run, outputs.PARTS, outputs.table_of),
    "private": System(private.run, private.PARTS, private.table_of, private_page.write),
    "secrets": System(secrets.run, secrets.PARTS, secrets.table_of),
    "written": System(written.run, written.PARTS, written.table_of),
}
