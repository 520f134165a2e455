"""Adversarial training: learn from the worst perturbation of each row's embeddings.

It serves as a baseline against backdoors, although it was not designed for them: a
model that is stable in a ball around each text may still have learned a trigger, which
lies far outside the ball.
"""

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, Batch, LossFn, SequenceBatch

NORMS = ("linf", "l2")


def adversarial(
    loss_fn: LossFn,
    *,
    dim: int,
    epsilon: float = 0.1,
    step_size: float = 0.04,
    num_steps: int = 3,
    norm: str = "linf",
) -> LossFn:
    """The largest value of a loss that PGD finds near each row.

    L(x) = max_{‖δ‖ ≤ ε} loss(x + δ), with δ added to the embeddings; from a random δ₀,
    δ ← Π(δ + step_size · direction(∇_δ loss)), `num_steps` times

    Args:
        loss_fn: the loss; the model under it must read `batch.perturbation`.
        dim: width of the embeddings.
        epsilon: radius of the ball, in units of the (normalised) embeddings.
        step_size: length of a step in the norm.
        num_steps: gradient steps, each as expensive as a training step.
        norm: `"linf"`, over coordinates, or `"l2"`, over all tokens of a row together.

    Returns:
        A `LossFn` with the aux of the perturbed rows. Without a key δ₀ is zero.

    Guarantees:
        * With epsilon 0, every loss is unchanged.
        * Padding is never perturbed, and rows do not mix.
        * No gradient flows through the search.

    Raises:
        ValueError: an unknown norm, a width or a number of steps that is not positive,
            a radius or a step below 0.

    References:
        Madry et al., 2017, arXiv:1706.06083; for embeddings of texts Miyato, Dai and
        Goodfellow, 2016, arXiv:1605.07725. Departing from the latter, the perturbation
        is added after the embeddings' layer norm, so that epsilon has one scale for all
        models, and the search takes several steps.
    """
    validate.one_of(NORMS, norm=norm)
    validate.positive(dim=dim, num_steps=num_steps)
    validate.non_negative(epsilon=epsilon, step_size=step_size)

    def robust(params, batch: Batch | SequenceBatch, prototypes, step, key):
        tokens = batch.attention_mask[..., None] > 0
        shape = (*batch.input_ids.shape, dim)

        # The search must not carry gradients to the parameters.
        frozen = jax.lax.stop_gradient(params)

        def total(perturbation: Array) -> Array:
            moved = batch._replace(perturbation=perturbation)
            loss, _ = loss_fn(frozen, moved, prototypes, step, key)
            # Rows never mix, so the gradient of the sum is that of each row's own loss.
            return jnp.sum(jnp.where(batch.where, loss, 0.0))

        def climb(_, perturbation: Array) -> Array:
            # Padding stays clean, or it would take up a part of the l2 ball.
            slope = jnp.where(tokens, jax.grad(total)(perturbation), 0.0)
            moved = perturbation + step_size * _direction(slope, norm)
            return _project(moved, epsilon, norm)

        start = jnp.zeros(shape)
        if key is not None:
            # Folded: the key itself draws the dropout of the search and of the step.
            noise = jax.random.uniform(jax.random.fold_in(key, 1), shape, minval=-1.0)
            start = _project(jnp.where(tokens, epsilon * noise, 0.0), epsilon, norm)
        # Not unrolled, so that the program does not grow with the steps of the search.
        found = jax.lax.fori_loop(0, num_steps, climb, start)
        # The worst point found is a constant for the training step.
        worst = batch._replace(perturbation=jax.lax.stop_gradient(found))
        return loss_fn(params, worst, prototypes, step, key)

    return robust


def _direction(slope: Array, norm: str) -> Array:
    """The step of length 1 of steepest ascent in each row; 0 where the slope is 0."""
    if norm == "linf":
        return jnp.sign(slope)
    return slope * _inverse_length(slope, 1.0)


def _project(perturbation: Array, epsilon: float, norm: str) -> Array:
    """The nearest point of the ball to each row's perturbation."""
    if norm == "linf":
        return jnp.clip(perturbation, -epsilon, epsilon)
    return perturbation * jnp.minimum(1.0, _inverse_length(perturbation, epsilon))


def _inverse_length(values: Array, scale: float) -> Array:
    """The factor scale / ‖row‖, `[batch, 1, 1]`; 0 for rows of zeros."""
    squares = jnp.sum(jnp.square(values), axis=(1, 2), keepdims=True)
    # The inner `where` keeps the gradient finite at rows of zeros.
    some = squares > 0
    return jnp.where(some, scale * jax.lax.rsqrt(jnp.where(some, squares, 1.0)), 0.0)
