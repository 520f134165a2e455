"""How parts of one study may differ: calls with a folder, or folders of a record."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments import settings


class Parts(NamedTuple):
    """How parts of a study may differ.

    Attributes:
        key: the fields that tell the study's results apart.
        free: the settings that may differ.
        usual: a dataclass with the defaults, which parts of former versions may lack.
        named: section of named settings -> a dataclass with the defaults of one, or
            None. Parts may have other names; settings of the same name are the same.
        varying: fields of one of the named settings that may differ.
    """

    key: Sequence[str]
    free: Sequence[str]
    usual: Any
    named: Mapping[str, Any] = MappingProxyType({})
    varying: Sequence[str] = ()


def joined(
    before: Mapping[str, Any], now: Mapping[str, Any], parts: Parts, where: str
) -> dict[str, Any]:
    """The settings of the later of two parts, with all named ones of both.

    Args:
        before: settings of one part, as stored in JSON.
        now: of the other.
        parts: of the study.
        where: the place of the first, which an error names.

    Raises:
        ValueError: naming all settings that both have and that must not differ.
    """
    before, now = _completed(before, parts), _completed(now, parts)
    pairs = [
        (name, before[name], now[name])
        for name in now
        if name in before and name not in (*parts.free, *parts.named)
    ]
    # An entry that only one part has keeps its results, hence its settings.
    pairs += [
        (f"{section}.{name}.{field}", before[section][name].get(field), one.get(field))
        for section in parts.named
        for name, one in now[section].items()
        if name in before[section]
        for field in dict.fromkeys([*before[section][name], *one])
        if field not in parts.varying
    ]
    found = [
        f"{name} was {old!r}, now {new!r}" for name, old, new in _differences(pairs)
    ]
    if found:
        raise ValueError(
            f"{where} holds a study with other settings: {'; '.join(found)}."
        )
    return now | {section: before[section] | now[section] for section in parts.named}


def _completed(fields: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The settings of a part with the usual values of those that it lacks."""
    found = settings.completed(fields, settings.as_json(parts.usual))
    for section, usual in parts.named.items():
        one = settings.as_json(usual) if usual else {}
        found[section] = {
            name: settings.completed(value, one)
            for name, value in found.get(section, {}).items()
        }
    return found


def _differences(
    pairs: Sequence[tuple[str, Any, Any]],
) -> Iterator[tuple[str, Any, Any]]:
    """The leaves that differ, by name, with both values.

    >>> [*_differences([("a", {"b": 1, "c": 2}, {"b": 1, "c": 3})])]
    [('a.c', 2, 3)]
    """
    for name, before, now in pairs:
        if isinstance(before, dict) and isinstance(now, dict):
            keys = sorted(before.keys() | now.keys())
            below = [(f"{name}.{key}", before.get(key), now.get(key)) for key in keys]
            yield from _differences(below)
        elif before != now:
            yield name, before, now
