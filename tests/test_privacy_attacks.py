"""Attacks on membership against loops and values by hand; the null, and the power."""

import numpy as np
import pytest
from scipy import special, stats

from protojax.evals import detection_auc
from protojax.privacy.leakage import naturally_worst, null_check
from protojax.privacy.membership_attacks import (
    MEMBERSHIP_ATTACKS,
    label_log_odds,
    lira,
    lira_offline,
    reference_moments,
    rmia,
)
from protojax.privacy.memberships import (
    candidates,
    coin_flips,
    complement_of,
    complementary_halves,
    drawn_anew,
    require_design,
)
from protojax.privacy.rates import calibrated_p_values, true_positive_rate

# The target, pipeline 4, has the row; pipelines 0 and 2 have it, 1 and 3 lack it.
SCORES = np.array([2.0, 1.0, 4.0, -1.0, 3.0, 100.0])[:, None]
MEMBERS = np.array([True, False] * 3)[:, None]


def others(members, target):
    """The pipelines that attack one, by a loop over bits."""
    for index, row in enumerate(members):
        opposite = all(a != b for a, b in zip(row, members[target], strict=True))
        if index != target and not opposite:
            yield index


def loop_lira(scores, members, *, keep_pair=False):
    """LiRA with a variance per row, or biased as usual by the target's complement."""
    found = np.empty(scores.shape)
    for target in range(len(scores)):
        rows = [*others(members, target)]
        if keep_pair:
            rows = [index for index in range(len(scores)) if index != target]
        for row in range(scores.shape[1]):
            inner = [scores[i, row] for i in rows if members[i, row]]
            outer = [scores[i, row] for i in rows if not members[i, row]]
            found[target, row] = stats.norm.logpdf(
                scores[target, row], np.mean(inner), np.std(inner, ddof=1)
            ) - stats.norm.logpdf(
                scores[target, row], np.mean(outer), np.std(outer, ddof=1)
            )
    return found


@pytest.mark.parametrize(("rows", "pipelines"), [(10, 4), (30, 16)])
def test_halves(rows, pipelines):
    members = complementary_halves(rows, pipelines, seed=3)
    assert members.dtype == bool
    assert (members.sum(0) == pipelines // 2).all()
    assert (members.sum(1) == rows // 2).all()
    np.testing.assert_array_equal(members[::2], ~members[1::2])
    again = complementary_halves(rows, pipelines, seed=3)
    np.testing.assert_array_equal(members, again)
    assert (members != complementary_halves(rows, pipelines, seed=4)).any()


def test_with_the_pair_out_counts_do_not_tell_the_membership():
    members = complementary_halves(30, 8, seed=0)
    for inside in (True, False):
        moments = reference_moments(members * 1.0, members, inside=inside, pooled=True)
        assert (moments.count == 3).all()


def test_groups_stay_together_and_halves_are_nearly_equal():
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    members = complementary_halves(len(groups), 40, seed=1, groups=groups)
    for group in range(12):
        own = members[:, groups == group]
        assert (own == own[:, :1]).all()
    assert (members.sum(0) == 20).all()
    assert (np.abs(members[::2].sum(1) - members[1::2].sum(1)) <= 12).all()
    # Each group is in the first half about as often as not.
    first = complementary_halves(78, 4000, seed=2, groups=groups)[::2, :]
    assert np.abs(first.mean(0) - 0.5).max() < 0.06


def test_some_rows_are_always_in():
    always = np.arange(11) == 4
    members = complementary_halves(11, 4, seed=0, always=always)
    assert members[:, 4].all()
    np.testing.assert_array_equal(candidates(members), ~always)
    assert complement_of(members).tolist() == [1, 0, 3, 2]


def test_complements_are_found_in_any_order():
    members = complementary_halves(40, 8, seed=0)
    order = np.random.default_rng(0).permutation(8)
    found = complement_of(members[order])
    np.testing.assert_array_equal(members[order][found], ~members[order])
    coins = coin_flips(40, 8, seed=0)
    assert complement_of(coins).tolist() == [*range(8)]


def test_a_design_that_gives_memberships_away_is_refused():
    require_design(complementary_halves(40, 8, seed=0))
    require_design(coin_flips(40, 8, seed=0))
    keys = np.random.default_rng(0).random((8, 40))
    half_of_models = keys.argsort(0) < 4
    with pytest.raises(ValueError, match="0 of 8 pipelines with an opposite"):
        require_design(half_of_models)


def test_memberships_drawn_anew_keep_the_design():
    rng = np.random.default_rng(0)
    order = rng.permutation(8)
    members = complementary_halves(40, 8, seed=0)[order]
    anew = drawn_anew(members, rng)
    np.testing.assert_array_equal(complement_of(anew), complement_of(members))
    assert (anew.sum(1) == 20).all()
    assert np.abs(np.mean(anew == members) - 0.5) < 0.15
    coins = drawn_anew(coin_flips(1000, 6, seed=0, rate=0.3), rng)
    assert np.abs(coins.mean() - 0.3) < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pipelines": 5}, "num_pipelines even and >= 4"),
        ({"num_pipelines": 2}, "num_pipelines even and >= 4"),
        ({"num_rows": 7}, "of candidates even"),
        ({"groups": np.zeros(8)}, "groups to be at least 2"),
        ({"always": np.zeros(3)}, "always.shape"),
    ],
)
def test_halves_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        complementary_halves(
            **{"num_rows": 8, "num_pipelines": 4, "seed": 0, **options}
        )


