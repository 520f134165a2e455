"""Prototypes of many nodes made into one set.

Clusters have no common order: the third prototype of one node may be the seventh of
another. So they are matched first, within each class, by the assignment that costs
least, and only then averaged, by any rule of `protojax.federated.aggregation`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import Array, Prototypes, PyTree
from protojax.prototypes.geometry import (
    METRICS,
    TINY,
    distances,
    paired_distance,
    unit,
)


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
    known = _usable(reference)
    cost = distances(vectors, reference.vectors, metric=metric, where=known)
    alike = (prototypes.labels[:, None] == reference.labels) & usable[:, None]
    alike &= known
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


@functools.partial(jax.jit, static_argnames=("aggregate", "num_byzantine", "metric"))
def merge_prototypes(
    stacked: Prototypes,
    aggregate: Callable[..., PyTree],
    *,
    num_byzantine: int | None = None,
    metric: str = "cosine",
) -> Prototypes:
    """Merges the prototypes of all nodes: matched within class, then aggregated.

    The order within a class is that of the node in its middle: of those who hold the
    class the one whose median matching cost to the others is least, so that a minority
    of hostile nodes does not choose it, nor one that claims every class.

    Formal guarantees:
      * The order of a node's prototypes has no influence, but on the order within each
        class.
      * A prototype that 2 f nodes or fewer hold has no counts. So with no more than f
        Byzantine nodes those who hold one are honest in their majority, and with a rule
        that stands any minority, or f and is sure of its own bounds, merged prototypes
        stay within what the rule guarantees of the honest ones. A rule that uses
        weights believes the counts: where nodes may lie, give it none.

    Args:
        stacked: vectors `[nodes, num_prototypes, dim]`.
        aggregate: a rule of `protojax.federated.aggregation` with its parameters; it is
            given the nodes' counts as weights.
        num_byzantine: f, the most Byzantine nodes to stand; by default a quarter of the
            nodes, so that what more than half of them hold is kept. 0 keeps what only
            one node holds.
        metric: "cosine" (vectors are scaled to unit length) or "l2".

    Returns:
        Prototypes `[num_prototypes, dim]`, classes ascending. Counts are the rule's
        aggregate of the nodes' counts; 0 where 2 f nodes or fewer have a prototype, or
        fewer than the rule needs to stand its own f.

    Raises:
        ValueError: `num_byzantine` below 0, an unknown metric, or from the rule.

    >>> from protojax.federated.aggregation import mean
    >>> first = Prototypes(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2))
    >>> second = jax.tree.map(lambda leaf: leaf[::-1], first)
    >>> both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    >>> merge_prototypes(both, mean).vectors.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if num_byzantine is None:
        num_byzantine = len(stacked.counts) // 4
    validate.non_negative(num_byzantine=num_byzantine)
    usable = _usable(stacked)
    vectors = jnp.where(usable[..., None], stacked.vectors, 0.0)
    if metric == "cosine":
        vectors = unit(vectors)
    stacked = Prototypes(vectors, stacked.labels, jnp.where(usable, stacked.counts, 0))
    reference = _reference(stacked, metric)
    # What too few hold is dropped below; far away, it would cost the others digits.
    holders = jnp.sum(jnp.any(_held(stacked, reference.labels), axis=1), axis=0)
    enough = holders > 2 * num_byzantine
    reference = reference._replace(counts=jnp.where(enough, reference.counts, 0.0))
    matched = jax.vmap(lambda node: match_prototypes(node, reference, metric=metric))(
        stacked
    )

    def merge(vectors: Array, counts: Array) -> tuple[Array, Array]:
        present = counts > 0
        # Of no more nodes than that f liars would be half, or all.
        present &= jnp.sum(present) > 2 * num_byzantine
        return (
            aggregate(vectors, weights=counts, where=present),
            aggregate(counts, where=present),
        )

    vectors, counts = jax.vmap(merge, in_axes=1)(matched.vectors, matched.counts)
    if metric == "cosine":
        vectors = unit(vectors)
    return Prototypes(vectors, reference.labels, counts)


def _usable(prototypes: Prototypes) -> Array:
    """Returns `[..., num_prototypes]`, those that stand for rows and have distances."""
    squares = jnp.sum(jnp.square(jnp.float32(prototypes.vectors)), axis=-1)
    # Four of them add up to the square of a distance. NaN is not below either.
    near = squares <= jnp.finfo(jnp.float32).max / 8
    return near & jnp.isfinite(prototypes.counts) & (prototypes.counts > 0)


