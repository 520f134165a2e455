"""The folder of a study whose results are lines: config.json and results.jsonl.

Results of other seeds, attacks and arms than those of a call stay.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import settings as settings_lib
from experiments.study.parts import Parts, joined
from protojax import storage


def settings_of(config: ConfigDict, usual: Any) -> Any:
    """The settings of a study.

    Args:
        config: of the study.
        usual: a dataclass with the defaults.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    fields = config.to_dict()
    del fields["system"]
    return settings_lib.make(usual, fields)


class Lines:
    """The lines of results.jsonl, by their values of some fields.

    Attributes:
        path: of the file.
        fields: which tell the lines apart.
        held: the lines by these values, in order.
    """

    def __init__(self, workdir: pathlib.Path, fields: Sequence[str]):
        self.path, self.fields = workdir / "results.jsonl", tuple(fields)
        rows = []
        if self.path.exists():
            rows = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        self.held = {self._key(row): row for row in rows}

    def _key(self, row: dict[str, Any]) -> tuple:
        """The values that tell a line from others."""
        return tuple(row[field] for field in self.fields)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds lines, in place of those with the same values, and writes the file."""
        self.held |= {self._key(row): row for row in rows}
        text = "".join(json.dumps(row) + "\n" for row in self.held.values())
        with storage.atomic(self.path) as file:
            file.write(text.encode())


def keep_settings(workdir: pathlib.Path, config: ConfigDict, parts: Parts) -> None:
    """Writes config.json, or checks that it holds the same settings.

    Args:
        workdir: the study's folder.
        config: of the study; named settings of before stay.
        parts: of the study.

    Raises:
        ValueError: on a setting that has another value than before.
    """
    path, fields = workdir / "config.json", json.loads(config.to_json())
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        try:
            fields = joined(before, fields, parts, str(path))
        except ValueError as error:
            raise ValueError(f"{error} Give another --workdir.") from None
    storage.write_json(path, fields)
