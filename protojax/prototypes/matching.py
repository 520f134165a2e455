"""Matching and merging of the prototypes of many nodes.

Clusters have no common order: the third prototype of one node may be the seventh of
another. So they are first matched within each class, by the assignment of least cost,
and then averaged by any rule of `protojax.federated.aggregation`.
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
    """The prototypes in the order of a reference.

    The order minimises Σₖ d(p_π(k), rₖ) over permutations π; pairs of different classes
    are formed only where no others are left.

    Args:
        prototypes: vectors `[num_prototypes, dim]`.
        reference: as many prototypes, of the same width.
        metric: "cosine" or "l2".

    Returns:
        The prototypes in their new order. Those whose class differs from that of the
        reference in the same place, that have no rows, or that are not finite get
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
    # NaN from one node must not reach the cost matrix, not even times 0.
    vectors = jnp.where(usable[:, None], prototypes.vectors, 0.0)
    known = _usable(reference)
    cost = distances(vectors, reference.vectors, metric=metric, where=known)
    alike = (prototypes.labels[:, None] == reference.labels) & usable[:, None]
    alike &= known
    # Just above any other cost: a much larger number would cost the others digits.
    far = 1 + 2 * jnp.max(cost, where=alike, initial=0.0)
    cost = jnp.where(alike, cost, far)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    order = jnp.zeros_like(rows).at[columns].set(rows)
    matched = jnp.take_along_axis(alike[order], jnp.arange(len(order))[:, None], 1)
    return Prototypes(
        vectors[order],
        prototypes.labels[order],
        # The assignment is complete, so what has no partner is matched all the same.
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
    """The prototypes of all nodes, matched within each class and then aggregated.

    The order within a class is that of a central node: among the nodes that have the
    class, the one whose median matching cost to the others is least. So it is chosen
    neither by a minority of hostile nodes nor by a node that claims every class.

    Formal guarantees:
      * The order of a node's prototypes influences only the order within each class of
        the result.
      * A prototype that 2 f nodes or fewer have gets count 0. So with at most f
        Byzantine nodes, the majority of the nodes that have a remaining one is honest.
        With a rule that tolerates any minority, or f nodes and checks its own bounds,
        merged prototypes have the guarantee that the rule gives for honest ones. A
        rule that uses weights trusts the counts: where nodes may lie, use one that
        ignores them.

    Args:
        stacked: vectors `[nodes, num_prototypes, dim]`.
        aggregate: a rule of `protojax.federated.aggregation` with its parameters; it is
            given the nodes' counts as weights.
        num_byzantine: f, the most Byzantine nodes to tolerate; by default a quarter of
            the nodes, so that prototypes that more than half of the nodes have remain.
            With 0, those of a single node remain too.
        metric: "cosine" (vectors are scaled to unit length) or "l2".

    Returns:
        Prototypes `[num_prototypes, dim]`, classes ascending. Counts are the rule's
        aggregate of the nodes' counts; 0 where 2 f nodes or fewer have a prototype, or
        fewer than the rule needs to tolerate its own f.

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
    # Prototypes of too few nodes are dropped below. They are left out here already,
    # because distant ones would cost the others digits.
    holders = jnp.sum(jnp.any(_held(stacked, reference.labels), axis=1), axis=0)
    enough = holders > 2 * num_byzantine
    reference = reference._replace(counts=jnp.where(enough, reference.counts, 0.0))
    matched = jax.vmap(lambda node: match_prototypes(node, reference, metric=metric))(
        stacked
    )

    def merge(vectors: Array, counts: Array) -> tuple[Array, Array]:
        present = counts > 0
        # Among 2 f nodes or fewer, f Byzantine ones would be at least half.
        present &= jnp.sum(present) > 2 * num_byzantine
        return (
            aggregate(vectors, weights=counts, where=present),
            # Unweighted: a count is a claim; weighted by itself, the largest would win.
            aggregate(counts, where=present),
        )

    # Each prototype on its own: other nodes may take part in each.
    vectors, counts = jax.vmap(merge, in_axes=1)(matched.vectors, matched.counts)
    if metric == "cosine":
        vectors = unit(vectors)
    return Prototypes(vectors, reference.labels, counts)


def _usable(prototypes: Prototypes) -> Array:
    """The mask `[..., num_prototypes]` of prototypes with rows and finite distances."""
    squares = jnp.sum(jnp.square(jnp.float32(prototypes.vectors)), axis=-1)
    # A squared distance is up to four times this. NaN compares false, as it should.
    near = squares <= jnp.finfo(jnp.float32).max / 8
    return near & jnp.isfinite(prototypes.counts) & (prototypes.counts > 0)


def _reference(stacked: Prototypes, metric: str) -> Prototypes:
    """The prototypes of the central node of each class.

    All classes of which every node has all prototypes come from one node.
    """
    # The median of the sorted labels is the labels that most nodes have.
    labels = jnp.sort(jnp.sort(stacked.labels, axis=1), axis=0)
    labels = labels[(len(labels) - 1) // 2]
    # [nodes, slots, places]: whether a node's slot has the label of a reference place.
    alike = stacked.labels[..., None] == labels
    holds = _held(stacked, labels)
    full = jnp.sum(holds, axis=1) == jnp.sum(labels[:, None] == labels, axis=0)
    middle = _middle(stacked, metric, alike, holds, jnp.all(full, axis=0))
    # The k-th place of a class is filled by the node's k-th usable slot of that class.
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
    """The mask of the slots that may fill a place, `[nodes, slots, places]`.

    Args:
        stacked: vectors `[nodes, slots, dim]`.
        labels: `[places]`, the classes of the places.
    """
    return (stacked.labels[..., None] == labels) & (stacked.counts > 0)[..., None]


def _middle(
    stacked: Prototypes, metric: str, alike: Array, holds: Array, complete: Array
) -> Array:
    """The central node for each place, `[places]`: nearest to half of those with it.

    Args:
        stacked: vectors `[nodes, slots, dim]`.
        metric: "cosine" or "l2".
        alike: `[nodes, slots, places]`, whether the labels agree.
        holds: the same, of usable prototypes.
        complete: `[places]`, whether all nodes have all prototypes of the class.
    """

    def cost(node: Prototypes, other: Prototypes) -> Array:
        found = match_prototypes(node, other, metric=metric)
        pairs = paired_distance(found.vectors, other.vectors, metric=metric)
        # A prototype without a partner costs the largest distance that the other
        # node's own vectors allow. With its own length, a Byzantine node could choose
        # this cost.
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
    # In both directions: a node that claims additional prototypes of a class is near to
    # the others, but they are not near to its additional ones.
    costs += jnp.swapaxes(costs, 1, 2)
    held = jnp.any(holds, axis=1).T
    medians = jax.vmap(_median)(costs, held)
    return jnp.argmin(jnp.where(held, medians, jnp.inf), axis=1)


def _median(values: Array, where: Array) -> Array:
    """The median of each column `[columns]` over the rows in `where`, 0 over none.

    Args:
        values: `[rows, columns]`.
        where: `[rows]`, bool.
    """
    ranks, count = jnp.arange(len(where)), jnp.sum(where)
    # Both middle ranks; the same one where the number is odd.
    middle = (ranks >= (count - 1) // 2) & (ranks <= count // 2) & (ranks < count)
    # Rows outside `where` are sorted to the end of every column.
    ordered = jnp.sort(jnp.where(where[:, None], values, jnp.inf), axis=0)
    shares = jnp.float32(middle) / jnp.maximum(jnp.sum(jnp.float32(middle)), TINY)
    ordered = jnp.where(middle[:, None], ordered, 0.0)
    return jnp.matmul(shares, ordered, precision="highest")
