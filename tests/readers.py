"""A tiny model that reads, by hand: what a loss or a step asks of an encoder.

Its gradient is a program of a dozen operations, an encoder's of some thousand, and a
test of what is around the model need not wait for the latter.
"""

import jax
import jax.numpy as jnp
import numpy as np

from protojax.base import ModelOutput

VOCABULARY, DIM = 30, 8


def reader_params(num_labels=3, dim=DIM, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"words": (VOCABULARY, dim), "mix": (dim, dim), "head": (dim, num_labels)}
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def reader_apply(params, batch, *, key=None, hidden_states=False):
    """Two layers, and the logits of the mean state; a key drops half of the latter."""
    # A product: the gradient of a gather is a loop, which takes longer to compile.
    source = jax.nn.one_hot(batch.input_ids, VOCABULARY) @ params["words"]
    if batch.perturbation is not None:
        source += batch.perturbation
    first = jnp.tanh(source @ params["mix"])
    states = source, first, jnp.tanh(first @ params["mix"])
    mask = batch.attention_mask[..., None]
    mean = (states[-1] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
    if key is not None:
        mean *= 2.0 * jax.random.bernoulli(key, 0.5, mean.shape)
    return ModelOutput(mean @ params["head"], states if hidden_states else ())
