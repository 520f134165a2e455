"""The manifest of a checkpoint: the hashes of its files, its step and its identity.

A folder is intact if its manifest is intact and every file has the hash in the
manifest. Every defect is a `DamagedError`: a file that is changed, missing, unreadable
or not a regular file, a manifest of another form, or one of another step or identity.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protojax.storage import files

NAME = "manifest.json"
_FIELDS = {"step": int, "identity": str, "extra": dict, "leaves": dict, "files": dict}


class DamagedError(ValueError):
    """An error for a folder that is damaged or not the requested one."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder: its files' hashes, and one of its own.

    Args:
        folder: all files in it are hashed.
        content: further entries, in the types that JSON reads back: `step`, `identity`,
            `extra` and `leaves`.
    """
    hashes = {
        path.relative_to(folder).as_posix(): files.hash_file(path)
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    }
    content = {**content, "files": hashes}
    # Its own hash covers `step`, `identity` and `extra`, which no file's hash does.
    files.write_json(folder / NAME, {"sha256": files.hash_json(content), **content})


def verify(folder: Path, step: int, identity: str) -> dict[str, Any]:
    """The content of a manifest, after a check of every hash.

    Args:
        folder: with the manifest.
        step: the step that it must be of.
        identity: the identity that it must have.

    Returns:
        The content given to `write`, and the hashes as `files`.

    Raises:
        DamagedError: on any defect, with the name of the file.
    """
    path = folder / NAME
    content = _read(path)
    # Before the files: a folder of another run need not be hashed.
    for name, expected in (("step", step), ("identity", identity)):
        if content[name] != expected:
            raise DamagedError(
                f"Expected {path} with {name}={expected!r}, found "
                f"{name}={content[name]!r}."
            )
    for name, expected in content["files"].items():
        path = folder / name
        with _readable(path):
            found = files.hash_file(path)
        if found != expected:
            raise DamagedError(f"Expected {path} intact, found another SHA-256.")
    return content


def _read(path: Path) -> dict[str, Any]:
    """The content of a manifest that is intact."""
    with _readable(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    # JSON that is nested too deeply is a RecursionError, not a ValueError.
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"Expected {path} intact, found no JSON.") from error
    if not isinstance(content, dict):
        raise DamagedError(f"Expected {path} intact, found no JSON object.")
    if content.pop("sha256", None) != files.hash_json(content):
        raise DamagedError(f"Expected {path} intact, found another SHA-256.")
    # Earlier versions wrote no identity.
    content = {"identity": "", **content}
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise DamagedError(f"Expected {path} intact, found no {name} in it.")
    return content


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context that turns every failure to read a file into a `DamagedError`."""
    try:
        # Checked before reading, because reading a pipe would wait forever.
        if path.exists() and not path.is_file():
            raise DamagedError(f"Expected {path} intact, found no file.")
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"Expected {path}, found no such file.") from error
    except OSError as error:
        raise DamagedError(f"Expected {path} intact, found {error}.") from error
