"""Files and folders written whole or not at all, and their hashes.

A file is written under a temporary name in the same folder and renamed once it is on
disk. All temporary names have the form `.NAME.protojax-<32 hex digits>.KIND`, which no
other program uses, so the leftovers of a killed process differ from a user's hidden
files.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from protojax import validate

# The rest is a suffix added by libraries that write next to the name they are given.
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.protojax-[0-9a-f]{32}\.(?P<kind>tmp|new|old)(?P<rest>\..*)?",
    re.DOTALL,
)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name next to a file's path; the file written there moves to the path.

    Args:
        path: the file; its folder is made if it does not exist.

    Yields:
        The path to write the file to. When the block ends, the file is flushed to disk
        and renamed; if the block raises, it is removed and `path` is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/new/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     [found.name for found in Path(folder, "new").iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = _temporary(path, uuid.uuid4().hex, "tmp")
    try:
        yield temporary
        # Before the rename, or a power failure could leave an empty file at `path`.
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """An open file that moves to its path once it is complete and on disk.

    Args:
        path: the file; its folder is made if it does not exist.

    Yields:
        The file, for bytes. If the block raises, `path` is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(f"{folder}/a.txt") as file:
    ...         _ = file.write(b"whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    # The file is closed before the outer context syncs it, so no byte is in a buffer.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as JSON, completely or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/a.json", {"rate": 0.5})
    ...     Path(folder, "a.json").read_text().split()
    ['{', '"rate":', '0.5', '}']
    """
    with atomic(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name next to a folder's path; the new folder moves to the path.

    An existing folder at `path` is first renamed, then the new folder is renamed to
    `path`, then the old one is removed. If the process dies between the two renames,
    `set_aside` finds the old folder and `remove_leftovers` restores it.

    Args:
        path: the folder; those above it are made if they do not exist.

    Yields:
        The path of the folder, which the block must create. When the block ends, its
        files are flushed to disk and it is renamed; if the block or a rename raises, it
        is removed and `path` is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for text in ("older", "newer"):
    ...         with atomic_folder(f"{folder}/a") as temporary:
    ...             temporary.mkdir()
    ...             _ = (temporary / "b.txt").write_text(text)
    ...     found = [(place.name, place.is_dir()) for place in Path(folder).iterdir()]
    ...     found, Path(folder, "a/b.txt").read_text()
    ([('a', True)], 'newer')
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    new, old = _temporary(path, unique, "new"), _temporary(path, unique, "old")
    try:
        yield new
        # Folders too: a file's own fsync does not keep its name in the folder.
        for found in new.rglob("*"):
            _sync(found) if found.is_file() else _sync_folder(found)
        _sync_folder(new)
        # A folder that is not empty cannot be replaced by a rename, unlike a file.
        if os.path.lexists(path):
            path.rename(old)
        try:
            new.rename(path)
        # Also on an interrupt: the older folder must not stay under its temporary name.
        except BaseException:
            if os.path.lexists(old):
                old.rename(path)
            raise
    finally:
        # By prefix: a library may have added its own suffix to the name it was given.
        for found in _entries(path.parent):
            if found.name.startswith(new.name):
                _remove(found)
    _sync_folder(path.parent)
    # Only now is the new name on disk; until then the old folder may be all there is.
    _remove(old)


def remove_leftovers(folder: str | os.PathLike, *, below: bool = False) -> None:
    """Removes the leftovers of killed writers of this module, and no other file.

    A folder that `atomic_folder` had renamed is restored if its path is free. No other
    process may be writing there.

    Args:
        folder: the folder that was written to; it need not exist.
        below: whether the folders below it are cleared too, at any depth; hidden ones,
            such as `.git`, and links are not entered.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ours = f".a.json.protojax-{'0' * 32}.tmp"
    ...     for name in (ours, ".env", ".a.json.123"):
    ...         Path(folder, name).touch()
    ...     remove_leftovers(folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['.a.json.123', '.env']
    """
    folder = Path(folder)
    # First, because the loop below removes every temporary name, these included.
    for place, old in set_aside(folder).items():
        old.rename(place)
    for path in _entries(folder):
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)
        elif below and not path.name.startswith(".") and _is_folder(path):
            remove_leftovers(path, below=True)


def set_aside(folder: str | os.PathLike) -> dict[Path, Path]:
    """The folders that a killed `atomic_folder` has moved but not replaced.

    Args:
        folder: the folder that they were in; it need not exist.

    Returns:
        Original path -> present path.

    >>> set_aside("no/such/folder")
    {}
    """
    found = {}
    for path in _entries(Path(folder)):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["kind"] == "old" and not match["rest"]:
            place = path.with_name(match["name"])
            # Where the place is taken, the replacement was complete.
            if not os.path.lexists(place):
                found[place] = path
    return found


def fingerprint(*values: str | np.ndarray) -> str:
    """The SHA-256 (hexadecimal) of the inputs of a cached result.

    Strings are hashed as UTF-8, arrays by dtype, shape and bytes.

    >>> fingerprint("ab", "c") == fingerprint("a", "bc")
    False
    >>> fingerprint(np.zeros(2))[:8], fingerprint(np.zeros((2, 1)))[:8]
    ('...', '...')
    """
    chunks = []
    for value in values:
        if isinstance(value, str):
            # JSON may hold half of a surrogate pair, which strict UTF-8 refuses.
            content = value.encode("utf-8", "surrogatepass")
            kind = f"str {len(content)};"
        else:
            array = np.asarray(value)
            content, kind = _bytes_of(array), f"{array.dtype} {array.shape};"
        # The header gives the size, so different lists of values have different bytes.
        chunks += [kind.encode(), content]
    return _sha256(chunks)


def hash_arrays(arrays: Mapping[str, Any], *parts: str) -> str:
    """The SHA-256 (hexadecimal) of named arrays and further strings.

    Args:
        arrays: name -> array, of NumPy or JAX; name, dtype, shape, bytes and order
            matter.
        *parts: hashes or names.

    >>> one, other = {"a": np.zeros(2)}, {"b": np.zeros(2)}
    >>> hash_arrays(one) == hash_arrays(one), hash_arrays(one) == hash_arrays(other)
    (True, False)
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    shapes = {name: [str(x.dtype), list(x.shape)] for name, x in held.items()}
    # The header fixes the length of what follows, so different inputs have different
    # bytes.
    header = json.dumps([shapes, parts]).encode()
    size = len(header).to_bytes(8, "little")
    return _sha256([size + header, *map(_bytes_of, held.values())])


def hash_json(value: Any) -> str:
    """The SHA-256 (hexadecimal) of a JSON value, whatever the order of its keys.

    >>> hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    True
    """
    return _sha256([json.dumps(value, sort_keys=True).encode()])


def hash_file(path: str | os.PathLike) -> str:
    """The SHA-256 (hexadecimal) of a file.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     hash_file(file.name)[:8]
    'e3b0c442'
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(chunks: Iterable[bytes | np.ndarray]) -> str:
    """The SHA-256 of bytes, one chunk after the other."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, in row-major order."""
    # The bytes of objects are addresses, which differ from run to run.
    validate.require(not array.dtype.hasobject, "dtype", array.dtype, "plain")
    # A view, because `tobytes` would copy the array.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _temporary(path: Path, unique: str, kind: str) -> Path:
    """The temporary path of a file or folder, next to its final path."""
    return path.with_name(f".{path.name}.protojax-{unique}.{kind}")


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted; none where the folder does not exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder with its contents, if it exists."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on disk, where the system supports it."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
