"""Attacks by nodes on the merge of their prototypes.

A hostile node sends false prototypes. Each attack takes `(prototypes, key, target)` of
one node and returns the prototypes that it sends. A new attack is one
function and one line of `PROTOTYPE_ATTACKS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax.base import Array, Prototypes


def random_vectors(prototypes: Prototypes, key: Array, target: int) -> Prototypes:
    """Prototypes with Gaussian vectors ten times as long as the node's own.

    >>> held = Prototypes(jnp.ones((2, 3)), jnp.arange(2), jnp.ones(2))
    >>> random_vectors(held, jax.random.key(0), 0).vectors.shape
    (2, 3)
    """
    del target
    noise = jax.random.normal(key, prototypes.vectors.shape)
    # Relative to the node's own, so that the lie is as large in every feature space.
    scale = 10 * jnp.sqrt(jnp.mean(jnp.square(prototypes.vectors)))
    return prototypes._replace(vectors=scale * noise)


def move_to_target(prototypes: Prototypes, key: Array, target: int) -> Prototypes:
    """Prototypes that all lie at the target's centre, with their labels unchanged.

    The student would then pull rows of every class towards the target's features.

    >>> held = Prototypes(jnp.array([[1.0], [5.0]]), jnp.arange(2), jnp.ones(2))
    >>> move_to_target(held, jax.random.key(0), 1).vectors.tolist()
    [[5.0], [5.0]]
    """
    del key
    of_target = (prototypes.labels == target)[..., None]
    centre = jnp.mean(prototypes.vectors, axis=-2, where=of_target, keepdims=True)
    # A node without a prototype of the target sends zeros in place of NaN, which a
    # merge would reject at once.
    centre = jnp.where(jnp.any(of_target, axis=-2, keepdims=True), centre, 0.0)
    return prototypes._replace(
        vectors=jnp.broadcast_to(centre, prototypes.vectors.shape)
    )


def swap_labels(prototypes: Prototypes, key: Array, target: int) -> Prototypes:
    """Prototypes that are all labelled as the target's.

    >>> held = Prototypes(jnp.ones((3, 1)), jnp.arange(3), jnp.ones(3))
    >>> swap_labels(held, jax.random.key(0), 1).labels.tolist()
    [1, 1, 1]
    """
    del key
    return prototypes._replace(labels=jnp.full_like(prototypes.labels, target))


def send_nan_vectors(prototypes: Prototypes, key: Array, target: int) -> Prototypes:
    """Prototypes whose vectors are NaN.

    >>> held = Prototypes(jnp.ones((1, 1)), jnp.arange(1), jnp.ones(1))
    >>> send_nan_vectors(held, jax.random.key(0), 1).vectors.tolist()
    [[nan]]
    """
    del key, target
    return prototypes._replace(vectors=jnp.full_like(prototypes.vectors, jnp.nan))


def inflate_counts(prototypes: Prototypes, key: Array, target: int) -> Prototypes:
    """Prototypes with negated vectors and a claimed count of 10³⁰ rows each.

    >>> held = Prototypes(jnp.ones((1, 1)), jnp.arange(1), jnp.ones(1))
    >>> inflate_counts(held, jax.random.key(0), 1).vectors.tolist()
    [[-1.0]]
    """
    del key, target
    # Finite, since a merge leaves infinite counts out at once.
    return prototypes._replace(
        vectors=-prototypes.vectors, counts=jnp.full_like(prototypes.counts, 1e30)
    )


PROTOTYPE_ATTACKS: dict[str, Callable[[Prototypes, Array, int], Prototypes]] = {
    "random_vectors": random_vectors,
    "move_to_target": move_to_target,
    "swap_labels": swap_labels,
    "send_nan_vectors": send_nan_vectors,
    "inflate_counts": inflate_counts,
}
