"""Gossip: nodes that exchange parameters with their neighbours, without a server.

The communication is described by a mixing matrix W `[nodes, nodes]`: row i holds the
weights that node i gives to each node, including itself. If W is doubly stochastic and
its graph is connected, repeated mixing converges to the mean of all nodes; the larger
the spectral gap, the faster. In the robust form every node applies an aggregation rule
to the differences of its neighbours' parameters from its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import validate
from protojax.base import Array, PyTree
from protojax.federated import nodes


def ring(num_nodes: int) -> np.ndarray:
    """The mixing matrix of a ring: a third for a node itself and each neighbour.

    >>> ring(4)[0].round(2).tolist()
    [0.33, 0.33, 0.0, 0.33]
    """
    return _circulant(num_nodes, {0, 1, num_nodes - 1})


def exponential(num_nodes: int) -> np.ndarray:
    """The mixing matrix of the exponential graph: node i receives from i + 2ᵏ.

    Each node has ⌈log₂ n⌉ neighbours, i + 1, i + 2, i + 4, ..., and itself: few links,
    yet fast mixing. The graph is directed, the matrix doubly stochastic.

    >>> exponential(8)[0].tolist()
    [0.25, 0.25, 0.25, 0.0, 0.25, 0.0, 0.0, 0.0]

    References:
        Ying et al., 2021, arXiv:2110.13363.
    """
    powers = range((num_nodes - 1).bit_length())
    return _circulant(num_nodes, {0, *(2**power for power in powers)})


def complete(num_nodes: int) -> np.ndarray:
    """The mixing matrix of the complete graph, which gives the mean in one step.

    >>> complete(2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return _circulant(num_nodes, set(range(num_nodes)))


TOPOLOGIES: dict[str, Callable[[int], np.ndarray]] = {
    "ring": ring,
    "exponential": exponential,
    "complete": complete,
}


def check_mixing(mixing: np.ndarray) -> np.ndarray:
    """The mixing matrix as float32, after validation.

    Args:
        mixing: `[nodes, nodes]`.

    Raises:
        ValueError: not square, a negative or non-finite weight, rows or columns that do
            not add up to 1 (within 1e-5), a node without weight for itself, or a graph
            that is not connected.

    >>> check_mixing([[1.0, 0.0], [0.0, 1.0]])
    Traceback (most recent call last):
    ValueError: Expected mixing connected, found nodes [1] that node 0 never hears.
    """
    mixing = np.asarray(mixing, np.float32)
    square = mixing.ndim == 2 and mixing.shape[0] == mixing.shape[1] > 0
    validate.require(square, "mixing.shape", mixing.shape, "[nodes, nodes]")
    least = float(mixing.min())
    validate.require(least >= 0, "mixing", least, ">= 0 everywhere")
    for axis, name in ((1, "row"), (0, "column")):
        # In float64, or rounding of the sum itself might miss 1.
        sums = mixing.sum(axis, dtype=np.float64)
        worst = int(np.abs(sums - 1).argmax())
        validate.require(
            abs(sums[worst] - 1) <= 1e-5,
            f"mixing's {name} {worst}",
            float(sums[worst]),
            "with the sum 1",
        )
    # Without self-weights two nodes may swap parameters forever and never agree.
    isolated = np.flatnonzero(np.diagonal(mixing) == 0).tolist()
    validate.require(
        not isolated, "mixing", isolated, "above 0 on its diagonal at all nodes"
    )
    # In a doubly stochastic matrix, if one node is reached by all others, every node
    # is; squaring the graph doubles the length of paths.
    heard = mixing > 0
    for _ in range(len(mixing).bit_length()):
        heard = heard @ heard
    if not heard[0].all():
        raise ValueError(
            "Expected mixing connected, found nodes "
            f"{np.flatnonzero(~heard[0]).tolist()} that node 0 never hears."
        )
    return mixing


def spectral_gap(mixing: np.ndarray) -> float:
    """The spectral gap 1 − |λ₂|: at 1 nodes agree after one step, at 0 never.

    >>> spectral_gap(complete(4)), round(spectral_gap(ring(8)), 3)
    (1.0, 0.195)
    """
    sizes = np.sort(np.abs(np.linalg.eigvals(np.asarray(mixing, np.float64))))
    # Rounded, so that a gap of exactly 0 or 1 is not blurred by the eigenvalue solver.
    return round(float(1 - sizes[-2]), 12) if len(sizes) > 1 else 1.0


def mix(states: PyTree, mixing: Array) -> PyTree:
    """The states after one step of mixing: xᵢ ← Σⱼ Wᵢⱼ xⱼ.

    Args:
        states: a tree of `[nodes, ...]`.
        mixing: `[nodes, nodes]`.

    Returns:
        A tree like `states`.

    >>> mix(jnp.array([[0.0], [2.0]]), complete(2)).tolist()
    [[1.0], [1.0]]

    References:
        Lian et al., 2017, arXiv:1705.09056 (D-PSGD).
    """

    def average(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        # The default precision of accelerators would round parameters in every round.
        mixed = jnp.matmul(jnp.asarray(mixing), rows, precision="highest")
        return mixed.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.map(average, states)


def robust_mix(
    sent: PyTree,
    mixing: np.ndarray,
    aggregate: Callable[..., PyTree],
    *,
    own: PyTree | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """The states after one step of robust aggregation by every node.

    xᵢ ← xᵢ + A({xⱼ − xᵢ : Wᵢⱼ > 0})

    The rule tolerates f Byzantine nodes among a node and its neighbours, so its
    conditions (n >= 2 f + 1 and the like) are on degrees, not on the number of nodes.

    Args:
        sent: a tree of `[nodes, ...]`, the parameters that each node sends.
        mixing: `[nodes, nodes]`, concrete; row i holds the weights of node i.
        aggregate: a rule of `protojax.federated.aggregation` with its parameters.
        own: a tree like `sent`, the parameters that each node really holds and starts
            from; `sent` by default.
        mesh: from `nodes.make_mesh`, to compute each node's merge on its own device;
            by default wherever `sent` is.

    Returns:
        A tree like `sent`.

    Raises:
        ValueError: from the rule, if a node has too few neighbours.

    >>> import functools
    >>> from protojax.federated.aggregation import coordinate_median
    >>> states = jnp.array([[0.0], [2.0], [1e6]])
    >>> robust_mix(states, complete(3), coordinate_median).tolist()
    [[2.0], [2.0], [2.0]]

    References:
        He et al., 2022, arXiv:2202.01545 (ClippedGossip), for `centred_clipping` with
        one iteration; other rules in its place are our generalisation.
    """
    sent = jax.tree.map(jnp.asarray, sent)
    own = sent if own is None else own
    neighbours, weights = _neighbours(mixing)

    def one(sent: PyTree, mine: PyTree, index: Array, weight: Array) -> PyTree:
        # Relative to its own, which stay where a rule finds too few nodes.
        differences = jax.tree.map(lambda leaf, x: leaf[index] - x, sent, mine)
        moved = aggregate(differences, weights=weight, where=weight > 0)
        return jax.tree.map(lambda x, move: x + move.astype(x.dtype), mine, moved)

    # The rule checks the number of nodes by shapes, and neighbourhoods are padded to
    # the largest degree; so the smallest one is checked here.
    fewest = int((weights > 0).sum(1).min())
    jax.eval_shape(aggregate, jax.tree.map(lambda leaf: leaf[:fewest], sent))
    # One node after the other, since each needs a copy of all its neighbours.
    if mesh is None:
        return jax.lax.map(lambda node: one(sent, *node), (own, neighbours, weights))
    return nodes.per_node(one, mesh, num_shared=1)(sent, own, neighbours, weights)


def _circulant(num_nodes: int, steps: set[int]) -> np.ndarray:
    """The mixing matrix with equal weights for nodes at given steps on a circle."""
    validate.positive(num_nodes=num_nodes)
    # In a small graph two neighbours may be the same node.
    steps = {step % num_nodes for step in steps}
    mixing = np.zeros((num_nodes, num_nodes))
    for step in steps:
        mixing[np.arange(num_nodes), (np.arange(num_nodes) + step) % num_nodes] = 1
    return mixing / len(steps)


def _neighbours(mixing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours `[nodes, degree]` of each node and their weights, 0 on padding."""
    mixing = np.asarray(mixing, np.float32)
    degree = int((mixing > 0).sum(1).max())
    # Padded with nodes of weight 0, so that all nodes share one shape.
    order = np.argsort(-mixing, axis=1, kind="stable")[:, :degree]
    return order, np.take_along_axis(mixing, order, axis=1)
