import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.detection.conformal import calibrate_temperature, conformal_p_values


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
        found = conformal_p_values(
            np.ones(1), np.zeros(num_refs), np.zeros(1), np.zeros(num_refs), alpha=alpha
        )
        assert (found <= alpha).all()


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


def test_equal_rows_and_references_keep_the_rate_exactly():
    """At the bound: exchangeable scores without ties are rejected at alpha = 1/10."""
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        scores = rng.normal(size=398)
        p_values = conformal_p_values(
            scores[:199], scores[199:], np.zeros(199), np.zeros(199), alpha=0.1
        )
        rates.append((p_values <= 0.1).mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 0.1) <= 3 * error
