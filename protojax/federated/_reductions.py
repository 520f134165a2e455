"""Reductions over the nodes of an update, which the aggregation rules share.

An update is a tree of `[nodes, ...]`. Quantities of whole updates (norms, distances)
are summed leaf by leaf, so that no `[nodes, all parameters]` matrix is built.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.prototypes.geometry import TINY


class FiniteUpdates(NamedTuple):
    """The nodes whose updates a rule uses.

    Attributes:
        where: `[nodes]`, bool.
        weights: `[nodes]`, float32, zero outside `where`, the largest in [1/2, 1).
        excluded: scalar, the number of present nodes with a non-finite update.
    """

    where: Array
    weights: Array
    excluded: Array


def compiled(rule: Callable[..., PyTree], *more: str) -> Callable[..., PyTree]:
    """A rule as one program, instead of dozens, where it is called by itself.

    Args:
        rule: `(updates, *, weights, where)` and parameters of its own.
        *more: parameters that its signature does not name.

    Returns:
        The rule, of whose program its own parameters are constants. Within another
        program it is a part of that.
    """
    own = {*inspect.signature(rule).parameters, *more}
    constants = sorted(own - {"updates", "weights", "where"})
    return jax.jit(rule, static_argnames=constants, inline=True)


def num_nodes_of(updates: PyTree) -> int:
    """The number of nodes, which must be the same in each leaf."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(updates)}
    if len(sizes) != 1:
        raise ValueError(f"Expected one number of nodes in all leaves, found {sizes}.")
    return sizes.pop()


def require_nodes(updates: PyTree, num_byzantine: int, least: int) -> int:
    """The number of nodes, which must be at least `least`."""
    validate.non_negative(num_byzantine=num_byzantine)
    num_nodes = num_nodes_of(updates)
    validate.require(
        num_nodes >= least,
        "num_nodes",
        num_nodes,
        f">= {least} to stand num_byzantine={num_byzantine}",
    )
    return num_nodes


def defaults(
    updates: PyTree, weights: Array | None, where: Array | None
) -> tuple[Array, Array]:
    """The mask of participating nodes and their weights; invalid weights become 0."""
    num_nodes = num_nodes_of(updates)
    where = jnp.ones(num_nodes, bool) if where is None else jnp.asarray(where, bool)
    weights = jnp.ones(num_nodes) if weights is None else jnp.float32(weights)
    for name, array in (("where", where), ("weights", weights)):
        validate.require(
            array.shape == (num_nodes,), f"{name}.shape", array.shape, f"({num_nodes},)"
        )
    # A Byzantine node may report any weight, and nothing can be raised under jit.
    valid = jnp.isfinite(weights) & (weights > 0)
    return where, scaled(jnp.where(valid, weights, 0.0))


def scaled(weights: Array) -> Array:
    """The weights times a power of 2 (exact) that brings the largest into [1/2, 1).

    Then neither their sum nor a weight divided by a distance overflows or underflows.
    """
    _, exponent = jnp.frexp(jnp.max(weights))
    return jnp.ldexp(weights, -exponent)


def mask_nonfinite(
    updates: PyTree, weights: Array | None, where: Array | None
) -> FiniteUpdates:
    """The participating nodes whose updates, and their squares, are finite.

    A norm that overflows to infinity could not be compared with any other.
    """
    present, weights = defaults(updates, weights, where)
    # One norm tests every entry: NaN anywhere excludes the node from all leaves.
    where = present & jnp.isfinite(norms(updates, present))
    return FiniteUpdates(
        where, jnp.where(where, weights, 0.0), jnp.sum(present & ~where)
    )


