"""Distances between vectors: the cosine distance 1 − cos(x, p), in [0, 2], and "l2".

A zero vector has no direction: it is at cosine distance 1 from everything. Gradients at
a zero vector, or at a Euclidean distance of 0, are zero instead of infinite. A vector
that is not finite has distance NaN or infinity, never a small one. All arithmetic is
float32, whatever the input: squares of Euclidean distances above about 1e19 overflow,
and such a distance is infinite (NaN in `distances`, where two infinite terms cancel).
The cosine distance has no such limit.
"""

import chex
import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array

METRICS = ("cosine", "l2")

# Squared lengths below this count as zero: such a vector has no direction.
TINY = 1e-24


def unit(vectors: Array) -> Array:
    """The vectors scaled to unit length; a zero vector stays zero.

    The gradient at a zero vector is zero, not infinite.

    Args:
        vectors: `[..., dim]`.

    Returns:
        `[..., dim]`, float32; NaN somewhere in a vector that is not finite.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6..., 0.8...], [0.0, 0.0]]
    """
    vectors = jnp.asarray(vectors, jnp.float32)
    # Large entries are scaled down so that their squares are finite. Powers of two
    # change no digit, and all other entries stay unchanged.
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True, initial=0)
    vectors = vectors * jnp.select(
        [largest > 2.0**80, largest > 2.0**30], [2.0**-100, 2.0**-55], 1.0
    )
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    nonzero = squares > TINY
    # The inner `where` too: the gradient of rsqrt at 0 is infinite, and times 0 NaN.
    return vectors * jnp.where(
        nonzero, jax.lax.rsqrt(jnp.where(nonzero, squares, 1)), 0
    )


def distances(
    embeddings: Array,
    vectors: Array,
    *,
    metric: str = "cosine",
    where: Array | None = None,
) -> Array:
    """The distances of every row to every vector, by one matrix product.

    d(x, p) = 1 − x·p / (‖x‖ ‖p‖)  or  √(‖x‖² − 2 x·p + ‖p‖²)

    The second form is centred at the mean of the vectors, so that a common offset of
    rows and vectors costs no digits. It still loses some where ‖x − p‖ is small
    relative to the spread of the vectors; `paired_distance` does not. A zero vector is
    at cosine distance 1 from everything.

    Args:
        embeddings: `[batch, dim]`.
        vectors: `[num_prototypes, dim]`.
        metric: "cosine" or "l2".
        where: `[num_prototypes]`, bool, the valid vectors; others may contain anything,
            and the caller has to mask the distances to them.

    Returns:
        `[batch, num_prototypes]`, float32.

    Raises:
        ValueError: the widths differ, or the metric is unknown.

    >>> distances(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), metric="l2").tolist()
    [[5.0]]
    """
    validate.one_of(METRICS, metric=metric)
    _check_widths(embeddings, vectors)
    if metric == "cosine":
        # The default precision of GPUs and TPUs is lower and may change the nearest.
        products = jnp.matmul(unit(embeddings), unit(vectors).T, precision="highest")
        # Rounding may put a cosine just outside [-1, 1].
        return jnp.clip(1 - products, 0, 2)
    embeddings = jnp.asarray(embeddings, jnp.float32)
    vectors = jnp.asarray(vectors, jnp.float32)
    # The expanded square loses digits where vectors are long and far from the origin.
    origin = _origin(vectors, where)
    return _safe_sqrt(squared_distances(embeddings - origin, vectors - origin))


def paired_distance(a: Array, b: Array, *, metric: str = "cosine") -> Array:
    """The distance of each vector of `a` to the corresponding one of `b`.

    Args:
        a: `[..., dim]`.
        b: `[..., dim]`.
        metric: "cosine" or "l2".

    Returns:
        `[...]`, float32. The gradient is zero where a Euclidean distance is 0, and
        where a vector is zero under "cosine".

    Raises:
        ValueError: the metric is unknown.

    >>> float(paired_distance(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])))
    2.0
    """
    validate.one_of(METRICS, metric=metric)
    if metric == "cosine":
        return jnp.clip(1 - jnp.sum(unit(a) * unit(b), axis=-1), 0, 2)
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    return _safe_sqrt(jnp.sum(jnp.square(difference), axis=-1))


def _check_widths(embeddings: Array, vectors: Array) -> None:
    """Raises where rows and vectors are not matrices of the same width."""
    chex.assert_rank([embeddings, vectors], 2)
    if embeddings.shape[1] != vectors.shape[1]:
        raise ValueError(
            "Expected embeddings and prototypes of the same width, found "
            f"embeddings.shape={embeddings.shape}, vectors.shape={vectors.shape}."
        )


def _origin(vectors: Array, where: Array | None) -> Array:
    """The mean of the finite entries of the valid vectors, `[dim]`.

    Distances do not depend on the origin. So entries that are not finite can be left
    out, which protects the distances to other vectors, and no gradient is needed.
    """
    counted = jnp.isfinite(vectors)
    if where is not None:
        counted = counted & where[:, None]
    # The quotient comes first: a sum of large entries would overflow.
    parts = vectors / jnp.maximum(jnp.sum(counted, axis=0), 1)
    # No distance depends on the origin, so its gradient would be rounding alone.
    return jax.lax.stop_gradient(jnp.sum(parts, axis=0, where=counted))


def _safe_sqrt(squares: Array) -> Array:
    """The square root, with gradient zero at 0; that of NaN is NaN."""
    zero = squares == 0
    # Both `where`s are needed: the untaken branch's gradient is infinite, times 0 NaN.
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def squared_distances(a: Array, b: Array) -> Array:
    """The squared Euclidean distances `[rows of a, rows of b]`, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    squares = jnp.sum(jnp.square(a), -1)[:, None] + jnp.sum(jnp.square(b), -1)
    # Rounding may make the expanded square negative.
    return jnp.maximum(squares - 2 * jnp.matmul(a, b.T, precision="highest"), 0)
