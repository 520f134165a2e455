"""Files of rows: JSONL, CSV, TSV and Parquet, read a row at a time.

An error names the file and the line; bytes that are not UTF-8 are replaced, counted and
logged.
"""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

_logger = logging.getLogger("protojax")


class Source(NamedTuple):
    """What to call a source of rows in an error, and its rows."""

    name: str
    rows: Iterable[tuple[int, dict[str, Any]]]  # line or row number, columns


def find(folder: Path, stem: str) -> Path | None:
    """The one file of that stem in a format that can be read, or None."""
    paths = [folder / f"{stem}.{suffix}" for suffix in READERS]
    found = [path for path in paths if path.exists()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"Expected one file {stem}.* in {folder}, found {names}.")
    return found[0] if found else None


def open_file(path: Path) -> Source:
    """The rows of a local file, read as its suffix says."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}, found none.")
    reader = READERS.get(path.suffix.removeprefix("."))
    if reader is None:
        raise ValueError(f"Expected {path} to end in one of {', '.join(READERS)}.")
    return Source(str(path), reader(path))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file; bytes that are not UTF-8 are replaced and counted."""
    replaced = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
            try:
                yield raw.decode()
            except UnicodeDecodeError:
                replaced += 1
                yield raw.decode(errors="replace")
    if replaced:
        _logger.warning("%s: replaced bytes in %d lines not UTF-8.", path, replaced)


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """One JSON object a line."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{...}}.")
        yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict]]:
    """Comma-separated fields, quoted where need be."""
    # A field may be longer than the csv module's own limit; a quote left open must not
    # swallow the rest of the file, hence strict.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines(path), strict=True)
    try:
        yield from _named_fields(path, ((reader.line_num, row) for row in reader))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _read_tsv(path: Path) -> Iterator[tuple[int, dict]]:
    """Tab-separated fields, never quoted: a quotation mark is part of the text."""
    lines = (line.rstrip("\r\n") for line in _lines(path))
    fields = ((n, line.split("\t") if line else []) for n, line in enumerate(lines, 1))
    yield from _named_fields(path, fields)


def _named_fields(
    path: Path, lines: Iterable[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict]]:
    """Lists of fields, the header first -> rows."""
    lines = ((number, fields) for number, fields in lines if fields)
    _, header = next(lines, (0, []))
    for number, fields in lines:
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} fields "
                f"({', '.join(header)}), found {len(fields)}."
            )
        yield number, dict(zip(header, fields, strict=True))


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    """All rows of a parquet file."""
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error
    yield from enumerate(table.to_pylist(), 1)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}
