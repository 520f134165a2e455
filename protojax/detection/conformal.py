"""Calibration on clean references: expected rate, rejection level, temperature.

Thresholds never come from a table or from the rows under test. References that the
trusted model has not seen are scored like the rows under test, and a row is rejected
when hardly any of them scores as high (a conformal test). All of this is NumPy on the
host: sorting and pooling a few hundred values, once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from protojax import validate

Scores = tuple[np.ndarray, np.ndarray]  # of the transfer rows, of the references


class IsotonicFit(NamedTuple):
    """A rate that never rises with confidence: linear between points, flat outside.

    Attributes:
        confidence: `[points]`, increasing.
        rate: `[points]`, not increasing.
        average: the rate over all references, whatever their confidence; 0 if unknown.
    """

    confidence: np.ndarray
    rate: np.ndarray
    average: float = 0.0

    def predict(self, confidence: ArrayLike) -> np.ndarray:
        """The rate `[rows]` expected at each confidence `[rows]`."""
        return np.interp(np.asarray(confidence), self.confidence, self.rate)

    @property
    def whatever_confidence(self) -> "IsotonicFit":
        """The average rate, for rows of any confidence.

        >>> fit = expected_disagreement(np.array([0.5, 0.9, 0.5]), np.array([1, 0, 0]))
        >>> fit.whatever_confidence.predict(np.array([0.5, 1.0])).round(3).tolist()
        [0.333, 0.333]
        """
        rate = np.full(1, self.average)
        return IsotonicFit(self.confidence[:1], rate, self.average)


class Quarantine(NamedTuple):
    """The verdict on each transfer row.

    Attributes:
        rejected: `[rows]`, bool, p_values <= alpha.
        p_values: `[rows]`, float64, smaller being more suspicious.
    """

    rejected: np.ndarray
    p_values: np.ndarray


def expected_disagreement(confidence: ArrayLike, disagree: ArrayLike) -> IsotonicFit:
    """The rate at which the trusted model rejects clean claims, by their confidence.

    The trusted model often contradicts clean rows near the teacher's decision boundary
    and hardly ever confident ones. Triggered rows are confident: without e(confidence)
    they would be hidden by neighbours of low confidence. Groups that are not local,
    such as the rows of a token, are compared with the average, `whatever_confidence`,
    which an attacker in the channel cannot raise. The fit is the least-squares
    decreasing step function; it and the average are clipped to [1/2m, 1 - 1/2m]
    because m references cannot show a rate of exactly 0 or 1.

    Args:
        confidence: `[references]`, the teacher's largest probability.
        disagree: `[references]`, 0 or 1.

    Returns:
        The fit; `.predict(confidence)` gives the rate of any row.

    Raises:
        ValueError: on no references, or values that are not finite.

    Source: Barlow, Bartholomew, Bremner and Brunk, Statistical Inference under Order
    Restrictions, 1972. Pooling adjacent violators is sequential and m is a few hundred,
    so it runs on the host. Rows of equal confidence count as one point of their mean.

    >>> fit = expected_disagreement(np.array([0.5, 0.9, 0.5]), np.array([1, 0, 0]))
    >>> fit.predict(np.array([0.5, 0.7, 1.0])).round(3).tolist()
    [0.5, 0.333, 0.167]
    """
    confidence, disagree = np.asarray(confidence), np.asarray(disagree)
    validate.same_length(confidence=confidence, disagree=disagree)
    validate.positive(references=len(confidence))
    require_finite(confidence=confidence, disagree=disagree)
    points, point, weights = np.unique(
        confidence, return_inverse=True, return_counts=True
    )
    means = np.bincount(point, disagree) / weights
    fit = optimize.isotonic_regression(means, weights=weights, increasing=False)
    floor = 0.5 / len(confidence)
    rate = np.clip(fit.x, floor, 1 - floor)
    average = float(np.clip(np.mean(disagree), floor, 1 - floor))
    return IsotonicFit(points, rate, average)


def combine_scores(scores: Sequence[Scores]) -> Scores:
    """The largest score of each row over several tests of one kind.

    A row is suspicious if it scores high in any feature space (the teacher's, that of a
    briefly trained student) or for any claim (the teacher's argmax, the given label).
    References are combined in the same way, so one conformal test of the maximum keeps
    its rate: the quantile of the references already corrects for several tests, and
    the correction is smaller than Bonferroni's. Scores of different kinds of groups
    have different scales; `quarantine` combines those by their p-values.

    Args:
        scores: per test, the scores `([rows], [references])`.

    Returns:
        The combined scores `([rows], [references])`.

    >>> one, two = np.array([1.0, 5.0]), np.array([3.0, 2.0])
    >>> combine_scores([(one, one), (two, one)])
    (array([3., 5.]), array([1., 5.]))
    """
    validate.positive(tests=len(scores))
    combined = []
    for arrays in zip(*scores, strict=True):  # the rows', then the references'
        validate.same_length(**{f"scores_{i}": a for i, a in enumerate(arrays)})
        combined.append(np.max([np.asarray(array) for array in arrays], axis=0))
    return tuple(combined)


def conformal_p_values(
    scores: ArrayLike,
    scores_refs: ArrayLike,
    classes: ArrayLike,
    classes_refs: ArrayLike,
    *,
    alpha: float,
) -> np.ndarray:
    """The share of references of a row's class that score at least as high as the row.

        p_i = (1 + #{references j of class c_i : s_j ≥ s_i}) / (1 + m_c)

    Guarantee: where a row and the references of its class are exchangeable,
    P(p_i ≤ alpha) ≤ alpha, whatever the scores are. A class of too few references to
    reject anything at alpha (m_c + 1 < 1/alpha) is compared with all references pooled;
    its rate then holds only on average over classes.

    Args:
        scores: `[rows]`, larger being more suspicious.
        scores_refs: `[references]`, computed like `scores`.
        classes: `[rows]`, the class within which each row is judged.
        classes_refs: `[references]`.
        alpha: the rate at which clean rows may be rejected, in (0, 1).

    Returns:
        `[rows]`, float64; reject where p <= alpha.

    Raises:
        ValueError: on alpha outside (0, 1), or so small that not even all references
            together could reject a row.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005;
    by class (Mondrian): Vovk 2012, arXiv:1209.2673. Pooling is ours.

    >>> refs, same = np.arange(9.0), np.zeros(9)
    >>> p = conformal_p_values(np.array([7.5, 9.0]), refs, np.zeros(2), same, alpha=0.1)
    >>> p.tolist()
    [0.2, 0.1]
    """
    scores, classes = np.asarray(scores), np.asarray(classes)
    scores_refs, classes_refs = np.asarray(scores_refs), np.asarray(classes_refs)
    validate.same_length(scores=scores, classes=classes)
    validate.same_length(scores_refs=scores_refs, classes_refs=classes_refs)
    validate.require(0 < alpha < 1, "alpha", alpha, "in (0, 1)")
    least = 1 / (1 + len(scores_refs))
    allowed = f">= {least:.3g} with {len(scores_refs)} references"
    validate.require(alpha >= least, "alpha", alpha, allowed)
    require_finite(scores=scores, scores_refs=scores_refs)
    p_values = np.empty(len(scores))
    for claim in np.unique(classes):
        peers = scores_refs[classes_refs == claim]
        # Too few peers could not reject any row at alpha.
        if 1 / (1 + len(peers)) > alpha:
            peers = scores_refs
        members = classes == claim
        # From the left, so that references with equal scores count against rejection.
        below = np.searchsorted(np.sort(peers), scores[members], side="left")
        p_values[members] = (1 + len(peers) - below) / (1 + len(peers))
    return p_values


def quarantine(
    scores: Sequence[Scores],
    classes: ArrayLike,
    classes_refs: ArrayLike,
    *,
    alpha: float,
) -> Quarantine:
    """The verdict on each transfer row from one or more kinds of groups.

        p_i = min(1, T · min_t p_{i,t})

    over T kinds of scores, each with conformal p-values of its own (Bonferroni): scores
    may have different scales, and the rate is at most alpha.

    Args:
        scores: per kind, the scores `([rows], [references])`; several spaces or claims
            of one kind go through `combine_scores` first.
        classes: `[rows]`, the class within which each row is judged.
        classes_refs: `[references]`.
        alpha: the rate at which clean rows may be rejected.

    Returns:
        The `Quarantine` of the transfer rows.

    Raises:
        ValueError: those of `conformal_p_values` at level alpha / T.

    >>> refs = np.arange(9.0)
    >>> found = quarantine(
    ...     [(np.array([7.5, 9.0]), refs)], np.zeros(2), np.zeros(9), alpha=0.1
    ... )
    >>> found.rejected.tolist()
    [False, True]
    """
    validate.positive(tests=len(scores))
    level = alpha / len(scores)
    return reject(
        [
            conformal_p_values(rows, refs, classes, classes_refs, alpha=level)
            for rows, refs in scores
        ],
        alpha=alpha,
    )


def reject(p_values: Sequence[np.ndarray], *, alpha: float) -> Quarantine:
    """The verdict on each row from several tests, by Bonferroni's correction.

        p_i = min(1, T · min_t p_{i,t})

    Args:
        p_values: per test `[rows]`.
        alpha: the rate at which clean rows may be rejected.

    Returns:
        The `Quarantine` of the rows.

    Raises:
        ValueError: no test, or tests with different numbers of rows.

    >>> reject([np.array([0.01, 0.5]), np.array([0.5, 0.5])], alpha=0.05).rejected
    array([ True, False])
    """
    validate.positive(tests=len(p_values))
    validate.same_length(**{f"p_values_{i}": p for i, p in enumerate(p_values)})
    least = np.minimum(1, len(p_values) * np.min(p_values, axis=0))
    return Quarantine(least <= alpha, least)


def calibrate_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature that calibrates a model's posterior.

        T = argmin_T -Σ log softmax(logits / T)[label],   T in [1/20, 20]

    A fine-tuned model is overconfident; after division by T, the probabilities agree
    with how often it is right.

    Args:
        logits: `[references, num_classes]`, on references that the model was not
            trained on.
        labels: `[references]`, int, their true classes.

    Returns:
        T; the lower bound where the model makes no mistake at all.

    Raises:
        ValueError: on no references, different lengths, labels that are not classes,
            or logits that are not finite.

    Source: Guo, Pleiss, Sun and Weinberger 2017, arXiv:1706.04599. The search is over
    log T, in which steps are relative, and within bounds.

    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> round(calibrate_temperature(logits, np.array([0, 0, 0, 1])), 2)  # 4 / log 3
    3.64
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    validate.same_length(logits=logits, labels=labels)
    validate.positive(references=len(labels))
    require_finite(logits=logits)
    for label in (labels.min(), labels.max()):
        allowed = f"in [0, {logits.shape[1]})"
        validate.require(0 <= label < logits.shape[1], "label", int(label), allowed)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -scaled[rows, labels].mean()

    # Without bounds, T would go to 0 for a model that makes no mistake.
    bound = np.log(20)
    fit = optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(fit.x))


def require_finite(**arrays: np.ndarray) -> None:
    """Raises where a named array is not finite: comparisons with NaN mean nothing."""
    for name, array in arrays.items():
        broken = int(np.sum(~np.isfinite(array)))
        validate.require(not broken, f"number of non-finite {name}", broken, "= 0")
