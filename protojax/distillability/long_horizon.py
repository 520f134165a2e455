"""The reverse divergence of whole texts: a student learns on what it writes itself.

The divergence at a token says what the teacher thinks of it there. It does not say that
the token leads to places where both models differ; the rest of the text does.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, LossFn, PyTree, SequenceApplyFn, SequenceBatch
from protojax.distillation.token_losses import (
    masked_mean,
    over_tokens,
    sparse_divergence,
    token_log_probs,
)


class OwnTexts(NamedTuple):
    """Texts that a student wrote, and what a teacher says of them.

    Attributes:
        batch: the texts, with the teacher's most probable tokens along them.
        teacher_log_probs: `[batch, output_length]`, float32, of the tokens themselves.
    """

    batch: SequenceBatch
    teacher_log_probs: Array

    @property
    def where(self) -> Array:
        """The rows that are no padding, `[batch]`, as of any batch."""
        return self.batch.where


def later_rewards(
    teacher_log_probs: Array, student_log_probs: Array, where: Array
) -> Array:
    """The value of the rest of a text behind each token.

    A_t = Σ_{s > t} log p(y_s) − log q(y_s)

    Args:
        teacher_log_probs: `[batch, length]`, log p of the tokens.
        student_log_probs: `[batch, length]`, log q.
        where: `[batch, length]`, bool, the tokens; values elsewhere are not read.

    Returns:
        `[batch, length]`, float32.

    >>> p, q = jnp.array([[-1.0, -2.0, -1.0]]), jnp.array([[-1.0, -1.0, -3.0]])
    >>> later_rewards(p, q, jnp.ones((1, 3), bool)).tolist()
    [[1.0, 2.0, 0.0]]
    """
    validate.shape(jnp.shape(teacher_log_probs), student_log_probs=student_log_probs)
    ratios = jnp.where(where, teacher_log_probs - student_log_probs, 0)
    behind = jnp.flip(jnp.cumsum(jnp.flip(ratios, axis=1), axis=1), axis=1)
    return behind - ratios


def long_horizon_loss(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    *,
    horizon_weight: float = 1.0,
    least: float = -20.0,
    vocabulary: int | None = None,
    length: int | None = None,
    chunk: int = 256,
) -> LossFn:
    """A loss on a student's own texts whose slope is that of KL(student ‖ teacher).

    mean_t KL(q_t ‖ p_t) − horizon_weight · mean_t A_t log q(y_t), A as in
    `later_rewards`, without a slope of its own

    With fresh texts of the student (temperature 1), the whole vocabulary and
    `horizon_weight=1`, the mean slope of the sum over tokens is that of the divergence
    of whole texts. With `horizon_weight=0` it is on-policy distillation by the reverse
    divergence.

    Args:
        apply: the student up to its head.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        horizon_weight: of the second part, >= 0.
        least: the lowest log probability of the teacher that counts, < 0.
        vocabulary: see `distillation.sequence_loss`.
        length: see `distillation.sequence_loss`.
        chunk: see `distillation.sequence_loss`.

    Returns:
        A `LossFn` that reads `OwnTexts`.

    Raises:
        ValueError: an option out of its bounds.

    References:
        Gu et al., 2023, arXiv:2306.08543 (MiniLLM), who also divide A by the number of
        tokens left, clip the ratio to the student that wrote, and draw from a mixture
        with the teacher; here texts are fresh, so that the ratio is 1.
    """
    validate.non_negative(horizon_weight=horizon_weight)
    validate.positive(chunk=chunk)
    validate.require(least < 0, "least", least, "< 0")

    def loss_fn(params, own, prototypes, step, key):
        del prototypes, step
        batch = own.batch
        states = apply(params["model"], batch, key=key).states

        def of_tokens(states: Array, ids: Array, *targets: Array):
            logits = head(params["model"], states)[..., :vocabulary]
            divergence = sparse_divergence(logits, *targets, divergence="reverse_kl")
            return divergence, token_log_probs(logits, ids)

        where = batch.output_weights > 0
        targets = [
            jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 2)), x, 0)
            for x in (batch.top_ids, batch.top_log_probs, batch.rest_log_prob)
        ]
        columns = states, batch.output_ids, *targets
        divergence, log_probs = over_tokens(of_tokens, *columns, chunk=chunk)
        teacher = jnp.maximum(own.teacher_log_probs, least)
        worth = later_rewards(teacher, jax.lax.stop_gradient(log_probs), where)
        tokens = divergence - horizon_weight * worth * log_probs
        return masked_mean(tokens, batch.output_weights, length=length), {}

    return loss_fn
