"""Rates and intervals against loops and other libraries; what `leakage` reports."""

import importlib
import json

import numpy as np
import pytest
from scipy import stats

from protojax.privacy import audit, complementary_halves, leakage
from protojax.privacy.findings import ALWAYS
from protojax.privacy.memberships import coin_flips
from protojax.privacy.rates import (
    bootstrap_band,
    bootstrap_interval,
    calibrated_p_values,
    clopper_pearson,
    found_rate,
    found_rates,
    mean_of_members,
    smallest_rate,
    true_positive_rate,
)

EIGHT = np.array([3.0, 2.0, 1.0, 0.0, 2.5, 1.5, 0.5, -0.5])
FIRST = np.arange(8) < 4


def rate_of(evidence, members, level, fewest=0):
    return true_positive_rate(
        evidence, members, max_false_positive_rate=level, fewest=fewest
    )


def loop_rate(inner, outer, level):
    """The best threshold out of all values, by trying each."""
    allowed = int(np.floor(level * len(outer) + 1e-9))
    best = 0.0
    for threshold in [-np.inf, *inner, *outer]:
        if sum(value > threshold for value in outer) <= allowed:
            best = max(best, np.mean([value > threshold for value in inner]))
    return best


@pytest.mark.parametrize(
    ("level", "expected"), [(0.25, 0.5), (0.1, 0.25), (0.0, 0.25), (1.0, 1.0)]
)
def test_rates_by_hand(level, expected):
    assert rate_of(EIGHT, FIRST, level) == expected


def test_rates_are_strict_where_another_library_interpolates():
    assert rate_of(np.ones(8), FIRST, 0.25) == 0.0
    auditing = pytest.importorskip("jax_privacy.auditing")
    auditor = auditing.CanaryScoreAuditor(EIGHT[FIRST], EIGHT[~FIRST])
    assert auditor.tpr_at_given_fpr(0.1) == pytest.approx(0.35)
    assert auditor.tpr_at_given_fpr(0.25) == rate_of(EIGHT, FIRST, 0.25)
    constant = auditing.CanaryScoreAuditor(np.ones(4), np.ones(4))
    assert constant.tpr_at_given_fpr(0.25) == pytest.approx(0.25)


def test_rates_agree_with_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(30):
        values = rng.integers(6, size=25).astype(float)
        members = rng.random(25) < 0.5
        members[:2] = True, False
        level = rng.random()
        expected = loop_rate(values[members], values[~members], level)
        assert rate_of(values, members, level) == pytest.approx(expected)


def test_a_rate_is_shown_with_enough_non_members_only():
    members = np.arange(2000) < 1000
    evidence = np.arange(2000.0)
    assert rate_of(evidence, members, 0.01, fewest=10) is not None
    assert rate_of(evidence[1:], members[1:], 0.01, fewest=10) is not None
    assert rate_of(evidence[:-1], members[:-1], 0.01, fewest=10) is None
    assert smallest_rate(members) == 0.01
    assert smallest_rate(members[:1000]) == 1.0


@pytest.mark.parametrize(
    ("evidence", "members", "message"),
    [
        (np.array([np.nan, 1.0]), np.array([True, False]), "num_nan"),
        (np.zeros(2), np.zeros(2), "num_members > 0"),
        (np.zeros(2), np.zeros(3), "members.shape"),
    ],
)
def test_rates_that_cannot_be_taken(evidence, members, message):
    with pytest.raises(ValueError, match=message):
        rate_of(evidence, members, 0.1)


def test_exact_intervals():
    low, high = clopper_pearson(0, 100)
    assert (low, high) == (0, pytest.approx(0.03622, abs=5e-6))
    assert clopper_pearson(100, 100) == (pytest.approx(0.96378, abs=5e-6), 1)
    # By its definition: at the low end, so many successes have 2.5 %.
    low, _ = clopper_pearson(7, 30)
    assert stats.binom.sf(6, 30, low) == pytest.approx(0.025)


def drawn_again(evidence, members, pipelines, rows, level):
    """The rate of rows and pipelines repeated as often as drawn."""
    counts = np.ones(len(evidence), int) if pipelines is None else pipelines
    evidence = np.repeat(evidence, counts, axis=0)
    members = np.repeat(members, counts, axis=0)
    counts = np.ones(evidence.shape[1], int) if rows is None else rows
    evidence, members = (np.repeat(a, counts, axis=1) for a in (evidence, members))
    return rate_of(evidence.ravel(), members.ravel(), level)


