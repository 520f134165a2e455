"""The folder of a study whose results are lines: config.json and results.jsonl.

Results of other seeds, attacks and arms than those of a call stay.
"""

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

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


class Parts(NamedTuple):
    """How parts of one study differ: calls with one folder, or folders of one record.

    Attributes:
        key: the fields that tell lines apart.
        free: the settings that may differ.
        usual: a dataclass with the defaults, which parts of former versions may lack.
        named: section of named settings -> the defaults of one. Parts may have other
            names; settings of the same name are the same.
    """

    key: Sequence[str]
    free: Sequence[str]
    usual: Any
    named: Mapping[str, Any] = MappingProxyType({})


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
        where = f"{path} has; or give another --workdir"
        fields = joined(before, fields, parts, where)
    storage.write_json(path, fields)


def joined(
    before: Mapping[str, Any], now: Mapping[str, Any], parts: Parts, where: str
) -> dict[str, Any]:
    """The settings of the later of two parts, with all named ones of both.

    Args:
        before: settings of one part.
        now: of the other.
        parts: of the study.
        where: the place of the first, which an error names.

    Raises:
        ValueError: on a setting that both have and that must not differ.
    """
    usual = {name: settings_lib.as_json(one) for name, one in parts.named.items()}
    both = [
        settings_lib.completed(part, settings_lib.as_json(parts.usual))
        for part in (before, now)
    ]
    for section, one in usual.items():
        for part in both:
            entries = part.get(section, {}).items()
            part[section] = {
                name: settings_lib.completed(value, one) for name, value in entries
            }
    old, new = (_flat(part, parts.named) for part in both)
    for name in sorted((old.keys() & new.keys()) - {*parts.free}):
        bound = f"{old[name]!r}, as {where}"
        validate.require(old[name] == new[name], name, new[name], bound)
    before, now = both
    return now | {section: before[section] | now[section] for section in parts.named}


def _flat(fields: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The settings, each one of a section of named settings by its own name.

    >>> _flat({"a": {"b": 1}, "c": 2}, ["a"])
    {'c': 2, 'a.b': 1}
    """
    found = {name: value for name, value in fields.items() if name not in named}
    for section in named:
        found |= {f"{section}.{name}": v for name, v in fields[section].items()}
    return found