def test_log_odds():
    far = label_log_odds(np.array([[80.0, 0.0], [0.0, 80.0]]), np.array([0, 0]))
    assert far.dtype == np.float64
    np.testing.assert_array_equal(far, [80.0, -80.0])
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 7, 4)).astype(np.float32), np.arange(7) % 4
    p = special.softmax(np.float64(logits), -1)[:, np.arange(7), labels]
    naive = np.log(p / (1 - p))
    np.testing.assert_allclose(label_log_odds(logits, labels), naive, rtol=1e-12)
    two = rng.normal(size=(7, 2))
    np.testing.assert_allclose(
        label_log_odds(two, np.zeros(7, int)), -label_log_odds(two, np.ones(7, int))
    )
    # One class is not more than another by a shift of all.
    np.testing.assert_allclose(
        label_log_odds(logits + 5.0, labels), label_log_odds(logits, labels), atol=1e-5
    )


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 1)), np.zeros(2, int), "classes >= 2"),
        (np.zeros((2, 3)), np.array([0, 3]), "labels in"),
        (np.zeros((2, 3)), np.zeros(2), "integer classes"),
        (np.zeros((2, 3)), np.zeros(3, int), "labels.shape"),
        (np.full((2, 3), np.nan), np.zeros(2, int), "logits finite"),
    ],
)
def test_log_odds_of_what_has_none(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        label_log_odds(logits, labels)


@pytest.mark.parametrize("pooled", [False, True])
def test_lira_by_hand(pooled):
    # In {2, 4}, out {-1, 1}, both of variance 2: 3² / (2 · 2).
    assert lira(SCORES, MEMBERS, pooled=pooled)[4, 0] == pytest.approx(9 / 4, abs=1e-13)
    offline = lira_offline(SCORES, MEMBERS, pooled=pooled)[4, 0]
    assert offline == pytest.approx(3 / np.sqrt(2), abs=1e-13)


def test_the_calibrated_test_by_hand():
    assert calibrated_p_values(SCORES, MEMBERS)[4, 0] == pytest.approx(1 / 6, abs=1e-13)


def test_rmia_by_hand():
    confidences = np.array([0.5, 0.1, 0.7, 0.3, 0.8, 0.9])[:, None]
    online = rmia(confidences, MEMBERS)[4, 0]
    assert online == pytest.approx(2.0, abs=1e-14)
    offline = rmia(confidences, MEMBERS, a=0.3)[4, 0]
    assert offline == pytest.approx(0.8 / 0.48, abs=1e-14)
    assert offline == pytest.approx(5 / 3, abs=1e-14)
    # Rows z of ratios 1, 1.5, 2 and 4; the row itself has 2.
    population = np.full((6, 4), 0.2)
    population[4] = 0.2, 0.3, 0.4, 0.8
    assert rmia(confidences, MEMBERS, population)[4, 0] == 3 / 4


def test_lira_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    members = complementary_halves(20, 8, seed=5)
    scores = rng.normal(size=(8, 20)) + 10
    expected = loop_lira(scores, members)
    np.testing.assert_allclose(lira(scores, members, pooled=False), expected, atol=1e-9)


def test_a_pooled_variance_is_the_mean_of_those_of_rows():
    members = complementary_halves(6, 8, seed=5)
    scores = np.random.default_rng(0).normal(size=(8, 6))
    own = reference_moments(scores, members, inside=True, pooled=False)
    both = reference_moments(scores, members, inside=True, pooled=True)
    np.testing.assert_allclose(both.variance[:, 0], own.variance.mean(1))
    np.testing.assert_array_equal(both.mean, own.mean)


@pytest.mark.parametrize("name", MEMBERSHIP_ATTACKS)
def test_contract_of_attacks(name):
    attack = MEMBERSHIP_ATTACKS[name]
    rng = np.random.default_rng(1)
    members = complementary_halves(50, 8, seed=0)
    scores = rng.normal(size=(8, 50)) + 2 * members
    found = attack(scores, members)
    assert found.shape == scores.shape
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert detection_auc(found.ravel(), members.ravel()) > 0.7
    # Rows, pairs and the two of a pair in another order.
    rows, order = rng.permutation(50), np.array([5, 4, 0, 1, 6, 7, 3, 2])
    moved = attack(scores[order][:, rows], members[order][:, rows])
    np.testing.assert_allclose(moved, found[order][:, rows], rtol=1e-9, atol=1e-12)
    # The target's own score aside, neither it nor its complement matters.
    changed = scores.copy()
    changed[1] = rng.normal(size=50)
    np.testing.assert_allclose(attack(changed, members)[0], found[0], atol=1e-12)
    # Scores that all agree tell nothing, and saturated ones stay finite.
    assert np.ptp(attack(np.full((8, 50), 0.1), members)) < 1e-3
    assert np.isfinite(attack(scores * 1e3, members)).all()


@pytest.mark.parametrize("attack", [lira, lira_offline])
def test_a_row_is_attacked_by_its_own_scores(attack):
    members = complementary_halves(10, 8, seed=0)
    scores = np.random.default_rng(1).normal(size=(8, 10))
    found = attack(scores, members, pooled=False)
    other = scores.copy()
    other[:, 1:] *= 7
    np.testing.assert_allclose(attack(other, members, pooled=False)[:, 0], found[:, 0])


def test_the_order_of_a_row_survives_a_monotone_map():
    members = complementary_halves(10, 16, seed=0)
    scores = np.random.default_rng(1).normal(size=(16, 10))
    ranks = stats.rankdata(MEMBERSHIP_ATTACKS["threshold"](scores, members), axis=0)
    mapped = MEMBERSHIP_ATTACKS["threshold"](scores**3 + 2 * scores, members)
    np.testing.assert_array_equal(stats.rankdata(mapped, axis=0), ranks)
    # Affine maps leave the ratio and the calibrated test as they are.
    for function in (lira, calibrated_p_values):
        np.testing.assert_allclose(
            function(5 * scores + 3, members), function(scores, members), rtol=1e-9
        )


@pytest.mark.parametrize(
    ("scores", "members", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 3)), "members.shape"),
        (np.full((4, 2), np.inf), np.zeros((4, 2)), "scores finite"),
        (np.zeros((4, 6)), complementary_halves(6, 4, seed=0), "take more pipelines"),
        (np.zeros(4), np.zeros(4), "scores.ndim 2"),
    ],
)
def test_scores_that_cannot_be_attacked(scores, members, message):
    with pytest.raises(ValueError, match=message):
        lira(scores, members)


