"""Rates of members found at a bounded rate of false alarms, and their intervals.

Strict: nothing is interpolated, ties lose, and a rate is None where there are too few
non-members for it. Scores of one row in many pipelines depend on each other, so an
interval draws whole rows, or whole pairs of pipelines, again.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from protojax import validate
from protojax.privacy.membership_attacks import reference_moments
from protojax.privacy.memberships import complement_of

# A rate is stated where at least so many false alarms are allowed.
FEWEST_FALSE_ALARMS = 10
# Against rounding: 0.29 * 100 is 28.999...
_SLACK = 1e-9
# Draws of a bootstrap at once: bounds its memory.
_DRAWS_AT_ONCE = 50

# (weights of pipelines [draws, P] or None, of rows [draws, rows] or None) -> [draws],
# or [draws, figures].
Resampled = Callable[[np.ndarray | None, np.ndarray | None], np.ndarray]


def true_positive_rate(
    evidence: np.ndarray,
    members: np.ndarray,
    *,
    max_false_positive_rate: float,
    fewest: int = FEWEST_FALSE_ALARMS,
) -> float | None:
    """The share of members above a threshold that few enough non-members exceed.

    The threshold is the least for which at most `floor(rate * n)` of n non-members lie
    above; values equal to it lose. Evidence of all pipelines and rows is taken
    together, as papers do, so a single row may have a much higher rate of false alarms:
    `calibrated_p_values` holds it row by row.

    Args:
        evidence: of any shape, higher for more likely a member.
        members: of the same shape, bool.
        max_false_positive_rate: in [0, 1].
        fewest: the fewest false alarms that the rate must allow.

    Returns:
        A share, or None where `rate * n < fewest`: too few non-members to say.

    Raises:
        ValueError: on different shapes, NaN, or no member.

    >>> evidence = np.array([3.0, 2.0, 1.0, 0.0, 2.5, 1.5, 0.5, -0.5])
    >>> members = np.arange(8) < 4
    >>> true_positive_rate(evidence, members, max_false_positive_rate=0.25, fewest=0)
    0.5
    """
    evidence, members = _checked(evidence, members)
    validate.fraction(max_false_positive_rate=max_false_positive_rate)
    outer = evidence[~members]
    allowed = max_false_positive_rate * len(outer) + _SLACK
    if allowed < fewest:
        return None
    rank = math.floor(allowed)
    if rank >= len(outer):
        return 1.0
    # The (rank + 1)-th largest: exactly `rank` can lie above it.
    level = np.partition(outer, len(outer) - 1 - rank)[len(outer) - 1 - rank]
    return float(np.mean(evidence[members] > level))


def _checked(
    evidence: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    evidence, members = np.asarray(evidence, np.float64), np.asarray(members, bool)
    validate.shape(evidence.shape, members=members)
    num_nan = int(np.isnan(evidence).sum())
    validate.require(num_nan == 0, "num_nan", num_nan, "of evidence to be 0")
    validate.positive(num_members=int(members.sum()))
    return evidence, members


def smallest_rate(members: np.ndarray) -> float:
    """The least rate of false alarms that so many non-members can show, at most 1.

    Args:
        members: of any shape, bool.

    >>> smallest_rate(np.arange(2000) < 1000)
    0.01
    """
    return min(1.0, FEWEST_FALSE_ALARMS / max(1, int((~np.asarray(members)).sum())))


def calibrated_p_values(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The p value of "this pipeline did not train on the row", `[pipelines, rows]`.

        t = (s - mean_out) / (sd_out sqrt(1 + 1/n)),  p = P(T_{n-1} ≥ t)

    against the row's own n scores in other pipelines without it. Exact at any number of
    pipelines where these are normal: a test at 1 % has 1 % false alarms in each row.

    Args:
        scores: `[pipelines, rows]`, such as `label_log_odds`.
        members: `[pipelines, rows]`, bool.

    Raises:
        ValueError: as `reference_moments`.

    Source: the prediction interval of a normal sample; why each row: Jälkö et al. 2026,
    arXiv:2605.25819.

    >>> scores = np.array([2.0, 1.0, 4.0, -1.0, 3.0, 0.0])[:, None]
    >>> members = np.array([True, False] * 3)[:, None]
    >>> calibrated_p_values(scores, members)[4].round(4).tolist()
    [0.1667]
    """
    outer = reference_moments(scores, members, inside=False, pooled=False)
    spread = np.sqrt(outer.variance * (1 + 1 / outer.count))
    return stats.t.sf((scores - outer.mean) / spread, outer.count - 1)


