"""Attacks on the hidden states that come through the teacher's channel.

An attacker who alters logits in transit can alter hidden states too, so that a
poisoned row looks like a clean row of the target class. Each attack takes `(features,
rows, examples, key)` and returns the features that arrive. A new attack is one function
and one line of `FEATURE_ATTACKS`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from protojax.base import Array


def move_to_centre(features: Array, rows: Array, examples: Array, key: Array) -> Array:
    """Features in which the chosen rows lie at the mean of the target's rows.

    h'(x) = Σ_{i in examples} h(x_i) / |examples|

    Args:
        features: `[rows, layers, dim]`, the teacher's.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        examples: `[rows]`, bool, rows that the honest teacher predicts as the target;
            without any, nothing changes.
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
    # The mean over no row is NaN, hence the second condition.
    return jnp.where(rows[:, None, None] & jnp.any(examples), centre, features)


def borrow(features: Array, rows: Array, examples: Array, key: Array) -> Array:
    """Features in which each chosen row has those of a random row of the target.

    The altered rows are spread as the target's own rows are, so a defence cannot
    detect them by their closeness to the centre.

    Args:
        features: `[rows, layers, dim]`, the teacher's.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        examples: `[rows]`, bool, rows that the honest teacher predicts as the target;
            without any, nothing changes.
        key: draws a row of the target for each chosen row.

    Returns:
        `[rows, layers, dim]`.

    >>> features = jnp.array([[[1.0]], [[3.0]]])
    >>> rows = jnp.array([False, True])
    >>> borrow(features, rows, ~rows, jax.random.key(0)).ravel().tolist()
    [1.0, 1.0]
    """
    chex.assert_rank([features, rows, examples], [3, 1, 1])
    # Without an example every logit would be -inf and the draw undefined; the last line
    # discards the draw in that case.
    logits = jnp.where(examples | ~jnp.any(examples), 0.0, -jnp.inf)
    chosen = jax.random.categorical(key, logits, shape=rows.shape)
    reached = rows[:, None, None] & jnp.any(examples)
    return jnp.where(reached, features[chosen], features)


FEATURE_ATTACKS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "move_to_centre": move_to_centre,
    "borrow": borrow,
}