@pytest.mark.parametrize(
    "options", [{"a": 1.5}, {"gamma": 0.0}, {"population": np.zeros((6, 2))}]
)
def test_rmia_of_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"a in|gamma > 0|population"):
        rmia(np.full((6, 1), 0.5), MEMBERS, **options)


# A world in which scores say nothing, as large as the published figures'.
NULL = np.random.default_rng(0).normal(size=(8, 25_000))


def keeping_the_pair(scores, members):
    """Pooled LiRA that leaves the target out and nothing else."""
    found = np.empty(scores.shape)
    for target in range(len(scores)):
        keep = np.arange(len(scores)) != target
        ratio = 0.0
        for side, sign in ((members[keep], 1), (~members[keep], -1)):
            count = side.sum(0)
            mean = (scores[keep] * side).sum(0) / count
            squares = ((scores[keep] - mean) ** 2 * side).sum()
            variance = squares / (count - 1).sum()
            squares = (scores[target] - mean) ** 2 / variance
            ratio = ratio - sign * (squares + np.log(variance)) / 2
        found[target] = ratio
    return found


@pytest.mark.parametrize("name", MEMBERSHIP_ATTACKS)
def test_null(name):
    """With the pair left out: an AUC of .500 ± .006, 1.0 ± .15 % found."""
    members = complementary_halves(25_000, 8, seed=1)
    evidence = MEMBERSHIP_ATTACKS[name](NULL, members)
    assert abs(detection_auc(evidence.ravel(), members.ravel()) - 0.5) < 0.006
    rate = true_positive_rate(evidence, members, max_false_positive_rate=0.01)
    assert abs(rate - 0.01) < 0.0015
    assert null_check(
        MEMBERSHIP_ATTACKS[name], NULL[:, :2500], members[:, :2500], num_draws=5
    ).passed


