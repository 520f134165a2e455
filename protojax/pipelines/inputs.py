"""The user's rows and references, read from files and given the teacher's classes."""

import difflib
import logging
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Examples
from protojax.data import examples as examples_lib
from protojax.data import files, readers
from protojax.data import labels as labels_lib
from protojax.data.labels import Table
from protojax.pipelines.settings import Columns

_logger = logging.getLogger("protojax")
# Below, few references of a class are left to compare a row with.
FEW_REFERENCES = 300
# The beginning of a student that is some layers of the teacher.
LAYERS = "layers:"
_MARKS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", ""), False),
}


class Sheet(NamedTuple):
    """The rows of a file that have a text, with everything that the file says of them.

    Attributes:
        table: texts, labels as they are in the file, and line numbers.
        cells: all columns of each row.
        places: `[rows]`, int, the place of each row among all rows, with those that
            have no text (of a file that holds both: among its rows, or references).
        total: the number of all these.
    """

    table: Table
    cells: list[Mapping[str, Any]]
    places: np.ndarray
    total: int


class Labelled(NamedTuple):
    """Rows with labels as classes of the teacher.

    Attributes:
        examples: the rows; all labels are 0 where the file has none.
        lines: `[rows]`, int, the line of each row in the user's file.
        labelled: whether the file has labels.
    """

    examples: Examples
    lines: np.ndarray
    labelled: bool


def open_rows(path: Path, encoding: str) -> readers.Source:
    """All rows of a JSONL, CSV, TSV or Parquet file.

    Args:
        path: the file.
        encoding: of a text file.

    Raises:
        OSError, ValueError: in one line that names the file and the row.
    """
    try:
        source = readers.open_file(path, encoding)
        rows = list(source.rows)
    except ValueError as error:
        # The readers name the field of a study's config.
        said = str(error).replace("data.files.encoding", "columns.encoding")
        raise ValueError(said) from error
    if not rows:
        raise ValueError(f"Expected rows in {path}, found none.")
    return readers.Source(source.name, rows)


def open_both(
    rows: Path, references: Path | None, column: str, encoding: str
) -> tuple[readers.Source, ...]:
    """The rows and the references, from two files or from one.

    Args:
        rows: the file of the rows.
        references: a file of references; None where a column of the rows marks them.
        column: marks references by true or false; "" where they are a file.
        encoding: of text files.

    Raises:
        OSError, ValueError: in one line, where a file is missing or does not fit.
    """
    if (references is None) == (column == ""):
        raise ValueError(
            "Expected references as a file, or a column of the rows that marks them "
            "(--reference-column), not both or none."
        )
    source = open_rows(rows, encoding)
    if references is None:
        return split_rows(source, column)
    if not references.is_file():
        raise FileNotFoundError(f"Expected a file at {references}, found none.")
    if rows.samefile(references):
        raise ValueError(
            f"Expected references other than the rows, found {rows} as both."
        )
    return source, open_rows(references, encoding)


def student_source(student: str, teacher: str | None) -> tuple[str, tuple[int, ...]]:
    """The source of a student's first weights, and which layers of it, () for all.

    Args:
        student: a folder, "FOLDER:0,2" for some of its layers, "layers:0,2" of the
            teacher, or "scratch".
        teacher: the teacher's folder, None where there is none.

    Raises:
        ValueError: where there is no teacher to take layers of.

    >>> student_source("miniLM:0,2", None), student_source("layers:1", "big")
    (('miniLM', (0, 2)), ('big', (1,)))
    """
    if student.startswith(LAYERS):
        numbers = student.removeprefix(LAYERS).split(",")
        bound = f"{LAYERS}0,2,5, the numbers of layers of the teacher"
        fits = all(part.strip().isdigit() for part in numbers)
        validate.require(fits, "student", student, bound)
        bound = "a folder, where there is no teacher to take layers of"
        validate.require(teacher is not None, "student", student, bound)
        return teacher, tuple(map(int, numbers))
    some = re.fullmatch(r"(.+):(\d+(?:,\d+)*)", student)
    return (some[1], tuple(map(int, some[2].split(",")))) if some else (student, ())


def split_rows(source: readers.Source, column: str) -> tuple[readers.Source, ...]:
    """The rows and the references of one file.

    Args:
        source: the rows of the file.
        column: marks references by true or false.

    Raises:
        ValueError: on a mark that is neither, or where all or no rows are marked.

    >>> rows = [(2, {"ok": "yes", "text": "a"}), (3, {"ok": "", "text": "b"})]
    >>> [part.rows for part in split_rows(readers.Source("a.csv", rows), "ok")]
    [[(3, {'ok': '', 'text': 'b'})], [(2, {'ok': 'yes', 'text': 'a'})]]
    """
    parts = {True: [], False: []}
    for number, cells in source.rows:
        mark = labels_lib.name_of(cells.get(column))
        bound = f"true or false in {source.name}, row {number}"
        validate.require(mark.casefold() in _MARKS, f"column {column!r}", mark, bound)
        parts[_MARKS[mark.casefold()]].append((number, cells))
    for mark, rows in parts.items():
        if not rows:
            raise ValueError(
                f"Expected {str(mark).lower()} in column {column!r} of some rows of "
                f"{source.name}, found it in none."
            )
    return tuple(readers.Source(source.name, parts[mark]) for mark in (False, True))


