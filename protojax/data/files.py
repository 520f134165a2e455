"""Rows of a task from files with named columns.

Rows are checked as they are read. An error names the file and the row. The few defects
that are repaired (bytes that are not UTF-8, rows without text) are counted and logged,
as are the classes found.
"""

import collections
import difflib
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Examples
from protojax.data import labels as labels_lib
from protojax.data import readers
from protojax.data.examples import rows_to_hold_out, take

_logger = logging.getLogger("protojax")
# Without a test file, this share of the training file is the test set, up to a limit.
_HELD_OUT_SHARE, _HELD_OUT_MOST = 0.2, 2000


class Task(NamedTuple):
    """The description of a task, known before its rows are read.

    Attributes:
        name: the task's name, also that of its local folder.
        text: the column of the first (or only) text.
        pair: the column of the second text, or None.
        label: the column of the label, "" for none.
        label_names: the name of each class; empty for scores, or where they are
            to be read from the training rows.
        problem: "classification" or "regression".
        metrics: names of metrics, the main one first.
        hub: id and configuration on the hub; None for bundled or local tasks.
        test: the split to evaluate on.
        source: the column that names the origin of a training row, or None.
    """

    name: str
    text: str
    pair: str | None = None
    label: str = "label"
    label_names: tuple[str, ...] = ()
    problem: str = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str | None] | None = None
    test: str = "validation"
    source: str | None = None

    @property
    def num_labels(self) -> int:
        """The number of outputs of a model for this task."""
        return 1 if self.problem == "regression" else len(self.label_names)


def load_files(
    train: str,
    test: str = "",
    *,
    text: str,
    label: str,
    pair: str | None = None,
    source: str | None = None,
    problem: str = "classification",
    encoding: str = "utf-8",
) -> tuple[Examples, Examples, Task]:
    """The rows of the user's own JSONL, CSV, TSV or Parquet files.

    Args:
        train: the file of the training rows.
        test: the file of the test rows; "" to hold out a fifth of the training rows.
        text: the column of the first (or only) text.
        label: the column of the classes (names or numbers) or scores.
        pair: the column of the second text, or None.
        source: the column that names the origin of a training row, or None.
        problem: "classification" or "regression".
        encoding: the encoding of text files.

    Returns:
        Training rows, test rows, and the task as found.

    Raises:
        ValueError, FileNotFoundError: as `load` does.
    """
    validate.one_of(("classification", "regression"), problem=problem)
    task = Task("files", text, pair, label, (), problem, source=source)
    paths = [Path(path) for path in (train, test) if path]
    return load(task, *(readers.open_file(path, encoding) for path in paths))


def load(
    task: Task, train: readers.Source, test: readers.Source | None = None
) -> tuple[Examples, Examples, Task]:
    """The rows of a task, checked, with labels as numbers.

    Args:
        task: the description of the task.
        train: the training rows.
        test: the test rows; None to hold out a fifth of the training rows.

    Returns:
        Training rows, test rows, and the task with its label names filled in.

    Raises:
        ValueError: if a file or a row is not valid.
        FileNotFoundError: if there is no such file.
    """
    tables = [read_table(train, task)]
    if test:
        # Only training rows are divided among nodes, so a test file needs no sources.
        tables.append(read_table(test, task._replace(source=None)))
    if task.problem == "classification":
        for table in tables:
            labels_lib.check_kinds(table, task.label)
    if len(only := set(map(labels_lib.name_of, tables[0].labels))) < 2:
        raise ValueError(f"Expected two labels in {train.name}, found only {only}.")
    if task.problem == "regression":
        labels = [labels_lib.scores(table) for table in tables]
    else:
        # Files may give the class as its number where the task knows the names.
        known = {str(i): i for i in range(len(task.label_names))}
        # From training rows alone: an unknown test label is an error, no new class.
        names = task.label_names or labels_lib.found_names(tables[0], task.label)
        task = task._replace(label_names=names)
        # A name takes precedence over a number: a class may be called "1".
        known |= {name: i for i, name in enumerate(names)}
        labels = [labels_lib.classes(table, known) for table in tables]
    for table, column in zip(tables, labels, strict=True):
        labels_lib.log_counts(table.source, column, task.label_names)
    examples = [
        Examples(table.texts, table.pairs, column, table.origins)
        for table, column in zip(tables, labels, strict=True)
    ]
    if test is None:
        examples = _hold_out(examples[0], train.name)
    return *examples, task


