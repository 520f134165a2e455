import jax
import numpy as np
import pytest

from experiments.former.consistency import (
    Claims,
    cluster_scores,
    disagreement,
    neighbourhood_scores,
)
from protojax.detection.baselines.sample_test import sample_gate
from protojax.detection.conformal import (
    IsotonicFit,
    combine_scores,
    conformal_p_values,
    expected_disagreement,
    quarantine,
)

HALF = IsotonicFit(np.array([1.0]), np.array([0.5]))


def group_test(tests, *, alpha=0.05, num_neighbours=50):
    """The verdict of neighbourhoods over several feature spaces or claims."""
    scores = [
        neighbourhood_scores(
            transfer,
            refs,
            expected_disagreement(refs.confidence, refs.disagree),
            num_neighbours=num_neighbours,
        )
        for transfer, refs in tests
    ]
    transfer, refs = tests[0]
    return quarantine(
        [combine_scores(scores)], transfer.classes, refs.classes, alpha=alpha
    )


def cluster_test(tests, assignments, *, alpha=0.05):
    """The verdict of clusters."""
    scores = [
        cluster_scores(
            transfer,
            refs,
            expected_disagreement(refs.confidence, refs.disagree),
            *clusters,
        )
        for (transfer, refs), clusters in zip(tests, assignments, strict=True)
    ]
    transfer, refs = tests[0]
    return quarantine(scores, transfer.classes, refs.classes, alpha=alpha)


def sample(rng, num_rows):
    """Clean rows: disagreement depends on place, confidence and class."""
    places = rng.normal(size=(num_rows, 2)).astype(np.float32)
    classes = np.arange(num_rows) % 2
    confidence = 1 / (1 + np.exp(-1.5 - places[:, 0]))
    rate = np.clip(1 - confidence, 0, 0.9) * (1 + np.sin(2 * places[:, 1])) / 2
    rate = np.where(classes == 1, rate, rate / 2)
    disagree = (rng.random(num_rows) < rate).astype(np.float32)
    return Claims(places, classes, confidence, disagree)


def join(*claims):
    return Claims(*map(np.concatenate, zip(*claims, strict=True)))


def take(claims, rows):
    return Claims(*(array[rows] for array in claims))


def z_value(members, rows, expected):
    """The score of one group, member by member."""
    excess, variance = 0.0, 0.0
    for member in members:
        rate = expected.predict(rows.confidence[member])
        excess += rows.disagree[member] - rate
        least = expected.average
        variance += max(rate * (1 - rate), least * (1 - least))
    return excess / np.sqrt(variance)