def sheet_of(
    source: readers.Source, columns: Columns, *, must_be_labelled: bool = True
) -> Sheet:
    """The rows of a file with their texts and labels.

    Args:
        source: the rows of the file, a list.
        columns: the names of its columns.
        must_be_labelled: whether a file without labels is an error.

    Raises:
        ValueError: in one line that names the file and the row.
    """
    first = source.rows[0][1]
    has_label = must_be_labelled or columns.label in first
    if not has_label:
        near = difflib.get_close_matches(columns.label, list(first), n=1)
        message = (
            "%s has no column %r, only %s.%s Only the teacher's classes are tested."
        )
        hint = f" Is it {near[0]!r}?" if near else ""
        shown = ", ".join(first)
        _logger.warning(message, source.name, columns.label, shown, hint)
    task = files.Task(
        "files",
        columns.text,
        columns.pair or None,
        columns.label if has_label else "",
        source=columns.source or None,
    )
    table = files.read_table(source, task)
    if table.labels:
        labels_lib.check_kinds(table, columns.label)
    place = {number: place for place, (number, _) in enumerate(source.rows)}
    places = np.array([place[number] for number in table.numbers])
    cells = [source.rows[place][1] for place in places]
    return Sheet(table, cells, places, len(source.rows))


def names_of(sheet: Sheet, column: str) -> tuple[str, ...]:
    """The names of the labels of a file, () where no row has one."""
    if not any(map(labels_lib.name_of, sheet.table.labels)):
        return ()
    return labels_lib.found_names(sheet.table, column)


def class_names(
    teacher: Sequence[str], references: Sequence[str], *, count: int, source: str
) -> tuple[str, ...]:
    """The name of each class, in the teacher's order.

    Args:
        teacher: the teacher's names of its classes, () where it has none.
        references: the label names that the references have.
        count: the number of the teacher's classes.
        source: the file of the references.

    Raises:
        ValueError: where the names differ, or the teacher has none and the labels are
            not the numbers of its classes.

    >>> class_names(["no", "yes"], ["yes", "no"], count=2, source="trusted.csv")
    ('no', 'yes')
    >>> class_names([], ["0", "1"], count=2, source="trusted.csv")
    ('0', '1')
    """
    numbers = tuple(map(str, range(count)))
    expected = tuple(teacher) or numbers
    if set(expected) == set(references):
        return expected
    if not teacher:
        raise ValueError(
            f"The teacher's {count} classes have no names, so labels must be the "
            f"numbers 0 to {count - 1}; found {_shown(references)} in {source}. Write "
            "the names into id2label of the teacher's config.json, or give label_names "
            "with its logits."
        )
    raise ValueError(
        f"Expected the teacher's classes in {source}, found others: the teacher has "
        f"{_shown(teacher)}; {source} has {_shown(references)}. They are matched by "
        f"name; only in one of them: {_shown(sorted({*teacher} ^ {*references}))}."
    )


def _shown(names: Sequence[str], most: int = 30) -> str:
    """A list of names, cut where it is long."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def labelled(sheet: Sheet, names: Sequence[str]) -> Labelled:
    """The rows of a file with labels as numbers of classes.

    Args:
        sheet: of the file.
        names: of the classes, in the teacher's order.

    Raises:
        ValueError: a label without a class, with the row.
    """
    table = sheet.table
    known = {name: number for number, name in enumerate(names)}
    has_labels = any(map(labels_lib.name_of, table.labels))
    classes = np.zeros(len(table.texts), np.int32)
    if has_labels:
        classes = labels_lib.classes(table, known)
        labels_lib.log_counts(table.source, classes, names)
    examples = Examples(table.texts, table.pairs, classes, table.origins)
    return Labelled(examples, np.array(table.numbers), has_labels)


def check_references(
    rows: Examples, references: Examples, names: Sequence[str], false_rejection: float
) -> None:
    """Checks that the references suffice, and says how many of the rows they repeat.

    Args:
        rows: the rows under test.
        references: the trusted rows.
        names: of the classes.
        false_rejection: the rate at which honest rows may be rejected.

    Raises:
        ValueError: on fewer references than the rate needs, or a class without any.
    """
    count = len(references.texts)
    # Rounded, because 1 / 0.01 may be a little above 100.
    least = math.ceil(round(1 / false_rejection - 1, 6))
    bound = (
        f">= {least} = 1 / detection.false_rejection - 1, found at {false_rejection}"
    )
    validate.require(count >= least, "number of references", count, bound)
    check_classes(references.labels, names)
    warn_of_references(*map(examples_lib.text_keys, (rows, references)))


def warn_of_references(
    rows: Sequence[Hashable], references: Sequence[Hashable]
) -> None:
    """Says where references are few, or repeat rows.

    Args:
        rows: the texts of the rows under test, or what stands for them.
        references: the same of the references.
    """
    if len(references) < FEW_REFERENCES:
        message = "%d references: with fewer than %d, less is found."
        _logger.warning(message, len(references), FEW_REFERENCES)
    known = set(references)
    shared = sum(key in known for key in rows)
    if shared:
        message = "%d of %d rows have the text of a reference."
        _logger.warning(message, shared, len(rows))


def check_classes(labels: np.ndarray, names: Sequence[str]) -> None:
    """Checks that the trusted models of all folds see every class.

    Args:
        labels: `[references]`, int.
        names: of the classes.

    Raises:
        ValueError: on classes of fewer than two references.
    """
    counts = np.bincount(labels, minlength=len(names))
    missing = [name for name, count in zip(names, counts, strict=True) if count < 2]
    if missing:
        raise ValueError(
            f"Expected two references or more of each class, found fewer of "
            f"{_shown(missing)}."
        )