def _hold_out(examples: Examples, name: str) -> tuple[Examples, Examples]:
    """The remaining training rows and a fixed stratified test set of them."""
    rows, least = len(examples.texts), 1
    if np.issubdtype(examples.labels.dtype, np.integer):
        counts = np.bincount(examples.labels)
        # The only row of a class is not held out, see `rows_to_hold_out`.
        counts = counts[counts > 1]
        rows, least = int(counts.sum()), len(counts)
    # At least one row of each class that can spare one.
    count = max(least, min(math.ceil(_HELD_OUT_SHARE * rows), _HELD_OUT_MOST))
    held_out = rows_to_hold_out(examples.labels, count)
    rows = len(examples.texts)
    _logger.warning("%s: no test file, %d of %d rows held out.", name, count, rows)
    kept = np.setdiff1d(np.arange(rows), held_out)
    # In the file's order, so that rows can be found in it again.
    return take(examples, kept), take(examples, np.sort(held_out))


def read_table(source: readers.Source, task: Task) -> labels_lib.Table:
    """The columns of a task, with repairs, which are counted and logged.

    Args:
        source: the rows.
        task: names the columns; label "" reads none, and the table has no labels.

    Raises:
        ValueError: on a row without one of the columns, or with no text in any row.
    """
    names = [name for name in (task.text, task.pair) if name]
    table = labels_lib.Table(
        source.name, [], [], [] if task.pair else None, [], [] if task.source else None
    )
    repairs = collections.Counter()
    for number, row in source.rows:
        for name in (*names, *filter(None, [task.label, task.source])):
            if name not in row:
                raise ValueError(_missing_column(source.name, number, name, [*row]))
        # Joined files repeat the header, which would become a row with its own class.
        _refuse_header(source.name, number, row, (*names, *filter(None, [task.label])))
        found = [_text(row[name], source.name, number, name) for name in names]
        if not all(text.strip() for text in found):
            repairs["dropped, no text"] += 1
            continue
        # A JSON escape may hold half of a surrogate pair, which no tokenizer accepts.
        texts = [text.encode(errors="replace").decode() for text in found]
        repairs["broken characters replaced"] += texts != found
        table.numbers.append(number)
        table.texts.append(texts[0])
        if table.pairs is not None:
            table.pairs.append(texts[1])
        if task.label:
            table.labels.append(row[task.label])
        if table.origins is not None:
            table.origins.append(str(row[task.source]))
    # Unary plus drops the counts of 0.
    for repair, count in (+repairs).items():
        _logger.warning("%s: %d rows: %s.", source.name, count, repair)
    if not table.texts:
        raise ValueError(f"Expected rows in {source.name}, found none with a text.")
    return table


def _missing_column(source: str, number: int, name: str, found: list[str]) -> str:
    """The error message for a column that is missing."""
    near = difflib.get_close_matches(name, found, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    columns = ", ".join(found)
    return f"{source}, row {number}: expected column {name!r}, found {columns}.{hint}"


def _refuse_header(source: str, number: int, row: dict, names: tuple) -> None:
    """Raises on a row whose values are the names of its columns."""
    if all(isinstance(row[name], str) and row[name].strip() == name for name in names):
        raise ValueError(
            f"{source}, row {number}: expected a row, found the header again. Were "
            "two files joined?"
        )


def _text(value: Any, source: str, number: int, column: str) -> str:
    """The text of a cell, "" where the cell is empty."""
    if labels_lib.is_missing(value):
        return ""
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise ValueError(f"{source}, row {number}: {column!r} is no text but {kind}.")
    return str(value)
