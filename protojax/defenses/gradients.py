"""Gradient rules: how the losses of a batch become one step's gradient."""

import jax
import jax.numpy as jnp

from protojax.base import GradFn, LossFn


def mean_gradient(loss_fn: LossFn) -> GradFn:
    """Returns the gradient of the mean loss over the batch's real rows.

    g = ∇ Σ_i where_i · loss_i / Σ_i where_i

    Args:
        loss_fn: one loss per row.

    Returns:
        A `GradFn` whose metrics are the mean `loss` and the mean of each aux entry
        named `*_loss`. A batch without a real row gives zero gradients.

    >>> import chex
    >>> from protojax.base import Batch
    >>> rows = jnp.array([1.0, 3.0, 100.0])
    >>> batch = Batch(None, None, None, rows, jnp.array([True, True, False]))
    >>> grad_fn = mean_gradient(lambda w, batch, *_: (w * batch.labels, {}))
    >>> grads, metrics = grad_fn(jnp.array(2.0), batch, None, 0, None)
    >>> float(grads), float(metrics["loss"])
    (2.0, 4.0)
    """

    def grad_fn(params, batch, prototypes, step, key):
        count = jnp.maximum(jnp.sum(batch.where), 1)

        def mean(values):
            # where, not a product: an infinite loss of a padding row would survive it.
            return jnp.sum(jnp.where(batch.where, values, 0.0)) / count

        def objective(params):
            loss, aux = loss_fn(params, batch, prototypes, step, key)
            parts = {name: mean(aux[name]) for name in aux if name.endswith("_loss")}
            return mean(loss), parts

        (loss, parts), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, {"loss": loss, **parts}

    return grad_fn