def _reference(stacked: Prototypes, metric: str) -> Prototypes:
    """Returns, class by class, the prototypes of the node in the middle.

    The classes that all nodes hold in full come from one node.
    """
    # Sorted, the middle node's labels are the ones that most nodes have.
    labels = jnp.sort(jnp.sort(stacked.labels, axis=1), axis=0)
    labels = labels[(len(labels) - 1) // 2]
    # [nodes, slots, places]: what a node holds for a place of the reference.
    alike = stacked.labels[..., None] == labels
    holds = _held(stacked, labels)
    full = jnp.sum(holds, axis=1) == jnp.sum(labels[:, None] == labels, axis=0)
    middle = _middle(stacked, metric, alike, holds, jnp.all(full, axis=0))
    # The place's rank among those of its class is that of the slot which fills it.
    rank = jnp.sum(jnp.tril(labels[:, None] == labels), axis=1)
    fills = holds & (jnp.cumsum(holds, axis=1) == rank)
    places = jnp.arange(len(labels))
    slots = jnp.argmax(fills, axis=1)[middle, places]
    filled = jnp.any(fills, axis=1)[middle, places]
    return Prototypes(
        stacked.vectors[middle, slots],
        labels,
        jnp.where(filled, stacked.counts[middle, slots], 0.0),
    )


def _held(stacked: Prototypes, labels: Array) -> Array:
    """Whether a node's slot may fill a place, `[nodes, slots, places]`.

    Args:
        stacked: vectors `[nodes, slots, dim]`.
        labels: `[places]`, the classes of the places.
    """
    return (stacked.labels[..., None] == labels) & (stacked.counts > 0)[..., None]


def _middle(
    stacked: Prototypes, metric: str, alike: Array, holds: Array, complete: Array
) -> Array:
    """Returns `[places]`, the node nearest to half of those who hold the class.

    Args:
        stacked: vectors `[nodes, slots, dim]`.
        metric: "cosine" or "l2".
        alike: `[nodes, slots, places]`, whether the labels agree.
        holds: the same, of usable prototypes.
        complete: `[places]`, whether all nodes hold all prototypes of the class.
    """

    def cost(node: Prototypes, other: Prototypes) -> Array:
        found = match_prototypes(node, other, metric=metric)
        pairs = paired_distance(found.vectors, other.vectors, metric=metric)
        # A prototype without a partner costs what the other's could be apart at most:
        # by a liar's own length it could make up for any distance.
        lengths = jnp.linalg.norm(other.vectors, axis=-1)
        far = 2.0 if metric == "cosine" else 2 * jnp.max(lengths)
        pairs = jnp.where(found.counts > 0, pairs, far)
        return jnp.where(other.counts > 0, pairs, 0.0)

    # [nodes, others, the others' slots]
    pairs = jax.vmap(lambda node: jax.vmap(lambda other: cost(node, other))(stacked))(
        stacked
    )
    whole = jnp.any(alike & complete, axis=-1)
    together = jnp.float32(alike | (whole[..., None] & complete))
    costs = jnp.einsum("noi,oij->jon", pairs, together, precision="highest")
    # Both ways: who claims more than the others of a class is near to them, but they
    # are not to what it claims beside.
    costs += jnp.swapaxes(costs, 1, 2)
    held = jnp.any(holds, axis=1).T
    medians = jax.vmap(_median)(costs, held)
    return jnp.argmin(jnp.where(held, medians, jnp.inf), axis=1)


def _median(values: Array, where: Array) -> Array:
    """Returns each column's median `[columns]` over the rows in `where`, 0 over none.

    Args:
        values: `[rows, columns]`.
        where: `[rows]`, bool.
    """
    ranks, count = jnp.arange(len(where)), jnp.sum(where)
    # Both middle ranks; the same one where the number is odd.
    middle = (ranks >= (count - 1) // 2) & (ranks <= count // 2) & (ranks < count)
    # The rows that are out come last in every column.
    ordered = jnp.sort(jnp.where(where[:, None], values, jnp.inf), axis=0)
    shares = jnp.float32(middle) / jnp.maximum(jnp.sum(jnp.float32(middle)), TINY)
    ordered = jnp.where(middle[:, None], ordered, 0.0)
    return jnp.matmul(shares, ordered, precision="highest")
