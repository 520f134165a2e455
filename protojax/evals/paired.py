"""Two arms measured on the same items: how far apart they are, and how surely."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from protojax import validate
from protojax.evals.metrics import mean_interval


class Difference(NamedTuple):
    """The difference of two arms' means.

    Attributes:
        mean: of the first minus the second.
        low: the lower end of its interval.
        high: the upper end.
    """

    mean: float
    low: float
    high: float


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    num_draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference of two arms on the same items, and the wider of two intervals.

    One draws the items again, each with the difference of its means over seeds
    (percentiles of the bootstrap, Efron 1979). The other is Student's over the
    differences of seeds. A single seed has the first only, which holds for that seed's
    models and says nothing of others.

    Args:
        first: `[seeds, items]`, such as 1 where an answer is right; or `[items]`.
        second: the same of the other arm, by the same seeds and items.
        confidence: in (0, 1).
        num_draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: different shapes, no item, no draw, or a confidence out of bounds.

    >>> paired_interval([1, 1, 0, 1], [0, 0, 0, 0]).mean
    0.75
    >>> paired_interval([1, 0, 1, 0], [1, 0, 1, 0])
    Difference(mean=0.0, low=0.0, high=0.0)
    """
    first, second = (np.atleast_2d(np.asarray(x, float)) for x in (first, second))
    validate.shape(first.shape, second=second)
    validate.positive(items=first.size, num_draws=num_draws)
    validate.require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    gaps = first - second
    of_items, items = gaps.mean(0), gaps.shape[1]
    rng = np.random.default_rng(seed)
    even = np.full(items, 1 / items)
    counts = rng.multinomial(items, even, size=num_draws)
    tail = (1 - confidence) / 2
    low, high = np.quantile(counts @ of_items / items, [tail, 1 - tail])
    mean, half = mean_interval(gaps.mean(1), confidence)
    if half is not None and 2 * half > high - low:
        low, high = mean - half, mean + half
    return Difference(mean, float(low), float(high))


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """The probability of a split as uneven between two arms that are equally good.

    Of the items on which the arms differ, each is won by either with probability ½:
    the exact two-sided test of McNemar (1947).

    Args:
        first: `[items]`, bool.
        second: `[items]`, bool, of the same items.

    Returns:
        A p-value, 1 where the arms differ on no item.

    Raises:
        ValueError: different shapes.

    >>> mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])  # 2 / 2**4
    0.125
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    validate.shape(first.shape, second=second)
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    if won + lost == 0:
        return 1.0
    return float(stats.binomtest(won, won + lost).pvalue)
