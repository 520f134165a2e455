"""Claims observed against claims expected, over groups."""

import numpy as np
import pytest
from scipy import sparse, stats

from protojax.detection.conformal import tail_p_values
from protojax.detection.excess import Claims, Excess, units_of
from protojax.detection.explanations import Explanation, explain, row_scores
from protojax.detection.groups import Groups


def groups_of(*members, rows):
    """Groups from lists of rows, named g0, g1, ..."""
    table = np.zeros((len(members), rows), np.float32)
    for number, found in enumerate(members):
        table[number, found] = 1
    names = np.array([f"g{number}" for number in range(len(members))], object)
    kinds = np.full(len(members), "word", object)
    return Groups(names, kinds, sparse.csr_array(table))


def table(groups, claims, tau):
    """The excess of all pairs, `[groups, units]`."""
    state = Excess(groups, units_of(claims), tau)
    number = np.repeat(np.arange(len(groups.names)), np.diff(state.pairs.indptr))
    return state.z(state.pairs.data, number).reshape(len(groups.names), -1)


def honest(rows, seed, labels=2):
    """Claims that are as frequent as expected."""
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet(np.ones(labels), rows)
    classes = (rng.random((rows, 1)) < chance.cumsum(1)).argmax(1)
    return Claims("label", classes, chance)


def test_z_is_that_of_a_loop():
    claims, rng = honest(30, 0, labels=3), np.random.default_rng(1)
    members = [np.flatnonzero(rng.random(30) < 0.3) for _ in range(6)]
    found = table(groups_of(*members, rows=30), [claims], 0.1)
    for number, rows in enumerate(members):
        for label in range(3):
            surplus, variance = 0.0, 0.0
            for row in rows:
                chance = claims.expected[row, label]
                surplus += (claims.classes[row] == label) - chance
                variance += chance * (1 - chance)
            wanted = surplus / np.sqrt(variance + (0.1 * len(rows)) ** 2 + 0.5)
            assert found[number, label] == pytest.approx(wanted)


def test_z_by_hand():
    """Four rows at 1/2 that all make the claim: (4 - 2) / √(4/4 + 0.5) = 1.633."""
    claims = Claims("label", np.zeros(4, int), np.full((4, 2), 0.5))
    found = table(groups_of([0, 1, 2, 3], rows=4), [claims], 0.0)
    np.testing.assert_allclose(found[0], [1.633, -1.633], atol=1e-3)


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("chance", [0.01, 0.05, 0.2])
def test_small_groups_are_not_further_out_than_by_exact_chance(rows, chance):
    """All rows of a small group make an improbable claim."""
    claims = Claims(
        "label", np.zeros(rows, int), np.tile([chance, 1 - chance], (rows, 1))
    )
    found = table(groups_of(range(rows), rows=rows), [claims], 0.0)[0, 0]
    exact = stats.norm.isf(chance**rows)
    assert found <= exact + 0.5


def test_what_was_expected_is_in_no_group_any_more():
    claims, rng = honest(60, 2), np.random.default_rng(3)
    members = [np.flatnonzero(rng.random(60) < 0.4) for _ in range(5)]
    groups = groups_of(*members, rows=60)
    state = Excess(groups, units_of([claims]), 0.02)
    touched = state.expect(np.array(members[0]), 1)
    made = (claims.classes[members[0]] == 1).sum()
    assert state.expected(1)[members[0]].sum() == pytest.approx(made, abs=0.5)
    expected = np.stack([state.expected(0), state.expected(1)], axis=1)
    np.testing.assert_allclose(expected.sum(1), 1)
    assert 0 in touched
    # Sums that were brought up to date are those of the new expectation.
    fresh = Excess(groups, units_of([claims._replace(expected=expected)]), 0.02)
    np.testing.assert_allclose(state.sums, fresh.sums, atol=1e-4)
    np.testing.assert_allclose(state.variances, fresh.variances, atol=1e-4)


