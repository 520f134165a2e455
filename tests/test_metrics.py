"""Every metric against a loop or a value by hand, and where it is undefined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protojax.evals.metrics import (
    QuarantineQuality,
    attack_success_rate,
    detection_auc,
    excess,
    mean_interval,
    node_accuracies,
    quarantine_quality,
    robust_accuracy,
)

rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1)


@settings(deadline=None)
@given(rows)
def test_rates_agree_with_a_loop(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    hits = [p == 1 for p, label in pairs if label != 1]
    if hits:
        rate = attack_success_rate(predictions, labels, target=1)
        assert rate == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    expected = sum(p == label for p, label in pairs) / len(pairs)
    assert robust_accuracy(predictions, labels) == pytest.approx(expected, abs=1e-12)


def test_attack_success_rate_by_hand():
    predictions, labels = np.array([1, 1, 0, 1, 1]), np.array([0, 2, 2, 1, 1])
    rate = attack_success_rate(predictions, labels, target=1)
    assert type(rate) is float
    assert rate == pytest.approx(2 / 3, abs=1e-12)
    assert robust_accuracy(predictions, labels) == 0.4


@pytest.mark.parametrize(("prediction", "expected"), [(1, 1.0), (0, 0.0)])
def test_rates_of_one_row(prediction, expected):
    predictions, labels = np.array([prediction]), np.array([0])
    assert attack_success_rate(predictions, labels, target=1) == expected
    assert robust_accuracy(predictions, labels) == 1 - expected


def test_rates_reject_what_has_no_answer():
    with pytest.raises(ValueError, match="found target=1"):
        attack_success_rate(np.array([1, 0]), np.array([1, 1]), target=1)
    with pytest.raises(ValueError, match="found target=1"):
        attack_success_rate(np.array([]), np.array([]), target=1)
    with pytest.raises(ValueError, match="num_rows > 0"):
        robust_accuracy(np.array([]), np.array([]))
    with pytest.raises(ValueError, match=r"len\(predictions\)=2, len\(labels\)=1"):
        attack_success_rate(np.array([1, 0]), np.array([1]), target=1)
    with pytest.raises(ValueError, match=r"len\(predictions\)=2, len\(labels\)=1"):
        robust_accuracy(np.array([1, 0]), np.array([1]))


def test_excess_may_be_negative():
    assert excess(0.25, 0.5) == -0.25
    with pytest.raises(ValueError, match=r"rate in \[0, 1\], found rate=99.9"):
        excess(99.9, 0.1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_quarantine_quality_agrees_with_counts(pairs):
    rejected, poisoned = (np.array(column) for column in zip(*pairs, strict=True))
    both = sum(r and p for r, p in pairs)
    false = sum(r and not p for r, p in pairs)

    def divide(part, whole):
        return part / whole if whole else None

    num_poisoned = sum(p for _, p in pairs)
    expected = QuarantineQuality(
        divide(both, both + false),
        divide(both, num_poisoned),
        divide(false, len(pairs) - num_poisoned),
    )
    found = quarantine_quality(rejected, poisoned)
    assert [value is None for value in found] == [value is None for value in expected]
    for value, reference in zip(found, expected, strict=True):
        assert value is None or value == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize(
    ("rejected", "poisoned", "expected"),
    [
        ([0, 0], [0, 1], (None, 0.0, 0.0)),
        ([0, 1], [0, 0], (0.0, None, 0.5)),
        ([0, 1], [1, 1], (1.0, 0.5, None)),
        ([0, 1], [0, 1], (1.0, 1.0, 0.0)),
        ([0, 0], [0, 0], (None, None, 0.0)),
    ],
    ids=["none rejected", "none poisoned", "none clean", "perfect", "nothing happened"],
)
def test_quarantine_quality_where_it_is_undefined(rejected, poisoned, expected):
    assert quarantine_quality(np.array(rejected), np.array(poisoned)) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2))
def test_detection_auc_agrees_with_all_pairs(pairs):
    scores, poisoned = (np.array(column) for column in zip(*pairs, strict=True))
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[poisoned]
        for low in scores[~poisoned]
    ]
    if wins:
        expected = sum(wins) / len(wins)
        assert detection_auc(scores, poisoned) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([5, 5, 5, 5], 0.5)],
    ids=["perfect", "inverted", "all equal"],
)
def test_detection_auc_by_hand(scores, expected):
    assert detection_auc(np.array(scores), np.array([0, 0, 1, 1])) == expected


@pytest.mark.parametrize(
    ("scores", "poisoned", "message"),
    [
        ([1.0, 2.0], [1, 1], "num_clean > 0"),
        ([1.0, 2.0], [0, 0], "num_poisoned > 0"),
        ([1.0, math.nan], [0, 1], "num_nan of scores to be 0, found num_nan=1"),
        ([1.0], [0, 1], r"len\(scores\)=1, len\(poisoned\)=2"),
    ],
)
def test_detection_auc_rejects(scores, poisoned, message):
    with pytest.raises(ValueError, match=message):
        detection_auc(np.array(scores), np.array(poisoned))


@pytest.mark.parametrize(
    ("values", "confidence", "quantile"),
    [
        ([1.0, 2.0], 0.95, 12.706204736),
        ([1.0, 2.0, 4.0], 0.95, 4.302652730),
        ([1.0, 2.0, 4.0, 4.5, 0.0], 0.99, 4.604094871),
    ],
    ids=["2 seeds", "3 seeds", "5 seeds"],
)
def test_mean_interval_against_a_table_of_student_quantiles(
    values, confidence, quantile
):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    found, half_width = mean_interval(values, confidence)
    assert found == pytest.approx(mean, abs=1e-12)
    expected = quantile * math.sqrt(variance / len(values))
    assert half_width == pytest.approx(expected, rel=1e-8)


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=7)
    mean, half_width = mean_interval(values, 0.9)
    scale = stats.sem(values)
    low, high = stats.t.interval(0.9, 6, loc=values.mean(), scale=scale)
    np.testing.assert_allclose([mean - half_width, mean + half_width], [low, high])


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [
        abs(mean) <= half_width
        for mean, half_width in (mean_interval(rng.normal(size=3)) for _ in range(2000))
    ]
    # Three standard errors of a share of 0.95 over 2,000 draws are 0.015.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_mean_interval_at_the_edges():
    assert mean_interval([3.0]) == (3.0, None)
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 0.0)
    with pytest.raises(ValueError, match="num_values > 0"):
        mean_interval([])
    with pytest.raises(ValueError, match=r"in \(0, 1\), found confidence=95"):
        mean_interval([1.0, 2.0], confidence=95)


def test_node_accuracies_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    labels[labels == 3] = 0  # a class without a test row
    predictions = np.where(rng.random((3, 200)) < 0.7, labels, rng.integers(0, 4, 200))
    shares = rng.dirichlet(np.ones(4), 3)
    found = node_accuracies(predictions, labels, shares)
    for node in range(3):
        total = weight = 0.0
        for label in range(3):
            rows = labels == label
            total += shares[node, label] * np.mean(predictions[node, rows] == label)
            weight += shares[node, label]
        np.testing.assert_allclose(found[node], total / weight)
    # With the test's own mix it is the plain accuracy.
    own = np.tile(np.bincount(labels, minlength=4) / 200, (3, 1))
    np.testing.assert_allclose(
        node_accuracies(predictions, labels, own), (predictions == labels).mean(1)
    )


def test_a_node_without_test_rows_is_refused():
    with pytest.raises(ValueError, match="shares"):
        node_accuracies(np.zeros((1, 2), int), np.zeros(2, int), np.array([[0.0, 1.0]]))
