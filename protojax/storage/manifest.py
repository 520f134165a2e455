"""What a folder of a checkpoint holds, by hash, and whose it is.

A folder is as it was written if its manifest is and every file in it has the hash that
the manifest says. Whatever is wrong is a `DamagedError`: a file that is changed,
missing, unreadable or no file, a manifest of another form, or one of another step or
identity.
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
    """A folder that is not as it was written, or not the one that was asked for."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder: its files' hashes, and one of its own.

    Args:
        folder: all that is in it counts.
        content: what else to say, as JSON gives it back: `step`, `identity`, `extra`
            and `leaves`.
    """
    hashes = {
        path.relative_to(folder).as_posix(): files.hash_file(path)
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    }
    content = {**content, "files": hashes}
    files.write_json(folder / NAME, {"sha256": files.hash_json(content), **content})


def verify(folder: Path, step: int, identity: str) -> dict[str, Any]:
    """The content of a manifest, once all has been found as it was written.

    Args:
        folder: with the manifest.
        step: which step it must be.
        identity: what it must belong to.

    Returns:
        What `write` was given, and the hashes as `files`.

    Raises:
        DamagedError: naming the file.
    """
    path = folder / NAME
    content = _read(path)
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
    """What an intact manifest says."""
    with _readable(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"Expected {path} intact, found no JSON.") from error
    if not isinstance(content, dict):
        raise DamagedError(f"Expected {path} intact, found no JSON object.")
    if content.pop("sha256", None) != files.hash_json(content):
        raise DamagedError(f"Expected {path} intact, found another SHA-256.")
    # Earlier versions wrote none.
    content = {"identity": "", **content}
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise DamagedError(f"Expected {path} intact, found no {name} in it.")
    return content


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Names a file that cannot be read, whatever the reason."""
    try:
        # Asked first: one would wait for ever for what a pipe says.
        if path.exists() and not path.is_file():
            raise DamagedError(f"Expected {path} intact, found no file.")
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"Expected {path}, found no such file.") from error
    except OSError as error:
        raise DamagedError(f"Expected {path} intact, found {error}.") from error
