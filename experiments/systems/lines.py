"""The folder of a study whose results are lines: config.json and results.jsonl.

Results of other seeds, attacks and arms than those of a call stay.
"""

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import settings as settings_lib
from protojax import storage, validate


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


def keep_settings(
    workdir: pathlib.Path,
    config: ConfigDict,
    free: Sequence[str],
    *,
    usual: Mapping[str, Any] | None = None,
    named: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes config.json, or checks that it holds the same settings.

    Args:
        workdir: the study's folder.
        config: of the study.
        free: the fields that may have other values than before.
        usual: the values of settings that the study did not have yet.
        named: sections of named settings, each with the usual values of one; those of
            before stay.

    Raises:
        ValueError: on a setting that has another value than before.
    """
    path, fields, named = (
        workdir / "config.json",
        json.loads(config.to_json()),
        named or {},
    )
    if path.exists():
        before = _filled(json.loads(path.read_text(encoding="utf-8")), usual or {})
        for section, one in named.items():
            entries = before[section].items()
            before[section] = {name: _filled(value, one) for name, value in entries}
        old, new = (
            {
                f"{section}.{name}": v
                for section in named
                for name, v in part[section].items()
            }
            | {name: value for name, value in part.items() if name not in named}
            for part in (before, fields)
        )
        for name in (old.keys() & new.keys()) - {*free}:
            bound = f"{old[name]!r}, as {path} has; or give another --workdir"
            validate.require(old[name] == new[name], name, new[name], bound)
        fields |= {section: before[section] | fields[section] for section in named}
    storage.write_json(path, fields)


def _flat(fields: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The settings, each one of a section of named settings by its own name.

    >>> _flat({"a": {"b": 1}, "c": 2}, ["a"])
    {'c': 2, 'a.b': 1}
    """
    found = {name: value for name, value in fields.items() if name not in named}
    for section in named:
        found |= {f"{section}.{name}": v for name, v in fields[section].items()}
    return found


def _filled(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the usual values of those that they lack, at every depth.

    >>> _filled({"a": {"b": 2}}, {"a": {"b": 1, "c": 1}, "d": 1})
    {'a': {'b': 2, 'c': 1}, 'd': 1}
    """
    found = {**usual, **fields}
    for name, value in fields.items():
        if isinstance(value, Mapping) and isinstance(usual.get(name), Mapping):
            found[name] = _filled(value, usual[name])
    return found