@pytest.mark.parametrize("level", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_rates_of_draws_agree_with_repeated_rows(level, ties):
    rng = np.random.default_rng(0)
    members = complementary_halves(60, 6, seed=0)
    evidence = rng.normal(size=(6, 60)) + members
    if ties:
        evidence = evidence.round()
    statistic = found_rate(evidence, members, max_false_positive_rate=level)
    rows = rng.multinomial(60, np.full(60, 1 / 60), size=8)
    pipelines = np.repeat(rng.multinomial(3, np.full(3, 1 / 3), size=8), 2, axis=1)
    for drawn in ((None, rows), (pipelines, None), (pipelines, rows)):
        found = statistic(*drawn)
        for index in range(8):
            one = [None if part is None else part[index] for part in drawn]
            expected = drawn_again(evidence, members, *one, level)
            assert found[index] == pytest.approx(expected, abs=1e-12)


def test_rates_of_draws_that_reach_beyond_the_top():
    # One row holds all the highest non-members; a draw may take it many times.
    members = complementary_halves(1000, 8, seed=0)
    evidence = np.random.default_rng(0).normal(size=(8, 1000)) + members
    evidence[:, :150] += 50
    statistic = found_rate(evidence, members, max_false_positive_rate=0.01)
    rows = np.ones((1, 1000), np.int64)
    rows[0, :150] = 0
    rows[0, 150:300] += 1
    expected = drawn_again(evidence, members, None, rows[0], 0.01)
    assert statistic(None, rows)[0] == pytest.approx(expected)


def test_some_values_count_only():
    members = complementary_halves(60, 6, seed=0)
    evidence = np.random.default_rng(0).normal(size=(6, 60)) + members
    where = np.zeros((6, 60), bool)
    where[:, 20:] = True
    part = found_rate(evidence[:, 20:], members[:, 20:], max_false_positive_rate=0.1)
    some = found_rate(evidence, members, max_false_positive_rate=0.1, where=where)
    rows = np.random.default_rng(1).integers(3, size=(4, 60))
    np.testing.assert_allclose(some(None, rows), part(None, rows[:, 20:]))
    hits = evidence > 1
    some = mean_of_members(hits, members, where=where)
    expected = [
        np.average(
            np.repeat(hits[:, 20:], counts[20:], axis=1)[
                np.repeat(members[:, 20:], counts[20:], axis=1)
            ]
        )
        for counts in rows
    ]
    np.testing.assert_allclose(some(None, rows), expected)


def test_intervals_draw_whole_rows_and_pairs():
    rng = np.random.default_rng(0)
    members = complementary_halves(200, 8, seed=0)
    # All that differs is the row: 8 pipelines say no more than one.
    hits = np.broadcast_to(rng.random(200) < 0.3, (8, 200))
    low, high = bootstrap_interval(mean_of_members(hits, members), members, seed=1)
    by_row = stats.norm.isf(0.025) * np.sqrt(0.3 * 0.7 / 200)
    assert (high - low) / 2 == pytest.approx(by_row, rel=0.25)
    low, high = clopper_pearson(int(hits[members].sum()), int(members.sum()))
    assert (high - low) / 2 < 0.6 * by_row
    # All that differs is the pair.
    hits = np.zeros((8, 200), bool)
    hits[:2] = True
    interval = bootstrap_interval(mean_of_members(hits, members), members)
    assert interval == (0.0, pytest.approx(0.625, abs=0.13))
    # Groups are drawn as one.
    hits = np.broadcast_to(np.arange(200) < 20, (8, 200))
    statistic = mean_of_members(hits, members)
    alone = bootstrap_interval(statistic, members)
    grouped = bootstrap_interval(statistic, members, groups=np.arange(200) // 20)
    assert np.diff(grouped) > 2 * np.diff(alone)
    again = bootstrap_interval(statistic, members, groups=np.arange(200) // 20)
    assert again == grouped


def made(shift=3.0, planted=200, rows=1000, pipelines=8, seed=0):
    """Logits of two classes, of which planted rows give their membership away."""
    members = complementary_halves(rows, pipelines, seed=seed)
    kinds = np.where(np.arange(rows) < planted, "mislabelled", "ordinary")
    noise = np.random.default_rng(seed).normal(size=members.shape)
    scores = noise + shift * members * (kinds == "mislabelled")
    return np.stack([scores, 0 * scores], -1), members, np.zeros(rows, int), kinds


def test_leakage_finds_what_is_planted():
    logits, members, labels, kinds = made(shift=5.0)
    found = leakage(
        logits, members, labels, kinds=kinds, levels=(0.02, 0.01), num_draws=50
    )
    assert found.kinds == ("ordinary", "naturally worst", "mislabelled")
    assert found.worst.kind == "mislabelled"
    assert found.worst.rates[0] > 0.9
    assert found.strongest("ordinary").rates[0] < 0.05
    assert found.conclusive
    assert found.null.passed
    assert found.power.passed
    assert not found.power.on_reference
    # 80 non-members of 800 at 2 %: 16; at 1 % they are 8, too few.
    assert found.worst.rates[1] is None
    assert found.smallest_rates["mislabelled"] == 10 / 800
    for one in found.found:
        for rate, interval in zip(one.rates, one.intervals, strict=True):
            assert (rate is None) == (interval is None)
            assert rate is None or interval[0] <= rate <= interval[1]
    rows = [one["row"] for one in found.worst_rows(20)]
    assert all(kinds[row] == "mislabelled" for row in rows)
    assert found.profile.gaps[kinds == "mislabelled"].mean() > 4
    assert abs(found.profile.gaps[kinds == "ordinary"].mean()) < 0.2
    assert "of 100 mislabelled rows and" in found.sentence
    assert found.sentence in found.table()
    assert "naturally worst (from 6.2 %)" in found.sentence
    assert json.loads(json.dumps(found.record()))["conclusive"] is True


def test_a_model_that_gives_nothing_away_is_judged_by_its_reference():
    logits, members, labels, kinds = made(shift=0.0)
    teacher = made(shift=5.0)[0]
    options = {"kinds": kinds, "levels": (0.02,), "num_draws": 20}
    alone = leakage(logits, members, labels, **options)
    assert not alone.conclusive
    assert "too weak to conclude" in alone.sentence
    beside = leakage(logits, members, labels, reference=teacher, **options)
    assert beside.conclusive
    assert beside.power.on_reference
    assert beside.worst.rates[0] < 0.08
    assert "too weak" not in beside.sentence
    # A teacher in which nothing is found proves nothing either.
    assert not leakage(logits, members, labels, reference=logits, **options).conclusive


def test_rows_that_no_pipeline_lacks_are_left_out():
    logits, members, labels, kinds = made()
    options = {"levels": (0.02,), "num_draws": 20, "attacks": ["lira"]}
    expected = leakage(logits, members, labels, kinds=kinds, **options)
    more = leakage(
        np.concatenate([logits, logits[:, :3]], 1),
        np.concatenate([members, np.ones((8, 3), bool)], 1),
        np.append(labels, [0, 0, 0]),
        kinds=np.append(kinds, [ALWAYS] * 3),
        **options,
    )
    assert more.found == expected.found


def test_rows_of_one_person_are_drawn_together():
    people = np.arange(1000) // 50
    members = complementary_halves(1000, 8, seed=0, groups=people)
    noise = np.random.default_rng(0).normal(size=(8, 20))[:, people]
    scores = 3 * members + noise + 0.1 * np.random.default_rng(1).normal(size=(8, 1000))
    logits, labels = np.stack([scores, 0 * scores], -1), np.zeros(1000, int)
    options = {"levels": (0.1,), "num_draws": 50, "attacks": ["threshold"]}
    alone = leakage(logits, members, labels, **options)
    grouped = leakage(logits, members, labels, groups=people, **options)
    ends = [found.strongest("ordinary").intervals[0] for found in (alone, grouped)]
    assert alone.strongest("ordinary").rates == grouped.strongest("ordinary").rates
    assert np.diff(ends[1]) > np.diff(ends[0])


def test_a_missing_rate_is_no_verdict():
    logits, members, labels, kinds = made(rows=100, planted=20)
    found = leakage(logits, members, labels, kinds=kinds, num_draws=5)
    assert not found.conclusive
    assert "nothing can be said" in found.sentence
    assert "–" in found.table()


def test_independent_coins_are_attacked_with_all_others():
    members = coin_flips(400, 24, seed=3)
    scores = np.random.default_rng(0).normal(size=members.shape) + 4 * members
    logits = np.stack([scores, 0 * scores], -1)
    found = leakage(logits, members, np.zeros(400, int), num_draws=5)
    assert found.null.passed
    assert found.conclusive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "shape"),
        ({"kinds": np.array(["a"])}, "kinds.shape"),
        ({"kinds": np.full(100, "naturally worst")}, "kinds to be another name"),
        ({"groups": np.zeros(2)}, "groups.shape"),
        ({"attacks": ["lyra"]}, "Did you mean 'lira'"),
        ({"attacks": []}, "attacks > 0"),
        ({"logits": np.zeros((8, 100))}, "shape"),
        ({"reference": np.zeros((8, 99, 2))}, "reference.shape"),
        ({"members": np.ones((8, 100), bool)}, "num_candidates"),
        ({"worst_share": 0.0}, "share in"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    logits, members, labels, _ = made(rows=100)
    given = {"logits": logits, "members": members, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        leakage(**given)


def nearest_neighbours(points, labels):
    """A training of scikit-learn, with nothing of this library."""
    neighbours = importlib.import_module("sklearn.neighbors")

    def train(members, seed):
        model = neighbours.KNeighborsClassifier(3)
        model.fit(points[members], labels[members])
        return np.log(model.predict_proba(points) + 1e-3)

    return train


def test_audit_of_another_framework():
    rng = np.random.default_rng(0)
    points, truth = rng.normal(size=(500, 2)), rng.integers(2, size=500)
    points[:, 0] += 4 * truth
    labels = truth.copy()
    kinds = np.where(np.arange(500) < 250, "mislabelled", "ordinary")
    labels[:250] = 1 - labels[:250]
    seen, calls = [], []

    def train(members, seed):
        seen.append((members.copy(), seed))
        logits = nearest_neighbours(points, labels)(members, seed)
        members[:] = False
        return logits, logits

    found = audit(
        train,
        labels,
        num_pipelines=8,
        kinds=kinds,
        seed=3,
        progress=lambda done, total: calls.append((done, total)),
        num_draws=10,
    )
    assert calls == [(done, 8) for done in range(1, 9)]
    members = complementary_halves(500, 8, seed=3)
    np.testing.assert_array_equal([rows for rows, _ in seen], members)
    assert len({seed for _, seed in seen}) == 8
    # Three neighbours, one of them the row itself: it changes about half of the votes.
    assert found.strongest("mislabelled").auc > 0.6
    assert found.null.passed
    assert found.power.on_reference


def test_audit_refuses_logits_of_some_rows():
    with pytest.raises(ValueError, match=r"logits\.shape"):
        audit(lambda members, seed: np.zeros((3, 2)), np.zeros(10, int))


def test_calibration_holds_row_by_row():
    """One wide row: a pooled threshold gives it most of all false alarms."""
    rng = np.random.default_rng(0)
    members = complementary_halves(1000, 64, seed=0)
    spread = np.where(np.arange(1000) < 50, 5.0, 1.0)
    scores = rng.normal(size=members.shape) * spread
    outside = ~members[:, :50]
    level = np.quantile(scores[~members], 0.99)
    assert (scores[:, :50] > level)[outside].mean() > 0.15
    hits = calibrated_p_values(scores, members)[:, :50] <= 0.01
    assert hits[outside].mean() == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("ties", [False, True])
def test_rates_at_several_levels_are_those_of_each(ties):
    rng = np.random.default_rng(0)
    members = complementary_halves(60, 6, seed=0)
    evidence = rng.normal(size=(6, 60)) + members
    if ties:
        evidence = evidence.round()
    levels = (0.0, 0.02, 0.3, 1.0)
    rows = rng.multinomial(60, np.full(60, 1 / 60), size=8)
    found = found_rates(evidence, members, levels=levels)(None, rows)
    expected = [
        [drawn_again(evidence, members, None, one, level) for level in levels]
        for one in rows
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    statistic = found_rates(evidence, members, levels=levels)
    low, high = bootstrap_band(statistic, members, num_draws=20)
    for place, level in enumerate(levels):
        one = found_rate(evidence, members, max_false_positive_rate=level)
        ends = bootstrap_interval(one, members, num_draws=20)
        assert (low[place], high[place]) == ends


def test_the_curve_of_a_kind_is_strict_and_agrees_with_the_figures():
    logits, members, labels, kinds = made(shift=2.0)
    found = leakage(logits, members, labels, kinds=kinds, levels=(0.02,), num_draws=20)
    curves = {curve.kind: curve for curve in found.curves}
    # 80 % of 1,000 rows, 4 of 8 pipelines: 3,200 non-members; the worst 5 % are 160.
    assert curves["ordinary"].false_rates[0] == 0.005
    assert curves["naturally worst"].false_rates == (0.1, 0.2, 0.5)
    for kind, curve in curves.items():
        best = found.strongest(kind)
        assert curve.attack == best.attack
        assert list(curve.rates) == sorted(curve.rates)
        if best.rates[0] is not None:
            place = curve.false_rates.index(0.02)
            assert curve.rates[place] == best.rates[0]
            assert (curve.low[place], curve.high[place]) == best.intervals[0]
    assert found.record()["curves"][0] == curves["ordinary"]._asdict()
    few = leakage(logits[:, :4], members[:, :4], labels[:4], num_draws=2)
    assert not few.curves
