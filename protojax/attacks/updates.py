"""Attacks by nodes on the aggregation of their updates.

A hostile node trains as the others do and then sends a different update. Each attack
takes `(updates, hostile, key)`, updates as `protojax.federated.aggregation` takes them,
and
returns the updates that arrive: honest rows unchanged. A new attack is one function and
one line of `UPDATE_ATTACKS`. A node with poisoned data sends its own update
unchanged and needs none of these attacks.
"""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree

# The nodes whose updates the attackers know.
KNOWLEDGE = ("honest", "own")


def scale(
    updates: PyTree, hostile: Array, key: Array | None = None, *, factor: float = 0.0
) -> PyTree:
    """Updates with the hostile ones multiplied by γ (model replacement): u ← γ u.

    With γ = n / f the unweighted mean contains the full mean update of the hostile
    nodes, as if no other node took part.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        key: not used.
        factor: γ; 0 for n / f.

    Returns:
        A tree like `updates`.

    >>> scale(jnp.array([[1.0], [2.0]]), jnp.array([False, True])).tolist()
    [[1.0], [4.0]]

    References:
        Bagdasaryan et al., 2018, arXiv:1807.00459.
    """
    # At least 1, so that a step without a hostile node does not divide by 0.
    boost = len(hostile) / jnp.maximum(jnp.sum(hostile), 1) if factor == 0 else factor
    return _replace(updates, hostile, lambda leaf: boost * leaf)


def flip_sign(
    updates: PyTree, hostile: Array, key: Array | None = None, *, factor: float = 1.0
) -> PyTree:
    """Updates with the hostile ones negated: u ← −γ u.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        key: not used.
        factor: γ > 0.

    Returns:
        A tree like `updates`.

    Raises:
        ValueError: a factor that is not above 0.

    >>> flip_sign(jnp.array([[1.0], [2.0]]), jnp.array([False, True])).tolist()
    [[1.0], [-2.0]]

    References:
        Li et al., 2019, arXiv:1811.03761.
    """
    validate.positive(factor=factor)
    return _replace(updates, hostile, lambda leaf: -factor * leaf)