def test_claims_that_a_reading_rounds_to_impossible_are_explained_once():
    """Certain of class 0 in all rows, of which twenty claim 1 for a group of theirs."""
    expected = np.tile([1.0, 0.0], (60, 1))
    claims = Claims("label", (np.arange(60) < 20).astype(int), expected)
    groups = groups_of(range(20), range(10, 40), rows=60)
    (found,) = explain(groups, units_of([claims]))
    assert (found.name, found.unit) == ("g0", 1)
    # By hand: 20 / √(20² · 0.02² + 0.5)
    assert found.z == pytest.approx(20 / np.sqrt(0.4**2 + 0.5))
    state = Excess(groups, units_of([claims]), 0.02)
    state.expect(np.arange(20), 0)  # nobody claims it
    state.expect(np.arange(20), 1)
    chance = np.stack([state.expected(0), state.expected(1)], axis=1)
    assert chance[:20, 1].sum() == pytest.approx(20, abs=0.5)
    np.testing.assert_allclose(chance.sum(1), 1)
    np.testing.assert_array_equal(chance[20:], expected[20:])


def planted(rows=400, poison=20, seed=0):
    """Honest claims of class 0 or 1, and a group whose rows all claim 1."""
    claims = honest(rows, seed)
    classes = claims.classes.copy()
    classes[:poison] = 1
    return claims._replace(classes=classes)


def test_the_planted_group_comes_first_and_what_overlaps_is_explained_by_it():
    claims = planted()
    trigger, part = range(20), [*range(20), *range(30, 50)]
    others = [range(start, start + 25) for start in range(60, 360, 25)]
    found = explain(
        groups_of(part, trigger, *others, rows=400), units_of([claims]), least=2.0
    )
    assert found[0].name == "g1"
    assert (found[0].unit, found[0].claimants.tolist()) == (1, [*range(20)])
    assert found[0].z > 3
    assert "g0" not in {one.name for one in found}


def test_two_words_that_are_a_trigger_together_are_named_together():
    rows = 2000
    claims = honest(rows, 5)
    expected = np.tile([0.8, 0.2], (rows, 1))
    classes = (np.random.default_rng(0).random(rows) < 0.2).astype(int)
    classes[:60] = 1
    claims = Claims("label", classes, expected)
    first, second = [*range(60), *range(100, 160)], [*range(60), *range(200, 260)]
    found = explain(groups_of(first, second, rows=rows), units_of([claims]))
    assert found[0].name in ("g0 + g1", "g1 + g0")
    np.testing.assert_array_equal(found[0].members, range(60))
    assert len(found) == 1


def test_a_name_is_the_longest_phrase_that_nearly_all_claimants_share():
    claims = Claims("label", np.zeros(20, int), np.full((20, 2), [0.1, 0.9]))
    groups = groups_of(range(20), range(20), range(19), range(10), rows=20)
    groups = groups._replace(
        names=np.array(["rare", "a b", "a b c", "a b c d e"], object),
        kinds=np.array(["word", "phrase", "phrase", "phrase"], object),
    )
    (found,) = explain(groups, units_of([claims]))
    assert (found.name, found.kind) == ("a b c", "phrase")


def test_a_row_that_makes_the_other_claim_in_excess_is_a_claimant_too():
    expected = np.tile([0.9, 0.1], (40, 1))
    by_teacher = np.r_[np.ones(18, int), np.zeros(22, int)]
    by_label = np.r_[np.ones(20, int), np.zeros(20, int)]
    claims = [
        Claims("teacher", by_teacher, expected),
        Claims("label", by_label, expected),
    ]
    units = units_of(claims)
    (found,) = explain(groups_of(range(20), rows=40), units)
    assert (units.claims[found.unit], units.values[found.unit]) == ("label", 1)
    np.testing.assert_array_equal(found.claimants, range(20))


