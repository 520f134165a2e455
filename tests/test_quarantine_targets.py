"""What a student learns from rows in quarantine."""

import functools

import jax
import numpy as np
import pytest

from protojax.detection.conformal import calibrate_temperature
from protojax.detection.quarantine import calibrate_bias, quarantine_targets


def targets_loop(teacher_logits, labels, rejected, trusted_logits, trusted_classes):
    """ "replace", row by row."""
    rows = []
    for i, logits in enumerate(teacher_logits):
        if rejected[i]:
            log_total = np.log(np.sum(np.exp(trusted_logits[i])))
            label = np.argmax(trusted_logits[i])
            rows.append((trusted_logits[i] - log_total, label, trusted_classes[i]))
        else:
            rows.append((logits, labels[i], labels[i]))
    return map(np.array, zip(*rows, strict=True))


def quarantined():
    rng = np.random.default_rng(12)
    return (
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.integers(0, 3, 20),
        rng.random(20) < 0.4,
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.integers(0, 3, 20),
    )


def test_replace_gives_rejected_rows_the_trusted_posterior():
    arrays = quarantined()
    found = quarantine_targets(*arrays)
    logits, labels, assigned_class = targets_loop(*arrays)
    np.testing.assert_allclose(found.teacher_logits, logits, atol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.assigned_class, assigned_class)
    assert bool(found.keep.all())


def test_drop_changes_no_target():
    teacher_logits, labels, rejected, trusted_logits, trusted_classes = quarantined()
    found = quarantine_targets(
        teacher_logits, labels, rejected, trusted_logits, trusted_classes, action="drop"
    )
    np.testing.assert_array_equal(found.teacher_logits, teacher_logits)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(
        found.assigned_class, np.where(rejected, trusted_classes, labels)
    )
    np.testing.assert_array_equal(found.keep, ~rejected)


@pytest.mark.parametrize("action", ["replace", "drop"])
def test_targets_are_the_same_under_jit(action):
    arrays = quarantined()
    targets = functools.partial(quarantine_targets, action=action)
    for eager, jitted in zip(targets(*arrays), jax.jit(targets)(*arrays), strict=True):
        assert eager.dtype == jitted.dtype
        np.testing.assert_allclose(eager, jitted, atol=1e-6)


def test_nothing_rejected_changes_nothing():
    teacher_logits, labels, rejected, *reading = quarantined()
    found = quarantine_targets(teacher_logits, labels, 0 * rejected, *reading)
    np.testing.assert_array_equal(found.teacher_logits, teacher_logits)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.assigned_class, labels)


def test_targets_name_the_wrong_argument():
    teacher_logits, labels, rejected, trusted_logits, trusted_classes = quarantined()
    with pytest.raises(ValueError, match="Did you mean 'drop'"):
        quarantine_targets(*quarantined(), action="drp")
    with pytest.raises(ValueError, match=r"\(20, 3\) and \(20, 2\)"):
        quarantine_targets(
            teacher_logits, labels, rejected, trusted_logits[:, :2], trusted_classes
        )
    with pytest.raises(ValueError, match=r"len\(labels\)=3"):
        quarantine_targets(
            teacher_logits, labels[:3], rejected, trusted_logits, trusted_classes
        )


def nll(logits, labels, temperature):
    scaled = logits / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -np.mean(log_probs[np.arange(len(labels)), labels])


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_bias_is_recovered_in_the_scale_of_the_logits(temperature):
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 3)) * 2
    labels = np.argmax(honest + rng.gumbel(size=honest.shape), axis=1)
    planted = np.array([0.6, -0.1, -0.5])
    found = calibrate_bias(temperature * (honest + planted), labels)
    np.testing.assert_allclose(found, -temperature * planted, atol=0.1 * temperature)
    assert abs(found.sum()) < 1e-9


def test_a_bias_minimises_the_likelihood_and_its_penalty():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    temperature = calibrate_temperature(logits, labels)

    def objective(gap):
        bias = np.array([gap, -gap]) / 2
        return 50 * nll(logits + bias, labels, temperature) + (
            np.sum((bias / temperature) ** 2) / 2
        )

    found = calibrate_bias(logits, labels)
    grid = np.linspace(-5, 5, 2001)
    best = grid[np.argmin([objective(gap) for gap in grid])]
    assert found[0] - found[1] == pytest.approx(best, abs=0.01)


def test_a_class_without_references_gets_a_finite_bias():
    found = calibrate_bias(np.zeros((9, 2)), np.zeros(9, int))
    assert np.isfinite(found).all()
    assert found[0] > found[1]