def add_noise(
    updates: PyTree, hostile: Array, key: Array, *, scale: float = 1.0
) -> PyTree:
    """Updates with Gaussian noise on each hostile one: u ← u + N(0, scale²).

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        key: PRNG key.
        scale: standard deviation, > 0.

    Returns:
        A tree like `updates`.

    Raises:
        ValueError: a scale that is not above 0.

    >>> noisy = add_noise(
    ...     jnp.zeros((2, 3)), jnp.array([False, True]), jax.random.key(0)
    ... )
    >>> noisy[0].tolist(), bool(jnp.any(noisy[1] != 0))
    ([0.0, 0.0, 0.0], True)
    """
    validate.positive(scale=scale)
    # A key for each leaf, or leaves of one shape would get the same noise.
    leaves, structure = jax.tree.flatten(updates)
    noisy = [
        leaf + scale * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    noisy = jax.tree.unflatten(structure, noisy)
    return jax.tree.map(lambda old, new: _where(hostile, new, old), updates, noisy)


def send_nan(updates: PyTree, hostile: Array, key: Array | None = None) -> PyTree:
    """Updates with NaN in the hostile ones, as after a crash; it breaks any mean.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        key: not used.

    Returns:
        A tree like `updates`.

    >>> send_nan(jnp.array([[1.0], [2.0]]), jnp.array([False, True])).tolist()
    [[1.0], [nan]]
    """
    return _replace(updates, hostile, lambda leaf: jnp.full_like(leaf, jnp.nan))


def a_little_is_enough(
    updates: PyTree,
    hostile: Array,
    key: Array | None = None,
    *,
    deviations: float = 0.0,
    knowledge: str = "honest",
) -> PyTree:
    """Updates in which all hostile nodes send mean − z · standard deviation.

    The attack hides in the spread of the honest updates. z is the largest value at
    which enough honest nodes are still farther from the mean than the attackers, Φ⁻¹((n
    − f − s) / (n − f)) with s = ⌊n / 2⌋ + 1 − f.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool; concrete where `deviations` is 0.
        key: not used.
        deviations: z; 0 for the formula. A value below 0 moves the mean in the
            direction of the honest updates.
        knowledge: `"honest"` for the mean and deviation of the honest nodes' updates,
            which the attackers then know; `"own"` for those of the attackers' own
            updates before the attack.

    Returns:
        A tree like `updates`.

    Raises:
        ValueError: knowledge of another kind, or no z by the formula: it needs an
            honest majority and more than one hostile node.

    >>> updates = jnp.array([[1.0], [3.0], [0.0]])
    >>> hostile = jnp.array([False, False, True])
    >>> a_little_is_enough(updates, hostile, deviations=2.0).tolist()
    [[1.0], [3.0], [0.0]]

    References:
        Baruch et al., 2019, arXiv:1902.06156.
    """
    if deviations == 0:
        # In Python, once: z depends on the numbers of nodes, which no step changes.
        deviations = _largest_deviation(len(hostile), int(np.sum(np.asarray(hostile))))
    known = _known(hostile, knowledge)

    def hidden(leaf: Array) -> Array:
        mean = jnp.mean(leaf, axis=0, where=_like(known, leaf))
        return mean - deviations * jnp.std(leaf, axis=0, where=_like(known, leaf))

    return _replace(updates, hostile, hidden)


def manipulate_inner_product(
    updates: PyTree,
    hostile: Array,
    key: Array | None = None,
    *,
    factor: float = 1.0,
    knowledge: str = "honest",
) -> PyTree:
    """Updates in which all hostile nodes send −ε · mean.

    The aggregate then has a negative inner product with the honest mean.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        key: not used.
        factor: ε > 0; small values are hard to detect, large ones break a mean.
        knowledge: `"honest"` or `"own"`, as in `a_little_is_enough`.

    Returns:
        A tree like `updates`.

    Raises:
        ValueError: a factor that is not above 0, or knowledge of another kind.

    >>> updates, hostile = jnp.array([[1.0], [3.0], [0.0]]), jnp.array([0, 0, 1], bool)
    >>> manipulate_inner_product(updates, hostile, factor=0.5).tolist()
    [[1.0], [3.0], [-1.0]]

    References:
        Xie et al., 2019, arXiv:1903.03936.
    """
    validate.positive(factor=factor)
    known = _known(hostile, knowledge)
    return _replace(
        updates,
        hostile,
        lambda leaf: -factor * jnp.mean(leaf, axis=0, where=_like(known, leaf)),
    )


UPDATE_ATTACKS: dict[str, Callable[..., PyTree]] = {
    "scale": scale,
    "flip_sign": flip_sign,
    "add_noise": add_noise,
    "send_nan": send_nan,
    "a_little_is_enough": a_little_is_enough,
    "manipulate_inner_product": manipulate_inner_product,
}


def _like(nodes: Array, leaf: Array) -> Array:
    """The `[nodes]` flags in a shape that broadcasts over a leaf."""
    return jnp.reshape(nodes, (-1,) + (1,) * (leaf.ndim - 1))


def _where(nodes: Array, new: Array, old: Array) -> Array:
    """The values of `new` on the given nodes and of `old` elsewhere."""
    return jnp.where(_like(nodes, old), new, old)


def _replace(updates: PyTree, hostile: Array, lie: Callable[[Array], Array]) -> PyTree:
    """Updates in which the hostile rows of each leaf are those of `lie(leaf)`.

    Args:
        updates: a tree of `[nodes, ...]`.
        hostile: `[nodes]`, bool.
        lie: leaf `[nodes, ...]` -> `[nodes, ...]`, or `[...]` that all of them send.
    """
    return jax.tree.map(lambda leaf: _where(hostile, lie(leaf), leaf), updates)


def _known(hostile: Array, knowledge: str) -> Array:
    """Flags of the nodes whose updates the attackers know, `[nodes]`."""
    validate.one_of(KNOWLEDGE, knowledge=knowledge)
    hostile = jnp.asarray(hostile, bool)
    return ~hostile if knowledge == "honest" else hostile


def _largest_deviation(num_nodes: int, num_hostile: int) -> float:
    """The z of "a little is enough"."""
    honest = num_nodes - num_hostile
    supporters = num_nodes // 2 + 1 - num_hostile
    # A share of at most 0.5 gives z <= 0, which would help the honest nodes.
    share = (honest - supporters) / max(honest, 1)
    validate.require(
        0.5 < share < 1,
        "deviations",
        0.0,
        f"not 0: no z > 0 follows from {num_hostile} hostile nodes of {num_nodes}",
    )
    return statistics.NormalDist().inv_cdf(share)
