"""Aggregation: from what many nodes sent to what they agree on.

Nodes send *updates*, differences from parameters that they shared, as one tree whose
leaves have a leading `[nodes]` axis. A rule turns it into one update. Of n nodes, f may
be Byzantine: they send anything, and know what the others send. A robust rule stays
near the honest nodes whatever those f do; `mean` does not, one node moves it at will.

Every rule takes `(updates, *, weights, where)` and its own parameters:

    aggregate = functools.partial(AGGREGATORS["trimmed_mean"], num_byzantine=2)
    update = aggregate(updates, weights=rows, where=present)

Robust rules first leave out the nodes that sent a number which is not finite, or so
large that its square is not; each one that is out is a Byzantine node less among the
rest. A rule that needs so many nodes to stand f asks that of the nodes that take part,
not of the places in the array: too few places are an error; too few that take part give
zeros, as nobody does. A weight that is negative or not finite counts as 0.

All arithmetic is float32, and no rule builds a `[nodes, all parameters]` matrix: what
concerns whole updates (norms, distances) is summed leaf by leaf. `mixed_` rules mix
updates with their nearest neighbours first, see `premixing`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.federated import _reductions
from protojax.federated.krum import krum, multi_krum
from protojax.federated.premixing import mixed


def mean(
    updates: PyTree, *, weights: Array | None = None, where: Array | None = None
) -> PyTree:
    """Computes the weighted mean, as federated averaging does.

    Σᵢ wᵢ uᵢ / Σᵢ wᵢ

    Formal guarantees: none. One node moves the result anywhere, and one NaN is enough.

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


def coordinate_median(
    updates: PyTree, *, weights: Array | None = None, where: Array | None = None
) -> PyTree:
    """Computes the median of each coordinate; of an even number, the middle two's mean.

    Formal guarantees:
      * With f < n / 2 every coordinate lies between the honest nodes' least and
        greatest.

    | n and what they send            | result                      |
    | ------------------------------- | --------------------------- |
    | one node                        | its update                  |
    | a node sends NaN, Inf or 1e30   | the median of the others    |
    | no node takes part              | zeros                       |

    Args:
        updates: a tree of `[nodes, ...]`.
        weights: ignored; here so that rules can take each other's place.
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


def trimmed_mean(
    updates: PyTree,
    *,
    num_byzantine: int,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """Computes each coordinate's mean without its f least and f greatest values.

    Formal guarantees:
      * With at most f Byzantine nodes and n > 2 f every coordinate lies between the
        honest nodes' least and greatest.
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
        num_byzantine: f, the most Byzantine nodes to stand.
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


def geometric_median(
    updates: PyTree,
    *,
    num_iters: int = 8,
    smoothing: float = 1e-6,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """Approximates the point with the least summed distance to all updates.

    argmin_z Σᵢ wᵢ ‖uᵢ − z‖, by Weiszfeld's iteration from the weighted median of each
    coordinate: z ← Σᵢ βᵢ uᵢ / Σᵢ βᵢ with βᵢ = wᵢ / max(ν, ‖uᵢ − z‖). If an update has a
    smaller summed distance than where that ends, the best of them is the result.

    Formal guarantees, up to rounding, after any number of iterations:
      * No update has a smaller summed distance.
      * So while Byzantine nodes hold a share q < 1/2 of the weight, however many they
        are, the result is within a factor 2 (1 − q) / (1 − 2 q) of the honest updates'
        radius around any one of them, and even of their mean distance from it.

    Args:
        updates: a tree of `[nodes, ...]`.
        num_iters: iterations; each reads all updates twice. More come nearer to the
            least summed distance, and change nothing about the guarantees.
        smoothing: ν, the distance below which a node pulls no harder.
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
        mean. The median is nearer where a node sends numbers that are huge. The bound
        is theirs for the exact point; comparing with the updates makes it hold of a
        truncated iteration.
    """
    validate.positive(num_iters=num_iters, smoothing=smoothing)
    nodes = _reductions.mask_nonfinite(updates, weights, where)

    def step(_, centre: PyTree) -> PyTree:
        norms = _reductions.norms(updates, nodes.where, centre)
        return _reductions.weighted_mean(
            updates, nodes.weights / jnp.maximum(smoothing, norms)
        )

    start = _reductions.weighted_median(updates, nodes.weights)
    centre = jax.lax.fori_loop(0, num_iters, step, start)
    best, better = _reductions.best_update(updates, nodes, centre)
    return jax.tree.map(
        lambda leaf, middle: jnp.where(better, leaf[best].astype(jnp.float32), middle),
        updates,
        centre,
    )


def centred_clipping(
    updates: PyTree,
    *,
    radius: float | None = None,
    num_iters: int = 3,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """Computes a mean in which no node pulls farther than a radius.

    v ← v + Σᵢ wᵢ (uᵢ − v) min(1, r / ‖uᵢ − v‖) / Σᵢ wᵢ, from v = 0

    Formal guarantees:
      * Each iteration a node moves the result by at most r times its share of the
        weight; f nodes by at most `num_iters` · r · their share.
      * With a radius above all distances it is the weighted mean.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | one node, radius None           | its update                                 |
    | a node sends NaN, Inf or 1e30   | that of the others                         |
    | no node takes part              | zeros                                      |

    Args:
        updates: a tree of `[nodes, ...]`.
        radius: r > 0; by default, each iteration, the median of the distances to v,
            which holds while less than half of the nodes are Byzantine.
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
        momentum. Updates are differences from what the nodes shared, so 0 is what they
        last agreed on; and the default radius is ours.
    """
    validate.positive(num_iters=num_iters)
    if radius is not None:
        validate.positive(radius=radius)
    nodes = _reductions.mask_nonfinite(updates, weights, where)

    def step(_, centre: PyTree) -> PyTree:
        moves = jax.tree.map(lambda leaf, middle: leaf - middle, updates, centre)
        moved = _reductions.mean_of_clipped(moves, nodes, radius)
        return jax.tree.map(jnp.add, centre, moved)

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], jnp.float32), updates)
    return jax.lax.fori_loop(0, num_iters, step, start)


def norm_clipping(
    updates: PyTree,
    *,
    max_norm: float | None = None,
    weights: Array | None = None,
    where: Array | None = None,
) -> PyTree:
    """Computes the weighted mean of updates whose norm is bounded.

    Σᵢ wᵢ uᵢ min(1, M / ‖uᵢ‖) / Σᵢ wᵢ

    Formal guarantees:
      * A node moves the result by at most M times its share of the weight, so scaling
        an update up gains nothing beyond M. Updates that are small and wrong pass.

    | n and what they send            | result                                     |
    | ------------------------------- | ------------------------------------------ |
    | one node, max_norm None         | its update                                 |
    | a node sends NaN, Inf or 1e30   | that of the others                         |
    | all send zero                   | zeros                                      |

    Args:
        updates: a tree of `[nodes, ...]`.
        max_norm: M > 0; by default the median of the norms, which holds while less than
            half of the nodes are Byzantine.
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
