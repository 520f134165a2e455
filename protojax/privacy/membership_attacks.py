"""Attacks that tell from its scores which rows a pipeline was trained on.

Each maps scores and memberships of all pipelines to evidence, `[pipelines, rows]`,
higher for more likely a member. A pipeline is attacked with all others *but its
complement*. If that stayed, each row would have one reference more on the side opposite
to the truth: scores that know nothing then have an AUC of 0.44 to 0.58.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from protojax import validate
from protojax.privacy.memberships import complement_of

# (scores [pipelines, rows], members [pipelines, rows]) -> evidence [pipelines, rows].
MembershipAttack = Callable[[np.ndarray, np.ndarray], np.ndarray]

# From here on a row's own variance is better than one of all rows (arXiv:2112.03570).
PER_ROW_FROM = 64
# Below it a variance is rounding error; evidence stays finite.
_LEAST_VARIANCE = 1e-30


def label_log_odds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log odds of each row's own label, `[..., rows]`, float64.

        log p_y / (1 - p_y) = z_y - log Σ_{c ≠ y} exp z_c

    From logits: 1 - p has no digits left at 40 nats, where memorised rows are.

    Args:
        logits: `[..., rows, classes]`, at temperature 1 and without dropout.
        labels: `[rows]`, int, the label that a member is trained with: the wrong one of
            a mislabelled canary.

    Raises:
        ValueError: fewer than two classes, values that are not finite, or labels of
            another length or outside the classes.

    >>> label_log_odds(np.array([[80.0, 0.0], [0.0, 3.0]]), np.array([0, 0])).tolist()
    [80.0, -3.0]
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    validate.require(logits.ndim >= 2, "logits.ndim", logits.ndim, ">= 2")
    validate.shape((logits.shape[-2],), labels=labels)
    num_classes = logits.shape[-1]
    validate.require(num_classes >= 2, "classes", num_classes, ">= 2")
    integer = np.issubdtype(labels.dtype, np.integer)
    validate.require(integer, "labels.dtype", str(labels.dtype), "integer classes")
    known = bool(((labels >= 0) & (labels < num_classes)).all())
    found = (int(labels.min()), int(labels.max())) if len(labels) else ()
    validate.require(known, "labels", found, f"in [0, {num_classes})")
    finite = bool(np.isfinite(logits).all())
    validate.require(finite, "logits", "NaN or infinite values", "finite")
    own = labels[:, None] == np.arange(num_classes)
    others = special.logsumexp(np.where(own, -np.inf, logits), axis=-1)
    return np.where(own, logits, 0.0).sum(-1) - others


class Moments(NamedTuple):
    """Moments of a row's scores in the pipelines that attack each pipeline.

    Attributes:
        count: `[pipelines, rows]`, how many other pipelines.
        mean: `[pipelines, rows]`.
        variance: `[pipelines, rows]`, unbiased; with `pooled` the same for all rows.
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def reference_moments(
    scores: np.ndarray,
    members: np.ndarray,
    *,
    inside: bool,
    pooled: bool,
    fewest: int = 2,
) -> Moments:
    """Moments of the scores of other pipelines, the target and its complement left out.

    Args:
        scores: `[pipelines, rows]`.
        members: `[pipelines, rows]`, bool.
        inside: of the pipelines that trained on the row, else of those that did not.
        pooled: one variance for all rows, the mean of theirs by degrees of freedom.
        fewest: how many other pipelines each row needs.

    Raises:
        ValueError: on arrays of different shapes, scores that are not finite, or a row
            with too few other pipelines.
    """
    scores, members = _checked(scores, members)
    weights = (members if inside else ~members).astype(np.float64)
    own = np.arange(len(scores))
    attacks = np.ones((len(scores), len(scores)))
    attacks[own, own] = attacks[own, complement_of(members)] = 0
    count = attacks @ weights
    side = "with" if inside else "without"
    least = int(count.min()) if count.size else 0
    allowed = f">= {fewest} besides the target and its complement: take more pipelines"
    validate.require(least >= fewest, f"pipelines {side} each row", least, allowed)
    # Centred, so that the squares cancel no digits.
    centre = scores.mean(0)
    centred = scores - centre
    mean = (attacks @ (weights * centred)) / count
    squares = attacks @ (weights * centred**2) - count * mean**2
    if pooled:
        squares, degrees = squares.sum(1, keepdims=True), (count - 1).sum(1)[:, None]
    else:
        degrees = count - 1
    variance = np.maximum(squares / np.maximum(degrees, 1), _LEAST_VARIANCE)
    return Moments(count, mean + centre, np.broadcast_to(variance, count.shape))


