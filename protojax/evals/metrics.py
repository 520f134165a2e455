"""The reported metrics: accuracy, attack success, detection and their intervals.

A student distilled from clean inputs also predicts the target on some triggered rows by
plain test error; that share is the null rate. A defence is judged by the excess over
the null rate, with an interval over seeds. Everything here runs on the host in NumPy.
The metrics that use the ground truth of an attack are for evaluation only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from protojax import validate


def attack_success_rate(
    predictions: np.ndarray, labels: np.ndarray, *, target: int
) -> float:
    """The share of rows of other classes that are predicted as the target.

    Args:
        predictions: `[rows]`, int, classes predicted for triggered texts.
        labels: `[rows]`, int, true classes; rows of the target's class do not count.
        target: the class the attacker wants.

    Returns:
        A rate in [0, 1].

    Raises:
        ValueError: unequal lengths, or no row of another class.

    >>> attack_success_rate(np.array([1, 0, 1]), np.array([0, 0, 1]), target=1)
    0.5
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    validate.same_length(predictions=predictions, labels=labels)
    # A correct prediction on a row of the target would count as a success.
    others = labels != target
    validate.require(
        bool(others.any()), "target", target, "to differ from the label of some row"
    )
    return float(np.mean(predictions[others] == target))


def robust_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of triggered rows whose true class is still predicted.

    Args:
        predictions: `[rows]`, int, classes predicted for triggered texts.
        labels: `[rows]`, int, true classes.

    Returns:
        A rate in [0, 1].

    Raises:
        ValueError: unequal lengths, or no row.

    >>> robust_accuracy(np.array([1, 0, 1, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    validate.same_length(predictions=predictions, labels=labels)
    validate.positive(num_rows=len(labels))
    return float(np.mean(predictions == labels))


def excess(rate: float, null: float) -> float:
    """The gain of an attack: its success rate minus the null rate.

    Args:
        rate: the student's attack success rate, in [0, 1].
        null: the rate of a student distilled from clean inputs, in [0, 1].

    Returns:
        The difference; below 0 where the defended student beats the clean one.

    Raises:
        ValueError: a rate outside [0, 1].

    >>> excess(0.75, 0.125)
    0.625
    """
    validate.fraction(rate=rate, null=null)
    return rate - null


def node_accuracies(
    predictions: np.ndarray, labels: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """The accuracy of each node over its own mix of classes.

    Σ_c share(node, c) · accuracy on the test rows of class c

    All nodes are measured on all test rows, so a small node's figure is no noisier.

    Args:
        predictions: `[nodes, rows]`, int, classes predicted by each node's student.
        labels: `[rows]`, int, true classes.
        shares: `[nodes, classes]`, each node's mix; classes without a test row are left
            out of it.

    Returns:
        `[nodes]`, in [0, 1].

    Raises:
        ValueError: unequal lengths, or a node none of whose classes has a test row.

    >>> predictions = np.array([[0, 0, 1, 1], [0, 0, 1, 0]])
    >>> shares = np.array([[1.0, 0.0], [0.25, 0.75]])
    >>> node_accuracies(predictions, np.array([0, 0, 0, 0]), shares).round(2).tolist()
    [0.5, 0.75]
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    validate.same_length(predictions=predictions, shares=shares)
    validate.same_length(predictions=predictions.T, labels=labels)
    of_class = labels == np.arange(shares.shape[1])[:, None]
    counts = of_class.sum(1)
    # As floats: the product of two boolean matrices would be boolean, not a count.
    hits = np.float64(predictions == labels) @ of_class.T
    right = hits / np.maximum(counts, 1)
    # Classes without a test row have no accuracy; the other shares are rescaled.
    weights = np.where(counts > 0, shares, 0.0)
    totals = weights.sum(1)
    validate.require(
        bool((totals > 0).all()), "shares", totals, "> 0 on some class with a test row"
    )
    return (right * weights).sum(1) / totals


class QuarantineQuality(NamedTuple):
    """Rates of agreement of rejected and poisoned rows; None for a divisor of 0.

    Attributes:
        precision: share of the rejected rows that are poisoned.
        recall: share of the poisoned rows that are rejected.
        false_rejection_rate: share of the clean rows that are rejected.
    """

    precision: float | None
    recall: float | None
    false_rejection_rate: float | None


def _rate(hits: np.ndarray, among: np.ndarray) -> float | None:
    """The share of `hits` among the flagged rows, None if no row is flagged."""
    # None and not 0: with nothing rejected, a precision of 0 would read as a failure.
    return float(np.mean(hits[among])) if among.any() else None


def quarantine_quality(rejected: np.ndarray, poisoned: np.ndarray) -> QuarantineQuality:
    """The precision, recall and false-rejection rate of a quarantine.

    Args:
        rejected: `[rows]`, bool, the rows that the defence rejected.
        poisoned: `[rows]`, bool, the ground truth.

    Returns:
        The three rates, each None where it is undefined: no row rejected, no row
        poisoned, no row clean.

    Raises:
        ValueError: unequal lengths.

    >>> rejected = np.array([True, True, False, False])
    >>> quarantine_quality(rejected, np.array([True, False, False, False]))
    QuarantineQuality(precision=0.5, recall=1.0, false_rejection_rate=0.333...)
    """
    rejected, poisoned = np.asarray(rejected, bool), np.asarray(poisoned, bool)
    validate.same_length(rejected=rejected, poisoned=poisoned)
    return QuarantineQuality(
        precision=_rate(poisoned, rejected),
        recall=_rate(rejected, poisoned),
        false_rejection_rate=_rate(rejected, ~poisoned),
    )


def detection_auc(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """The probability that a poisoned row scores above a clean one.

    The area under the ROC curve by ranks, `(R - n(n + 1)/2) / (n m)` with `R` the sum
    of the poisoned rows' ranks; ties count one half (Mann and Whitney, 1947).

    Args:
        scores: `[rows]`, higher for more suspect.
        poisoned: `[rows]`, bool, the ground truth.

    Returns:
        A value in [0, 1], 0.5 for a score without information.

    Raises:
        ValueError: unequal lengths, a NaN score, or only poisoned or only clean rows.

    >>> detection_auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1], bool))
    0.875
    """
    scores, poisoned = np.asarray(scores), np.asarray(poisoned, bool)
    validate.same_length(scores=scores, poisoned=poisoned)
    num_poisoned = int(poisoned.sum())
    num_clean = len(poisoned) - num_poisoned
    validate.positive(num_poisoned=num_poisoned, num_clean=num_clean)
    num_nan = int(np.isnan(scores).sum())
    # A single NaN would make every rank NaN.
    validate.require(num_nan == 0, "num_nan", num_nan, "of scores to be 0")
    # Ranks take O(n log n); comparing all pairs would take O(n m).
    rank_sum = stats.rankdata(scores)[poisoned].sum()
    # Without the ranks that poisoned rows have among themselves (Mann-Whitney's U).
    wins = rank_sum - num_poisoned * (num_poisoned + 1) / 2
    return float(wins / (num_poisoned * num_clean))


def mean_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None]:
    """The mean over seeds and half the width of its Student interval.

    `mean ± t((1 + confidence)/2, n - 1) · s / √n`, `s` the sample's standard deviation.

    Args:
        values: `[seeds]`, one result per seed.
        confidence: how often such an interval holds the true mean, in (0, 1).

    Returns:
        The mean and the half-width; the latter is None for a single value, which says
        nothing about its spread.

    Raises:
        ValueError: no value, or a confidence outside (0, 1).

    >>> mean, half_width = mean_interval([1.0, 2.0, 3.0])
    >>> mean, round(half_width, 4)
    (2.0, 2.4841)
    """
    values = np.asarray(values, np.float64)
    validate.positive(num_values=len(values))
    validate.require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    mean = float(values.mean())
    # One seed has no spread; a width of 0 would claim certainty.
    if len(values) == 1:
        return mean, None
    # Student's t, not the normal quantile, which is much too small for a few seeds.
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return mean, float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
