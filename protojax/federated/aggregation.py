"""Aggregation: rules that combine the updates of many nodes into one.

Nodes send *updates*, differences from parameters that they shared, as one tree whose
leaves have a leading `[nodes]` axis. A rule turns it into one update. Of n nodes, f may
be Byzantine: they send arbitrary updates and know those of the others. The result of a
robust rule stays near the honest nodes whatever those f do; with `mean` a single node
can move it anywhere.

Every rule takes `(updates, *, weights, where)` and its own parameters:

    aggregate = functools.partial(AGGREGATORS["trimmed_mean"], num_byzantine=2)
    update = aggregate(updates, weights=rows, where=present)

Robust rules first exclude nodes that sent a number which is not finite or whose square
is not finite; each excluded node reduces f for the remaining ones by 1. If a rule needs
a minimum number of nodes for a given f, an array axis shorter than that is an error. If
only the participating nodes are too few, the result is zeros, as it is if no node takes
part. A weight that is negative or not finite counts as 0.

All arithmetic is float32, and no rule builds a `[nodes, all parameters]` matrix:
quantities of whole updates (norms, distances) are summed leaf by leaf. `mixed_` rules
mix updates with their nearest neighbours first, see `premixing`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.federated import _reductions
from protojax.federated.krum import krum, multi_krum
from protojax.federated.premixing import mixed


@_reductions.compiled
def mean(
    updates: PyTree, *, weights: Array | None = None, where: Array | None = None
) -> PyTree:
    """The weighted mean of the updates, as in federated averaging.

    Σᵢ wᵢ uᵢ / Σᵢ wᵢ

    Formal guarantees: none. One node can move the result anywhere; one NaN makes it
    NaN.

    Args:
        updates: a tree of `[nodes, ...]`.
        weights: `[nodes]`, such as the rows of each node; equal by default.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32; zeros if no node takes part.

    >>> mean(jnp.array([[1.0], [4.0]]), weights=jnp.array([2.0, 1.0])).tolist()
    [2.0]

    References:
        McMahan et al., 2017, arXiv:1602.05629.
    """
    where, weights = _reductions.defaults(updates, weights, where)
    return _reductions.weighted_mean(updates, jnp.where(where, weights, 0.0))


@_reductions.compiled
def coordinate_median(
    updates: PyTree, *, weights: Array | None = None, where: Array | None = None
) -> PyTree:
    """The median of each coordinate; for an even number, the mean of the middle two.

    Formal guarantees:
      * With f < n / 2 every coordinate lies between the honest nodes' least and
        greatest values.

    | n and what they send            | result                      |
    | ------------------------------- | --------------------------- |
    | one node                        | its update                  |
    | a node sends NaN, Inf or 1e30   | the median of the others    |
    | no node takes part              | zeros                       |

    Args:
        updates: a tree of `[nodes, ...]`.
        weights: ignored; accepted so that all rules have the same signature.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    >>> coordinate_median(jnp.array([[1.0], [1e6], [3.0]])).tolist()
    [3.0]

    References:
        Yin et al., 2018, arXiv:1803.01498.
    """
    return _reductions.median(
        updates, _reductions.mask_nonfinite(updates, weights, where).where
    )


@_reductions.compiled
def trimmed_mean(
    updates: PyTree,
    *,
    num_byzantine: int,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """The mean of each coordinate without its f least and f greatest values.

    Formal guarantees:
      * With at most f Byzantine nodes and n > 2 f every coordinate lies between the
        honest nodes' least and greatest values.
      * With f = 0 and finite updates it is the unweighted mean.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | n <= 2 f                        | ValueError                                 |
    | 2 f or fewer of them take part  | zeros                                      |
    | n = 2 f + 1                     | the median                                 |
    | k nodes send NaN, Inf or 1e30   | the rest, trimmed by f − k                 |
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

    >>> updates = jnp.array([[1.0], [2.0], [6.0], [-1e6]])
    >>> trimmed_mean(updates, num_byzantine=1).tolist()
    [1.5]

    References:
        Yin et al., 2018, arXiv:1803.01498.
    """
    _reductions.require_nodes(updates, num_byzantine, 2 * num_byzantine + 1)
    nodes, trim = _reductions.outvoting(updates, num_byzantine, 1, weights, where)
    count = jnp.sum(nodes.where)
    return _reductions.mean_of_ranks(
        updates, nodes.where, lambda ranks: (ranks >= trim) & (ranks < count - trim)
    )


@_reductions.compiled
def geometric_median(
    updates: PyTree,
    *,
    num_iters: int = 8,
    smoothing: float = 1e-6,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """An approximation of the point with the least summed distance to all updates.

    argmin_z Σᵢ wᵢ ‖uᵢ − z‖, by Weiszfeld's iteration from the weighted median of each
    coordinate: z ← Σᵢ βᵢ uᵢ / Σᵢ βᵢ with βᵢ = wᵢ / max(ν, ‖uᵢ − z‖). If some update has
    a smaller summed distance than the last iterate, the best update is the result.

    Formal guarantees, up to rounding, after any number of iterations:
      * No update has a smaller summed distance than the result.
      * Hence, if Byzantine nodes hold a share q < 1/2 of the weight, however many they
        are, the distance of the result from any honest update is at most
        2 (1 − q) / (1 − 2 q) times the mean distance of the honest updates from that
        one, and therefore times their radius around it.

    Args:
        updates: a tree of `[nodes, ...]`.
        num_iters: iterations; each reads all updates twice. More iterations come nearer
            to the least summed distance; the guarantees do not depend on it.
        smoothing: ν, the distance below which a node's pull no longer grows.
        weights: `[nodes]`, such as the rows of each node; equal by default.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    Raises:
        ValueError: `num_iters` or `smoothing` not above 0.

    >>> geometric_median(jnp.array([[1.0], [2.0], [50.0]])).round(3).tolist()
    [2.0]

    References:
        Weiszfeld, 1937; Pillutla et al., 2019, arXiv:1912.13445, who start from the
        mean. The median is nearer to the solution if a node sends huge numbers. The
        bound is theirs for the exact solution; the comparison with the updates makes it
        hold for a truncated iteration too.
    """
    validate.positive(num_iters=num_iters, smoothing=smoothing)
    nodes = _reductions.mask_nonfinite(updates, weights, where)

    def step(_, centre: PyTree) -> PyTree:
        norms = _reductions.norms(updates, nodes.where, centre)
        return _reductions.weighted_mean(
            updates, nodes.weights / jnp.maximum(smoothing, norms)
        )

    # Robust itself: a far node would drag the mean, and the iterations are few.
    start = _reductions.weighted_median(updates, nodes.weights)
    centre = jax.lax.fori_loop(0, num_iters, step, start)
    # Truncated iterations may end far from the solution; the guarantees need this.
    best, better = _reductions.best_update(updates, nodes, centre)
    return jax.tree.map(
        lambda leaf, middle: jnp.where(better, leaf[best].astype(jnp.float32), middle),
        updates,
        centre,
    )


@_reductions.compiled
def centred_clipping(
    updates: PyTree,
    *,
    radius: float | None = None,
    num_iters: int = 3,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """A mean in which the influence of each node is clipped to a radius.

    v ← v + Σᵢ wᵢ (uᵢ − v) min(1, r / ‖uᵢ − v‖) / Σᵢ wᵢ, from v = 0

    Formal guarantees:
      * In each iteration a node moves the result by at most r times its share of the
        weight; f nodes move it by at most `num_iters` · r · their share in total.
      * With a radius above all distances it is the weighted mean.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | one node, radius None           | its update                                 |
    | a node sends NaN, Inf or 1e30   | that of the others                         |
    | no node takes part              | zeros                                      |

    Args:
        updates: a tree of `[nodes, ...]`.
        radius: r > 0; by default the median of the distances to v in each iteration,
            which is robust if less than half of the nodes are Byzantine.
        num_iters: iterations.
        weights: `[nodes]`, such as the rows of each node; equal by default.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    Raises:
        ValueError: `radius` or `num_iters` not above 0.

    >>> updates = jnp.array([[1.0], [1.0], [1e6]])
    >>> centred_clipping(updates, radius=1.0, num_iters=1).tolist()
    [1.0]

    References:
        Karimireddy et al., 2020, arXiv:2012.10333, who start from the last round's
        momentum. Here updates are differences from the shared parameters, so 0 is the
        last point of agreement. The default radius is ours.
    """
    validate.positive(num_iters=num_iters)
    if radius is not None:
        validate.positive(radius=radius)
    nodes = _reductions.mask_nonfinite(updates, weights, where)

    def step(_, centre: PyTree) -> PyTree:
        moves = jax.tree.map(lambda leaf, middle: leaf - middle, updates, centre)
        moved = _reductions.mean_of_clipped(moves, nodes, radius)
        return jax.tree.map(jnp.add, centre, moved)

    # Updates are differences, so no change is a start that no node can choose.
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), updates)
    return jax.lax.fori_loop(0, num_iters, step, start)


@_reductions.compiled
def norm_clipping(
    updates: PyTree,
    *,
    max_norm: float | None = None,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """The weighted mean of updates clipped to a maximum norm.

    Σᵢ wᵢ uᵢ min(1, M / ‖uᵢ‖) / Σᵢ wᵢ

    Formal guarantees:
      * A node moves the result by at most M times its share of the weight, so scaling
        an update up has no effect beyond M. Updates that are small but wrong are not
        detected.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | one node, max_norm None         | its update                                 |
    | a node sends NaN, Inf or 1e30   | that of the others                         |
    | all send zero                   | zeros                                      |

    Args:
        updates: a tree of `[nodes, ...]`.
        max_norm: M > 0; by default the median of the norms, which is robust if less
            than half of the nodes are Byzantine.
        weights: `[nodes]`, such as the rows of each node; equal by default.
        where: `[nodes]`, bool, the nodes that take part; all by default.

    Returns:
        A tree of `[...]`, float32.

    Raises:
        ValueError: `max_norm` not above 0.

    >>> norm_clipping(jnp.array([[1.0], [1.0], [1e6]])).tolist()
    [1.0]

    References:
        Sun et al., 2019, arXiv:1911.07963. The default bound is ours.
    """
    if max_norm is not None:
        validate.positive(max_norm=max_norm)
    return _reductions.mean_of_clipped(
        updates, _reductions.mask_nonfinite(updates, weights, where), max_norm
    )


AGGREGATORS: dict[str, Callable[..., PyTree]] = {
    "mean": mean,
    "median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "centred_clipping": centred_clipping,
    "norm_clipping": norm_clipping,
    "mixed_median": mixed(coordinate_median),
    "mixed_trimmed_mean": mixed(trimmed_mean),
    "mixed_geometric_median": mixed(geometric_median),
}
