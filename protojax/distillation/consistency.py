"""Internal consistency: consecutive layers that say about the same near each text.

It serves as a baseline against backdoors in models that write: a triggered text is said
to change its states from layer to layer more than a clean one.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, LossFn, PyTree, SequenceApplyFn
from protojax.distillation.losses import hidden_state_loss
from protojax.distillation.sequences import sequence_loss


def inconsistency(states: Sequence[Array], attention_mask: Array) -> Array:
    """The mean distance of a text's states in consecutive layers.

    mean_{l, t} (1 − cos(h_l(t), h_{l+1}(t))), over layers l and tokens t

    Args:
        states: arrays `[batch, length, dim]`, the embeddings first; two at least.
        attention_mask: `[batch, length]`; padding does not count.

    Returns:
        `[batch]`, float32; 0 for a row without tokens.

    Raises:
        ValueError: fewer than two states.

    >>> states = [jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 2.0]]])]
    >>> inconsistency(states, jnp.ones((1, 1))).tolist()
    [1.0]
    """
    validate.require(len(states) > 1, "number of states", len(states), ">= 2")
    where = attention_mask > 0
    pairs = itertools.pairwise(states)
    return jnp.mean(
        jnp.stack([hidden_state_loss(a, b, where=where) for a, b in pairs]), axis=0
    )


def consistent_loss(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    *,
    dim: int,
    weight: float = 5.5,
    epsilon: float = 0.1,
    **options,
) -> LossFn:
    """The loss on outputs plus the inconsistency of perturbed sources (CROW).

    L(x) = loss(x) + weight · inconsistency(x + epsilon · sign(∇ inconsistency(x))),
    with the perturbation added to the embeddings and the gradient taken at them

    Args:
        apply: the student up to its head; it must read `batch.perturbation`.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        dim: width of the embeddings.
        weight: of the inconsistency.
        epsilon: of the perturbation, in units of the embeddings.
        **options: of `sequence_loss`.

    Returns:
        A `LossFn` of `student_params` that reads a `SequenceBatch`, with the aux of
        `sequence_loss` and `consistency_loss`, `[batch]`.

    Raises:
        ValueError: a width that is not positive, a weight or epsilon below 0, or as
            `sequence_loss`.

    References:
        Min et al., 2024, arXiv:2411.12768, who fine-tune with the defaults above
        decoders of 32 layers and more on 100 clean rows. Departing from it, the states
        are those of the source (of the encoder, where there is one), and the
        embeddings and the last layer count, which their code leaves out: of an encoder
        of one or two layers nothing else would be left.
    """
    validate.positive(dim=dim)
    validate.non_negative(weight=weight, epsilon=epsilon)
    inner = sequence_loss(apply, head, **options)

    def loss_fn(params, batch, prototypes, step, key):
        loss, aux = inner(params, batch, prototypes, step, key)
        tokens = batch.attention_mask[..., None] > 0

        def at(params: PyTree, perturbation: Array) -> Array:
            moved = batch._replace(perturbation=perturbation)
            output = apply(params["model"], moved, key=key, hidden_states=True)
            return inconsistency(output.hidden_states, batch.attention_mask)

        start = batch.perturbation
        if start is None:
            start = jnp.zeros((*batch.input_ids.shape, dim))
        # A constant for the training step, and rows do not mix: the gradient of the
        # sum is that of each row.
        frozen = jax.lax.stop_gradient(params)
        slope = jax.grad(lambda moved: jnp.sum(at(frozen, moved)))(start)
        worst = start + epsilon * jnp.where(tokens, jnp.sign(slope), 0.0)
        distance = at(params, jax.lax.stop_gradient(worst))
        return loss + weight * distance, {**aux, "consistency_loss": distance}

    return loss_fn
