"""Distances at the edges: what is not finite, what overflows, and common offsets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import prototypes
from protojax.base import Prototypes
from protojax.prototypes import geometry

both_metrics = pytest.mark.parametrize("metric", geometry.METRICS)
not_finite = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])

# Compiled once a shape and metric, instead of operation by operation.
unit, distances, paired_distance = (
    jax.jit(function, static_argnames="metric" if function is not geometry.unit else ())
    for function in (geometry.unit, geometry.distances, geometry.paired_distance)
)
nearest_prototype, inertia, update_prototypes = (
    jax.jit(function, static_argnames="metric")
    for function in (
        prototypes.nearest_prototype,
        prototypes.inertia,
        prototypes.update_prototypes,
    )
)


@jax.jit
@jax.grad
def pulled(rows, along):
    """The gradient of the directions of rows along given ones."""
    return (unit(rows) * along).sum()


CORNERS = np.array([[3.0, 4.0], [30.0, 40.0]], np.float32)
FOUND = Prototypes(CORNERS, np.array([0, 1]), np.ones(2))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- rows that are not finite ------------------------------------------------------


@both_metrics
@not_finite
def test_what_is_not_finite_is_near_nothing(metric, value):
    rows = np.array([[value, 0.0], [3.0, 4.0], [value, value]], np.float32)
    every = distances(rows, CORNERS, metric=metric)
    paired = paired_distance(rows, CORNERS[[0, 0, 1]], metric=metric)
    finite = np.isfinite(every)
    np.testing.assert_array_equal(finite, [[False] * 2, [True] * 2, [False] * 2])
    np.testing.assert_array_equal(np.isfinite(paired), [False, True, False])
    np.testing.assert_allclose(every[1, 0], 0, atol=1e-6)
    # The same with sides exchanged: a vector that is not finite is far in its column.
    every = distances(CORNERS, rows, metric=metric)
    np.testing.assert_array_equal(np.isfinite(every), [[False, True, False]] * 2)


@both_metrics
@not_finite
def test_a_row_that_is_not_finite_has_a_cost(metric, value):
    rows = np.array([[value, 0.0], [3.0, 4.0]], np.float32)
    assert not np.isfinite(inertia(rows, FOUND, metric=metric))
    kept = inertia(rows, FOUND, metric=metric, where=np.arange(2) == 1)
    np.testing.assert_allclose(kept, 0, atol=1e-6)
    index, distance = nearest_prototype(
        rows, FOUND, metric=metric, where=np.array([[False, True]] * 2)
    )
    np.testing.assert_array_equal(index, [1, 1])
    assert not np.isfinite(distance[0])


@both_metrics
@not_finite
def test_a_row_that_is_not_finite_does_not_move_a_running_mean(metric, value):
    rows = np.array([[value, 0.0], [3.0, 5.0]], np.float32)
    new = update_prototypes(FOUND, rows, metric=metric)
    alone = update_prototypes(FOUND, rows[1:], metric=metric)
    jax.tree.map(np.testing.assert_array_equal, new, alone)


@both_metrics
@not_finite
def test_kmeans_names_rows_that_are_not_finite(metric, value):
    rows = random(12, 2)
    rows[4, 1] = value
    with pytest.raises(ValueError, match=r"rows with NaN.*=1"):
        prototypes.kmeans(jax.random.key(0), rows, 2, metric=metric)
    found = prototypes.kmeans(
        jax.random.key(0), rows, 2, metric=metric, where=np.arange(12) != 4
    )
    assert found.counts.sum() == 11
    with pytest.raises(ValueError, match="rows with NaN"):
        prototypes.class_prototypes(
            jax.random.key(0), rows, np.arange(12) % 2, 2, num_prototypes=2
        )


def test_kmeans_names_rows_whose_squares_overflow():
    rows = np.full((4, 2), 1e25, np.float32)
    with pytest.raises(ValueError, match="overflow"):
        prototypes.kmeans(jax.random.key(0), rows, 2, metric="l2")
    found = prototypes.kmeans(jax.random.key(0), rows, 2)
    np.testing.assert_allclose(found.vectors[0], [0.5**0.5] * 2, atol=1e-6)


@both_metrics
def test_what_stands_for_nothing_may_hold_anything(metric):
    rows = random(5, 2)
    padded = Prototypes(
        np.concatenate([CORNERS, [[np.nan, 1.0], [np.inf, 2.0], [3e38, 3e38]]]),
        np.arange(5),
        np.array([1.0, 1.0, 0.0, 0.0, 0.0]),
    )
    nearest = functools.partial(nearest_prototype, metric=metric)
    jax.tree.map(
        np.testing.assert_array_equal, nearest(rows, padded), nearest(rows, FOUND)
    )


@not_finite
def test_one_vector_that_is_not_finite_does_not_decide_among_the_others(value):
    vectors = np.concatenate([CORNERS, [[value, 0.0]]])
    found = FOUND._replace(vectors=vectors, labels=np.arange(3), counts=np.ones(3))
    where = np.array([[True, True, False]] * 2)
    index, distance = nearest_prototype(CORNERS, found, metric="l2", where=where)
    np.testing.assert_array_equal(index, [0, 1])
    np.testing.assert_array_equal(distance, 0)


# --- large and small ---------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e9, 1e12, 1e19, 1e25, 1e38])
def test_a_direction_does_not_depend_on_the_scale(scale):
    rows = random(6, 4)
    rows /= np.abs(rows).max()
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(rows * scale), expected, atol=1e-6)
    gradient = pulled(rows * scale, rows[::-1])
    assert np.isfinite(gradient).all()
    if scale <= 1e25:  # beyond, the gradient itself is too small for a float32
        along = rows[::-1] - expected * (expected * rows[::-1]).sum(1, keepdims=True)
        along /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(gradient * scale, along, rtol=1e-4, atol=1e-5)


def test_overflow_is_far_and_not_near():
    rows = np.array([[1e25, 0.0], [1.0, 0.0]], np.float32)
    paired = paired_distance(rows, CORNERS, metric="l2")
    assert np.isposinf(paired[0])
    every = distances(rows, CORNERS, metric="l2")
    assert not np.isfinite(every[0]).any()
    assert np.isfinite(every[1]).all()
    index, _ = nearest_prototype(
        rows, FOUND, metric="l2", where=np.array([[False, True]] * 2)
    )
    np.testing.assert_array_equal(index, [1, 1])


@both_metrics
def test_zero_rows_have_zero_gradients(metric):
    zeros = np.zeros((2, 3), np.float32)
    for function in (paired_distance, distances):
        gradient = jax.jit(
            jax.grad(
                lambda x, function=function: function(x, zeros, metric=metric).sum()
            )
        )(zeros)
        np.testing.assert_array_equal(gradient, 0)
    expected = float(metric == "cosine")
    np.testing.assert_array_equal(distances(zeros, zeros, metric=metric), expected)
    empty = distances(zeros[:0], zeros, metric=metric)
    assert empty.shape == (0, 2)


# --- a common offset ---------------------------------------------------------------


@pytest.mark.parametrize("offset", [10.0, 1e3, 1e4, -1e5])
def test_a_common_offset_does_not_change_who_is_nearest(offset):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 64)).astype(np.float32)
    rows[:, 0] += offset
    vectors = rows[rng.choice(500, 20, replace=False)]
    vectors = vectors + 0.1 * rng.normal(size=vectors.shape).astype(np.float32)
    found = Prototypes(vectors, np.zeros(20, int), np.ones(20))
    every = np.linalg.norm(rows[:, None].astype(np.float64) - vectors, axis=-1)
    index, _ = nearest_prototype(rows, found, metric="l2")
    chosen = every[np.arange(500), index]
    np.testing.assert_allclose(chosen, every.min(axis=1), atol=1e-5)
    np.testing.assert_allclose(distances(rows, vectors, metric="l2"), every, rtol=1e-4)


def test_counts_of_kmeans_are_the_rows_nearest_under_an_offset():
    rows = random(300, 5) + np.array([1e4, 0, 0, 0, 0], np.float32)
    found = prototypes.kmeans(jax.random.key(0), rows, 5, metric="l2")
    index, _ = nearest_prototype(rows, found, metric="l2")
    np.testing.assert_array_equal(found.counts, np.bincount(index, minlength=5))


def test_the_origin_takes_no_gradient():
    rows, vectors = random(4, 3), random(2, 3, seed=1) + 50

    def total(rows, vectors):
        return jnp.square(distances(rows, vectors, metric="l2")).sum()

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(rows, vectors)
    difference = rows[:, None] - vectors
    for gradient, expected in zip(
        found, (2 * difference.sum(1), -2 * difference.sum(0)), strict=True
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4)


# --- shapes ------------------------------------------------------------------------


@pytest.mark.parametrize("where", [np.ones(2, bool), np.ones((2, 1), bool)])
def test_a_mask_of_another_shape_is_refused(where):
    square = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"where\.shape \(2, 2\)"):
        nearest_prototype(square, FOUND, where=where)
    wrong = where[:1] if where.ndim == 1 else where
    with pytest.raises(ValueError, match=r"where\.shape \(2,\)"):
        inertia(square, FOUND, where=wrong)
    with pytest.raises(ValueError, match=r"where\.shape \(2,\)"):
        update_prototypes(FOUND, square, where=wrong)
    with pytest.raises(ValueError, match="where"):
        prototypes.kmeans(jax.random.key(0), square, 1, where=np.ones((2, 1), bool))
