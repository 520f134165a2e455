"""The settings in a study's folder, and which of them may change when it resumes."""

import json
import pathlib

from experiments import settings
from experiments.settings import Settings
from experiments.study import parts
from experiments.study.parts import Parts
from protojax import storage

# A study may grow in these fields, and in named settings; others are fixed once it has
# begun.
GROWING = ("tasks", "seeds", "arms")
# These may change at any time, since no result depends on them.
FREE = ("checkpoint_every", "keep_checkpoints", "export_students")
PARTS = Parts(
    ("task", "attack", "arm", "seed"),
    (*GROWING, *FREE),
    Settings(),
    {name: make() for name, make in settings.NAMED.items()} | {"variants": None},
    # Of an attack.
    varying=("arms", "tasks"),
)

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
    found = parts.joined(before, now, PARTS, where)
    usual = settings.as_json(PARTS.usual)
    for field in GROWING:
        both = [*before.get(field, usual[field]), *found[field]]
        found[field] = list(dict.fromkeys(both))
    return found
