"""What a trained model says of rows: logits, features, attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import runtime
from experiments.runtime import Context
from protojax import distillation, models
from protojax.base import Batch, PyTree
from protojax.data import batches
from protojax.models import Model


@functools.cache
def compiled_forward(model_config, layers: tuple[int, ...], pooling: str):
    """Returns `(params, batch) -> (logits, features)`, compiled once per shape."""
    apply = models.apply_fn(model_config)
    name = f"forward/{model_config.num_layers}x{model_config.hidden_size}"

    @jax.jit
    def forward(params, batch: Batch):
        runtime.TRACES[f"{name}/{layers}", batch.input_ids.shape] += 1
        output = apply(params, batch, hidden_states=True)
        pooled = distillation.features(
            output, batch.attention_mask, layers=layers, pooling=pooling
        )
        return output.logits, pooled

    return forward


def predict(
    context: Context, model: Model, params: PyTree, tokens: batches.Tokens
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a model's outputs over some rows, in their order.

    Returns:
        Logits `[rows, num_labels]` and features `[rows, layers, dim]`.

    Raises:
        ValueError: on a token that the model's word embedding has no row for.
    """
    batches.check_ids(tokens, model.config.vocab_size)
    config = context.config.features
    forward = compiled_forward(model.config, tuple(config.layers), config.pooling)
    return over_rows(context, forward, params, tokens)


def predict_attention(
    context: Context, model: Model, tokens: batches.Tokens
) -> np.ndarray:
    """Returns `[rows, layers, longest bucket]`, how active a model's tokens are."""
    batches.check_ids(tokens, model.config.vocab_size)
    forward = compiled_attention(model.config, context.config.data.buckets[-1])
    return over_rows(context, forward, model.params, tokens)[0]


@functools.cache
def compiled_attention(model_config, max_length: int):
    """Returns `(params, batch) -> (attention,)`, padded to one length."""
    apply = models.apply_fn(model_config)

    @jax.jit
    def forward(params, batch: Batch):
        output = apply(params, batch, hidden_states=True)
        found = distillation.attention(output, batch.attention_mask)
        return (jnp.pad(found, ((0, 0), (0, 0), (0, max_length - found.shape[2]))),)

    return forward


def over_rows(
    context: Context,
    forward,
    params: PyTree,
    tokens: batches.Tokens,
    *,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Runs a compiled function over all rows; returns its outputs in their order.

    Args:
        context: the study.
        forward: `(params, batch) -> outputs`, a tuple of `[batch, ...]`.
        params: what it is given beside the rows.
        tokens: the rows.
        labels: `[rows, ...]`, what it finds as the labels of rows; zeros by default.
    """
    config = context.config
    plan = batches.plan_evaluation(
        tokens.lengths,
        batch_size=config.evaluation.batch_size,
        buckets=tuple(config.data.buckets),
    )
    if labels is None:
        labels = np.zeros(len(tokens.lengths), np.int32)
    params = jax.tree.map(jnp.asarray, params)
    outputs = []
    for item in plan:
        stacked = batches.make_batch(tokens, labels, item)
        batch = jax.tree.map(lambda leaf: leaf[0], stacked)
        outputs.append(forward(params, batch))
    outputs = [jax.tree.map(lambda leaf: np.asarray(leaf)[None], o) for o in outputs]
    rows = len(tokens.lengths)
    return tuple(
        batches.collect(plan, list(part), rows) for part in zip(*outputs, strict=True)
    )


def posterior(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of logits over their last axis."""
    return np.asarray(jax.nn.softmax(logits, axis=-1))
