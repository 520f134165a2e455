"""Krum and multi-Krum: rules that select the updates with the closest neighbours.

They are part of `aggregation`, which documents what all rules have in common.
"""

import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.federated import _reductions


@_reductions.compiled
def krum(
    updates: PyTree,
    *,
    num_byzantine: int,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """The update that has the closest neighbours.

    argminᵢ Σ_{j among the n − f − 2 nearest to i} ‖uᵢ − uⱼ‖²

    Formal guarantees:
      * The result is some node's update, unchanged; among equal scores, the first.
      * With at most f Byzantine nodes among n >= 2 f + 2 participants, the distance of
        the result from some honest update is at most √((n − f − 2) / (n − 2 f − 1))
        times the diameter of the honest updates.
      * With n >= 2 f + 3 it is (α, f)-resilient: the angle between its expectation and
        the honest gradient is bounded, if the honest updates' spread is small compared
        with the gradient.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | n < 2 f + 3                     | ValueError                                 |
    | 0 < f, and fewer than 2 f + 2   | zeros                                      |
    |   of them take part             |                                            |
    | all send the same               | it                                         |
    | k nodes send NaN, Inf or 1e30   | Krum of the rest with f − k                |
    | no node takes part              | zeros                                      |

    Args:
        updates: a tree of `[nodes, ...]`.
        num_byzantine: f, the maximum number of Byzantine nodes.
        weights: ignored.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    Raises:
        ValueError: too few nodes.

    >>> updates = jnp.array([[1.0], [1.5], [2.25], [1.5], [50.0]])
    >>> krum(updates, num_byzantine=1).tolist()
    [1.5]

    References:
        Blanchard et al., 2017, arXiv:1703.02757.
    """
    return multi_krum(
        updates,
        num_byzantine=num_byzantine,
        num_selected=1,
        weights=weights,
        where=where,
    )


@_reductions.compiled
def multi_krum(
    updates: PyTree,
    *,
    num_byzantine: int,
    num_selected: int | None = None,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """The mean of the m updates with the best Krum scores.

    Formal guarantees:
      * With at most f Byzantine nodes among n >= 2 f + 2 participants, the bound of
        `krum` holds for each of the m updates.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | n < 2 f + 3                     | ValueError                                 |
    | 0 < f, and fewer than 2 f + 2   | zeros                                      |
    |   of them take part             |                                            |
    | m outside 1..n − f              | ValueError                                 |
    | m = 1                           | Krum's                                     |
    | k nodes send NaN, Inf or 1e30   | multi-Krum of the rest with f − k          |
    | m above n − f of those present  | m = n − f of those present                 |

    Args:
        updates: a tree of `[nodes, ...]`.
        num_byzantine: f, the maximum number of Byzantine nodes.
        num_selected: m; by default n − f − 2, where n counts the nodes that take part.
        weights: ignored.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    Raises:
        ValueError: too few nodes, or m out of its range.

    >>> updates = jnp.array([[1.0], [1.5], [2.25], [1.75], [50.0]])
    >>> multi_krum(updates, num_byzantine=1, num_selected=2).tolist()
    [1.625]

    References:
        Blanchard et al., 2017, arXiv:1703.02757.
    """
    num_nodes = _reductions.require_nodes(updates, num_byzantine, 2 * num_byzantine + 3)
    nodes, left = _reductions.outvoting(updates, num_byzantine, 2, weights, where)
    honest = jnp.sum(nodes.where) - left
    # n − f − 2, but at least 1 if some participants were excluded.
    near = jnp.maximum(honest - 2, 1)
    if num_selected is not None:
        most = num_nodes - num_byzantine
        allowed = f"in 1..{most}, n - f"
        validate.require(
            1 <= num_selected <= most, "num_selected", num_selected, allowed
        )
        selected = jnp.minimum(num_selected, honest)
    else:
        selected = near
    squares = _reductions.squared_distances(updates, nodes)
    # A node is its own nearest neighbour, at distance 0: one more rank, the same sum.
    ranks = jnp.arange(num_nodes) <= near
    scores = jnp.sum(jnp.sort(squares, axis=1), axis=1, where=ranks)
    # An overflow becomes the worst finite score, still better than excluded nodes.
    scores = jnp.minimum(scores, jnp.finfo(jnp.float32).max)
    # Stable, so that among equal scores the first node wins on every device.
    order = jnp.argsort(jnp.where(nodes.where, scores, jnp.inf), stable=True)
    # The participants are known at run time only, so m cannot be a shape.
    chosen = jnp.zeros(num_nodes, bool).at[order].set(jnp.arange(num_nodes) < selected)
    # Without the nodes' own weights, which a Byzantine node could claim as it likes.
    return _reductions.weighted_mean(updates, jnp.float32(chosen & nodes.where))
