"""What models say of rows, in the order of the rows whatever the batches are."""

import jax
import numpy as np
import pytest

from protojax import models
from protojax.base import Batch
from protojax.data import tokens as tokens_lib
from protojax.training import predict
from protojax.training.predict import Features, Lengths
from tests.tiny import encoder_config

CONFIG = encoder_config(num_labels=3)
MODEL = models.init_model(CONFIG, seed=0)

LENGTHS = Lengths(max_length=8, buckets=(4, 8), evaluation_rows=2)


def make(rows=7):
    """Tokens of several lengths."""
    rng = np.random.default_rng(0)
    # Few of them: each is a program of its own where a row is alone.
    lengths = rng.choice((2, 4, 6), rows).astype(np.int32)
    ids = rng.integers(1, 30, (rows, 6)).astype(np.int32)
    ids *= np.arange(6) < lengths[:, None]
    return tokens_lib.Tokens(ids, np.zeros_like(ids), lengths, 0)


@jax.jit
def compiled(one):
    return models.apply_fn(CONFIG)(MODEL.params, one, hidden_states=True)


def alone(tokens, row):
    """What the model says of one row without padding."""
    ids = tokens.input_ids[row : row + 1, : tokens.lengths[row]]
    one = Batch(ids, np.ones_like(ids), np.zeros_like(ids), None, None)
    return jax.device_get(compiled(one))


def test_outputs_are_those_of_each_row_alone():
    tokens = make()
    logits, features = predict.predict(MODEL, tokens, LENGTHS, Features())
    for row in range(7):
        output = alone(tokens, row)
        np.testing.assert_allclose(logits[row], output.logits[0], atol=1e-6)
        pooled = output.hidden_states[-1][0].mean(0)
        np.testing.assert_allclose(features[row, 0], pooled, atol=1e-6)


def test_features_are_those_of_the_layers_that_are_asked_for():
    tokens = make()
    features = Features(layers=[0, 2, -2], pooling="cls")
    found = predict.predict(MODEL, tokens, LENGTHS, features).features
    assert found.shape == (7, 3, 8)
    for row in range(7):
        states = alone(tokens, row).hidden_states
        for place, layer in enumerate((0, 2, 1)):
            expected = states[layer][0, 0]
            np.testing.assert_allclose(found[row, place], expected, atol=1e-6)


def test_attention_is_that_of_each_row_alone_and_as_long_as_the_longest_bucket():
    tokens = make()
    found = predict.predict_attention(MODEL, tokens, LENGTHS)
    assert found.shape == (7, 2, 8)
    for row, length in enumerate(tokens.lengths):
        states = alone(tokens, row).hidden_states[1:]
        for layer, state in enumerate(states):
            expected = np.sqrt(np.square(state[0]).mean(-1))
            np.testing.assert_allclose(found[row, layer, :length], expected, rtol=1e-5)
        assert (found[row, :, length:] == 0).all()


@pytest.mark.parametrize("wrong", [-1, CONFIG.vocab_size])
def test_no_row_has_a_token_that_the_model_does_not_know(wrong):
    tokens = make()
    tokens.input_ids[4, 1] = wrong
    message = rf"in \[0, {CONFIG.vocab_size}\), .* found id {wrong} in row 4"
    with pytest.raises(ValueError, match=message):
        predict.predict(MODEL, tokens, LENGTHS, Features())
    with pytest.raises(ValueError, match=message):
        predict.predict_attention(MODEL, tokens, LENGTHS)


def test_labels_of_rows_come_with_them():
    """Whatever the order in which batches take the rows."""
    tokens = make()
    given = np.arange(14).reshape(7, 2)
    (found,) = predict.over_rows(
        lambda params, batch: (params + batch.labels,),
        np.int32(100),
        tokens,
        LENGTHS,
        labels=given,
    )
    np.testing.assert_array_equal(found, 100 + given)
    (found,) = predict.over_rows(
        lambda params, batch: (batch.labels,), (), tokens, LENGTHS
    )
    np.testing.assert_array_equal(found, np.zeros(7))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Lengths(max_length=0), r"Expected max_length > 0"),
        (lambda: Lengths(steps_per_dispatch=0), r"Expected steps_per_dispatch > 0"),
        (lambda: Lengths(evaluation_rows=-1), r"Expected evaluation_rows > 0"),
        (lambda: Lengths(buckets=()), r"Expected buckets ascending, .* buckets=\(\)"),
        (lambda: Lengths(buckets=(64, 128, 128)), r"Expected buckets ascending"),
        (lambda: Lengths(buckets=(128, 64)), r"Expected buckets ascending"),
        (lambda: Lengths(buckets=(64,)), r"the last >= max_length=128, found buckets="),
        (lambda: Features(layers=()), r"Expected layers not empty"),
        (lambda: Features(layers=(-1, -1)), r"without repetition, found layers="),
        (lambda: Features(pooling="max"), r"Expected pooling one of mean, cls"),
    ],
)
def test_what_cannot_be_is_named(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_settings_of_lists_are_those_of_tuples():
    assert hash(Lengths(buckets=[64, 128])) == hash(Lengths(buckets=(64, 128)))
    assert Features(layers=[-2, -1]) == Features(layers=(-2, -1))
