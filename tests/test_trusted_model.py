"""How a trusted model reads rows, against distances in NumPy."""

import jax
import numpy as np
import pytest

from protojax.base import Prototypes, TeacherOutputs
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read

KEY = jax.random.key(0)


def outputs(features, classes):
    """Outputs whose last layer holds these features; the first misleads."""
    features = np.asarray(features, np.float32)
    logits = np.random.default_rng(1).normal(size=(len(features), classes))
    layers = np.stack([-features[::-1], features], axis=1)
    return TeacherOutputs(logits.astype(np.float32), layers)


def blobs(classes=3, rows=24, dim=4, seed=0):
    """Rows about one place a class, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    places = 3 * np.random.default_rng(9).normal(size=(classes, dim))
    return places[labels] + rng.normal(scale=3.0, size=(rows, dim)), labels


def distance(row, vector, metric):
    if metric == "l2":
        return np.sqrt(np.sum((row - vector) ** 2))
    return 1 - row @ vector / np.linalg.norm(row) / np.linalg.norm(vector)


def loop(features, centres, metric):
    """Distances `[rows, prototypes]`, one after the other."""
    vectors = np.asarray(centres.vectors, np.float64)
    return np.array(
        [[distance(row, vector, metric) for vector in vectors] for row in features]
    )


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_row_is_read_as_its_nearest_prototype(metric):
    features, labels = blobs()
    fitted = fit_trusted_model(
        KEY, outputs(features, 3), labels, num_prototypes=6, metric=metric
    )
    assert fitted.metric == metric
    assert fitted.temperature is None
    assert np.bincount(fitted.prototypes.labels).tolist() == [2, 2, 2]
    asked = outputs(blobs(rows=30, seed=5)[0], 3)
    found = read(fitted, asked)
    nearest = loop(asked.features[:, -1], fitted.prototypes, metric).argmin(1)
    expected = np.asarray(fitted.prototypes.labels)[nearest]
    np.testing.assert_array_equal(found.classes, expected)
    # A tuned encoder has learned logits of its own.
    assert found.logits is asked.logits


def honest(logits, labels):
    """The temperature of least cross-entropy, of many in [1/20, 20]."""
    tried = np.geomspace(1 / 20, 20, 4001)
    logits = logits[None] / tried[:, None, None]
    logits = logits - logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return tried[log_p[:, np.arange(len(labels)), labels].mean(1).argmax()]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_frozen_encoder_has_distances_for_logits(metric):
    features, labels = blobs()
    fitted = fit_trusted_model(
        KEY, outputs(features, 3), labels, num_prototypes=6, metric=metric, frozen=True
    )

    def near(rows):
        apart = loop(rows, fitted.prototypes, metric)
        own = np.asarray(fitted.prototypes.labels)
        return np.stack([-20 * apart[:, own == c].min(1) for c in range(3)], axis=1)

    assert fitted.temperature == pytest.approx(honest(near(features), labels), rel=1e-2)
    asked = blobs(rows=30, seed=5)[0]
    found = read(fitted, outputs(asked, 3))
    expected = near(asked.astype(np.float32)) / fitted.temperature
    np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-3)
    assert found.logits.dtype == np.float32
    np.testing.assert_array_equal(found.classes, found.logits.argmax(1))


def test_distances_by_hand():
    centres = Prototypes(np.array([[0.0, 0], [3, 4]]), np.array([0, 1]), np.ones(2))
    model = TrustedModel(centres, "l2", temperature=10.0)
    asked = TeacherOutputs(np.zeros((2, 2)), np.array([[[3.0, 4.0]], [[3.0, 0.0]]]))
    found = read(model, asked)
    assert found.classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.logits, [[-10, 0], [-6, -8]], atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_class_without_rows_is_never_read(frozen):
    features, labels = blobs(classes=2)
    labels = 2 * labels  # no row is of class 1
    fitted = fit_trusted_model(
        KEY, outputs(features, 3), labels, num_prototypes=4, frozen=frozen
    )
    assert set(np.asarray(fitted.prototypes.labels).tolist()) == {0, 2}
    asked = outputs(blobs(classes=2, rows=20, seed=3)[0], 3)
    found = read(fitted, asked)
    assert set(found.classes.tolist()) == {0, 2}
    if frozen:
        farthest = loop(asked.features[:, -1], fitted.prototypes, "cosine").max()
        expected = np.full(20, -20 * farthest / fitted.temperature)
        np.testing.assert_allclose(found.logits[:, 1], expected, rtol=1e-4)
        assert (found.logits[:, 1] <= found.logits.max(1)).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_one_class_and_no_row(frozen):
    features, labels = blobs(classes=1)
    fitted = fit_trusted_model(
        KEY, outputs(features, 1), labels, num_prototypes=2, frozen=frozen
    )
    assert read(fitted, outputs(features, 1)).classes.tolist() == [0] * len(labels)
    none = read(fitted, outputs(features, 1).take(np.zeros(0, int)))
    assert none.classes.shape == (0,)
    assert none.logits.shape == (0, 1)


def test_a_row_that_is_not_finite_changes_no_other():
    features, labels = blobs(classes=2)
    fitted = fit_trusted_model(
        KEY, outputs(features, 3), labels, num_prototypes=2, frozen=True
    )
    asked = outputs(features, 3)
    whole = read(fitted, asked)
    asked.features[4, -1, 0] = np.nan
    found = read(fitted, asked)
    assert found.classes[4] == -1
    assert np.isnan(found.logits[4, :2]).all()
    rest = np.arange(len(labels)) != 4
    np.testing.assert_array_equal(found.classes[rest], whole.classes[rest])
    np.testing.assert_array_equal(found.logits[rest, :2], whole.logits[rest, :2])
    assert np.isfinite(found.logits[rest]).all()