def clopper_pearson(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """The exact interval of a rate of independent trials.

    For audits of one model and for counts of secrets; scores of one row in many
    pipelines are not independent, and it would be about five times too narrow.

    Args:
        successes: in [0, trials].
        trials: at least 1.
        confidence: in (0, 1).

    >>> [round(end, 5) for end in clopper_pearson(0, 100)]
    [0.0, 0.03622]
    """
    found = stats.binomtest(successes, trials).proportion_ci(confidence, "exact")
    return float(found.low), float(found.high)


def found_rate(
    evidence: np.ndarray,
    members: np.ndarray,
    *,
    max_false_positive_rate: float,
    where: np.ndarray | None = None,
) -> Resampled:
    """`true_positive_rate` of rows or pipelines drawn again, sorted once for all draws.

    Args:
        evidence: `[pipelines, rows]`.
        members: `[pipelines, rows]`, bool.
        max_false_positive_rate: in [0, 1].
        where: `[pipelines, rows]`, bool, the values that count, or None for all.

    Returns:
        A function for `bootstrap_interval`.

    Raises:
        ValueError: on different shapes, NaN, no member or no non-member.
    """
    levels = (max_false_positive_rate,)
    rates = found_rates(evidence, members, levels=levels, where=where)
    return lambda pipelines, rows: rates(pipelines, rows)[:, 0]


def found_rates(
    evidence: np.ndarray,
    members: np.ndarray,
    *,
    levels: Sequence[float],
    where: np.ndarray | None = None,
) -> Resampled:
    """`found_rate` at several rates of false alarms, of the same draws.

    Args:
        evidence: `[pipelines, rows]`.
        members: `[pipelines, rows]`, bool.
        levels: rates of false alarms, in [0, 1].
        where: `[pipelines, rows]`, bool, the values that count, or None for all.

    Returns:
        A function for `bootstrap_band`, which gives `[draws, levels]`.

    Raises:
        ValueError: as `found_rate`.
    """
    evidence, members = _checked(evidence, members)
    every = np.ones_like(members) if where is None else np.asarray(where, bool)
    validate.shape(evidence.shape, where=every)
    members, others = every & members, every & ~members
    validate.positive(num_members=members.sum(), num_non_members=others.sum())
    validate.positive(num_levels=len(levels))
    inner, outer = _falling(evidence, members), _falling(evidence, others)
    # How many members lie strictly above each non-member, and above none.
    above = np.searchsorted(-evidence[inner], -evidence[outer], side="left")
    above, most = np.append(above, len(inner[0])), len(outer[0])
    # Draws rarely need more than the top of the non-members; else all are taken.
    top = min(most, int(4 * max(levels) * most) + 50)

    def rates(pipelines: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray:
        totals = np.maximum(_total(members, pipelines, rows), 1)
        drawn = _total(others, pipelines, rows)
        allowed = np.floor(np.multiply.outer(drawn, levels) + _SLACK)
        alarms = _drawn(outer, top, pipelines, rows)
        if (alarms[:, -1:] <= allowed).any():
            alarms = _drawn(outer, most, pipelines, rows)
        # The first non-member that is one too many is the threshold.
        first = [
            np.searchsorted(line[1:], bounds, side="right")
            for line, bounds in zip(alarms, allowed, strict=True)
        ]
        passed = above[np.stack(first)]
        hits = _drawn(inner, passed.max(), pipelines, rows)
        return np.take_along_axis(hits, passed, axis=1) / totals[:, None]

    return rates


def _falling(evidence: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pipelines and rows of the flagged values, in falling order."""
    pipelines, rows = np.nonzero(where)
    order = np.argsort(-evidence[pipelines, rows], kind="stable")
    return pipelines[order], rows[order]


def _drawn(
    values: tuple[np.ndarray, np.ndarray],
    length: int,
    pipelines: np.ndarray | None,
    rows: np.ndarray | None,
) -> np.ndarray:
    """The number of the first 0, ..., length values drawn, `[draws, 1 + length]`."""
    weights = [
        drawn[:, places[:length]]
        for drawn, places in zip((pipelines, rows), values, strict=True)
        if drawn is not None
    ]
    found = np.zeros((len(weights[0]), length + 1), np.int64)
    np.cumsum(np.prod(weights, axis=0), axis=1, out=found[:, 1:])
    return found


def _total(
    where: np.ndarray, pipelines: np.ndarray | None, rows: np.ndarray | None
) -> np.ndarray:
    """The number of flagged values drawn, `[draws]`."""
    if rows is None:
        return pipelines @ where.sum(1)
    counts = where.sum(0) if pipelines is None else pipelines @ where
    return (rows * counts).sum(1)


def mean_of_members(
    hits: np.ndarray, members: np.ndarray, *, where: np.ndarray | None = None
) -> Resampled:
    """The share of hits among members, of rows or pipelines drawn again.

    Args:
        hits: `[pipelines, rows]`, bool, such as `calibrated_p_values(...) <= 0.01`.
        members: `[pipelines, rows]`, bool.
        where: `[pipelines, rows]`, bool, the values that count, or None for all.

    Returns:
        A function for `bootstrap_interval`.

    Raises:
        ValueError: on different shapes.
    """
    hits, members = np.asarray(hits, bool), np.asarray(members, bool)
    validate.shape(hits.shape, members=members)
    if where is not None:
        validate.shape(hits.shape, where=where)
        members = members & where

    def rate(pipelines: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray:
        total = _total(members, pipelines, rows)
        return _total(hits & members, pipelines, rows) / np.maximum(total, 1)

    return rate


def bootstrap_interval(
    statistic: Resampled,
    members: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
    num_draws: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """The wider of two intervals: rows drawn again, and pairs of pipelines drawn again.

    Percentiles of the statistic over the draws (Efron 1979). Pipelines without an
    opposite are drawn one by one. References of the attack are not drawn again.

    Args:
        statistic: such as `found_rate(...)`.
        members: `[pipelines, rows]`, bool.
        groups: `[rows]`, whose rows are drawn together, or None.
        confidence: in (0, 1).
        num_draws: of each kind.
        seed: of the draws.

    Returns:
        The two ends.

    Raises:
        ValueError: on a confidence outside (0, 1), no draw, or fewer than two groups.

    >>> members = np.arange(40).reshape(4, 10) % 2 == 0
    >>> statistic = mean_of_members(members, members)
    >>> bootstrap_interval(statistic, members)
    (1.0, 1.0)
    """
    low, high = bootstrap_band(
        lambda *drawn: statistic(*drawn)[:, None],
        members,
        groups=groups,
        confidence=confidence,
        num_draws=num_draws,
        seed=seed,
    )
    return float(low[0]), float(high[0])


def bootstrap_band(
    statistic: Resampled,
    members: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
    num_draws: int = 500,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """`bootstrap_interval` of each of several figures, from the same draws.

    It holds each figure with the confidence, not all of them together.

    Args:
        statistic: gives `[draws, figures]`, such as `found_rates(...)`.
        members: `[pipelines, rows]`, bool.
        groups: `[rows]`, whose rows are drawn together, or None.
        confidence: in (0, 1).
        num_draws: of each kind.
        seed: of the draws.

    Returns:
        The lower and the upper ends, `[figures]` each.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    validate.require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    validate.positive(num_draws=num_draws)
    members = np.asarray(members, bool)
    rng = np.random.default_rng(seed)
    rows = np.arange(members.shape[1]) if groups is None else np.asarray(groups)
    validate.shape((members.shape[1],), groups=rows)
    num_groups = len(np.unique(rows))
    validate.require(num_groups >= 2, "number of groups", num_groups, ">= 2")
    pairs = np.minimum(np.arange(len(members)), complement_of(members))
    tail, ends = (1 - confidence) / 2, []
    for units, place in ((rows, 1), (pairs, 0)):
        names, unit_of = np.unique(units, return_inverse=True)
        even = np.full(len(names), 1 / len(names))
        values = []
        for start in range(0, num_draws, _DRAWS_AT_ONCE):
            draws = min(_DRAWS_AT_ONCE, num_draws - start)
            counts = rng.multinomial(len(names), even, size=draws).astype(np.int32)
            drawn = [None, None]
            drawn[place] = counts[:, unit_of]
            values.append(statistic(*drawn))
        ends.append(np.quantile(np.concatenate(values), [tail, 1 - tail], axis=0))
    by_rows, by_pairs = ends
    wider = np.diff(by_rows, axis=0) >= np.diff(by_pairs, axis=0)
    low, high = np.where(wider, by_rows, by_pairs)
    return low, high
