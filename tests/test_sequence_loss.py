"""The loss of models that write, against a loop over tokens."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.distillation import sequence_loss, student_params
from tests.writers import (
    VOCABULARY,
    sequence_batch,
    writer_apply,
    writer_head,
    writer_params,
)

PARAMS = student_params(writer_params())


@functools.cache
def compiled(head, options):
    """One program per set of options, which several tests run."""
    loss_fn = sequence_loss(writer_apply, head, **dict(options))

    def total(params, batch):
        loss, aux = loss_fn(params, batch, None, 0, None)
        return loss.sum(), (loss, aux["features"])

    return jax.jit(jax.grad(total, has_aux=True))


def evaluate(batch, head=writer_head, **options):
    """The losses, their features, and the gradient of the losses' sum."""
    slope, found = compiled(head, tuple(options.items()))(PARAMS, batch)
    return *found, slope


def by_loop(batch, *, hard_weight, hidden_weight):
    """The losses in float64, a token at a time."""
    apply = jax.jit(functools.partial(writer_apply, hidden_states=True))
    output = apply(PARAMS["model"], batch)
    kernel = np.asarray(PARAMS["model"]["head"], np.float64)
    losses = []
    for row, weights in enumerate(batch.output_weights):
        parts = []
        for place in np.flatnonzero(weights):
            logits = np.asarray(output.states[row, place], np.float64) @ kernel
            q = np.exp(logits) / np.exp(logits).sum()
            top = batch.top_ids[row, place]
            q_all = np.array([*q[top], 1 - q[top].sum()])
            p_all = np.exp(
                [*batch.top_log_probs[row, place], batch.rest_log_prob[row, place]]
            )
            soft = (p_all * np.log(p_all / q_all)).sum()
            hard = -np.log(q[batch.output_ids[row, place]])
            parts.append((1 - hard_weight) * soft + hard_weight * hard)
        length = int(batch.attention_mask[row].sum())
        own = np.asarray(output.hidden_states[-1][row, :length]).mean(0)
        other = batch.teacher_features[row, 0]
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        losses.append(np.mean(parts) + hidden_weight * (1 - cosine))
    return losses


def test_the_loss_is_a_loop_over_tokens():
    batch = sequence_batch()
    batch.output_weights[0, 1] = 0  # a denied token
    weights = {"hard_weight": 0.3, "hidden_weight": 0.2}
    loss, features, _ = evaluate(batch, **weights, chunk=7)
    assert features.shape == (5, 1, 8)
    np.testing.assert_allclose(loss, by_loop(batch, **weights), rtol=1e-4)


def test_outputs_alone_need_no_probabilities():
    batch = sequence_batch()
    alone = batch._replace(top_ids=None, top_log_probs=None, rest_log_prob=None)
    loss, _, _ = evaluate(alone, hard_weight=1.0)
    expected = by_loop(batch, hard_weight=1.0, hidden_weight=0.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"from the teacher, or hard_weight=1"):
        evaluate(alone)


def test_what_stands_for_no_token_has_no_effect():
    batch = sequence_batch()
    plain, _, _ = evaluate(batch, hard_weight=0.3)

    def padded(params, states):
        logits = writer_head(params, states)
        return jnp.pad(
            logits, [*[(0, 0)] * (logits.ndim - 1), (0, 5)], constant_values=9
        )

    found, _, _ = evaluate(batch, head=padded, hard_weight=0.3, vocabulary=VOCABULARY)
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    # What is not finite where nothing teaches, and a row of nothing else.
    batch.output_weights[1] = 0
    found, _, slope = evaluate(batch, hard_weight=0.3)
    silent = batch.output_weights == 0
    batch.top_log_probs[silent] = np.nan
    batch.rest_log_prob[silent] = -np.inf
    spoilt, _, other = evaluate(batch, hard_weight=0.3)
    assert spoilt[1] == 0
    np.testing.assert_array_equal(found, spoilt)
    for one, two in zip(*map(jax.tree.leaves, (slope, other)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("chunk", "whole"), [(8, False), (20, True)])
def test_no_value_holds_the_logits_of_all_tokens(chunk, whole):
    # Of 20 tokens; the program's text has the shapes of all values of its loops, too.
    lowered = compiled(writer_head, (("hard_weight", 0.5), ("chunk", chunk))).lower(
        PARAMS, sequence_batch()
    )
    found = re.findall(r"tensor<([\dx]+)x[fi]\d", lowered.as_text())
    shapes = [[int(size) for size in shape.split("x")] for shape in found]
    largest = max(np.prod(shape) for shape in shapes if VOCABULARY in shape)
    assert (largest >= 20 * VOCABULARY) == whole


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"divergence": "logit_mse"}, "divergence one of forward_kl"),
        ({"temperature": 0}, "temperature > 0"),
        ({"hard_weight": 2}, "hard_weight in"),
        ({"hidden_weight": -1}, "hidden_weight >= 0"),
        ({"chunk": 0}, "chunk > 0"),
    ],
)
def test_options_are_checked(options, named):
    with pytest.raises(ValueError, match=named):
        sequence_loss(writer_apply, writer_head, **options)
