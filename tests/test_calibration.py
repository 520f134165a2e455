import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.detection.conformal import (
    calibrate_temperature,
    combine_scores,
    conformal_p_values,
    expected_disagreement,
    quarantine,
)


def isotonic_loop(confidence, disagree):
    """Decreasing isotonic regression by the min-max formula, clipped."""
    points = np.unique(confidence)
    means = [disagree[confidence == point].mean() for point in points]
    weights = [np.sum(confidence == point) for point in points]
    rate = []
    for i in range(len(points)):
        best = np.inf
        for start in range(i + 1):
            worst = -np.inf
            for end in range(i, len(points)):
                block = slice(start, end + 1)
                worst = max(worst, np.average(means[block], weights=weights[block]))
            best = min(best, worst)
        rate.append(best)
    floor = 1 / (2 * len(confidence))
    return points, np.clip(rate, floor, 1 - floor)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25))
def test_expected_disagreement_matches_the_min_max_formula(seed, num_refs):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(5, 11, num_refs) / 10  # many ties
    disagree = rng.integers(0, 2, num_refs).astype(np.float32)
    points, rate = isotonic_loop(confidence, disagree)
    fit = expected_disagreement(confidence, disagree)
    np.testing.assert_allclose(fit.predict(points), rate, atol=1e-6)
    grid = fit.predict(np.linspace(0, 1, 50))
    assert np.all(np.diff(grid) <= 1e-12)


def test_expected_disagreement_by_hand():
    # 0.7 and 0.8 violate the order and are pooled at 1/2; the ends are clipped.
    confidence = np.array([0.5, 0.7, 0.8, 0.9])
    fit = expected_disagreement(confidence, np.array([1, 0, 1, 0]))
    np.testing.assert_allclose(fit.rate, [7 / 8, 1 / 2, 1 / 2, 1 / 8])
    np.testing.assert_allclose(fit.predict(np.array([0.6, 0.1])), [11 / 16, 7 / 8])


@pytest.mark.parametrize(("answer", "rate"), [(0, 0.05), (1, 0.95)])
def test_expected_disagreement_is_never_certain(answer, rate):
    fit = expected_disagreement(np.linspace(0.5, 1, 10), np.full(10, answer))
    np.testing.assert_allclose(fit.predict(np.array([0.0, 0.7, 1.0])), rate)


@pytest.mark.parametrize(("answers", "rate"), [([0] * 10, 0.05), ([1, 0, 0, 1], 0.5)])
def test_the_average_is_never_certain_either(answers, rate):
    confidence = np.linspace(0.5, 0.9, len(answers))
    fit = expected_disagreement(confidence, np.array(answers))
    assert fit.average == pytest.approx(rate)
    found = fit.whatever_confidence.predict(np.array([0.1, 0.6, 1.0]))
    np.testing.assert_allclose(found, rate)


def test_expected_disagreement_of_constant_confidence_is_the_mean():
    fit = expected_disagreement(np.full(4, 0.9), np.array([1, 0, 0, 0]))
    np.testing.assert_allclose(fit.predict(np.array([0.2, 0.9, 1.0])), 0.25)


@pytest.mark.parametrize(
    ("confidence", "disagree", "message"),
    [
        (np.zeros(0), np.zeros(0), "references > 0"),
        (np.zeros(2), np.zeros(3), "same number of rows"),
        (np.array([np.nan]), np.zeros(1), "non-finite confidence"),
        (np.zeros(1), np.array([np.inf]), "non-finite disagree"),
    ],
)
def test_expected_disagreement_names_the_wrong_argument(confidence, disagree, message):
    with pytest.raises(ValueError, match=message):
        expected_disagreement(confidence, disagree)


def p_values_loop(scores, scores_refs, classes, classes_refs, alpha):
    p_values = []
    for score, claim in zip(scores, classes, strict=True):
        peers = [
            s for s, c in zip(scores_refs, classes_refs, strict=True) if c == claim
        ]
        if 1 / (len(peers) + 1) > alpha:
            peers = list(scores_refs)
        above = sum(peer >= score for peer in peers)
        p_values.append((1 + above) / (1 + len(peers)))
    return np.array(p_values)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(9, 60))
def test_p_values_match_counting(seed, num_refs):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, 30) / 4  # ties
    scores_refs = rng.integers(0, 8, num_refs) / 4
    classes, classes_refs = rng.integers(0, 4, 30), rng.integers(0, 3, num_refs)
    arrays = scores, scores_refs, classes, classes_refs
    np.testing.assert_array_equal(
        conformal_p_values(*arrays, alpha=0.1), p_values_loop(*arrays, 0.1)
    )


def test_p_values_by_hand():
    refs = np.array([1.0, 2.0, 3.0, 4.0])
    found = conformal_p_values(
        np.array([0.0, 2.0, 2.5, 5.0]), refs, np.zeros(4), np.zeros(4), alpha=0.2
    )
    np.testing.assert_allclose(found, [1.0, 0.8, 0.6, 0.2])


def test_p_values_are_taken_within_the_class():
    scores_refs = np.concatenate([np.zeros(9), np.full(9, 10.0)])
    found = conformal_p_values(
        np.array([5.0, 5.0]),
        scores_refs,
        np.array([0, 1]),
        np.repeat([0, 1], 9),
        alpha=0.1,
    )
    np.testing.assert_allclose(found, [0.1, 1.0])


@pytest.mark.parametrize("present", [0, 1, 8])
def test_a_class_of_too_few_references_is_judged_by_all_of_them(present):
    classes_refs = np.repeat([0, 1], [20, present])
    scores_refs = np.arange(len(classes_refs), dtype=float)
    found = conformal_p_values(
        np.array([100.0]), scores_refs, np.array([1]), classes_refs, alpha=0.1
    )
    np.testing.assert_allclose(found, 1 / (21 + present))


