"""Every family through what defences ask of a model: features, attention, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import distillation, models
from protojax.base import Batch, Prototypes
from protojax.data.tokens import Tokens
from protojax.distillation import TRANSFORMS, mean_gradient
from protojax.training import predict
from protojax.training.predict import Features, Lengths
from tests.tiny import FAMILIES, encoder_config

ROWS, LENGTH, DIM = 4, 6, 8
LENGTHS = Lengths(max_length=LENGTH, buckets=(LENGTH,), evaluation_rows=ROWS)
LAYERS = (0, -1)


def teacher_of(family):
    config = encoder_config(family, num_layers=2, max_positions=10)
    return models.init_model(config, seed=0)


def tokens_of(pad_id):
    rng = np.random.default_rng(0)
    lengths = np.array([6, 2, 4, 3], np.int32)
    ids = rng.integers(2, 30, (ROWS, LENGTH)).astype(np.int32)
    ids = np.where(np.arange(LENGTH) < lengths[:, None], ids, pad_id)
    return Tokens(ids, np.zeros_like(ids), lengths, pad_id)


def batch_of(tokens, outputs, attention):
    mask = np.arange(LENGTH) < tokens.lengths[:, None]
    return Batch(
        tokens.input_ids,
        mask.astype(np.int32),
        tokens.token_type_ids,
        labels=np.arange(ROWS, dtype=np.int32) % 2,
        where=np.ones(ROWS, bool),
        teacher_logits=outputs.logits,
        teacher_features=outputs.features,
        assigned_class=np.arange(ROWS, dtype=np.int32) % 2,
        teacher_attention=attention,
        # As an adversary of the embeddings adds it.
        perturbation=np.full((ROWS, LENGTH, DIM), 0.1, np.float32),
    )


def all_losses(apply):
    """Distillation within prototypes, and attention transfer, of one forward pass."""

    def loss_fn(params, batch, prototypes, step, key):
        output = apply(params["model"], batch, key=key, hidden_states=True)

        def given(*_, **__):
            return output

        base = distillation.distillation_loss(
            given, hard_weight=0.3, hidden_weight=0.2, layers=LAYERS
        )
        constrained = TRANSFORMS["prototype"](
            base,
            weight=optax.constant_schedule(1.0),
            margin=optax.constant_schedule(0.0),
            layer_weights=(0.5, 0.5),
        )
        attention = distillation.attention_loss(given, weight=2.0)
        first, aux = constrained(params, batch, prototypes, step, key)
        second, more = attention(params, batch, prototypes, step, key)
        return first + second, aux | more

    return loss_fn


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_some_layers_learns_by_every_loss(family):
    teacher = teacher_of(family)
    student = models.select_layers(teacher, (1,))
    tokens = tokens_of(teacher.config.pad_id)
    outputs = predict.predict(teacher, tokens, LENGTHS, Features(layers=LAYERS))
    attention = predict.predict_attention(student, tokens, LENGTHS)
    assert outputs.features.shape == (ROWS, 2, DIM)
    assert attention.shape == (ROWS, 1, LENGTH)
    assert (attention > 0).sum(2).tolist() == [[n] for n in tokens.lengths]

    # A prototype for each class, far from all rows, so that the constraint is active.
    vectors = np.random.default_rng(0).normal(size=(2, 2, DIM)).astype(np.float32)
    labels = np.array([[0, 1]] * 2, np.int32)
    prototypes = Prototypes(vectors, labels, np.ones((2, 2), np.float32))
    rule = mean_gradient(all_losses(models.apply_fn(student.config)))
    batch = batch_of(tokens, outputs, attention)

    @jax.jit
    def step(params):
        grads, metrics = rule(params, batch, prototypes, jnp.int32(0), None)
        moved = jax.tree.map(lambda p, g: p - 0.03 * g, params, grads)
        return moved, grads, metrics["loss"]

    params, losses = distillation.student_params(student.params), []
    for _ in range(5):
        params, grads, loss = step(params)
        losses.append(float(loss))
    assert np.all(np.diff(losses) < 0), losses
    still = {
        jax.tree_util.keystr(path)
        for path, slope in jax.tree.leaves_with_path(grads)
        if not np.abs(np.asarray(slope)).max() > 0
    }
    # A bias of the keys shifts all scores of a query alike, which softmax undoes.
    assert still <= {"['model']['layers_0']['attention']['key']['bias']"}
