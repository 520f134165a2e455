"""Losses of tokens: log probabilities, and divergences from a few of a teacher's.

A teacher's distribution over tens of thousands of tokens is stored as its k largest
probabilities and the sum of the rest. Both models are compared on these k + 1 outcomes:
a divergence of sums of probabilities is never larger than that of the probabilities,
and is zero where both agree. Without the rest, or with the k renormalised, it would be
neither: a student that leaves all k tokens could even gain by it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.distillation import losses

# Divergences of distributions; the mean of squared logits is none.
SPARSE_DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")

# The logit of what does not exist: finite, so that gradients are.
_LEAST = -1e30


def masked_mean(values: Array, weights: Array, *, length: int | None = None) -> Array:
    """The weighted mean of each row's tokens; a long row counts as much as a short one.

    Σ_t w_t v_t / max(Σ_t w_t, 1), or Σ_t w_t v_t / length

    With its own length below, a row's tokens count less the longer it is, so that the
    first tokens of short rows are learned as more probable than they are. With a
    constant below all tokens count the same.

    Args:
        values: `[batch, length]`.
        weights: `[batch, length]`, >= 0. Values of weight 0 have no effect, even where
            they are not finite.
        length: what the sum is divided by, the same for all rows; None for the row's
            own weights.

    Returns:
        `[batch]`, float32; 0 for a row without weight.

    Raises:
        ValueError: the shapes differ, or the length is not positive.

    >>> values, weights = jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[1, 1, 0]])
    >>> masked_mean(values, weights).tolist()
    [2.0]
    >>> masked_mean(values, weights, length=8).tolist()
    [0.5]
    """
    validate.shape(values.shape, weights=weights)
    weights = weights.astype(jnp.float32)
    # Not the product alone: 0 times a value that is not finite is NaN.
    kept = jnp.where(weights > 0, values.astype(jnp.float32), 0)
    total = jnp.sum(weights * kept, axis=-1)
    if length is not None:
        validate.positive(length=length)
        return total / length
    return total / jnp.maximum(jnp.sum(weights, axis=-1), 1)


def token_log_probs(logits: Array, ids: Array) -> Array:
    """The log probability of each given token.

    logits[id] − log Σ_v exp(logits[v])

    Args:
        logits: `[..., vocabulary]`.
        ids: `[...]`, int32.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: there is not one id for each distribution.

    >>> logits = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> jnp.exp(token_log_probs(logits, jnp.array([1]))).round(4).tolist()
    [0.75]
    """
    validate.shape(logits.shape[:-1], ids=ids)
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def top_k_targets(logits: Array, k: int) -> tuple[Array, Array, Array]:
    """A distribution as its k most probable tokens and the rest.

    Args:
        logits: `[..., vocabulary]`, without rows that stand for no token.
        k: in 1..vocabulary.

    Returns:
        The ids of the k tokens, `[..., k]`, int32, the most probable first; their log
        probabilities, `[..., k]`, float32; and the log probability of all others
        together, `[...]`, float32, at most -1e29 where there are none.

    Raises:
        ValueError: k is out of its bounds.

    >>> ids, log_probs, rest = top_k_targets(jnp.log(jnp.array([0.2, 0.7, 0.1])), 1)
    >>> ids.tolist(), round(float(jnp.exp(rest)), 4)
    ([1], 0.3)
    """
    bound = f"in 1..{logits.shape[-1]}, the vocabulary"
    validate.require(1 <= k <= logits.shape[-1], "k", k, bound)
    _, ids = jax.lax.top_k(logits.astype(jnp.float32), k)
    return ids.astype(jnp.int32), *targets_of(logits, ids)


def targets_of(logits: Array, ids: Array) -> tuple[Array, Array]:
    """The log probabilities of given tokens, and of all others together.

    Args:
        logits: `[..., vocabulary]`, without rows that stand for no token.
        ids: `[..., k]`, int32, all different.

    Returns:
        `[..., k]` and `[...]`, float32, the second at most -1e29 where there are none.

    >>> found = targets_of(jnp.log(jnp.array([0.25, 0.5, 0.25])), jnp.array([1]))
    >>> [jnp.exp(part).round(4).tolist() for part in found]
    [[0.5], 0.5]
    """
    outcomes = jax.nn.log_softmax(_outcomes(logits.astype(jnp.float32), ids))
    return outcomes[..., :-1], outcomes[..., -1]


def sparse_divergence(
    student_logits: Array,
    top_ids: Array,
    top_log_probs: Array,
    rest_log_prob: Array,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
) -> Array:
    """The divergence of a student from the k largest probabilities of a teacher.

    D(p', q') over k + 1 outcomes: the teacher's k tokens, and all others together

    With k the whole vocabulary it equals the dense divergence. At a temperature other
    than 1, the k + 1 probabilities are softened, since a sum of probabilities does not
    tell how its parts would soften.

    Args:
        student_logits: `[..., vocabulary]`, without rows that stand for no token.
        top_ids: `[..., k]`, int32, all different.
        top_log_probs: `[..., k]`, the teacher's log probabilities of these tokens.
        rest_log_prob: `[...]`, finite.
        divergence: a name in `SPARSE_DIVERGENCES`, see `losses`.
        temperature: T > 0, with the factor T² as in `losses`.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the shapes do not fit, the divergence is unknown, temperature <= 0.

    >>> targets = top_k_targets(jnp.log(jnp.array([0.7, 0.3])), 1)
    >>> round(float(sparse_divergence(jnp.zeros(2), *targets)), 4)
    0.0823

    References:
        For word-level distillation Kim and Rush, 2016, arXiv:1606.07947, who sum over
        the whole vocabulary.
    """
    validate.one_of(SPARSE_DIVERGENCES, divergence=divergence)
    lead = student_logits.shape[:-1]
    validate.shape((*lead, top_ids.shape[-1]), top_ids=top_ids)
    validate.shape(top_ids.shape, top_log_probs=top_log_probs)
    validate.shape(lead, rest_log_prob=rest_log_prob)
    # Widened first: the teacher's may be stored in half precision.
    teacher = [top_log_probs, rest_log_prob[..., None]]
    teacher = jnp.concatenate([x.astype(jnp.float32) for x in teacher], axis=-1)
    student = _outcomes(student_logits.astype(jnp.float32), top_ids)
    return losses.DIVERGENCES[divergence](student, teacher, temperature=temperature)


def _outcomes(logits: Array, ids: Array) -> Array:
    """Logits `[..., k + 1]` of the given tokens and, last, of all others together."""
    top = jnp.take_along_axis(logits, ids, axis=-1)
    # From the others themselves: 1 minus the sum of the k would lose all digits of a
    # small rest.
    others = jnp.put_along_axis(logits, ids, _LEAST, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    return jnp.concatenate([top, rest], axis=-1)


def over_tokens(function: Callable[..., PyTree], *columns: Array, chunk: int) -> PyTree:
    """The values of a function of tokens, computed for a chunk of tokens at a time.

    The function's intermediates, such as logits over a vocabulary, exist for one chunk
    only: the backward pass computes them again.

    Args:
        function: maps columns `[tokens, ...]` to arrays `[tokens, ...]`, each token by
            itself.
        *columns: `[batch, length, ...]`.
        chunk: the most tokens at a time.

    Returns:
        What the function returns, `[batch, length, ...]`.

    Raises:
        ValueError: chunk <= 0.

    >>> doubled = over_tokens(lambda x: 2 * x, jnp.arange(6.0).reshape(2, 3), chunk=4)
    >>> doubled.tolist()
    [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
    """
    validate.positive(chunk=chunk)
    lead = columns[0].shape[:2]
    tokens = math.prod(lead)
    # Chunks of one size, as small as their number allows.
    steps = -(-tokens // chunk)
    size = -(-tokens // steps)

    def cut(column: Array) -> Array:
        flat = column.reshape(tokens, *column.shape[2:])
        widths = [(0, steps * size - tokens)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, widths).reshape(steps, size, *flat.shape[1:])

    def joined(parts: Array) -> Array:
        flat = parts.reshape(steps * size, *parts.shape[2:])
        return flat[:tokens].reshape(*lead, *flat.shape[1:])

    # A loop keeps the two computations apart by itself (`prevent_cse`).
    of_chunk = jax.checkpoint(lambda parts: function(*parts), prevent_cse=False)
    return jax.tree.map(joined, jax.lax.map(of_chunk, tuple(map(cut, columns))))
