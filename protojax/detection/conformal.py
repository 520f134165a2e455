"""Calibration on clean references: the level of rejection, and a temperature.

Thresholds never come from a table or from the rows under test. References that the
trusted model has not seen are scored like the rows under test, and a row is rejected
when hardly any of them scores as high (a conformal test). All of this is NumPy on the
host: sorting a few hundred values, once.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from protojax import validate


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


def tail_p_values(
    z: ArrayLike, *, groups: int, tail: int = 40, tail_of: ArrayLike | None = None
) -> np.ndarray:
    """The probability that the strongest honest group is as strong, for each group.

        p_j = 1 - (1 - (1 + x_j / ν)^-ν)^(k - 1),  x_j = (z_j² - z_k²) / 2s²,  ν = 3k/4

    The k-th strongest of the groups is where the tail begins, beyond which z² of honest
    groups falls off exponentially. s² is estimated in the middle of the tail, ranks k/5
    to k/2, which the few groups of an attack do not reach. Common words with a meaning
    that the trusted model misses make s² larger than the 1 of normal numbers. ν allows
    for the estimate: with it, p is uniform for normal numbers (simulated).

    Args:
        z: `[explained]`, the excess of explanations, in any order.
        groups: how many groups were tested. With fewer than ten explanations there is
            no tail to estimate, and honest groups are taken for normal numbers of
            variance 2, the most that real text has shown.
        tail: k, or all explanations where there are fewer.
        tail_of: the excess of different groups, in which the tail is estimated, where
            some of `z` are of the same group; None for `z`.

    Returns:
        `[explained]`.

    Source: spacings of exponential order statistics, Rényi 1953.

    >>> honest = np.sqrt(2 * np.log(1000 / np.arange(1, 60)))
    >>> p = tail_p_values(np.append(honest, 12.0), groups=1000)
    >>> bool(p[-1] < 1e-9), bool(p[0] > 0.1)
    (True, True)
    """
    z = np.asarray(z, float)
    among = z if tail_of is None else np.asarray(tail_of, float)
    if len(among) < 10:
        return -np.expm1(groups * stats.norm.logcdf(z / np.sqrt(2)))
    order = np.sort(np.square(among) * np.sign(among))[::-1] / 2
    k = min(tail, len(among))
    # The expected height of rank j above rank k is s² (1/j + … + 1/(k - 1)).
    heights = np.cumsum(1 / np.arange(k - 1, 0, -1.0))[::-1]
    middle = np.arange(k // 5, k // 2)
    scale = np.mean((order[middle] - order[k - 1]) / heights[middle])
    above = np.maximum(np.square(z) * np.sign(z) / 2 - order[k - 1], 0)
    freedom = 0.75 * k
    chance = (1 + above / max(scale, 1e-9) / freedom) ** -freedom
    return -np.expm1((k - 1) * np.log1p(-np.minimum(chance, 1 - 1e-12)))


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
