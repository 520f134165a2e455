"""Readers of JSONL, CSV, TSV and Parquet files, one row at a time.

An error names the file and the line. A few bytes that are not UTF-8 are replaced,
counted and logged; a file with more of them is refused, because it probably has another
encoding.
"""

import codecs
import collections
import csv
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

_logger = logging.getLogger("protojax")
# Lines with bytes that are not UTF-8 are repaired up to this number, or this share.
_REPAIRED_LINES, _REPAIRED_SHARE = 10, 0.01
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # starts with the UTF-16 mark, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Source(NamedTuple):
    """Rows, and the name that errors give to their source."""

    name: str
    rows: Iterable[tuple[int, dict[str, Any]]]  # line or row number, columns


def find(folder: Path, stem: str) -> Path | None:
    """The only file of a stem in a format that can be read, or None."""
    formats = list(READERS)
    found = [
        path
        for path in folder.glob(f"{stem}.*")
        if _format(path) and path.name.count(".") == stem.count(".") + _suffixes(path)
    ]
    found.sort(key=lambda path: (formats.index(_format(path)), path.name))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"Expected one file {stem}.* in {folder}, found {names}.")
    return found[0] if found else None


def open_file(path: Path, encoding: str = "utf-8") -> Source:
    """The rows of a local file, read by the reader for its suffix.

    Args:
        path: ends in one of `READERS`, in upper or lower case, with or without `.gz`
            after it.
        encoding: the encoding of a text file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}, found none.")
    reader = READERS.get(_format(path))
    if reader is None:
        raise ValueError(
            f"Expected {path} to end in one of {', '.join(READERS)}, or in .gz behind "
            "one of those of text."
        )
    return Source(str(path), reader(path, encoding))


def _suffixes(path: Path) -> int:
    """The number of suffixes that name the format: 1 in `.csv`, 2 in `.csv.gz`."""
    return 2 if path.suffix.lower() == ".gz" else 1


def _format(path: Path) -> str:
    """The key in `READERS` that a file's name ends in, "" for none."""
    name = path.name.lower()
    found = name.removesuffix(".gz").rpartition(".")[2]
    compressible = found != "parquet" or not name.endswith(".gz")
    return found if found in READERS and compressible else ""


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a text file, split at newlines only."""
    opener = gzip.open if _suffixes(path) == 2 else open
    try:
        # The codec's canonical name, since users also write "utf8" or "UTF-8".
        if codecs.lookup(encoding).name == "utf-8":
            # As bytes, so that a bad line can be repaired and reading goes on.
            with opener(path, "rb") as file:
                yield from _utf8_lines(path, file)
        else:
            # Universal newlines would split a quoted field at a lone carriage return.
            with opener(path, "rt", encoding=encoding, newline="\n") as file:
                yield from file
    except LookupError as error:
        raise ValueError(
            "Expected data.files.encoding such as 'utf-8', 'latin-1', 'cp1252' or "
            f"'utf-16', found data.files.encoding={encoding!r}."
        ) from error
    except UnicodeError as error:
        raise ValueError(
            f"{path}: not {encoding}, which data.files.encoding says: {error}."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}.") from error


def _utf8_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a UTF-8 file; other bytes are replaced and counted."""
    replaced = number = 0
    for number, raw in enumerate(file, 1):
        if number == 1:
            _refuse_utf16(path, raw)
            # Spreadsheets write the mark, which would start the first column's name.
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            replaced += 1
            yield raw.decode(errors="replace")
    # Raised at the end, when the share of such lines is known.
    if replaced > max(_REPAIRED_LINES, _REPAIRED_SHARE * number):
        raise ValueError(
            f"Expected UTF-8 in {path}, found other bytes in {replaced} of {number} "
            "lines. Name the encoding in data.files.encoding, such as 'latin-1' or "
            "'cp1252'."
        )
    if replaced:
        _logger.warning("%s: replaced bytes in %d lines not UTF-8.", path, replaced)


def _refuse_utf16(path: Path, line: bytes) -> None:
    """Raises on a first line that is encoded in UTF-16 or UTF-32."""
    marks = [name for mark, name in _MARKS.items() if line.startswith(mark)]
    # Without a mark it shows in Latin letters: every second byte is zero.
    if not marks and line[:1000].count(0) * 3 > len(line[:1000]):
        marks = ["utf-16-be" if line[0] == 0 else "utf-16-le"]
    if marks:
        raise ValueError(
            f"Expected UTF-8 in {path}, found {marks[0].upper()}: set "
            f"data.files.encoding={marks[0]!r}, or save it as UTF-8."
        )


def _check_columns(where: str, names: Iterable[str]) -> None:
    """Raises where two columns have the same name; unnamed columns are ignored."""
    places = collections.defaultdict(list)
    for place, name in enumerate(names, 1):
        places[name].append(str(place))
    for name, found in places.items():
        if name and len(found) > 1:
            positions = " and ".join(found)
            raise ValueError(
                f"{where}: expected each column once, found {name!r} at positions "
                f"{positions}."
            )


def _read_jsonl(path: Path, encoding: str) -> Iterator[tuple[int, dict]]:
    """The rows of a file with one JSON object per line."""

    # `json` would silently keep the last of two values with the same key.
    repeated = []

    def row_of(pairs: list[tuple[str, Any]]) -> dict:
        row = dict(pairs)
        if len(row) < len(pairs):
            repeated.append([name for name, _ in pairs])
        return row

    for number, line in enumerate(_lines(path, encoding), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=row_of)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}.") from error
        for names in repeated:
            _check_columns(f"{path}, line {number}", names)
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{...}}.")
        yield number, row


def _read_csv(path: Path, encoding: str) -> Iterator[tuple[int, dict]]:
    """The rows of comma-separated fields, quoted where necessary."""
    # A field may be longer than the csv module's own limit; a quote left open must not
    # swallow the rest of the file, hence strict.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines(path, encoding), strict=True)
    try:
        yield from _named_fields(path, ((reader.line_num, row) for row in reader))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _read_tsv(path: Path, encoding: str) -> Iterator[tuple[int, dict]]:
    """The rows of tab-separated fields; a quotation mark is part of the text."""
    # Not the csv module: a quotation mark is text here, as in GLUE, and need not close.
    lines = (line.rstrip("\r\n") for line in _lines(path, encoding))
    fields = ((n, line.split("\t") if line else []) for n, line in enumerate(lines, 1))
    yield from _named_fields(path, fields)


def _named_fields(
    path: Path, lines: Iterable[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict]]:
    """The rows made of lists of fields, of which the first is the header."""
    lines = ((number, fields) for number, fields in lines if fields)
    first, header = next(lines, (0, []))
    _check_columns(f"{path}, line {first}", header)
    for number, fields in lines:
        # Never padded: one field too few may put the label in another column.
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: expected {len(header)} fields "
                f"({', '.join(header)}), found {len(fields)}."
            )
        yield number, dict(zip(header, fields, strict=True))


def _read_parquet(path: Path, encoding: str) -> Iterator[tuple[int, dict]]:
    """The rows of a Parquet file; its text is always UTF-8, so `encoding` is unused."""
    del encoding
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(str(path), file.schema_arrow.names)
            table = file.read()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error
    yield from enumerate(table.to_pylist(), 1)


READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, dict]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "ndjson": _read_jsonl,
}
