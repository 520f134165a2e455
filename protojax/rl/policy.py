"""The loss of a policy that writes: clipped ratios, and a penalty on its drift.

All is computed token by token and averaged within a row, never over rows: groups are
mixed where advantages are computed, see `advantages`.
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
    token_log_probs,
)

NORMALIZERS = ("text", "constant")
# The largest logarithm of a ratio whose exponential enters a product.
_LARGEST = 20.0


class PolicyBatch(NamedTuple):
    """Texts that a policy wrote, and what is known of them; the rows of one step.

    Attributes:
        sequences: the prompts, and the texts as token ids, with weight 1 on every token
            up to and including the stop token.
        advantages: `[batch]`, float32.
        old_log_probs: `[batch, output_length]`, float32, of each token under the policy
            that wrote it, by the forward pass that training uses.
        reference_log_probs: `[batch, output_length]`, float32, under the model that the
            policy is held to.
        kl_weights: `[batch]`, float32, β of each row; data, because it adapts.
    """

    sequences: SequenceBatch
    advantages: Array
    old_log_probs: Array
    reference_log_probs: Array
    kl_weights: Array

    @property
    def where(self) -> Array:
        """`[batch]`, bool, False on rows that are padding."""
        return self.sequences.where


def text_mean(
    values: Array, where: Array, *, normalizer: str = "text", length: int | None = None
) -> Array:
    """The value of each text: the sum over its tokens, divided by a length.

    "text": Σ_t v_t / tokens; "constant": Σ_t v_t / length

    The first is GRPO's: a wrong text is punished less for each token the longer it is.
    The second is Dr. GRPO's. A mean over all tokens of a batch (DAPO's) would mix rows.

    Args:
        values: `[batch, length]`.
        where: `[batch, length]`, bool, the tokens that count. Values elsewhere have no
            effect, even where they are not finite.
        normalizer: "text" or "constant".
        length: of "constant", such as the most tokens of a text.

    Returns:
        `[batch]`, float32; 0 for a text without tokens.

    Raises:
        ValueError: the shapes differ, the normaliser is unknown, or a length is given
            with "text", missing with "constant" or not positive.

    >>> values = jnp.array([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    >>> where = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
    >>> text_mean(values, where).tolist()
    [2.0, 4.0]
    >>> text_mean(values, where, normalizer="constant", length=4).tolist()
    [1.5, 1.0]

    References:
        Shao et al., 2024, arXiv:2402.03300; Liu et al., 2025, arXiv:2503.20783.
    """
    validate.one_of(NORMALIZERS, normalizer=normalizer)
    fits = (length is not None) == (normalizer == "constant")
    bound = 'given with "constant" and only then'
    validate.require(fits, "length", length, bound)
    validate.positive(length=1 if length is None else length)
    return masked_mean(values, where, length=length)


def clipped_policy_loss(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    where: Array,
    *,
    low: float = 0.2,
    high: float = 0.28,
) -> Array:
    """The clipped surrogate loss of each token.

    −min(ρ A, clip(ρ, 1 − low, 1 + high) A), ρ = π(token) / π_old(token)

    At ρ = 1 its gradient is −A ∇ log π. A token whose ratio has left the interval in
    the direction of its advantage has no gradient.

    Args:
        log_probs: `[batch, length]`, of the policy.
        old_log_probs: `[batch, length]`, of the policy that wrote the texts.
        advantages: `[batch]`, or `[batch, length]`.
        where: `[batch, length]`, bool, the tokens that count. Values elsewhere have no
            effect, even where they are not finite.
        low: in (0, 1), how far ratios may fall.
        high: > 0, how far they may rise; more than `low` lets rare tokens grow.

    Returns:
        `[batch, length]`, float32, 0 where a token does not count.

    Raises:
        ValueError: the shapes differ, or a bound is out of its range.

    >>> loss = clipped_policy_loss(jnp.log(jnp.array([[1.5, 1.5]])), jnp.zeros((1, 2)),
    ...     jnp.array([[1.0, -1.0]]), jnp.ones((1, 2), bool))
    >>> loss.round(2).tolist()
    [[-1.2799999713897705, 1.5]]

    References:
        Schulman et al., 2017, arXiv:1707.06347; unequal bounds: Yu et al., 2025,
        arXiv:2503.14476.
    """
    validate.require(0 < low < 1, "low", low, "in (0, 1)")
    validate.positive(high=high)
    advantages = advantages.reshape(advantages.shape + (1,) * (2 - advantages.ndim))
    ratio = jnp.exp(_log_ratio(log_probs, old_log_probs, where))
    clipped = jnp.clip(ratio, 1 - low, 1 + high)
    advantages = jnp.where(where, advantages, 0)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def kl_estimates(log_q: Array, log_p: Array) -> tuple[Array, Array, Array]:
    """Three estimates of KL(q ‖ p) from draws of q, for logs and as rewards.

    k1 = d, k2 = d² / 2, k3 = exp(−d) − 1 + d, with d = log q − log p

    k1 and k3 have the mean KL(q ‖ p); k3 is never negative. None is a loss: the mean
    gradient of k1 is 0, that of k3 is the gradient of KL(p ‖ q). See `kl_penalty`.

    Args:
        log_q: `[...]`, log probabilities of what q drew.
        log_p: `[...]`, those under p.

    Returns:
        k1, k2 and k3, each `[...]`, nats.

    Raises:
        ValueError: the shapes differ.

    >>> [round(float(k), 3) for k in kl_estimates(jnp.log(0.5), jnp.log(0.25))]
    [0.693, 0.24, 0.193]

    References:
        Schulman, 2020, "Approximating KL divergence"; their gradients:
        arXiv:2506.09477, arXiv:2512.21852.
    """
    validate.shape(jnp.shape(log_q), log_p=log_p)
    gap = log_q - log_p
    return gap, gap**2 / 2, jnp.expm1(-gap) + gap


def kl_penalty(
    log_probs: Array, old_log_probs: Array, reference_log_probs: Array, where: Array
) -> Array:
    """A loss of each token with the gradient of KL(policy ‖ reference).

    ρ · k3, ρ = π(token) / π_old(token), with the gradient of ρ kept

    Without ρ the gradient would be that of the other divergence, KL(reference ‖
    policy). It is the gradient at each token's own prefix: the effect of a token on
    later prefixes is left out (arXiv:2506.09477); as a reward, k1 has it.

    Args:
        log_probs: `[batch, length]`, of the policy.
        old_log_probs: `[batch, length]`, of the policy that wrote the texts.
        reference_log_probs: `[batch, length]`.
        where: `[batch, length]`, bool, the tokens that count. Values elsewhere have no
            effect, even where they are not finite.

    Returns:
        `[batch, length]`, float32, nats, 0 where a token does not count.

    Raises:
        ValueError: the shapes differ.

    >>> one = jnp.log(jnp.array([[0.5]]))
    >>> kl_penalty(one, one, one, jnp.array([[True]])).tolist()
    [[0.0]]
    """
    ratio = jnp.exp(_log_ratio(log_probs, old_log_probs, where))
    gap = _log_ratio(log_probs, reference_log_probs, where)
    return ratio * kl_estimates(gap, jnp.zeros_like(gap))[2]


def policy_loss(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    *,
    low: float = 0.2,
    high: float = 0.28,
    normalizer: str = "constant",
    length: int | None = None,
    chunk: int = 256,
) -> LossFn:
    """The loss of a policy on texts that it wrote, which the batch carries.

    loss = mean_t clipped_policy_loss_t + β · mean_t kl_penalty_t, with means by
    `text_mean` and β from the batch; a batch of β 0 has no penalty

    Args:
        apply: the policy up to its head.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        low: see `clipped_policy_loss`, as `high`.
        high: see `clipped_policy_loss`.
        normalizer: see `text_mean`.
        length: see `text_mean`; for "constant" by default the length of the outputs in
            the batch.
        chunk: tokens whose logits are in memory at once.

    Returns:
        A `LossFn` of `distillation.student_params` that reads a `PolicyBatch`, with aux
        `clipped_loss`, and `kl_loss` without its weight.

    Raises:
        ValueError: an option out of its bounds.
    """
    validate.one_of(NORMALIZERS, normalizer=normalizer)
    validate.require(0 < low < 1, "low", low, "in (0, 1)")
    validate.positive(high=high, chunk=chunk)

    def loss_fn(params, batch, prototypes, step, key):
        # No dropout: it would move ratios away from 1 before anything is learned.
        del prototypes, step, key
        found = log_probs_of(apply, head, params["model"], batch.sequences, chunk)
        where = batch.sequences.output_weights > 0
        steps = length
        if normalizer == "constant" and length is None:
            steps = where.shape[1]

        def mean(values: Array) -> Array:
            return text_mean(values, where, normalizer=normalizer, length=steps)

        old = batch.old_log_probs
        clipped = mean(
            clipped_policy_loss(found, old, batch.advantages, where, low=low, high=high)
        )
        drift = mean(kl_penalty(found, old, batch.reference_log_probs, where))
        aux = {"clipped_loss": clipped, "kl_loss": drift}
        return clipped + batch.kl_weights * drift, aux

    return loss_fn


def log_probs_of(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    params: PyTree,
    batch: SequenceBatch,
    chunk: int = 256,
) -> Array:
    """The log probability of each output token, without logits of more than a chunk.

    The distribution is that over all rows of the head, from which texts are drawn.

    Args:
        apply: a model up to its head.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        params: the model's parameters.
        batch: the sequences.
        chunk: tokens whose logits are in memory at once.

    Returns:
        `[batch, output_length]`, float32; of no meaning where a token has no weight.
    """
    states = apply(params, batch).states

    def of_tokens(states: Array, ids: Array) -> Array:
        return token_log_probs(head(params, states), ids)

    return over_tokens(of_tokens, states, batch.output_ids, chunk=chunk)


def _log_ratio(log_q: Array, log_p: Array, where: Array) -> Array:
    """log q − log p of the tokens that count, else 0, with no gradient there."""
    validate.shape(log_q.shape, log_p=log_p, where=where)
    # Both before the difference: its gradient would be NaN behind the mask.
    log_q, log_p = (
        jnp.where(where, jax.lax.convert_element_type(x, jnp.float32), 0)
        for x in (log_q, log_p)
    )
    # An exponential that overflows would make the gradient NaN.
    return jnp.clip(log_q - log_p, -_LARGEST, _LARGEST)