def test_null_of_one_variance_per_row_and_of_the_calibrated_test():
    members = complementary_halves(25_000, 8, seed=1)
    evidence = lira(NULL, members, pooled=False)
    assert abs(detection_auc(evidence.ravel(), members.ravel()) - 0.5) < 0.006
    p_values = calibrated_p_values(NULL, members)
    for side in (members, ~members):
        assert abs((p_values[side] <= 0.01).mean() - 0.01) < 0.001
        assert stats.kstest(p_values[side][::10], "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("pair", "area"), [(0.0, 0.474), (-0.5, 0.543)])
def test_the_null_fails_with_the_pair_kept(pair, area):
    """.474 with independent scores, .543 with a pair's correlated, as halves make."""
    members = complementary_halves(25_000, 8, seed=1)
    scores = NULL.copy()
    scores[1::2] = pair * scores[::2] + np.sqrt(1 - pair**2) * scores[1::2]
    evidence = keeping_the_pair(scores, members)
    found = detection_auc(evidence.ravel(), members.ravel())
    assert abs(found - area) < 0.006
    assert abs(found - 0.5) > 0.006
    part = scores[:, :2500], members[:, :2500]
    assert not null_check(keeping_the_pair, *part, num_draws=5).passed
    assert null_check(MEMBERSHIP_ATTACKS["lira"], *part, num_draws=5).passed


def test_power():
    """A shift of 2 sd, of which 37.2 % are found at 1 % with known moments."""
    rng = np.random.default_rng(0)
    members = complementary_halves(12_000, 64, seed=1)
    scores = rng.normal(size=(64, 12_000)) + 2 * members
    known = true_positive_rate(scores, members, max_false_positive_rate=0.01)
    assert stats.norm.cdf(2 - stats.norm.isf(0.01)) == pytest.approx(0.372, abs=5e-4)
    assert known == pytest.approx(0.372, abs=0.005)
    evidence = lira(scores, members, pooled=True)
    rate = true_positive_rate(evidence, members, max_false_positive_rate=0.01)
    assert rate == pytest.approx(0.352, abs=0.008)
    hits = calibrated_p_values(scores, members) <= 0.01
    assert hits[members].mean() == pytest.approx(0.327, abs=0.004)
    assert hits[~members].mean() == pytest.approx(0.01, abs=0.0004)


def test_the_naturally_worst_rows_are_chosen_by_other_pipelines():
    rng = np.random.default_rng(0)
    members = complementary_halves(1000, 8, seed=1)
    remembered = np.arange(1000) < 50
    scores = rng.normal(size=(8, 1000)) + 6 * members * remembered
    worst = naturally_worst(scores, members)
    assert (worst.sum(1) == 50).all()
    assert worst[:, remembered].mean() > 0.9
    np.testing.assert_array_equal(worst[::2], worst[1::2])


@pytest.mark.parametrize("name", ["threshold", "lira"])
def test_the_naturally_worst_rows_are_found_by_no_chance(name):
    """In a world without information, though chosen by the very scores attacked."""
    members = complementary_halves(25_000, 8, seed=1)
    worst = naturally_worst(NULL, members)
    evidence = MEMBERSHIP_ATTACKS[name](NULL, members)[worst]
    assert abs(detection_auc(evidence, members[worst]) - 0.5) < 0.015
    rate = true_positive_rate(evidence, members[worst], max_false_positive_rate=0.01)
    assert abs(rate - 0.01) < 0.005
    # Chosen with the target's own scores, they are.
    gaps = (NULL * members).sum(0) - (NULL * ~members).sum(0)
    biased = np.argsort(gaps)[-1250:]
    area = detection_auc(NULL[:, biased].ravel(), members[:, biased].ravel())
    assert area > 0.7
