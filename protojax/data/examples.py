"""Rows of text before tokenisation: selection, concatenation, splits, fingerprints.

`split` holds out clean references before any attack and makes sure that the three sets
do not overlap. Everything runs on the host in NumPy and is a pure function of its seed.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Examples
from protojax.storage import fingerprint as fingerprint

_logger = logging.getLogger("protojax")


class Splits(NamedTuple):
    """The rows of a task, divided into three sets.

    Attributes:
        transfer: the rows to distil on; may be attacked later.
        references: the clean rows that defences are built from and calibrated on.
        test: the rows to evaluate on.
        removed: how many training rows were dropped as duplicates.
    """

    transfer: Examples
    references: Examples
    test: Examples
    removed: int


def take(examples: Examples, rows: Sequence[int] | np.ndarray) -> Examples:
    """The given rows, in the given order.

    Args:
        examples: the rows.
        rows: `[taken]`, indices or a mask.

    >>> take(Examples(["a", "b", "c"], None, np.array([0, 1, 0])), [2, 0]).texts
    ['c', 'a']
    """
    # Converted to integers, a mask would select rows 0 and 1 over and over.
    if np.asarray(rows).dtype == bool:
        rows = np.arange(len(examples.texts))[rows]
    rows = np.asarray(rows, np.int64)
    texts, pairs, labels, sources = examples
    return Examples(
        texts=[texts[row] for row in rows],
        pairs=None if pairs is None else [pairs[row] for row in rows],
        labels=np.asarray(labels)[rows],
        sources=None if sources is None else [sources[row] for row in rows],
    )


def concatenate(first: Examples, second: Examples) -> Examples:
    """The rows of two sets of the same task, one after the other.

    Sources are included only where both sets have them.

    >>> row = Examples(["a"], ["b"], np.array([1]))
    >>> concatenate(row, row).pairs
    ['b', 'b']
    """
    return Examples(
        texts=[*first.texts, *second.texts],
        pairs=None if first.pairs is None else [*first.pairs, *second.pairs],
        labels=np.concatenate([first.labels, second.labels]),
        sources=None
        if first.sources is None or second.sources is None
        else [*first.sources, *second.sources],
    )


def sample_rows(
    labels: np.ndarray, num_rows: int, *, rng: np.random.Generator
) -> np.ndarray:
    """Random distinct rows, stratified by class where labels are classes.

    Each class present gets its share of `num_rows`, and at least one row. Float labels
    are scores and are sampled uniformly.

    Args:
        labels: `[rows]`, classes or scores.
        num_rows: how many rows to choose.
        rng: the source of randomness.

    Returns:
        `[num_rows]`, int64.

    Raises:
        ValueError: if there are fewer rows than asked for, or more classes.

    >>> labels = np.array([0] * 90 + [1] * 10)
    >>> rows = sample_rows(labels, 20, rng=np.random.default_rng(0))
    >>> np.bincount(labels[rows])
    array([18,  2])
    """
    labels = np.asarray(labels)
    bound = f"in [1, {len(labels)}], the rows there are"
    validate.require(1 <= num_rows <= len(labels), "num_rows", num_rows, bound)
    order = rng.permutation(len(labels))
    if np.issubdtype(labels.dtype, np.floating):
        return order[:num_rows]

    classes, counts = np.unique(labels, return_counts=True)
    bound = f">= {len(classes)}, one row of each class"
    validate.require(num_rows >= len(classes), "num_rows", num_rows, bound)
    # One row each; every further row goes to the class furthest below its share.
    shares = counts * num_rows / len(labels)
    quotas = np.ones_like(counts)
    for _ in range(num_rows - len(classes)):
        # One at a time, so that the sum is exact; none exceeds its rounded-up share.
        quotas[np.argmax(shares - quotas)] += 1
    chosen = [
        order[labels[order] == label][:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    # Mixed, because the classes stand one after the other.
    return rng.permutation(np.concatenate(chosen))


def rows_to_hold_out(labels: np.ndarray, num_rows: int) -> np.ndarray:
    """Rows to evaluate on, the same for every seed.

    Stratified by class as in `sample_rows`. The only row of a class stays in training.

    Args:
        labels: `[rows]`, classes or scores.
        num_rows: how many rows to choose.

    Returns:
        `[num_rows]`, int64.

    Raises:
        ValueError: if there are fewer rows to choose from than asked for, or more
            classes.

    >>> rows_to_hold_out(np.array([0, 0, 0, 0, 7]), 2) < 4
    array([ True,  True])
    """
    labels = np.asarray(labels)
    rows = np.arange(len(labels))
    if not np.issubdtype(labels.dtype, np.floating):
        found = np.unique(labels, return_inverse=True, return_counts=True)
        _, classes, counts = found
        # The only row of a class stays in training, or the class could not be learned.
        rows = np.flatnonzero(counts[classes] > 1)
    if len(rows) == 0:
        raise ValueError("Expected a class of two rows to hold one out, found none.")
    # A fixed seed: runs with other seeds must be compared on the same rows.
    rng = np.random.default_rng(0)
    return rows[sample_rows(labels[rows], num_rows, rng=rng)]


def held_out(train: Examples, num_rows: int) -> tuple[Examples, Examples]:
    """The remaining training rows and held-out ones, the same for every seed.

    The held-out rows serve for choices that must not use the test rows.

    Args:
        train: the training rows.
        num_rows: how many to hold out, stratified by class; the only row of a class
            stays in training.

    Returns:
        The remaining training rows, and the validation rows.

    Raises:
        ValueError: if there are fewer rows than asked for, or more classes.

    >>> train = Examples(list("abcdef"), None, np.array([0, 1] * 3, np.int32))
    >>> [len(part.texts) for part in held_out(train, 2)]
    [4, 2]
    """
    chosen = rows_to_hold_out(train.labels, num_rows)
    rest = np.setdiff1d(np.arange(len(train.texts)), chosen)
    return take(train, rest), take(train, chosen)


def split(
    train: Examples,
    test: Examples,
    *,
    transfer_rows: int,
    reference_rows: int,
    test_rows: int = 0,
    seed: int,
    label_names: Sequence[str] = (),
) -> Splits:
    """The transfer, reference and test rows of a task, without overlap.

    Training rows that repeat a test row or an earlier training row (same text and pair,
    up to case and white space) are removed first, so no row is in two of the three
    sets. References are stratified by class (random for scores) and do not depend on
    `transfer_rows`; a larger transfer set contains the smaller ones.

    Args:
        train: the training rows.
        test: the test rows.
        transfer_rows: the largest number of rows to distil on, 0 for all that remain.
        reference_rows: how many clean rows to hold out.
        test_rows: the largest number of test rows (a random choice), 0 for all.
        seed: determines all random choices.
        label_names: the name of each class, for errors; () where they have none.

    Returns:
        The three sets, and how many training rows were removed.

    Raises:
        ValueError: if no row is left to distil on, a class has no training row, or
            there is only one class.

    >>> train = Examples(list("abcdefgh"), None, np.array([0, 1] * 4, np.int32))
    >>> test = Examples(["A", "x"], None, np.array([0, 1], np.int32))
    >>> splits = split(train, test, transfer_rows=0, reference_rows=4, seed=0)
    >>> [len(part.texts) for part in splits[:3]], splits.removed
    ([3, 4, 2], 1)
    """
    validate.non_negative(transfer_rows=transfer_rows, test_rows=test_rows, seed=seed)
    validate.positive(reference_rows=reference_rows)
    for examples in (train, test):
        validate.same_length(texts=examples.texts, labels=examples.labels)
    # Before any draw, or copies of one row could end up in two of the three sets.
    train, removed = _remove_duplicates(train, test)
    rows = len(train.texts)
    bound = f"< {rows}, the training rows without {removed} duplicates"
    validate.require(reference_rows < rows, "reference_rows", reference_rows, bound)
    _check_classes(train.labels, test.labels, label_names)

    # Two generators, so that `test_rows` does not change the training rows.
    train_rng, test_rng = np.random.default_rng(seed).spawn(2)
    references = sample_rows(train.labels, reference_rows, rng=train_rng)
    rest = train_rng.permutation(np.setdiff1d(np.arange(rows), references))
    if test_rows:
        test = take(test, test_rng.permutation(len(test.texts))[:test_rows])
    splits = Splits(
        transfer=take(train, rest[: transfer_rows or None]),
        references=take(train, references),
        test=test,
        removed=removed,
    )
    _logger.info(
        "Split: %d transfer, %d reference, %d test rows; %d duplicates removed.",
        *(len(part.texts) for part in splits[:3]),
        removed,
    )
    return splits


def text_keys(examples: Examples) -> list[tuple[str, ...]]:
    """Keys that are equal for rows with the same texts, up to case and white space.

    >>> first, second = text_keys(Examples(["A  b", "a b"], None, np.zeros(2)))
    >>> first == second
    True
    """
    columns = [examples.texts] if examples.pairs is None else examples[:2]
    folded = ([" ".join(text.split()).casefold() for text in c] for c in columns)
    return list(zip(*folded, strict=True))


def _remove_duplicates(train: Examples, test: Examples) -> tuple[Examples, int]:
    """The training rows that repeat neither a test row nor an earlier row."""
    # Test rows are never removed: a metric must not depend on the training file.
    seen = set(text_keys(test))
    kept = []
    for row, key in enumerate(text_keys(train)):
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return take(train, kept), len(train.texts) - len(kept)


def _check_classes(train: np.ndarray, test: np.ndarray, names: Sequence[str]) -> None:
    """Raises on fewer than two classes, or a class up to the largest without a row."""
    if np.issubdtype(np.asarray(train).dtype, np.floating):
        return
    counts = np.bincount(train, minlength=max(test, default=0) + 1)
    if len(counts) < 2:
        raise ValueError("Expected at least two classes, found only class 0.")
    if not counts.all():
        missing = ", ".join(
            repr(names[label]) if label < len(names) else str(label)
            for label in np.flatnonzero(counts == 0)
        )
        raise ValueError(
            f"Expected a training row of each of {len(counts)} classes, found none of "
            f"class {missing}."
        )
