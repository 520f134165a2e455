"""The loss of models that write: a student learns a teacher's outputs, token by token.

The teacher's next-token probabilities along an output, the output itself as the teacher
or somebody else wrote it, and the hidden states of the source may all teach.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, LossFn, PyTree, SequenceApplyFn
from protojax.distillation import losses
from protojax.distillation.objectives import features
from protojax.distillation.token_losses import (
    SPARSE_DIVERGENCES,
    masked_mean,
    over_tokens,
    sparse_divergence,
    token_log_probs,
)


def sequence_loss(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    hidden_weight: float = 0.0,
    layers: Sequence[int] = (-1,),
    pooling: str = "mean",
    vocabulary: int | None = None,
    length: int | None = None,
    chunk: int = 256,
) -> LossFn:
    """The loss on the teacher's outputs, which the batch carries.

    loss = (1 − hard_weight) · mean_t D(teacher_t, student_t)
           + hard_weight · mean_t −log p(output_t | source, output_{<t})
           + hidden_weight · Σ_layers (1 − cos(h_teacher, h_student)) / layers,
    with means over tokens by `batch.output_weights`, see `token_losses.masked_mean`

    With `hard_weight=1` and outputs that the teacher wrote it is sequence-level
    distillation, which needs no token probabilities, so that teacher and student may
    have different tokenizers.

    Args:
        apply: the student up to its head.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        divergence: a name in `token_losses.SPARSE_DIVERGENCES`.
        temperature: softens both distributions, see `token_losses.sparse_divergence`.
        hard_weight: share of the output itself in the loss.
        hidden_weight: weight of the distance to `batch.teacher_features`.
        layers: the hidden states of the source that are compared with the teacher's
            features, in the order of the latter.
        pooling: `"mean"` or `"cls"`, see `losses.pool`.
        vocabulary: the number of tokens where the head has more rows than that; logits
            beyond it are left out.
        length: what the sum over a row's tokens is divided by, None for their number.
            With a constant the loss is, but for that factor, the divergence of whole
            texts, which a mean over each text's own tokens is not where their lengths
            differ: short texts then count more than they are probable.
        chunk: tokens whose logits are in memory at once: no `[batch, output_length,
            vocabulary]` ever is, neither forward nor backward.

    Returns:
        A `LossFn` of `student_params` that reads a `SequenceBatch`, with aux
        `features`.

    Raises:
        ValueError: an option out of its bounds; when the loss is computed, a batch
            without the teacher's probabilities while `hard_weight` is below 1.

    References:
        Kim and Rush, 2016, arXiv:1606.07947, who average over all tokens of a batch;
        here each row counts the same, or rows would mix.
    """
    validate.one_of(SPARSE_DIVERGENCES, divergence=divergence)
    validate.positive(temperature=temperature, chunk=chunk)
    validate.positive(length=1 if length is None else length)
    validate.fraction(hard_weight=hard_weight)
    validate.non_negative(hidden_weight=hidden_weight)

    def loss_fn(params, batch, prototypes, step, key):
        del prototypes, step
        output = apply(params["model"], batch, key=key, hidden_states=True)

        def of_tokens(states: Array, ids: Array, *targets: Array) -> Array:
            logits = head(params["model"], states)[..., :vocabulary]
            # Each part is left out at weight 0: 0 times an infinite loss is NaN.
            loss = jnp.zeros(ids.shape)
            if hard_weight < 1:
                loss += (1 - hard_weight) * sparse_divergence(
                    logits, *targets, divergence=divergence, temperature=temperature
                )
            if hard_weight:
                loss -= hard_weight * token_log_probs(logits, ids)
            return loss

        targets = _targets(batch) if hard_weight < 1 else ()
        columns = (output.states, batch.output_ids, *targets)
        tokens = over_tokens(of_tokens, *columns, chunk=chunk)
        loss = masked_mean(tokens, batch.output_weights, length=length)
        pooled = features(
            output,
            batch.attention_mask,
            layers=layers,
            pooling=pooling,
            projection=params.get("projection"),
        )
        if hidden_weight:
            distance = losses.hidden_state_loss(pooled, batch.teacher_features)
            loss += hidden_weight * distance
        return loss, {"features": pooled}

    return loss_fn


def _targets(batch) -> tuple[Array, ...]:
    """The teacher's probabilities of each token, zeros where a token has no weight."""
    targets = batch.top_ids, batch.top_log_probs, batch.rest_log_prob
    given = all(target is not None for target in targets)
    bound = "from the teacher, or hard_weight=1"
    validate.require(given, "top_ids, top_log_probs and rest_log_prob", None, bound)
    # Not finite behind a weight of 0, they would make the gradient NaN all the same.
    counts = batch.output_weights > 0
    return tuple(
        jnp.where(counts.reshape(counts.shape + (1,) * (x.ndim - 2)), x, 0)
        for x in targets
    )