def _checked(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of one shape, the scores finite and float64."""
    scores, members = np.asarray(scores, np.float64), np.asarray(members, bool)
    validate.require(scores.ndim == 2, "scores.ndim", scores.ndim, "2")
    validate.shape(scores.shape, members=members)
    finite = bool(np.isfinite(scores).all())
    validate.require(finite, "scores", "NaN or infinite values", "finite")
    return scores, members


def threshold(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The score itself: what an attacker without any reference model has.

    Args:
        scores: `[pipelines, rows]`, such as `label_log_odds`.
        members: `[pipelines, rows]`, not used.

    Source: Yeom et al. 2018, arXiv:1709.01604.
    """
    return _checked(scores, members)[0]


def _pooled(pooled: bool | None, scores: np.ndarray) -> bool:
    return len(scores) < PER_ROW_FROM if pooled is None else pooled


def lira(
    scores: np.ndarray, members: np.ndarray, *, pooled: bool | None = None
) -> np.ndarray:
    """Log likelihood ratios of the online attack, `[pipelines, rows]`.

        log N(s; mean_in, var_in) - log N(s; mean_out, var_out)

    Args:
        scores: `[pipelines, rows]`, such as `label_log_odds`.
        members: `[pipelines, rows]`, bool, from `complementary_halves`.
        pooled: one variance for all rows; None pools below 64 pipelines, where a row's
            own variance makes the attack useless (9.9 % instead of 58.6 % with 8).

    Raises:
        ValueError: as `reference_moments`: it takes 6 pipelines in pairs.

    Source: Carlini et al. 2022, arXiv:2112.03570. The complement is left out as well;
    what it biases: Jälkö et al. 2026, arXiv:2605.25819.

    >>> scores = np.array([2.0, 1.0, 4.0, -1.0, 3.0, 0.0])[:, None]
    >>> members = np.array([True, False] * 3)[:, None]
    >>> lira(scores, members, pooled=False)[4].tolist()
    [2.25]
    """
    pooled = _pooled(pooled, scores)
    inner = reference_moments(scores, members, inside=True, pooled=pooled)
    outer = reference_moments(scores, members, inside=False, pooled=pooled)
    return log_ratio(scores, inner, outer)


def log_ratio(scores: np.ndarray, inner: Moments, outer: Moments) -> np.ndarray:
    """log N(s; inner) - log N(s; outer), of the shape of the scores.

    Args:
        scores: `[pipelines, rows]`.
        inner: of scores with the row.
        outer: of scores without it.
    """

    def log_density(moments: Moments) -> np.ndarray:
        squares = (scores - moments.mean) ** 2 / moments.variance
        return -0.5 * (squares + np.log(moments.variance))

    return log_density(inner) - log_density(outer)


def lira_offline(
    scores: np.ndarray, members: np.ndarray, *, pooled: bool | None = None
) -> np.ndarray:
    """The height of a score above those of pipelines without the row, in their spread.

        (s - mean_out) / sd_out

    One-sided: a score below the mean is evidence against membership. No pipeline that
    trained on the row is needed.

    Args:
        scores: `[pipelines, rows]`.
        members: `[pipelines, rows]`, bool.
        pooled: as of `lira`.

    Source: Carlini et al. 2022, arXiv:2112.03570.
    """
    pooled = _pooled(pooled, scores)
    outer = reference_moments(scores, members, inside=False, pooled=pooled)
    return (scores - outer.mean) / np.sqrt(outer.variance)


def rmia(
    confidences: np.ndarray,
    members: np.ndarray,
    population: np.ndarray | None = None,
    *,
    a: float | None = None,
    gamma: float = 1.0,
) -> np.ndarray:
    """Ratios p(x | model) / p(x), or the share of a population that a row's beats.

    Online, p(x) is the mean of the mean confidences with and without the row; offline,

        p(x) = ((1 + a) p_out(x) + (1 - a)) / 2

    With a population of rows that no pipeline trained on, the evidence is the share of
    its rows z for which ratio(x) / ratio(z) ≥ gamma. For one model that only rescales
    ranks, but evidence of different models becomes comparable.

    Args:
        confidences: `[pipelines, rows]`, the probability of the row's own label.
        members: `[pipelines, rows]`, bool.
        population: `[pipelines, z]`, confidences of such rows, or None.
        a: None for the online attack; of the offline one in [0, 1], 0.3 by the paper.
            It is never tuned on the target's memberships.
        gamma: > 0; how clearly a row must beat another.

    Returns:
        `[pipelines, rows]`.

    Raises:
        ValueError: confidences outside (0, 1], `a` or `gamma` out of range, or a row
            without another pipeline; it takes 4 pipelines in pairs.

    Source: Zarifzadeh, Liu and Shokri 2023, arXiv:2312.03262.
    """
    validate.positive(gamma=gamma)
    outer = reference_moments(
        confidences, members, inside=False, pooled=True, fewest=1
    ).mean
    _require_probabilities(confidences=confidences)
    if a is None:
        inner = reference_moments(
            confidences, members, inside=True, pooled=True, fewest=1
        ).mean
        marginal = (inner + outer) / 2
    else:
        validate.fraction(a=a)
        marginal = ((1 + a) * outer + (1 - a)) / 2
    ratios = np.asarray(confidences, np.float64) / marginal
    if population is None:
        return ratios
    validate.same_length(confidences=confidences, population=population)
    _require_probabilities(population=population)
    others = ~np.eye(len(ratios), dtype=bool)
    others[np.arange(len(ratios)), complement_of(members)] = False
    marginal = others @ np.asarray(population, np.float64) / others.sum(1)[:, None]
    if a is not None:
        marginal = ((1 + a) * marginal + (1 - a)) / 2
    beaten = np.sort(population / marginal, axis=1) * gamma
    found = map(lambda z, x: np.searchsorted(z, x, side="right"), beaten, ratios)
    return np.stack([*found]) / beaten.shape[1]


def _require_probabilities(**arrays: np.ndarray) -> None:
    for name, values in arrays.items():
        values = np.asarray(values)
        inside = bool(((values > 0) & (values <= 1)).all())
        validate.require(inside, name, "values outside", "in (0, 1]")


def _rmia_of_scores(a: float | None) -> MembershipAttack:
    def attack(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
        # The least positive double: a confidence of 0 has no ratio.
        confidences = np.maximum(special.expit(scores), np.finfo(float).tiny)
        return rmia(confidences, members, a=a)

    return attack


# All of log odds; those of RMIA turn them into confidences.
MEMBERSHIP_ATTACKS: Mapping[str, MembershipAttack] = {
    "threshold": threshold,
    "lira": lira,
    "lira_offline": lira_offline,
    "rmia": _rmia_of_scores(None),
    "rmia_offline": _rmia_of_scores(0.3),
}
