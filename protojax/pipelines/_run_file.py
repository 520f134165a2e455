"""The file run.json of a defence: its settings, inputs, versions and times."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protojax import __version__, storage

NAME, WORK, _LOCK = "run.json", "work", ".lock"
# Everything that a run writes beside these two.
OUTPUTS = (
    "student",
    "student_prototypes.safetensors",
    "calibration.json",
    "leakage.json",
    "verdict.csv",
    "triggers.json",
    "report.html",
    "calibrated",
    "items.jsonl",
    "history.jsonl",
)
_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optax", "transformers", "tokenizers")
_MODEL_FILES = ("config.json", "*.safetensors", "tokenizer.json", "vocab.*")


def open_run(out: Path, identity: Mapping[str, Any]) -> dict[str, float]:
    """The seconds that a stopped run of these settings took; nothing is written.

    A folder fixes its settings once something was computed in it.

    Args:
        out: the folder of the outputs; it need not exist.
        identity: every setting and every input's hash.

    Returns:
        Stage -> seconds, {} for a new run.

    Raises:
        OSError: where it is no folder, or holds results that no run wrote.
        ValueError: where it holds a run of other settings; names one of them.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"Expected a folder at {out}, found a file.")
    path = out / NAME
    if not path.exists():
        held = [name for name in (*OUTPUTS, WORK) if (out / name).exists()]
        if held:
            raise FileExistsError(
                f"{out} holds {', '.join(held)} but no {NAME}: no run of protojax "
                "wrote that. Give another folder."
            )
        return {}
    try:
        content = json.loads(path.read_text())
        before, seconds = dict(content["identity"]), dict(content["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a run writes ({error!r}).") from error
    if not _computed(out / WORK):
        return {}
    for name in sorted({*before, *identity}, key=lambda name: name not in identity):
        old, new = before.get(name), identity.get(name)
        if old != new:
            raise ValueError(
                f"{out} holds a run with other settings: {name} was {old!r}, now "
                f"{new!r}. Give another folder, or the settings of {path}."
            )
    return seconds


@contextlib.contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Locks the folder of a run for this process, and removes leftovers of killed ones.

    Args:
        out: the folder of the outputs; made if it does not exist.

    Raises:
        ValueError: another process works in it.
    """
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("a") as file:
        try:
            # The system releases this lock however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in {out}.") from None
        storage.remove_leftovers(out)
        storage.remove_leftovers(work, below=True)
        yield


class Clock:
    """The seconds that each stage took, by its name.

    Attributes:
        seconds: stage -> seconds, those of a stopped run among them.
    """

    def __init__(self, before: dict[str, float]):
        # A stopped run goes on, and so does its time.
        self.seconds = dict(before)
        self.last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        """Counts the time since the last call for a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


@contextlib.contextmanager
def recorded(
    out: Path, identity: Mapping[str, Any], **common: Any
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A context in which a run works alone in its folder, with run.json beside it.

    The file is written at the beginning and, with the time spent so far, where the body
    fails.

    Args:
        out: the folder of the outputs.
        identity: from `identity_of`.
        **common: paths, seconds and command, see `write_run`.

    Yields:
        The function that writes the figures of the finished run.
    """
    with only_process(out):
        write_run(out, identity, **common)
        try:
            yield lambda result: write_run(out, identity, **common, result=result)
        except BaseException:
            write_run(out, identity, **common)
            raise


def _computed(work: Path) -> bool:
    """Whether a run has computed anything."""
    return work.is_dir() and any(path.name != _LOCK for path in work.iterdir())


def identity_of(
    settings: Mapping[str, Any],
    files: Mapping[str, Path | None],
    models: Mapping[str, str | None],
) -> dict[str, Any]:
    """Everything that a run's results depend on, as JSON holds it.

    Args:
        settings: path of a field -> its value.
        files: name -> the user's file, or None.
        models: name -> the source of a model, or None.
    """
    hashes = {
        f"{name}.sha256": path and storage.hash_file(path)
        for name, path in files.items()
    }
    sources = {f"{name}.files": hash_model(source) for name, source in models.items()}
    # By content, so that a model that was moved is the same.
    named = {path for path in settings if path.endswith(".model")}
    kept = {path: value for path, value in settings.items() if path not in named}
    # As JSON reads it back: tuples are lists there.
    return json.loads(json.dumps({**kept, **hashes, **sources}))


def hash_model(source: str | None) -> str | None:
    """The SHA-256 over a local model's files; the name itself of any other source."""
    folder = Path(source or "").expanduser()
    if not source or not folder.is_dir():
        return source
    paths = sorted({path for glob in _MODEL_FILES for path in folder.glob(glob)})
    return storage.fingerprint(
        *(part for path in paths for part in (path.name, storage.hash_file(path)))
    )


def write_run(
    out: Path,
    identity: Mapping[str, Any],
    *,
    paths: Mapping[str, str],
    seconds: Mapping[str, float],
    command: Sequence[str] = (),
    result: Mapping[str, Any] | None = None,
) -> None:
    """Writes run.json.

    Args:
        out: the folder of the outputs.
        identity: from `identity_of`.
        paths: of inputs and models, as they were given.
        seconds: stage -> what it took.
        command: the command line, () where there was none.
        result: figures of a finished run; None while it runs.
    """
    content = {
        "finished": result is not None,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "paths": dict(paths),
        "versions": versions(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "result": dict(result or {}),
        "identity": dict(identity),
    }
    storage.write_json(out / NAME, content)


def about(paths: Mapping[str, str]) -> dict[str, str]:
    """The lines of a model card on where it comes from: sources and versions.

    Args:
        paths: of inputs and models, by name.
    """
    return {f"source of {name}": path for name, path in paths.items()} | versions()


def versions() -> dict[str, str]:
    """The versions of Python, protojax and the packages that figures depend on."""
    found = {"protojax": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    folder = Path(__file__).parent
    # In a checkout; an installed package has a version only.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        if commit.returncode == 0 and (folder.parents[1] / ".git").exists():
            found["commit"] = commit.stdout.strip()
    return found