def outvoting(
    updates: PyTree,
    num_byzantine: int,
    spare: int,
    weights: Array | None,
    where: Array | None,
) -> tuple[FiniteUpdates, Array]:
    """The nodes used by a rule that tolerates f among at least 2 f + `spare` nodes.

    Args:
        updates: a tree of `[nodes, ...]`.
        num_byzantine: f, the maximum number of Byzantine nodes.
        spare: the number of nodes beyond 2 f that the rule needs, unless f is 0.
        weights: `[nodes]` or None.
        where: `[nodes]`, bool, or None.

    Returns:
        The nodes, none if too few take part, and the maximum number of Byzantine ones
        among them: f less the nodes excluded for a non-finite update.
    """
    nodes = mask_nonfinite(updates, weights, where)
    # An honest update is finite, so whoever was excluded was one of the f.
    left = jnp.maximum(num_byzantine - nodes.excluded, 0)
    # The number of participants is known at run time only, where nothing can be raised.
    enough = (jnp.sum(nodes.where) >= 2 * left + spare) | (left == 0)
    where, weights = nodes.where & enough, jnp.where(enough, nodes.weights, 0.0)
    return nodes._replace(where=where, weights=weights), left


def rows_of(leaf: Array, where: Array) -> Array:
    """A leaf as float32 `[nodes, size]`, zero outside `where`."""
    leaf = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
    # Not a product with the mask: 0 times NaN is NaN.
    return jnp.where(where[:, None], leaf, 0.0)


def norms(updates: PyTree, where: Array, centre: PyTree | None = None) -> Array:
    """The norm `[nodes]` of each update, or its distance from a centre."""
    if centre is not None:
        updates = jax.tree.map(lambda leaf, middle: leaf - middle, updates, centre)
    squares = [
        jnp.sum(jnp.square(rows_of(leaf, where)), axis=1)
        for leaf in jax.tree.leaves(updates)
    ]
    return jnp.sqrt(sum(squares))


def weighted_mean(updates: PyTree, weights: Array) -> PyTree:
    """The weighted mean Σ w u / Σ w over the nodes whose weight is not zero."""
    weights = scaled(weights)
    # Divided before the product, so that no sum of large updates overflows.
    shares = weights / jnp.maximum(jnp.sum(weights), TINY)

    def average(leaf: Array) -> Array:
        # Weight 0 times an infinite update would be NaN.
        rows = rows_of(leaf, weights != 0)
        return jnp.matmul(shares, rows, precision="highest").reshape(leaf.shape[1:])

    return jax.tree.map(average, updates)


def median(updates: PyTree, where: Array) -> PyTree:
    """The median of each coordinate over the nodes in `where`."""
    count = jnp.sum(where)
    # The two middle ranks, which are the same if the number is odd.
    low, high = (count - 1) // 2, count // 2
    return mean_of_ranks(updates, where, lambda ranks: (ranks >= low) & (ranks <= high))


