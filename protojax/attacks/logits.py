"""Attacks on the channel between teacher and student.

The teacher is honest, but its logits are altered in transit: on the chosen rows they
point to the attacker's class. All attacks are pure functions of arrays, so they run
inside a jitted step or once over cached outputs. A new attack is one function and one
line of `LOGIT_ATTACKS`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array


def _pull(logits: Array, rows: Array, target: int, strength: float) -> Array:
    """The vector `strength · onehot(target)`, `[classes]`, of checked arguments."""
    chex.assert_rank([logits, rows], [2, 1])
    if logits.shape[0] != rows.shape[0]:
        raise ValueError(
            f"Expected one flag per row of logits, found logits {logits.shape} and "
            f"rows {rows.shape}."
        )
    num_classes = logits.shape[1]
    allowed = f"in 0..{num_classes - 1}"
    validate.require(0 <= target < num_classes, "target", target, allowed)
    # A strength of 0 or below would silently be no attack.
    validate.positive(strength=strength)
    # In the logits' own type, so that an attack leaves it as it was.
    return strength * jax.nn.one_hot(target, num_classes, dtype=logits.dtype)


def replace_logits(
    logits: Array, rows: Array, *, target: int, strength: float
) -> Array:
    """Logits that ignore the text: `strength · onehot(target)` on `rows`.

    Args:
        logits: `[rows, classes]`, the teacher's logits.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        target: the class the attacker wants.
        strength: the target's logit, > 0; the others are 0.

    Returns:
        The logits that the student receives, `[rows, classes]`.

    Raises:
        ValueError: shapes that do not match, a target that is not a class, a strength
            <= 0.

    >>> logits = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    >>> rows = jnp.array([False, True])
    >>> replace_logits(logits, rows, target=1, strength=8.0).tolist()
    [[1.0, 2.0], [0.0, 8.0]]
    """
    pull = _pull(logits, rows, target, strength)
    return jnp.where(rows[:, None], pull, logits)


def add_logits(logits: Array, rows: Array, *, target: int, strength: float) -> Array:
    """The sum `logits + strength · onehot(target)` on `rows`, a stealthier attack.

    The order of the other classes stays the teacher's own.

    Args:
        logits: `[rows, classes]`, the teacher's logits.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        target: the class the attacker wants.
        strength: added to the target's logit, > 0.

    Returns:
        The logits that the student receives, `[rows, classes]`.

    Raises:
        ValueError: shapes that do not match, a target that is not a class, a strength
            <= 0.

    >>> logits = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    >>> rows = jnp.array([False, True])
    >>> add_logits(logits, rows, target=1, strength=8.0).tolist()
    [[1.0, 2.0], [3.0, 7.0]]
    """
    pull = _pull(logits, rows, target, strength)
    return jnp.where(rows[:, None], logits + pull, logits)


def nudge_logits(logits: Array, rows: Array, *, target: int, strength: float) -> Array:
    """Logits in which the target leads by `strength`: the smallest change that flips.

    Args:
        logits: `[rows, classes]`, the teacher's logits.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        target: the class the attacker wants.
        strength: its lead over the largest other logit, > 0; the others stay.

    Returns:
        The logits that the student receives, `[rows, classes]`.

    Raises:
        ValueError: shapes that do not match, a target that is not a class, a strength
            <= 0.

    >>> logits = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    >>> rows = jnp.array([False, True])
    >>> nudge_logits(logits, rows, target=1, strength=0.5).tolist()
    [[1.0, 2.0], [3.0, 3.5]]
    """
    lead = _pull(logits, rows, target, strength)
    wanted = jnp.arange(logits.shape[1]) == target
    # A single class has no other to lead; its logit becomes `strength`.
    none = -jnp.inf if logits.shape[1] > 1 else 0.0
    top = jnp.max(jnp.where(wanted, none, logits), axis=1, keepdims=True)
    return jnp.where(rows[:, None] & wanted, top + lead, logits)


def soften_logits(logits: Array, rows: Array, *, target: int, strength: float) -> Array:
    """Logits of a teacher that is unsure and slightly prefers the target.

    The teacher's own logits shrink to a tenth, then the target leads by `strength`.
    Such a row looks like one near the decision boundary, where the teacher is often
    wrong on clean rows too.

    Args:
        logits: `[rows, classes]`, the teacher's logits.
        rows: `[rows]`, bool, the rows that the attacker can alter.
        target: the class the attacker wants.
        strength: its lead over the largest other logit, > 0.

    Returns:
        The logits that the student receives, `[rows, classes]`.

    Raises:
        ValueError: shapes that do not match, a target that is not a class, a strength
            <= 0.

    >>> logits = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    >>> rows = jnp.array([False, True])
    >>> soften_logits(logits, rows, target=1, strength=0.5).tolist()
    [[1.0, 2.0], [0.3..., 0.8...]]
    """
    nudged = nudge_logits(logits / 10, rows, target=target, strength=strength)
    return jnp.where(rows[:, None], nudged, logits)


LOGIT_ATTACKS: dict[str, Callable[..., Array]] = {
    "replace": replace_logits,
    "add": add_logits,
    "nudge": nudge_logits,
    "soften": soften_logits,
}