def test_the_smallest_possible_p_value_is_rejected_at_its_own_level():
    for num_refs in range(1, 200):
        alpha = 1 / (num_refs + 1)
        found = quarantine(
            [(np.ones(1), np.zeros(num_refs))],
            np.zeros(1),
            np.zeros(num_refs),
            alpha=alpha,
        )
        assert found.rejected.all()


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (0.0, r"alpha in \(0, 1\), found alpha=0.0"),
        (1.0, r"alpha in \(0, 1\), found alpha=1.0"),
        (0.01, r"alpha >= 0.0909 with 10 references, found alpha=0.01"),
    ],
)
def test_impossible_alpha(alpha, message):
    with pytest.raises(ValueError, match=message):
        conformal_p_values(
            np.zeros(1), np.zeros(10), np.zeros(1), np.zeros(10), alpha=alpha
        )


@pytest.mark.parametrize("broken", ["scores", "scores_refs"])
def test_p_values_refuse_nan(broken):
    arrays = {
        "scores": np.zeros(2),
        "scores_refs": np.zeros(20),
        "classes": np.zeros(2),
        "classes_refs": np.zeros(20),
    }
    arrays[broken] = arrays[broken] * np.nan
    with pytest.raises(ValueError, match=f"non-finite {broken}"):
        conformal_p_values(**arrays, alpha=0.1)


def test_the_maximum_of_correlated_tests_keeps_the_rate_of_one_test():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        common = rng.normal(size=(200, 1))
        tests = (common + rng.normal(size=(200, 4))).T
        found = quarantine(
            [combine_scores([(test[:101], test[101:]) for test in tests])],
            np.zeros(101),
            np.zeros(99),
            alpha=0.1,
        )
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 0.1) <= 3 * error


def test_several_kinds_of_scores_keep_the_rate():
    """Bonferroni: independent tests come near the rate, equal ones stay below."""
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(200):
        tests = rng.normal(size=(2, 398))
        found = quarantine(
            [(test[:199], test[199:]) for test in tests],
            np.zeros(199),
            np.zeros(199),
            alpha=0.1,
        )
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert 0.09 < np.mean(rates) < 0.1 + 3 * error


def test_combine_scores_takes_the_largest():
    scores = [np.array([1.0, -2.0, 0.0]), np.array([0.0, -1.0, 0.0])]
    rows, refs = combine_scores([(scores[0], scores[1]), (scores[1], scores[1])])
    np.testing.assert_array_equal(rows, [1.0, -1.0, 0.0])
    np.testing.assert_array_equal(refs, scores[1])


def test_combine_scores_names_the_wrong_argument():
    with pytest.raises(ValueError, match="tests > 0"):
        combine_scores([])
    with pytest.raises(ValueError, match=r"len\(scores_1\)=3"):
        combine_scores([(np.zeros(2), np.zeros(1)), (np.zeros(3), np.zeros(1))])


def test_quarantine_rejects_at_and_below_alpha():
    refs = np.arange(19.0)
    found = quarantine(
        [(np.array([18.5, 17.5, 0.0]), refs)], np.zeros(3), np.zeros(19), alpha=0.05
    )
    np.testing.assert_allclose(found.p_values, [0.05, 0.1, 1.0])
    np.testing.assert_array_equal(found.rejected, [True, False, False])


def test_kinds_of_scores_share_the_rate():
    refs = np.arange(19.0)
    scores = [
        (np.array([18.5, 17.5, 0.0]), refs),
        (np.array([0.0, 0.0, 180.0]), 10 * refs),
    ]
    found = quarantine(scores, np.zeros(3), np.zeros(19), alpha=0.1)
    # The third row ties with the largest reference: (1 + 1) / 20, twice.
    np.testing.assert_allclose(found.p_values, [0.1, 0.2, 0.2])
    np.testing.assert_array_equal(found.rejected, [True, False, False])
    with pytest.raises(ValueError, match="alpha"):
        quarantine(scores, np.zeros(3), np.zeros(19), alpha=0.08)


def nll(logits, labels, temperature):
    scaled = logits / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -np.mean(log_probs[np.arange(len(labels)), labels])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered_and_minimises_the_likelihood(temperature):
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(5_000, 3)) * 1.5
    labels = np.argmax(honest + rng.gumbel(size=honest.shape), axis=1)
    found = calibrate_temperature(honest * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 100))
    best = min(nll(honest * temperature, labels, value) for value in grid)
    assert nll(honest * temperature, labels, found) <= best + 1e-6


def test_temperature_by_hand():
    # Right three times in four with logit gap 4: σ(4 / T) = 3/4, T = 4 / log 3.
    logits = np.tile([4.0, 0.0], (4, 1))
    found = calibrate_temperature(logits, np.array([0, 0, 0, 1]))
    assert found == pytest.approx(4 / np.log(3), rel=1e-4)


@pytest.mark.parametrize(("label", "bound"), [(0, 1 / 20), (1, 20)])
def test_temperature_is_bounded(label, bound):
    found = calibrate_temperature(np.array([[1.0, 0.0]]), np.array([label]))
    assert found == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "references > 0"),
        (np.zeros((2, 2)), np.zeros(3, int), "same number of rows"),
        (np.full((1, 2), np.nan), np.zeros(1, int), "non-finite logits"),
        (np.zeros((2, 2)), np.array([0, 2]), r"label in \[0, 2\), found label=2"),
        (np.zeros((2, 2)), np.array([0, -1]), r"label in \[0, 2\), found label=-1"),
    ],
)
def test_temperature_names_the_wrong_argument(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        calibrate_temperature(logits, labels)