def test_disagreement():
    found = disagreement(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(found, [0, 0, 1, 0])
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match="same number of rows"):
        disagreement(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("num_neighbours", [1, 6, 200])
def test_neighbourhood_scores_match_a_loop(num_neighbours):
    rng = np.random.default_rng(0)
    transfer, refs = sample(rng, 60), sample(rng, 30)
    expected = expected_disagreement(refs.confidence, refs.disagree)
    found = neighbourhood_scores(
        transfer, refs, expected, num_neighbours=num_neighbours, metric="l2"
    )
    rows = join(transfer, refs)
    scores = []
    for i in range(90):
        peers = [j for j in range(90) if j != i and rows.classes[j] == rows.classes[i]]
        gaps = np.linalg.norm(rows.features[peers] - rows.features[i], axis=1)
        nearest = np.array(peers)[np.argsort(gaps)[:num_neighbours]]
        scores.append(z_value([i, *nearest], rows, expected))
    np.testing.assert_allclose(np.concatenate(found), scores, atol=1e-6)


def constant_claims(num_rows, disagree):
    """Rows of one place, one claim and one answer of the trusted model."""
    ones = np.ones(num_rows)
    return Claims(np.ones((num_rows, 2)), 0 * ones, ones, disagree * ones)


def test_four_denied_rows_of_even_odds_score_two():
    # (4 · 1/2) / √(4 · 1/4) = 2, and -2 where the trusted model agrees with all of
    # them.
    for disagree, score in ((1, 2.0), (0, -2.0)):
        rows = constant_claims(3, disagree), constant_claims(1, disagree)
        found = neighbourhood_scores(*rows, HALF, num_neighbours=3)
        np.testing.assert_allclose(found[0], np.full(3, score))
        np.testing.assert_allclose(found[1], np.full(1, score))


def test_a_claim_that_nobody_else_makes_scores_by_its_own_answer():
    rows = constant_claims(5, 0.0)
    lonely = constant_claims(1, 1.0)._replace(classes=np.array([7]))
    scores, _ = neighbourhood_scores(join(rows, lonely), rows, HALF, num_neighbours=4)
    np.testing.assert_allclose(scores[-1], 1.0)  # (1/2) / √(1/4)
    scores, _ = cluster_scores(join(rows, lonely), rows, HALF, np.zeros(6), np.zeros(5))
    np.testing.assert_allclose(scores[-1], 1.0)


@pytest.mark.parametrize("grouping", ["neighbours", "clusters"])
def test_scores_do_not_depend_on_who_is_transfer_and_who_reference(grouping):
    """The guarantee: given e, swapping rows swaps their scores and nothing else."""
    rng = np.random.default_rng(1)
    rows, clusters = sample(rng, 80), rng.integers(0, 5, (80, 2))

    def scores(order):
        first, last = order[:50], order[50:]
        expected = IsotonicFit(np.array([0.5, 1.0]), np.array([0.4, 0.1]))
        claims = take(rows, first), take(rows, last)
        if grouping == "neighbours":
            found = neighbourhood_scores(*claims, expected, num_neighbours=7)
        else:
            assigned = clusters[first], clusters[last]
            found = cluster_scores(*claims, expected, *assigned)
        return np.concatenate(found)

    order = rng.permutation(80)
    np.testing.assert_allclose(scores(order), scores(np.arange(80))[order], atol=1e-6)


def test_cluster_scores_match_a_loop():
    rng = np.random.default_rng(2)
    transfer, refs = sample(rng, 50), sample(rng, 20)
    rows, expected = join(transfer, refs), IsotonicFit(np.array([0.5]), np.array([0.3]))
    clusters = rng.integers(0, 4, (70, 3))
    found = cluster_scores(transfer, refs, expected, clusters[:50], clusters[50:])
    for i, score in enumerate(np.concatenate(found)):
        groups = [
            np.flatnonzero((rows.classes == rows.classes[i]) & (column == column[i]))
            for column in clusters.T
        ]
        best = max(z_value(group, rows, expected) for group in groups)
        np.testing.assert_allclose(score, best, atol=1e-6)


def test_one_resolution_may_be_a_vector():
    rng = np.random.default_rng(3)
    transfer, refs, clusters = sample(rng, 20), sample(rng, 10), rng.integers(0, 3, 30)
    flat = cluster_scores(transfer, refs, HALF, clusters[:20], clusters[20:])
    column = clusters[:, None]
    deep = cluster_scores(transfer, refs, HALF, column[:20], column[20:])
    np.testing.assert_array_equal(np.concatenate(flat), np.concatenate(deep))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_clean_rows_are_rejected_at_the_stated_rate(alpha):
    rng = np.random.default_rng(4)
    rates = []
    for _ in range(40):
        transfer, refs = sample(rng, 200), sample(rng, 158)  # 79 a class
        found = group_test([(transfer, refs)], alpha=alpha, num_neighbours=10)
        rates.append([found.rejected[transfer.classes == c].mean() for c in (0, 1)])
    error = np.std(rates, axis=0) / np.sqrt(len(rates))
    assert np.all(np.mean(rates, axis=0) <= alpha + 3 * error)
    assert np.all(np.mean(rates, axis=0) >= alpha / 2)


def test_poison_of_low_confidence_does_not_pass_below_sure_groups():
    def world(rng, rows, poison=0):
        # A fifth of the sure rows are denied more often than their confidence says.
        place = rng.uniform(0, 10, size=(rows, 1))
        hesitant = rng.random(rows) < 0.1
        confidence = np.where(hesitant, 0.6, 0.95) + 0.02 * rng.random(rows)
        rate = np.where(hesitant, 0.5, np.where(place[:, 0] < 2, 0.15, 0.01))
        classes = rng.integers(0, 2, rows)
        place[:poison] = 20 + 0.1 * rng.random((poison, 1))
        classes[:poison], confidence[:poison], rate[:poison] = 1, 0.61, 0.85
        disagree = (rng.random(rows) < rate).astype(np.float32)
        return Claims(place, classes, confidence, disagree)

    found = {"average": [], "without": []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        transfer, refs = world(rng, 1000, 60), world(rng, 300)
        fit = expected_disagreement(refs.confidence, refs.disagree)
        for name, expected in (
            ("average", fit),
            ("without", fit._replace(average=0.0)),
        ):
            scores = neighbourhood_scores(
                transfer, refs, expected, num_neighbours=30, metric="l2"
            )
            verdict = quarantine([scores], transfer.classes, refs.classes, alpha=0.05)
            found[name].append(verdict.rejected[:60].mean())
            assert verdict.rejected[60:].mean() < 0.1
    assert np.mean(found["average"]) > 0.8
    assert np.mean(found["average"]) > np.mean(found["without"]) + 0.1


def test_clean_clusters_are_rejected_at_the_stated_rate_or_less():
    rates = []
    rng = np.random.default_rng(5)
    for _ in range(60):
        transfer, refs = sample(rng, 200), sample(rng, 158)
        places = np.concatenate([transfer.features, refs.features])
        clusters = np.stack([np.floor(places[:, 1] * s) for s in (1, 2)], axis=1)
        assigned = clusters[:200], clusters[200:]
        found = cluster_test([(transfer, refs)], [assigned], alpha=0.2)
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    # Members of one cluster share one score, and ties count against rejection.
    assert 0.02 <= np.mean(rates) <= 0.2 + 3 * error


def poisoned(rng):
    """1,000 transfer rows, 5 % of them a cluster that claims class 1 and means 0.

    The trusted model's margin for the true class is N(0.8, 1): it errs on 21 % of rows.
    Returns transfer and reference claims, which rows are poisoned, and the trusted
    model's posteriors of both.
    """

    def claims(num_rows, is_poisoned):
        classes = np.where(is_poisoned, 1, np.arange(num_rows) % 2)
        means = np.where(is_poisoned, 0, classes)
        features = rng.normal(size=(num_rows, 8)) + 4 * np.eye(8)[classes]
        features[is_poisoned] += 6 * np.eye(8)[2]
        margin = rng.normal(0.8, 1.0, num_rows) * np.where(means == 1, 1, -1)
        posterior = 1 / (1 + np.exp(margin))
        posterior = np.stack([posterior, 1 - posterior], axis=1)
        confidence = np.where(is_poisoned, 0.99, rng.uniform(0.6, 1.0, num_rows))
        disagree = disagreement(posterior.argmax(axis=1), classes)
        return Claims(features, classes, confidence, disagree), posterior

    is_poisoned = np.arange(1000) < 50
    transfer, posterior = claims(1000, is_poisoned)
    refs, posterior_refs = claims(300, np.zeros(300, bool))
    return transfer, refs, is_poisoned, posterior, posterior_refs


def test_a_poisoned_group_is_found_where_single_rows_are_not():
    transfer, refs, is_poisoned, posterior, posterior_refs = poisoned(
        np.random.default_rng(6)
    )
    groups = group_test([(transfer, refs)], alpha=0.05, num_neighbours=20)
    assert groups.rejected[is_poisoned].mean() > 0.95
    assert groups.rejected[~is_poisoned].mean() < 0.1
    clusters = transfer.features[:, 2] > 3, refs.features[:, 2] > 3
    clustered = cluster_test([(transfer, refs)], [clusters], alpha=0.05)
    assert clustered.rejected[is_poisoned].mean() > 0.95
    single = sample_gate(
        posterior, transfer.classes, posterior_refs, refs.classes, alpha=0.05
    )
    assert single.rejected[is_poisoned].mean() < 0.7
    assert single.rejected[~is_poisoned].mean() < 0.1


def test_a_second_feature_space_finds_what_the_first_cannot_see():
    rng = np.random.default_rng(7)
    seen, refs, is_poisoned, *_ = poisoned(rng)
    # The attacker's channel spreads the poisoned rows over all clean ones.
    hidden = seen._replace(features=rng.normal(size=(1000, 8)))
    masked_disagreement = refs._replace(features=rng.normal(size=(300, 8)))
    alone = group_test([(hidden, masked_disagreement)], num_neighbours=20)
    both = group_test([(hidden, masked_disagreement), (seen, refs)], num_neighbours=20)
    assert alone.rejected[is_poisoned].mean() < 0.5
    assert both.rejected[is_poisoned].mean() > 0.95
    assert both.rejected[~is_poisoned].mean() < 0.1


def test_p_values_of_several_spaces_are_those_of_the_largest_score():
    rng = np.random.default_rng(8)
    pairs = [(sample(rng, 40), sample(rng, 40)) for _ in range(2)]
    single = [
        neighbourhood_scores(
            transfer,
            refs,
            expected_disagreement(refs.confidence, refs.disagree),
            num_neighbours=5,
        )
        for transfer, refs in pairs
    ]
    rows, refs = (np.maximum(*parts) for parts in zip(*single, strict=True))
    classes = pairs[0][0].classes, pairs[0][1].classes
    both = group_test(pairs, num_neighbours=5)
    expected = conformal_p_values(rows, refs, *classes, alpha=0.05)
    np.testing.assert_array_equal(both.p_values, expected)
    np.testing.assert_array_equal(both.rejected, both.p_values <= 0.05)


@pytest.mark.parametrize("disagree", [0.0, 1.0])
def test_rows_that_all_look_like_the_references_are_kept(disagree):
    transfer, refs = constant_claims(30, disagree), constant_claims(40, disagree)
    found = group_test([(transfer, refs)], num_neighbours=100)
    assert not found.rejected.any()
    np.testing.assert_array_equal(found.p_values, 1.0)


def test_a_class_without_references_is_judged_by_all_of_them():
    refs = sample(np.random.default_rng(9), 60)
    fresh = constant_claims(20, 1.0)._replace(classes=np.full(20, 5))
    found = group_test([(join(refs, fresh), refs)], num_neighbours=10)
    np.testing.assert_allclose(found.p_values[-20:], 1 / 61)


def test_the_inputs_may_be_jax_arrays():
    rng = np.random.default_rng(10)
    pair = sample(rng, 30), sample(rng, 30)
    on_device = tuple(Claims(*map(jax.numpy.asarray, claims)) for claims in pair)
    host = group_test([pair], num_neighbours=5)
    device = group_test([on_device], num_neighbours=5)
    np.testing.assert_array_equal(device.p_values, host.p_values)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", np.zeros(3), "same number of rows"),
        ("confidence", np.full(4, np.nan), "non-finite confidence"),
        ("disagree", np.full(4, np.inf), "non-finite disagree"),
        ("features", np.full((4, 2), np.nan), "finite features"),
    ],
)
def test_broken_claims_are_refused(field, value, message):
    refs = constant_claims(30, 0.0)
    transfer = constant_claims(4, 0.0)._replace(**{field: value})
    with pytest.raises(ValueError, match=message):
        group_test([(transfer, refs)], num_neighbours=2)


def test_clusters_of_other_rows_are_refused():
    rows = constant_claims(30, 0.0)
    with pytest.raises(ValueError, match=r"len\(assignments\)=4"):
        cluster_scores(rows, rows, HALF, np.zeros(4), np.zeros(30))
    with pytest.raises(ValueError, match=r"len\(assignments_refs\)=4"):
        cluster_scores(rows, rows, HALF, np.zeros(30), np.zeros(4))
    with pytest.raises(ValueError, match="tests > 0"):
        quarantine([], np.zeros(4), np.zeros(4), alpha=0.5)
