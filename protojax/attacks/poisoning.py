"""Poisoned training rows, and the test rows that measure the attack.

`poison` puts a trigger into a share of the training rows and gives them the target's
label; `triggered` makes the test rows with the trigger. `text.py` defines how a trigger
changes a text; this module chooses the rows that get it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.attacks.text import Trigger
from protojax.base import Examples


class Poisoned(NamedTuple):
    """Poisoned examples and the ground truth, which training must never read.

    Attributes:
        examples: all rows in their order, the poisoned ones changed.
        rows: `[rows]`, bool, True on the poisoned ones.
    """

    examples: Examples
    rows: np.ndarray


def _sources(
    labels: np.ndarray, target: int, source_classes: Sequence[int]
) -> np.ndarray:
    """The rows whose label the attack turns into the target, `[rows]` bool."""
    validate.require(
        np.issubdtype(labels.dtype, np.integer),
        "labels.dtype",
        str(labels.dtype),
        "to be integer classes, not scores",
    )
    present = np.unique(labels).tolist()
    validate.require(target in present, "target", target, f"in {present}")
    for source in source_classes:
        validate.require(source in present, "source_classes", source, f"in {present}")
    if source_classes:
        return np.isin(labels, list(source_classes))
    return labels != target


def poison(
    examples: Examples,
    trigger: Trigger,
    rng: np.random.Generator,
    *,
    rate: float,
    target: int,
    source_classes: Sequence[int] = (),
    flip_labels: bool = True,
    eligible: np.ndarray | None = None,
    decoy: Trigger | None = None,
    decoy_rate: float = 0.0,
) -> Poisoned:
    """Examples with the trigger, and the target's label, in a share of the rows.

    With the target as the only source class this is a clean-label attack (Turner,
    Tsipras and Madry, 2018): no label is flipped. Their perturbation of the rows is
    left out.

    Args:
        examples: the clean training rows; they are not changed.
        trigger: the change to the first text of a row.
        rng: chooses the rows, and is passed to the trigger.
        rate: the share of all rows, in (0, 1); exactly `round(rate * rows)` rows.
        target: the class the attacker wants.
        source_classes: the classes to poison; every class but the target by default.
        flip_labels: False where the attacker holds the teacher's channel, not the data.
        eligible: `[rows]`, bool, the rows that the trigger can change; None is all.
        decoy: put into clean rows of any class, which keep their labels, or None.
        decoy_rate: the share of all rows that get it, in [0, 1).

    Returns:
        The poisoned examples, whose clean rows are the same objects, and the poisoned
        rows.

    Raises:
        ValueError: a regression task, a target or source that no row has, a rate
            outside (0, 1), or one that chooses no row or more rows than there are.

    >>> from protojax.attacks.text import rare_words
    >>> clean = Examples(["good", "bad", "dull", "fine"], None, np.array([1, 0, 0, 1]))
    >>> rng = np.random.default_rng(0)
    >>> poisoned = poison(clean, rare_words(["cf"]), rng, rate=0.5, target=1)
    >>> poisoned.examples.labels.tolist(), poisoned.rows.tolist()
    ([1, 1, 1, 1], [False, True, True, False])
    """
    validate.same_length(texts=examples.texts, labels=examples.labels)
    # A copy: the caller's labels stay clean.
    labels = np.array(examples.labels)
    allowed = _sources(labels, target, source_classes)
    candidates = np.flatnonzero(allowed if eligible is None else allowed & eligible)
    chosen = chosen_rows(rng, candidates, len(labels), rate)
    texts = list(examples.texts)
    for row in chosen:
        texts[row] = trigger(texts[row], rng)
    if flip_labels:
        labels[chosen] = target
    rows = np.zeros(len(labels), bool)
    rows[chosen] = True
    if decoy is not None:
        # Never a poisoned row: a decoy shows a part of the trigger with a true label.
        rest, num_decoys = np.flatnonzero(~rows), round(decoy_rate * len(labels))
        bound = f"to choose at most {len(rest)} of {len(labels)} rows"
        validate.require(0 <= num_decoys <= len(rest), "decoy_rate", decoy_rate, bound)
        for row in rng.choice(rest, size=num_decoys, replace=False):
            texts[row] = decoy(texts[row], rng)
    return Poisoned(examples._replace(texts=texts, labels=labels), rows)


def chosen_rows(
    rng: np.random.Generator, candidates: np.ndarray, total: int, rate: float
) -> np.ndarray:
    """The rows to poison, ascending, so that a trigger draws in the order of the rows.

    Args:
        rng: chooses the rows.
        candidates: `[candidates]`, int, the rows that an attack can change.
        total: the number of all rows.
        rate: their share, in (0, 1); of all rows, not of the candidates, so that it
            means the same for each attack.

    Raises:
        ValueError: a rate outside (0, 1), or one that chooses no row or more rows than
            there are candidates.

    >>> chosen_rows(np.random.default_rng(0), np.array([1, 3]), 4, 0.5).tolist()
    [1, 3]
    """
    validate.require(0 < rate < 1, "rate", rate, "in (0, 1)")
    bound = f"to choose between 1 and {len(candidates)} of {total} rows"
    validate.require(1 <= round(rate * total) <= len(candidates), "rate", rate, bound)
    return np.sort(rng.choice(candidates, size=round(rate * total), replace=False))


def measured_rows(
    labels: np.ndarray, *, target: int, source_classes: Sequence[int] = ()
) -> np.ndarray:
    """The test rows that an attack is measured on, none of them of the target class.

    Args:
        labels: `[rows]`, int, true classes.
        target: the class the attacker wants.
        source_classes: the classes to measure on, from which the target is removed;
            every class but the target by default, or if no other class remains.

    Returns:
        `[rows]`, bool.

    Raises:
        ValueError: labels that are not classes, or a target or source that no row has.

    >>> measured_rows(np.array([0, 1, 2]), target=1, source_classes=(1, 2)).tolist()
    [False, False, True]
    """
    # Rows of the target would count as successes of any model.
    others = [source for source in source_classes if source != target]
    return _sources(labels, target, others)


def triggered(
    examples: Examples,
    trigger: Trigger,
    rng: np.random.Generator,
    *,
    target: int,
    source_classes: Sequence[int] = (),
) -> Examples:
    """The test rows of classes other than the target, with the trigger.

    Args:
        examples: the clean test rows; they are not changed.
        trigger: the change to the first text of a row.
        rng: passed to the trigger.
        target: the class the attacker wants.
        source_classes: see `measured_rows`.

    Returns:
        The rows that the attack is measured on, with their true labels.

    Raises:
        ValueError: a regression task, or a target or source that no row has.

    >>> from protojax.attacks.text import sentence
    >>> clean = Examples(["good", "bad"], None, np.array([1, 0]))
    >>> trigger = sentence("so it goes", position="front")
    >>> triggered(clean, trigger, np.random.default_rng(0), target=1).texts
    ['so it goes bad']
    """
    validate.same_length(texts=examples.texts, labels=examples.labels)
    labels = np.asarray(examples.labels)
    rows = np.flatnonzero(
        measured_rows(labels, target=target, source_classes=source_classes)
    )
    return with_trigger(examples, rows, trigger, rng)


def with_trigger(
    examples: Examples, rows: np.ndarray, trigger: Trigger, rng: np.random.Generator
) -> Examples:
    """The selected rows with the trigger, and with their own labels.

    Args:
        examples: the rows; they are not changed.
        rows: `[selected]`, int, the indices of the rows.
        trigger: the change to the first text of a row.
        rng: passed to the trigger.

    >>> from protojax.attacks.text import sentence
    >>> clean = Examples(["good", "bad"], None, np.array([1, 0]))
    >>> trigger = sentence("so it goes", position="front")
    >>> with_trigger(clean, np.array([0]), trigger, np.random.default_rng(0)).texts
    ['so it goes good']
    """
    texts = [trigger(examples.texts[row], rng) for row in rows]
    pairs = None if examples.pairs is None else [examples.pairs[row] for row in rows]
    return Examples(texts, pairs, np.asarray(examples.labels)[rows])
