"""Two arms on the same items."""

import numpy as np
import pytest
from scipy import stats

from protojax.evals import mcnemar, paired_interval


def test_items_are_drawn_in_pairs():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    first, second = hard < 0.5, hard < 0.4
    found = paired_interval(first, second)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    # The standard error of a mean of differences, not that of two means.
    error = (first.astype(float) - second).std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    apart = np.sqrt((first.var() + second.var()) / 400)
    assert found.high - found.low < 1.96 * apart
    assert found == paired_interval(first, second)


def test_seeds_that_differ_widen_the_interval():
    first = np.array([[1.0] * 50, [0.0] * 50, [1.0] * 50])
    found = paired_interval(first, np.zeros((3, 50)))
    half = stats.t.ppf(0.975, 2) * np.array([1, 0, 1]).std(ddof=1) / 3**0.5
    np.testing.assert_allclose(found, (2 / 3, 2 / 3 - half, 2 / 3 + half))


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        (([1, 0], [1]), {}, "second"),
        (([], []), {}, "items"),
        (([1], [1]), {"confidence": 1.0}, "confidence"),
        (([1], [1]), {"num_draws": 0}, "num_draws"),
    ],
)
def test_what_cannot_be_compared_is_named(arms, options, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(*arms, **options)


def test_mcnemar_counts_the_items_that_differ():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 60)) < 0.5
    won, lost = (first & ~second).sum(), (~first & second).sum()
    tail = stats.binom.cdf(min(won, lost), won + lost, 0.5)
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(first, first) == 1
    with pytest.raises(ValueError, match="second"):
        mcnemar(first, second[1:])
