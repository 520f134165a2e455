"""Mixing before aggregation: each update becomes the mean of its nearest neighbours.

A node's nearest neighbours are honest ones if it is honest itself and the others stand
out. What a robust rule then sees has a smaller spread, and the less honest updates
differ, the less hostile ones can hide among them. `aggregation` applies it to its rules
under the names `mixed_...`.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax.base import Array, PyTree
from protojax.federated import _reductions


def mix_neighbours(
    updates: PyTree,
    *,
    num_byzantine: int,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """Computes each update's mean with its nearest neighbours.

    vᵢ = mean of the n − f updates nearest to uᵢ, itself among them

    Honest updates differ much where nodes hold little or different data, and f nodes
    that send one thing shift a median by a part of that spread, round after round.
    Mixing makes the spread smaller before a rule is applied, see `mixed`.

    Args:
        updates: a tree of `[nodes, ...]`.
        num_byzantine: f, the most Byzantine nodes to stand.
        weights: ignored.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[nodes, ...]`, float32; NaN for a node that sent what is not finite,
        so that a rule still knows it by that, for one that takes no part, and for all
        where fewer than 2 f + 1 take part.

    Raises:
        ValueError: n < 2 f + 1.

    >>> updates = jnp.array([[1.0], [2.0], [3.0], [49.0]])
    >>> mix_neighbours(updates, num_byzantine=1).round(2).ravel().tolist()
    [2.0, 2.0, 2.0, 18.0]

    References:
        Allouah et al., 2023, arXiv:2302.01772.
    """
    num_nodes = _reductions.require_nodes(updates, num_byzantine, 2 * num_byzantine + 1)
    nodes, left = _reductions.outvoting(updates, num_byzantine, 1, weights, where)
    squares = _reductions.squared_distances(updates, nodes)
    count = jnp.sum(nodes.where) - left
    order = jnp.argsort(squares, axis=1, stable=True)
    nearest = jnp.arange(num_nodes) < jnp.maximum(count, 1)
    chosen = jnp.zeros((num_nodes, num_nodes), bool)
    chosen = chosen.at[jnp.arange(num_nodes)[:, None], order].set(nearest)
    shares = jnp.float32(chosen & nodes.where)
    shares = shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1)

    def mix(leaf: Array) -> Array:
        rows = _reductions.rows_of(leaf, nodes.where)
        means = jnp.matmul(shares, rows, precision="highest")
        return jnp.where(nodes.where[:, None], means, jnp.nan).reshape(leaf.shape)

    return jax.tree.map(mix, updates)


def mixed(rule: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Returns a rule over updates that `mix_neighbours` has mixed.

    rule(v₁, …, vₙ)

    Formal guarantees:
      * With n >= (2 + η) f for some η > 0, equal weights and a rule that is robust
        itself, the distance to the honest mean is at most a constant, which grows as η
        falls, times √(f / n) times the honest spread: the best order there is.
      * With exactly f Byzantine nodes, of less than half of the weight, and every
        honest node nearer to all honest ones than to any of them, the mixed honest
        updates are all the honest mean, and so are their median, geometric median and
        trimmed mean.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | n < 2 f + 1                     | ValueError                                 |
    | 2 f or fewer of them take part  | zeros                                      |
    | f = 0                           | the mean                                   |
    | all send the same               | it                                         |
    | k nodes send NaN, Inf or 1e30   | that of the rest with f − k                |
    | no node takes part              | zeros                                      |

    Args:
        rule: a robust rule of `aggregation`.

    Returns:
        A rule that takes `num_byzantine` too, and hands it on if `rule` takes it.

    >>> from protojax.federated.aggregation import coordinate_median
    >>> updates = jnp.array([[1.0], [2.0], [3.0], [50.0]])
    >>> mixed(coordinate_median)(updates, num_byzantine=1).tolist()
    [2.0]

    References:
        Allouah et al., 2023, arXiv:2302.01772.
    """
    hands_on = "num_byzantine" in inspect.signature(rule).parameters

    def after_mixing(updates, *, num_byzantine, weights=None, where=None, **options):
        updates = mix_neighbours(updates, num_byzantine=num_byzantine, where=where)
        if hands_on:
            options["num_byzantine"] = num_byzantine
        return rule(updates, weights=weights, where=where, **options)

    return after_mixing
