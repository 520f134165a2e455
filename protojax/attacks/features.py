"""Attacks on the hidden states that come through the teacher's channel.

Whoever alters logits on the way can alter hidden states too, and make a poisoned row
look like a clean one of the target. Each attack takes `(features, rows, examples, key)`
and returns the features that arrive. A new attack is one function and one line of
`FEATURE_ATTACKS`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from protojax.base import Array


def move_to_centre(features: Array, rows: Array, examples: Array, key: Array) -> Array:
    """Puts the chosen rows where the target's rows are on average.

    h'(x) = Σ_{i in examples} h(x_i) / |examples|

    Args:
        features: `[rows, layers, dim]`, the teacher's.
        rows: `[rows]`, bool, which ones the attacker reaches.
        examples: `[rows]`, bool, rows that the honest teacher calls the target; where
            there is none, nothing changes.
        key: not used.

    Returns:
        `[rows, layers, dim]`.

    >>> features = jnp.array([[[1.0]], [[3.0]], [[9.0]]])
    >>> rows = jnp.array([False, False, True])
    >>> move_to_centre(features, rows, ~rows, jax.random.key(0)).ravel().tolist()
    [1.0, 3.0, 2.0]
    """
    del key
    chex.assert_rank([features, rows, examples], [3, 1, 1])
    centre = jnp.mean(features, axis=0, where=examples[:, None, None])
    return jnp.where(rows[:, None, None] & jnp.any(examples), centre, features)


def borrow(features: Array, rows: Array, examples: Array, key: Array) -> Array:
    """Gives each chosen row the features of a random row of the target.

    No centre gives them away: they are spread as the target's own rows are.

    Args:
        features: `[rows, layers, dim]`, the teacher's.
        rows: `[rows]`, bool, which ones the attacker reaches.
        examples: `[rows]`, bool, rows that the honest teacher calls the target; where
            there is none, nothing changes.
        key: draws a row for each.

    Returns:
        `[rows, layers, dim]`.

    >>> features = jnp.array([[[1.0]], [[3.0]]])
    >>> rows = jnp.array([False, True])
    >>> borrow(features, rows, ~rows, jax.random.key(0)).ravel().tolist()
    [1.0, 1.0]
    """
    chex.assert_rank([features, rows, examples], [3, 1, 1])
    logits = jnp.where(examples | ~jnp.any(examples), 0.0, -jnp.inf)
    chosen = jax.random.categorical(key, logits, shape=rows.shape)
    reached = rows[:, None, None] & jnp.any(examples)
    return jnp.where(reached, features[chosen], features)


FEATURE_ATTACKS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "move_to_centre": move_to_centre,
    "borrow": borrow,
}
