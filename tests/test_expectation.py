"""The claims that honest rows would make."""

import numpy as np
import pytest
from scipy import special

from protojax.detection import expectation
from protojax.detection.expectation import expected_claims


def test_expected_claims_follow_the_claims_under_test():
    """Labels are flipped in 30 % of the rows whatever the reading: so is expected."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 3000)
    odds = (np.eye(2)[truth] * 2 - 1) * 5
    claims = np.where(rng.random(3000) < 0.3, 1 - truth, truth)
    rows, refs, _ = expected_claims(
        odds[:2000], odds[2000:], claims[:2000], claims[2000:]
    )
    for found, given in ((rows, truth[:2000]), (refs, truth[2000:])):
        right = found[np.arange(len(given)), given]
        assert right.mean() == pytest.approx(0.7, abs=0.03)


def test_a_node_of_other_classes_expects_its_own():
    """Nine rows of ten are of class 1, half of the references: the readings say so."""
    rng = np.random.default_rng(1)
    share = np.r_[np.full(3000, 0.9), np.full(1000, 0.5)]
    truth = (rng.random(4000) < share).astype(int)
    # The reading is weak, so that the classes' own frequencies matter.
    odds = rng.normal((2 * truth - 1) * 1.0, 1.5)
    odds = np.stack([-odds, odds], 1)
    rows, refs, _ = expected_claims(
        odds[:3000], odds[3000:], truth[:3000], truth[3000:]
    )
    assert rows[:, 1].mean() == pytest.approx(truth[:3000].mean(), abs=0.01)
    assert refs[:, 1].mean() == pytest.approx(truth[3000:].mean(), abs=0.01)


def test_no_reference_takes_part_in_its_own_fit():
    rng = np.random.default_rng(2)
    odds, claims = rng.normal(size=(40, 2)), rng.integers(0, 2, 40)
    one = expected_claims(odds, odds, claims, claims)[1]
    changed = claims.copy()
    changed[0] = 1 - changed[0]
    other = expected_claims(odds, odds, claims, changed)[1]
    # Reference 0 is in fold 0: others of the fold change by the shared shift alone,
    # which is the same for all of them in log odds.
    shift = special.logit(other[2::2]) - special.logit(one[2::2])
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-6)
    slope = special.logit(other[1::2]) - special.logit(one[1::2])
    assert np.ptp(slope[:, 0]) > 1e-3


def test_log_odds_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(7, 4)) * 3
    chance = special.softmax(logits, axis=1)
    np.testing.assert_allclose(
        expectation.log_odds(logits), special.logit(chance), rtol=1e-9
    )
    sure = expectation.log_odds(np.array([[500.0, 0.0], [0.0, 500.0]]))
    np.testing.assert_array_equal(sure, [[20, -20], [-20, 20]])
    np.testing.assert_array_equal(expectation.log_odds(np.zeros((2, 1))), [[20], [20]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": np.zeros(3, int)}, "same number of rows"),
        ({"claims_refs": np.zeros(3, int)}, "same number of rows"),
        (
            {"log_odds_refs": np.zeros((1, 2)), "claims_refs": np.zeros(1, int)},
            "references >= 2",
        ),
    ],
)
def test_expected_claims_reject(change, message):
    given = {
        "log_odds": np.zeros((4, 2)),
        "log_odds_refs": np.zeros((4, 2)),
        "claims": np.zeros(4, int),
        "claims_refs": np.zeros(4, int),
    }
    with pytest.raises(ValueError, match=message):
        expected_claims(**{**given, **change})
