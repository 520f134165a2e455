"""Distances between vectors: the cosine distance 1 − cos(x, p), in [0, 2], and "l2".

A zero vector has no direction: it is at cosine distance 1 from everything, and all
gradients at it, or at a Euclidean distance of 0, are zero instead of infinite. A vector
that is not finite is at distance NaN or infinity, never near. All arithmetic is
float32, whatever the input: the square of a Euclidean distance overflows from about
1e19 on, and such a distance is infinite (NaN in `distances`, where two infinite terms
cancel). A direction has no such bound.
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
    """Vectors scaled to unit length; a zero vector stays zero.

    The gradient at a zero vector is zero, not infinite.

    Args:
        vectors: `[..., dim]`.

    Returns:
        `[..., dim]`, float32; NaN somewhere in a vector that is not finite.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6..., 0.8...], [0.0, 0.0]]
    """
    vectors = jnp.asarray(vectors, jnp.float32)
    # Powers of two, which change no digit, bring large entries to where the squares
    # are finite; all others are left as they are.
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True, initial=0)
    vectors = vectors * jnp.select(
        [largest > 2.0**80, largest > 2.0**30], [2.0**-100, 2.0**-55], 1.0
    )
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    nonzero = squares > TINY
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
    """Distances of every row to every vector, by one matrix product.

    d(x, p) = 1 − x·p / (‖x‖ ‖p‖)  or  √(‖x‖² − 2 x·p + ‖p‖²)

    The second form is taken about the mean of the vectors, so that an offset that rows
    and vectors have in common costs no digits. It still loses some where ‖x − p‖ is
    small beside the spread of the vectors; `paired_distance` does not. A zero vector is
    at cosine distance 1 from everything.

    Args:
        embeddings: `[batch, dim]`.
        vectors: `[num_prototypes, dim]`.
        metric: "cosine" or "l2".
        where: `[num_prototypes]`, bool, which vectors are meant; the distances to the
            others, which may hold anything, are to be masked.

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
        products = jnp.matmul(unit(embeddings), unit(vectors).T, precision="highest")
        return jnp.clip(1 - products, 0, 2)
    embeddings = jnp.asarray(embeddings, jnp.float32)
    vectors = jnp.asarray(vectors, jnp.float32)
    origin = _origin(vectors, where)
    return _safe_sqrt(squared_distances(embeddings - origin, vectors - origin))


def paired_distance(a: Array, b: Array, *, metric: str = "cosine") -> Array:
    """Computes the distance of each vector of `a` to its partner in `b`.

    Args:
        a: `[..., dim]`.
        b: `[..., dim]`.
        metric: "cosine" or "l2".

    Returns:
        `[...]`, float32. Zero gradient where a Euclidean distance is 0 or a vector of
        a cosine distance is zero.

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
    """Rows and vectors must be matrices of the same width."""
    chex.assert_rank([embeddings, vectors], 2)
    if embeddings.shape[1] != vectors.shape[1]:
        raise ValueError(
            "Expected embeddings and prototypes of the same width, found "
            f"embeddings.shape={embeddings.shape}, vectors.shape={vectors.shape}."
        )


def _origin(vectors: Array, where: Array | None) -> Array:
    """Mean of the finite entries of some of the vectors, `[dim]`.

    Distances are the same from any origin: one entry that is not finite need not spoil
    those to other vectors, and no gradient passes.
    """
    counted = jnp.isfinite(vectors)
    if where is not None:
        counted = counted & where[:, None]
    # The quotient comes first: a sum of large entries would overflow.
    parts = vectors / jnp.maximum(jnp.sum(counted, axis=0), 1)
    return jax.lax.stop_gradient(jnp.sum(parts, axis=0, where=counted))


def _safe_sqrt(squares: Array) -> Array:
    """Square root with zero gradient at 0; that of NaN is NaN."""
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def squared_distances(a: Array, b: Array) -> Array:
    """Squared Euclidean distances `[rows of a, rows of b]`, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    squares = jnp.sum(jnp.square(a), -1)[:, None] + jnp.sum(jnp.square(b), -1)
    return jnp.maximum(squares - 2 * jnp.matmul(a, b.T, precision="highest"), 0)
