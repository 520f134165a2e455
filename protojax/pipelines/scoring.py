"""New rows scored by a saved student, written back with all their columns."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from protojax import storage, validate
from protojax.base import Examples
from protojax.data import files, readers
from protojax.models import hf
from protojax.pipelines import inputs
from protojax.pipelines.settings import Columns
from protojax.training import predict
from protojax.training.predict import Features, Lengths

SUFFIXES = (".jsonl", ".csv")
PREDICTED, PROBABILITIES = "predicted", "probabilities"


def score(
    student: str | Path,
    rows: str | Path,
    out: str | Path,
    *,
    columns: Columns | None = None,
    lengths: Lengths | None = None,
) -> int:
    """The number of rows that a student's classes were written for.

    Every row of the file is one row of the result, in the same order and with all its
    columns: with `predicted`, and `probabilities` (JSONL) or a column `p:NAME` a class
    (CSV). A row without a text has none of them.

    Args:
        student: the folder of a classifier, such as OUT/student.
        rows: a CSV, TSV, JSONL or Parquet file.
        out: the file to write, whose suffix, .jsonl or .csv, is its form.
        columns: of the file; only text, pair and encoding are read.
        lengths: how rows are padded.

    Raises:
        OSError, ValueError: in one line, where a file is missing or does not fit.
    """
    columns, lengths = columns or Columns(), lengths or Lengths()
    rows, out = Path(rows), Path(out)
    validate.require(
        out.suffix in SUFFIXES, "out", str(out), "ending in .jsonl or .csv"
    )
    if out.exists() and out.is_dir():
        raise IsADirectoryError(f"Expected a file at {out}, found a folder.")
    source = inputs.open_rows(rows, columns.encoding)
    if out.exists() and out.samefile(rows):
        raise ValueError(f"Expected another file than {rows} to write to.")
    names = hf.class_names(student)
    _refuse_columns(source, names)
    task = files.Task("files", columns.text, columns.pair or None, label="")
    table = files.read_table(source, task)
    model = hf.load_hf(student, num_labels=len(names))
    examples = Examples(table.texts, table.pairs, np.zeros(len(table.texts), np.int32))
    logits = predict.ask(model, examples, lengths, Features()).logits
    chances = special.softmax(logits.astype(np.float64), axis=1).round(6)
    said = dict(zip(table.numbers, chances.tolist(), strict=True))
    writer = {".jsonl": _write_jsonl, ".csv": _write_csv}[out.suffix]
    scored = [(cells, said.get(number)) for number, cells in source.rows]
    writer(out, scored, names)
    return len(said)


Scored = Sequence[tuple[dict[str, Any], list[float] | None]]


def _refuse_columns(source: readers.Source, names: Sequence[str]) -> None:
    """Raises where the file has columns of the names that are written."""
    written = {PREDICTED, PROBABILITIES, *(f"p:{name}" for name in names)}
    held = sorted(written & {name for _, cells in source.rows for name in cells})
    bound = f"without {', '.join(held)}, which score writes"
    validate.require(not held, f"columns of {source.name}", held, bound)


def _best(names: Sequence[str], chances: Sequence[float]) -> str:
    """The name of the most probable class."""
    return names[int(np.argmax(chances))]


def _write_jsonl(path: Path, rows: Scored, names: Sequence[str]) -> None:
    """Writes one object for each row."""
    with storage.atomic(path) as file:
        for cells, chances in rows:
            found = {PREDICTED: None, PROBABILITIES: None}
            if chances is not None:
                probabilities = dict(zip(names, chances, strict=True))
                found = {PREDICTED: _best(names, chances), PROBABILITIES: probabilities}
            # Parquet has types, such as dates, that JSON has not.
            line = json.dumps({**cells, **found}, ensure_ascii=False, default=str)
            file.write((line + "\n").encode("utf-8", "replace"))


def _write_csv(path: Path, rows: Scored, names: Sequence[str]) -> None:
    """Writes one line for each row; the user's own cells stay as they are."""
    # In the order in which they first occur: objects of JSONL may differ.
    header = list(dict.fromkeys(name for cells, _ in rows for name in cells))
    with storage.atomic(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*header, PREDICTED, *(f"p:{name}" for name in names)])
        for cells, chances in rows:
            found = [""] * (1 + len(names))
            if chances is not None:
                found = [_best(names, chances), *chances]
            writer.writerow([*(_cell(cells.get(name)) for name in header), *found])
        text.flush()
        # The caller closes the file itself.
        text.detach()


def _cell(value: Any) -> Any:
    """A value as one cell: lists and objects as JSON."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value
