"""A tiny model that writes, by hand, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

from protojax.base import SequenceBatch, SequenceOutput

VOCABULARY, DIM = 11, 8


def writer_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"words": (VOCABULARY, DIM), "mix": (DIM, DIM), "head": (DIM, VOCABULARY)}
    return {
        name: jax.random.normal(key, shape)
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }


def writer_apply(params, batch, *, key=None, hidden_states=False):
    """State t is made of the mean of the source and the sum of outputs before t."""
    del key
    source = params["words"][batch.input_ids]
    if batch.perturbation is not None:
        source += batch.perturbation
    states = source, jnp.tanh(source @ params["mix"])
    mask = batch.attention_mask[..., None]
    mean = (states[1] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
    said = params["words"][batch.output_ids][:, :-1]
    before = jnp.pad(jnp.cumsum(said, axis=1), ((0, 0), (1, 0), (0, 0)))
    written = jnp.tanh((mean[:, None] + before) @ params["mix"])
    return SequenceOutput(written, states if hidden_states else ())


def writer_head(params, states):
    return states @ params["head"]


def sequence_batch(rows=5, seed=0, k=3):
    rng = np.random.default_rng(seed)
    masks = [
        np.arange(width) < rng.integers(2, width + 1, (rows, 1)) for width in (6, 4)
    ]
    ids = [rng.integers(1, VOCABULARY, mask.shape) * mask for mask in masks]
    logits = rng.normal(size=(*masks[1].shape, VOCABULARY)).astype(np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    top = np.argsort(-probs, axis=-1)[..., :k]
    top_probs = np.take_along_axis(probs, top, axis=-1)
    return SequenceBatch(
        input_ids=ids[0].astype(np.int32),
        attention_mask=masks[0].astype(np.int32),
        output_ids=ids[1].astype(np.int32),
        output_weights=masks[1].astype(np.float32),
        where=np.ones(rows, bool),
        top_ids=top.astype(np.int32),
        top_log_probs=np.log(top_probs),
        rest_log_prob=np.log(1 - top_probs.sum(-1)),
        teacher_features=rng.normal(size=(rows, 1, DIM)).astype(np.float32),
        assigned_class=rng.integers(0, 3, rows).astype(np.int32),
    )
