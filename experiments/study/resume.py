"""The settings in a study's folder, and which of them may change when it resumes."""

import json
import pathlib

from experiments import settings
from experiments.settings import Settings
from protojax import storage

# A study may grow in these fields; other settings are fixed once it has begun.
GROWING = ("tasks", "seeds", "arms", "attacks", "federations", "variants")
# These may change at any time, since no result depends on them.
FREE = ("checkpoint_every", "keep_checkpoints", "export_students")

# Sections that only studies of former versions have, which tested rows otherwise.
_FORMER = ("anchor", "audit", "trigger_search")


def check_workdir(config: Settings, workdir: pathlib.Path) -> dict:
    """The content of a study's `config.json`, checked against its folder.

    Any settings may change while a study has computed nothing, so that a mistyped path
    can be corrected. Nothing is written.

    Args:
        config: the resolved config.
        workdir: the folder, which need not exist.

    Raises:
        ValueError: the folder holds other files, or a study with other settings, which
            the message names.
    """
    now = settings.as_json(config)
    path = workdir / "config.json"
    before = json.loads(path.read_text()) if path.exists() else None
    if isinstance(before, dict) and before.keys() >= {"tasks", "seeds", "arms"}:
        if not has_computed(workdir):
            return now
        try:
            return joined(before, now, str(workdir))
        except ValueError as error:
            raise ValueError(
                f"{error} Give another --workdir, or delete that folder."
            ) from None
    # Results are removed and replaced there, which must not happen to other files.
    if any(not path.name.startswith(".") for path in workdir.glob("*")):
        raise ValueError(
            f"Expected --workdir empty or a study's, found {workdir} with other files."
        )
    return now


def open_workdir(config: Settings, workdir: pathlib.Path) -> None:
    """Creates the study's folder, or checks that it belongs to this config.

    A folder with hidden files only, such as those of `git init`, counts as empty: a
    study neither reads nor changes them.

    Args:
        config: the resolved config, written to `config.json`.
        workdir: the folder.

    Raises:
        ValueError: see `check_workdir`.
    """
    now = check_workdir(config, workdir)
    if not has_computed(workdir):
        # Removes hashes of data on which no result depends.
        for path in _files(workdir):
            if len(path.parts) > 1:
                (workdir / path).unlink()
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(workdir / "config.json", now)


def has_computed(workdir: pathlib.Path) -> bool:
    """Whether a study's folder holds more than settings, logs and hashes of data."""
    return not all(_is_prelude(path) for path in _files(workdir))


def _files(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The files of a study without hidden ones, as paths relative to its folder."""
    below = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return [path for path in below if not any(p.startswith(".") for p in path.parts)]


def _is_prelude(path: pathlib.Path) -> bool:
    """Whether a file is one that a study writes before it computes anything.

    >>> [_is_prelude(pathlib.Path(name)) for name in (
    ...     "error.log", "sst2/seed0/data.json", "sst2/syntax.json", "thesis.tex",
    ...     "sst2/seed0/no_attack/plain.json")]
    [True, True, True, False, False]
    """
    if len(path.parts) == 1:
        known = ("config.json", "versions.json")
        return path.name in known or path.suffix == ".log"
    # TASK/ATTACK.json and TASK/SEED/data.json, see `scenarios`.
    data, ready = len(path.parts) == 3, len(path.parts) == 2
    return (data and path.name == "data.json") or (ready and path.suffix == ".json")


def joined(before: dict, now: dict, where: str) -> dict:
    """The union of two configs of one study: of a resumed run, or of two parts of it.

    Args:
        before: the config with which the study was begun, as stored in JSON.
        now: the present config, which may have grown.
        where: the place that an error names.

    Raises:
        ValueError: naming the fields that differ but must not.
    """
    if any(section in before for section in _FORMER):
        raise ValueError(f"{where} holds a study of a former version of protojax.")
    # A field that did not exist when the study was begun had its default value.
    usual = settings.as_json(Settings())
    before, now = settings.completed(before, usual), settings.completed(now, usual)
    fixed = [
        (name, before.get(name), value)
        for name, value in now.items()
        if name not in (*GROWING, *FREE)
    ]
    for field in ("tasks", "seeds", "arms"):
        now[field] = list(dict.fromkeys([*before[field], *now[field]]))
    for field, usual in (
        ("attacks", settings.as_json(settings.Attack())),
        ("federations", settings.as_json(settings.Federation())),
        ("variants", {}),
    ):
        held = before.get(field, {})
        fixed += [
            # As above, for the fields of a section.
            (f"{field}.{name}", usual | held[name], now[field][name])
            for name in held.keys() & now[field].keys()
        ]
        # An entry that was removed from the config keeps its rows, hence its settings.
        now[field] = held | now[field]
    if changed := _differences(fixed):
        raise ValueError(
            f"{where} holds a study with other settings: {'; '.join(changed)}."
        )
    return now


def _differences(fields) -> list[str]:
    """The names of all leaves that differ, with their former and present values."""
    found = []
    for name, before, now in fields:
        if isinstance(before, dict) and isinstance(now, dict):
            # The arms and tasks of an attack may grow too.
            keys = sorted((before.keys() | now.keys()) - {"arms", "tasks"})
            found += _differences(
                (f"{name}.{key}", before.get(key), now.get(key)) for key in keys
            )
        elif before != now:
            found.append(f"{name} was {before!r}, now {now!r}")
    return found