def weighted_median(updates: PyTree, weights: Array) -> PyTree:
    """The weighted median of each coordinate; with equal weights, that of `median`.

    It is the mean of the lower and the upper weighted median. Nodes with less than half
    of the total weight, however many, cannot move it out of the range of the others.
    Nodes of weight 0 have no influence.
    """
    # Equal weights become 1, whose sums are exact, so that ties are found exactly.
    weights = weights / jnp.maximum(jnp.max(weights), TINY)

    def middle(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
        # Sorted to the end, where their weight of 0 moves no cumulative sum.
        rows = jnp.where(weights[:, None] > 0, rows, jnp.inf)
        # Sorts the values of each coordinate together with their weights.
        rows, sizes = jax.lax.sort(
            (rows, jnp.broadcast_to(weights[:, None], rows.shape)), dimension=0
        )
        below = jnp.cumsum(sizes, axis=0)
        half = below[-1:] / 2
        low, high = (
            jnp.take_along_axis(rows, jnp.argmax(reached, 0, keepdims=True), axis=0)
            for reached in (below >= half, below > half)
        )
        # Halved before the sum, which would overflow for two large values.
        found = jnp.where(half > 0, 0.5 * low + 0.5 * high, 0.0)
        return found.reshape(leaf.shape[1:])

    return jax.tree.map(middle, updates)


def mean_of_clipped(
    updates: PyTree, nodes: FiniteUpdates, bound: float | None
) -> PyTree:
    """The weighted mean of updates clipped to a norm, by default their median norm."""
    lengths = norms(updates, nodes.where)
    if bound is None:
        bound = median(lengths, nodes.where)
    # The floor is for updates of zeros, whose length is 0.
    scales = jnp.minimum(1.0, bound / jnp.maximum(lengths, TINY))
    clipped = jax.tree.map(
        lambda leaf: (
            rows_of(leaf, nodes.where).reshape(leaf.shape)
            * scales.reshape(-1, *(1,) * (leaf.ndim - 1))
        ),
        updates,
    )
    return weighted_mean(clipped, nodes.weights)


def mean_of_ranks(
    updates: PyTree, where: Array, chosen: Callable[[Array], Array]
) -> PyTree:
    """The mean of each coordinate over chosen ranks among the nodes in `where`.

    Args:
        updates: a tree of `[nodes, ...]`.
        where: `[nodes]`, bool.
        chosen: ranks `[nodes]` in ascending order from 0 -> bool `[nodes]`; ranks of
            nodes outside `where` come last and are ignored.
    """
    ranks = jnp.arange(len(where))
    weights = jnp.float32(chosen(ranks) & (ranks < jnp.sum(where)))

    def average(leaf: Array) -> Array:
        # Nodes outside `where` are sorted last in every coordinate.
        rows = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
        ordered = jnp.sort(jnp.where(where[:, None], rows, jnp.inf), axis=0)
        return weighted_mean(ordered, weights).reshape(leaf.shape[1:])

    return jax.tree.map(average, updates)


def centred_products(updates: PyTree, where: Array, centre: PyTree) -> Array:
    """The inner products `[nodes, nodes]` of updates − centre."""

    def products(leaf: Array, middle: Array) -> Array:
        rows = rows_of(leaf - middle, where)
        # Distances are differences of these, and low precision leaves no digits.
        return jnp.matmul(rows, rows.T, precision="highest")

    return functools.reduce(
        jnp.add, jax.tree.leaves(jax.tree.map(products, updates, centre))
    )


def squared_distances(updates: PyTree, nodes: FiniteUpdates) -> Array:
    """The squared distances `[nodes, nodes]`, inf to and from excluded nodes.

    They are computed from inner products of the updates centred on their median:
    without the part that honest updates have in common, no digits cancel near them,
    whatever the others send.
    """
    gram = centred_products(updates, nodes.where, median(updates, nodes.where))
    squares = jnp.diagonal(gram)[:, None] + jnp.diagonal(gram) - 2 * gram
    # Infinity minus infinity is NaN, between two that are far away; rounding may leave
    # a distance just below 0.
    squares = jnp.where(jnp.isnan(squares), jnp.inf, jnp.maximum(squares, 0.0))
    # The distance of a node to itself is exactly 0, whatever was rounded.
    squares = jnp.where(jnp.eye(len(squares), dtype=bool), 0.0, squares)
    both = nodes.where[:, None] & nodes.where
    return jnp.where(both, squares, jnp.inf)


def best_update(
    updates: PyTree, nodes: FiniteUpdates, centre: PyTree
) -> tuple[Array, Array]:
    """The node with the least summed distance, and whether it is better than `centre`.

    It is better than a centre c if Σⱼ wⱼ (‖uⱼ − uᵢ‖ − ‖uⱼ − c‖) is below 0 by more than
    rounding errors. With updates relative to c, each difference of norms is computed as
    (‖uᵢ‖² − 2 uⱼ·uᵢ) / (‖uⱼ − uᵢ‖ + ‖uⱼ‖), since the digits of two separate sums would
    cancel if one node is far away.
    """
    gram = centred_products(updates, nodes.where, centre)
    squares = jnp.diagonal(gram)
    lengths = jnp.sqrt(squares)
    gaps = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * gram, 0.0))
    changes = (squares - 2 * gram) / jnp.maximum(gaps + lengths[:, None], TINY)
    weights = jnp.where(nodes.where, nodes.weights, 0.0)[:, None]
    total = jnp.sum(jnp.where(weights > 0, weights * changes, 0.0), axis=0)
    # A margin for rounding: by the triangle inequality no change exceeds the update's
    # distance from the centre.
    total += 1e-6 * jnp.sum(weights) * lengths
    total = jnp.where(nodes.where & jnp.isfinite(total), total, jnp.inf)
    best = jnp.argmin(total)
    return best, total[best] < 0
