"""Prototypes of many nodes made into one set.

Clusters have no common order: the third prototype of one node may be the seventh of
another. So they are matched first, within each class, by the assignment that costs
least, and only then averaged, by any rule of `protojax.aggregation`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import Array, Prototypes, PyTree
from protojax.prototypes.geometry import METRICS, distances, paired_distance, unit


@functools.partial(jax.jit, static_argnames="metric")
def match_prototypes(
    prototypes: Prototypes, reference: Prototypes, *, metric: str = "cosine"
) -> Prototypes:
    """Puts prototypes in the order of a reference.

    Minimises Σₖ d(p_π(k), rₖ) over permutations π, pairs of different classes last.

    Args:
        prototypes: vectors `[num_prototypes, dim]`.
        reference: as many, of the same width.
        metric: "cosine" or "l2".

    Returns:
        The prototypes in their new order. One whose class is not that of the reference
        in its place, or that has no rows or numbers that are not finite, gets
        `counts == 0`.

    Raises:
        ValueError: the sets differ in shape, or the metric is unknown.

    >>> held = Prototypes(jnp.eye(2), jnp.array([0, 0]), jnp.array([5.0, 7.0]))
    >>> moved = jax.tree.map(lambda leaf: leaf[::-1], held)
    >>> match_prototypes(moved, held).counts.tolist()
    [5.0, 7.0]

    References:
        Kuhn, 1955 (assignment); Yurochkin et al., 2019, arXiv:1905.12022, who match
        neurons of federated networks.
    """
    validate.one_of(METRICS, metric=metric)
    if prototypes.vectors.shape != reference.vectors.shape:
        raise ValueError(
            f"Expected prototypes of shape {reference.vectors.shape}, found "
            f"{prototypes.vectors.shape}."
        )
    usable = _usable(prototypes)
    vectors = jnp.where(usable[:, None], prototypes.vectors, 0.0)
    cost = distances(vectors, reference.vectors, metric=metric)
    alike = (prototypes.labels[:, None] == reference.labels) & usable[:, None]
    alike &= _usable(reference)
    # Above any other cost, and no more: a far larger number would round the others off.
    far = 1 + 2 * jnp.max(cost, where=alike, initial=0.0)
    cost = jnp.where(alike, cost, far)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    order = jnp.zeros_like(rows).at[columns].set(rows)
    matched = jnp.take_along_axis(alike[order], jnp.arange(len(order))[:, None], 1)
    return Prototypes(
        vectors[order],
        prototypes.labels[order],
        jnp.where(matched[:, 0], prototypes.counts[order], 0.0),
    )


@functools.partial(jax.jit, static_argnames=("aggregate", "metric"))
def merge_prototypes(
    stacked: Prototypes,
    aggregate: Callable[..., PyTree],
    *,
    metric: str = "cosine",
) -> Prototypes:
    """Merges the prototypes of all nodes: matched within class, then aggregated.

    The order is that of the node in the middle: the one whose median matching cost to
    the others is least, so that a minority of hostile nodes does not choose it.

    Formal guarantees:
      * The order of a node's prototypes has no influence.
      * With a rule that stands f Byzantine nodes, and no more than f of them, merged
        prototypes stay within what the rule guarantees of the honest ones. A rule that
        uses weights believes the counts: where nodes may lie, give it none.

    Args:
        stacked: vectors `[nodes, num_prototypes, dim]`.
        aggregate: a rule of `protojax.aggregation` with its parameters; it is given the
            nodes' counts as weights.
        metric: "cosine" (vectors are scaled to unit length) or "l2".

    Returns:
        Prototypes `[num_prototypes, dim]`. Counts are the rule's aggregate of the
        nodes' counts; 0 where no node has a prototype.

    >>> from protojax.aggregation import mean
    >>> first = Prototypes(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
    >>> second = jax.tree.map(lambda leaf: leaf[::-1], first)
    >>> both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    >>> merge_prototypes(both, mean).vectors.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if metric == "cosine":
        stacked = stacked._replace(vectors=unit(stacked.vectors))
    reference = jax.tree.map(lambda leaf: leaf[_middle(stacked, metric)], stacked)
    matched = jax.vmap(lambda node: match_prototypes(node, reference, metric=metric))(
        stacked
    )

    def merge(vectors: Array, counts: Array) -> tuple[Array, Array]:
        present = counts > 0
        return (
            aggregate(vectors, weights=counts, where=present),
            aggregate(counts, where=present),
        )

    vectors, counts = jax.vmap(merge, in_axes=1)(matched.vectors, matched.counts)
    if metric == "cosine":
        vectors = unit(vectors)
    return Prototypes(vectors, reference.labels, counts)


def _usable(prototypes: Prototypes) -> Array:
    """Returns `[num_prototypes]`, those that stand for rows and are numbers."""
    finite = jnp.all(jnp.isfinite(prototypes.vectors), axis=-1)
    return finite & jnp.isfinite(prototypes.counts) & (prototypes.counts > 0)


def _middle(stacked: Prototypes, metric: str) -> Array:
    """Returns the node that half of the nodes are nearest to."""

    lengths = jnp.linalg.norm(stacked.vectors, axis=-1)
    # No distance is larger: a prototype without a partner costs more than any with one.
    far = 2 * jnp.max(lengths, where=_usable(stacked), initial=1.0)

    def cost(node: Prototypes, other: Prototypes) -> Array:
        found = match_prototypes(node, other, metric=metric)
        pairs = paired_distance(found.vectors, other.vectors, metric=metric)
        return jnp.sum(jnp.where(found.counts > 0, pairs, far))

    costs = jax.vmap(lambda node: jax.vmap(lambda other: cost(node, other))(stacked))(
        stacked
    )
    return jnp.argmin(jnp.median(costs, axis=1))
