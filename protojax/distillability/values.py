"""The value of a text to a student, by the student's own slopes and likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.base import Array, LossFn, PyTree


def hold_out_direction(
    loss_fn: LossFn, params: PyTree, batch: PyTree, *, key: Array | None = None
) -> PyTree:
    """The slope of the mean loss on a few trusted rows.

    Args:
        loss_fn: of the student; an aux of its own is not read.
        params: of the student.
        batch: the trusted rows; those outside `where` do not count.
        key: for dropout, or None for none.

    Returns:
        A tree like the parameters.
    """

    def mean(params: PyTree) -> Array:
        values, _ = loss_fn(params, batch, None, jnp.int32(0), key)
        counts = jnp.maximum(batch.where.sum(), 1)
        return jnp.where(batch.where, values, 0).sum() / counts

    return jax.grad(mean)(params)


def learning_value(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    direction: PyTree,
    *,
    key: Array | None = None,
) -> Array:
    """The fall of the loss on trusted rows by a small step on each row.

    v_i = <∇ loss_i, ∇ loss of the trusted rows>

    A step of size ε on row i changes the trusted loss by −ε v_i: rows of a negative
    value do harm. All values take one derivative along the direction, not a slope a
    row.

    Args:
        loss_fn: of the student.
        params: of the student.
        batch: the rows.
        direction: from `hold_out_direction`.
        key: for dropout, or None for none.

    Returns:
        `[batch]`, float32.

    >>> def loss_fn(params, batch, prototypes, step, key):
    ...     return (params - batch) ** 2, {}
    >>> rows = jnp.array([1.0, -1.0])
    >>> learning_value(loss_fn, jnp.array(0.0), rows, jnp.array(3.0)).tolist()
    [-6.0, 6.0]

    References:
        The value of a text in arXiv:2605.22737, where it is a finite difference. The
        sign is by its meaning: larger is better to learn from.
    """

    def values(params: PyTree) -> Array:
        return loss_fn(params, batch, None, jnp.int32(0), key)[0]

    return jax.jvp(values, (params,), (direction,))[1]


def tilted_weights(values: ArrayLike, beta: float = 0.5) -> np.ndarray:
    """Weights of rows that grow with their value, 1 in the mean.

    w_i = rows · exp(β v_i) / Σ_j exp(β v_j)

    Args:
        values: `[rows]`, finite, such as learning values in units of their deviation.
        beta: 0 gives all rows the same weight.

    Returns:
        `[rows]`, float64.

    Raises:
        ValueError: there is no row, or a value is not finite.

    >>> tilted_weights([0.0, np.log(3.0)], beta=1.0).round(2).tolist()
    [0.5, 1.5]

    References:
        arXiv:2605.22737, β = 0.5.
    """
    values = np.asarray(values, float)
    validate.positive(rows=len(values))
    finite = bool(np.isfinite(values).all())
    validate.require(finite, "values", values, "finite")
    tilted = beta * values
    tilted = np.exp(tilted - tilted.max())
    return tilted * len(values) / tilted.sum()


def token_gate(
    log_probs: ArrayLike, where: ArrayLike, *, share: float = 0.9
) -> np.ndarray:
    """Weights of tokens: none for those that the student finds least likely.

    A calibrated teacher writes what its proxy does not expect; such tokens are left
    out, and the student learns from the rest of the text.

    Args:
        log_probs: `[rows, length]`, the student's before training, of each token.
        where: `[rows, length]`, bool, the tokens.
        share: of all rows' tokens that are kept, in (0, 1].

    Returns:
        `[rows, length]`, float32, 0 or 1; tokens as likely as the last one kept are
        kept too.

    Raises:
        ValueError: the shapes differ, or the share is out of its bounds.

    >>> token_gate([[-1.0, -9.0, -2.0]], [[True, True, True]], share=0.6).tolist()
    [[1.0, 0.0, 1.0]]
    """
    validate.require(0 < share <= 1, "share", share, "in (0, 1]")
    log_probs, where = np.asarray(log_probs, float), np.asarray(where, bool)
    validate.shape(log_probs.shape, where=where)
    if not where.any():
        return np.zeros(where.shape, np.float32)
    least = np.quantile(log_probs[where], 1 - share, method="higher")
    return (where & (np.where(where, log_probs, -np.inf) >= least)).astype(np.float32)
