"""Mixing before aggregation: each update becomes the mean of its nearest neighbours.

The nearest neighbours of an honest node are honest if Byzantine updates are far away.
Mixing therefore reduces the spread of the honest updates before a robust rule is
applied, and the smaller that spread, the smaller the bias that Byzantine nodes can
cause without being outliers. `aggregation` provides mixed rules under the names
`mixed_...`.
"""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax.base import Array, PyTree
from protojax.federated import _reductions


@_reductions.compiled
def mix_neighbours(
    updates: PyTree,
    *,
    num_byzantine: int,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """The mean of each update and its nearest neighbours.

    vᵢ = mean of the n − f updates nearest to uᵢ, including uᵢ itself

    Honest updates differ much if nodes hold little or heterogeneous data, and f nodes
    that send the same update shift a median by a part of that spread in every round.
    Mixing reduces the spread before a rule is applied, see `mixed`.

    Args:
        updates: a tree of `[nodes, ...]`.
        num_byzantine: f, the maximum number of Byzantine nodes.
        weights: ignored.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[nodes, ...]`, float32. NaN, by which a rule can exclude a node, for
        a node that sent a non-finite update or does not take part, and for all nodes if
        fewer than 2 f + 1 take part.

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
        # NaN, by which the rule that follows excludes these nodes and counts them in f.
        return jnp.where(nodes.where[:, None], means, jnp.nan).reshape(leaf.shape)

    return jax.tree.map(mix, updates)


def mixed(rule: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A rule that applies `mix_neighbours` before another rule.

    rule(v₁, …, vₙ)

    Formal guarantees:
      * With n >= (2 + η) f for some η > 0, equal weights and a robust rule, the
        distance to the honest mean is at most a constant, which grows as η falls, times
        √(f / n) times the honest spread. This order is optimal.
      * If there are exactly f Byzantine nodes with less than half of the weight, and
        every honest node is nearer to all honest nodes than to any Byzantine one, then
        each mixed honest update equals the honest mean, and so do the median, the
        geometric median and the trimmed mean.

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
        A rule that requires `num_byzantine`, and passes it to `rule` if accepted there.

    >>> from protojax.federated.aggregation import coordinate_median
    >>> updates = jnp.array([[1.0], [2.0], [3.0], [50.0]])
    >>> mixed(coordinate_median)(updates, num_byzantine=1).tolist()
    [2.0]

    References:
        Allouah et al., 2023, arXiv:2302.01772.
    """
    of_rule = inspect.signature(rule).parameters
    hands_on = "num_byzantine" in of_rule

    def after_mixing(updates, *, num_byzantine, weights=None, where=None, **options):
        updates = mix_neighbours(updates, num_byzantine=num_byzantine, where=where)
        if hands_on:
            options["num_byzantine"] = num_byzantine
        return rule(updates, weights=weights, where=where, **options)

    return _reductions.compiled(after_mixing, *of_rule)
