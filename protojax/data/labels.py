"""Classes or scores from the labels in files, with warnings on doubtful ones."""

import collections
import logging
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_logger = logging.getLogger("protojax")
_HIDDEN_HINT = " -1 stands for the hidden labels of GLUE's test files: use validation."
# Words that programs write for an empty cell.
_EMPTY = frozenset(("nan", "null", "none", "na", "n/a", "<na>", "nil", "undefined"))
_SHOWN = 100  # at most this many classes in a line of the log


class Table(NamedTuple):
    """The columns of one source, with labels as they are in the file.

    Attributes:
        source: the name of the source in errors.
        numbers: the line or row number of each row.
        texts: the first (or only) text of each row.
        pairs: the second text of each row, or None.
        labels: the label of each row, of any type.
        origins: the origin of each row, or None.
    """

    source: str
    numbers: list[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    origins: list[str] | None = None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null in JSON, NaN in Parquet."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def name_of(value: Any) -> str:
    """The name of a label's class: 1, 1.0, "1.0", True, "1" and " 1" are one class.

    pandas writes whole numbers as 1.0 if any cell of the column is empty.

    >>> [name_of(value) for value in (1.0, "-1.00", " 1", 0.5, "v1.0", None)]
    ['1', '-1', '1', '0.5', 'v1.0', '']
    """
    if is_missing(value):
        return ""
    # Before the text of it: `str(True)` would be a class of its own.
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    # As text: through a float, a number of many digits would be rounded.
    return str(int(name.split(".")[0])) if re.fullmatch(r"-?\d+\.0+", name) else name


def check_kinds(table: Table, column: str) -> None:
    """Raises on a label that is neither a name nor a number, such as a list."""
    for number, value in zip(table.numbers, table.labels, strict=True):
        if not (value is None or isinstance(value, str | numbers.Number)):
            kind = type(value).__name__
            raise ValueError(
                f"{table.source}, row {number}: {column!r} is no class but {kind}, "
                "expected one name or number."
            )


def found_names(table: Table, column: str) -> tuple[str, ...]:
    """The label names of a table: numbers in numerical order, others alphabetically.

    Raises:
        ValueError: if all are numbers and some are fractions.
    """
    names = sorted(set(map(name_of, table.labels)) - {""})
    given = [name for name in names if name.casefold() not in _EMPTY]
    fractions = [name for name in given if math.isnan(_number(name, int))]
    floats = [name for name in given if not math.isnan(_number(name, float))]
    if fractions and len(floats) == len(given):
        raise ValueError(
            f"Expected classes in {table.source}, found fractions such as "
            f"{fractions[0]!r}. Scores need problem='regression'."
        )
    _warn(table, column, names)
    if not fractions and len(given) == len(names):
        # Alphabetically "10" would come before "2", and class 2 be another number.
        return tuple(sorted(names, key=int))
    return tuple(names)


def _warn(table: Table, column: str, names: list[str]) -> None:
    """Logs class names that may be a mistake, or the same class as another."""
    for name in names:
        if name.casefold() in _EMPTY:
            reason = "is it a cell that holds nothing?"
        elif name == column:
            reason = "it is the column's name."
        else:
            continue
        message = "%s: the label %r is taken for a class, %s"
        _logger.warning(message, table.source, name, reason)
    alike = collections.defaultdict(list)
    for name in names:
        alike["".join(name.split()).casefold()].append(name)
    # Named but not merged: only the user knows whether they are one class.
    for found in alike.values():
        if len(found) > 1:
            shown = ", ".join(map(repr, found))
            message = (
                "%s: %s are taken for %d classes, but differ in case or space only."
            )
            _logger.warning(message, table.source, shown, len(found))


def classes(table: Table, known: dict[str, int]) -> np.ndarray:
    """The classes of a table, `[rows]` int32.

    Raises:
        ValueError: if a row has a label that is not known.
    """
    result = np.empty(len(table.labels), np.int32)
    for row, value in enumerate(table.labels):
        name = name_of(value)
        if name not in known:
            hint = _HIDDEN_HINT if name == "-1" else ""
            raise ValueError(
                f"{table.source}, row {table.numbers[row]}: unknown label {value!r}, "
                f"known are {', '.join(known)}.{hint}"
            )
        result[row] = known[name]
    return result


def scores(table: Table) -> np.ndarray:
    """The scores of a table, `[rows]` float32.

    Raises:
        ValueError: if a row has no score, or one that is not finite.
    """
    found = np.array([_number(value, float) for value in table.labels])
    # Negated, so that NaN is refused too; the bound is that of float32.
    for row in np.flatnonzero(~(np.abs(found) <= np.finfo(np.float32).max)):
        raise ValueError(
            f"{table.source}, row {table.numbers[row]}: expected a finite score, found "
            f"{table.labels[row]!r}."
        )
    return found.astype(np.float32)


def log_counts(source: str, labels: np.ndarray, names: Sequence[str]) -> None:
    """Logs the rows of each class of a source, or the range of its scores."""
    if not names:
        low, high = float(labels.min()), float(labels.max())
        _logger.info("%s: %d scores in [%g, %g].", source, len(labels), low, high)
        return
    counts = np.bincount(labels, minlength=len(names)).tolist()
    shown = [f"{n} ({c})" for n, c in list(zip(names, counts, strict=True))[:_SHOWN]]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    found = sum(count > 0 for count in counts)
    message = "%s: %d rows of %d classes: %s%s."
    _logger.info(message, source, len(labels), found, ", ".join(shown), rest)


def _number(value: Any, kind: type) -> float:
    """The value as `kind` (int or float) reads it, NaN where it cannot."""
    try:
        # OverflowError: int of an infinite float.
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