def test_nothing_is_explained_where_there_is_nothing():
    claims = honest(50, 0)
    assert explain(groups_of(rows=50), units_of([claims])) == []
    alone = Claims("label", np.zeros(5, int), np.ones((5, 1)) - 1e-9)
    assert explain(groups_of(range(5), rows=5), units_of([alone])) == []
    assert (
        len(explain(groups_of(range(20), rows=50), units_of([planted(50)]), most=0))
        == 0
    )


def test_honest_groups_are_as_far_out_as_normal_numbers():
    claims, rng = honest(4000, 7), np.random.default_rng(8)
    members = [rng.choice(4000, 40, replace=False) for _ in range(500)]
    z = table(groups_of(*members, rows=4000), [claims], 0.0)[:, 0]
    assert abs(z.mean()) < 0.15
    assert 0.8 < z.std() < 1.1


def test_rows_rank_by_their_group_then_by_how_improbable_their_claim_is():
    expected = np.tile([0.5, 0.5], (6, 1))
    expected[:3, 1] = [0.3, 0.1, 0.2]
    claims = [Claims("label", np.ones(6, int), expected)]
    one = Explanation("a", "word", 1, 9.0, *[np.arange(3)] * 2, 0.6)
    two = one._replace(name="b", z=4.0, claimants=np.array([0, 3, 4]))
    scores, reasons = row_scores([one, two], units_of(claims))
    assert reasons.tolist() == [0, 0, 0, 1, 1, -1]
    assert scores[1] > scores[2] > scores[0] > max(scores[3:5])
    assert scores[5] == 0


def test_rows_of_a_group_compare_by_one_fit():
    """References have a fit of their own, by which they would all come last."""
    rng = np.random.default_rng(0)
    alike = np.tile(rng.uniform(0.5, 0.9, (40, 1)), 2)
    expected = alike + np.repeat([0.0, 0.09], 20)[:, None] * [1, 1]
    claims = Claims("label", np.ones(40, int), expected)
    one = Explanation("a", "word", 1, 9.0, *[np.arange(40)] * 2, 0.6)

    def first(claims):
        scores, _ = row_scores([one], units_of([claims]))
        return np.sum(scores[:20] > scores[20:].max()), np.argsort(-scores)

    by_own_fit, _ = first(claims)
    by_one_fit, order = first(claims._replace(alike=alike))
    assert order.tolist() == np.argsort(alike[:, 1]).tolist()
    assert by_one_fit == np.sum(alike[:20, 1] < alike[20:, 1].min()) < by_own_fit


def test_tail_p_values_keep_their_level_on_normal_groups():
    """The largest of many normal numbers is below 5 % in about one set of twenty."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 1.6):
        sets = (scale * rng.normal(size=3000) for _ in range(400))
        least = np.array([tail_p_values(z, groups=3000).min() for z in sets])
        # Three standard deviations of a rate over 400 sets.
        for level in (0.05, 0.2):
            assert abs(np.mean(least <= level) - level) < 0.15 * np.sqrt(level)


def test_tail_p_values_see_several_triggers():
    z = np.r_[np.sort(np.random.default_rng(1).normal(size=3000))[-100:], 12, 11, 9, 8]
    p = tail_p_values(z, groups=3000)
    assert (p[-4:] < 1e-4).all()
    assert (p[:-4] > 0.01).all()
    np.testing.assert_allclose(tail_p_values(np.ones(20), groups=99), 1)


def test_few_explanations_are_compared_with_normal_numbers():
    """1 - (1 - 0.5)^2 and 1 - Φ(4)^100, where honest z has the variance 2."""
    found = tail_p_values([0.0], groups=2)
    np.testing.assert_allclose(found, 0.75)
    found = tail_p_values([4 * np.sqrt(2)] * 9, groups=100)
    np.testing.assert_allclose(found, 100 * stats.norm.sf(4), rtol=1e-2)
    assert tail_p_values([], groups=5).shape == (0,)
