"""Assignment of rows to their nearest prototypes, and the distances.

A prototype with `counts == 0` represents nothing (padding, an empty cluster) and is
never nearest.
"""

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, Prototypes
from protojax.prototypes._kmeans import BLOCK_ROWS
from protojax.prototypes.geometry import distances, paired_distance


def nearest_prototype(
    embeddings: Array,
    prototypes: Prototypes,
    *,
    metric: str = "cosine",
    where: Array | None = None,
) -> tuple[Array, Array]:
    """The index of each row's nearest prototype, and its distance.

    Args:
        embeddings: `[batch, dim]`.
        prototypes: vectors `[num_prototypes, dim]`; those with zero counts are ignored.
        metric: "cosine" or "l2".
        where: `[batch, num_prototypes]`, the prototypes allowed for each row.

    Returns:
        Index `[batch]`, int32, and distance `[batch]`, float32, differentiable. A row
        without any allowed prototype gets index 0 and distance inf. A row that is not
        finite gets an allowed prototype and a distance that is not finite.

    Raises:
        ValueError: the widths differ, `where` has another shape, or the metric is
            unknown.

    >>> found = Prototypes(jnp.eye(2), jnp.array([7, 8]), jnp.ones(2))
    >>> index, distance = nearest_prototype(jnp.array([[0.0, 3.0]]), found)
    >>> int(index[0]), float(distance[0])
    (1, 0.0)
    """
    vectors = jnp.asarray(prototypes.vectors)
    alive = jnp.asarray(prototypes.counts) > 0
    allowed = alive[None, :]
    if where is not None:
        validate.shape((len(embeddings), len(vectors)), where=where)
        allowed = allowed & where
    every = distances(embeddings, vectors, metric=metric, where=alive)
    # A distance that overflowed must stay below inf, which marks what is not allowed.
    every = jnp.minimum(every, jnp.finfo(jnp.float32).max)
    every = jnp.where(allowed, every, jnp.inf)
    index = jnp.argmin(every, axis=-1).astype(jnp.int32)
    # Computed again from the vectors: the matrix form is exact enough for a ranking,
    # but not for small Euclidean distances. The backward pass then needs no
    # [batch, num_prototypes] matrix either.
    distance = paired_distance(embeddings, vectors[index], metric=metric)
    return index, jnp.where(jnp.any(allowed, axis=-1), distance, jnp.inf)


def inertia(
    embeddings: Array,
    prototypes: Prototypes,
    *,
    metric: str = "cosine",
    where: Array | None = None,
) -> Array:
    """The objective of k-means: the sum of rows' (squared) distances to prototypes.

    Σᵢ minₖ (1 − cos(xᵢ, pₖ))  or  Σᵢ minₖ ‖xᵢ − pₖ‖²

    Args:
        embeddings: `[rows, dim]`.
        prototypes: vectors `[num_prototypes, dim]`.
        metric: "cosine" or "l2".
        where: `[rows]`, the rows that count.

    Returns:
        Scalar, float32; NaN or infinite where a row that counts is not finite.

    Raises:
        ValueError: the widths differ, `where` has another shape, or the metric is
            unknown.

    >>> one = Prototypes(jnp.zeros((1, 1)), jnp.array([-1]), jnp.ones(1))
    >>> float(inertia(jnp.array([[1.0], [-2.0]]), one, metric="l2"))
    5.0
    """
    if where is not None:
        validate.shape((len(embeddings),), where=where)

    def cost(row: Array) -> Array:
        _, distance = nearest_prototype(row[None], prototypes, metric=metric)
        return distance[0] if metric == "cosine" else jnp.square(distance[0])

    # In blocks, to bound the memory that the distance matrix takes.
    return jnp.sum(jax.lax.map(cost, embeddings, batch_size=BLOCK_ROWS), where=where)
