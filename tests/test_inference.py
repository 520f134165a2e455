"""What models say of rows, in the order of the rows whatever the batches are."""

import ml_collections
import numpy as np
import pytest

from experiments import inference
from experiments.runtime import Context
from experiments.study.defaults import defaults
from protojax import models
from protojax.base import Batch
from protojax.data import tokens as tokens_lib
from tests.test_defenses import CONFIG, MODEL


def make(rows=7):
    """Returns a study of short texts, and tokens of several lengths."""
    config = defaults()
    config.data.buckets = (4, 8)
    config.evaluation.batch_size = 2
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, rows).astype(np.int32)
    ids = rng.integers(1, 30, (rows, 6)).astype(np.int32)
    ids *= np.arange(6) < lengths[:, None]
    tokens = tokens_lib.Tokens(ids, np.zeros_like(ids), lengths, 0)
    return Context(ml_collections.FrozenConfigDict(config), None, None, 0), tokens


def alone(tokens, row):
    """Returns what the model says of one row without padding."""
    ids = tokens.input_ids[row : row + 1, : tokens.lengths[row]]
    one = Batch(ids, np.ones_like(ids), np.zeros_like(ids), None, None)
    return models.apply_fn(CONFIG)(MODEL.params, one, hidden_states=True)


def test_outputs_are_those_of_each_row_alone():
    context, tokens = make()
    logits, features = inference.predict(context, MODEL, MODEL.params, tokens)
    for row in range(7):
        output = alone(tokens, row)
        np.testing.assert_allclose(logits[row], output.logits[0], atol=1e-6)
        pooled = output.hidden_states[-1][0].mean(0)
        np.testing.assert_allclose(features[row, 0], pooled, atol=1e-6)


def test_attention_is_that_of_each_row_alone_and_as_long_as_the_longest_bucket():
    context, tokens = make()
    found = inference.predict_attention(context, MODEL, tokens)
    assert found.shape == (7, 2, 8)
    for row, length in enumerate(tokens.lengths):
        states = alone(tokens, row).hidden_states[1:]
        for layer, state in enumerate(states):
            expected = np.sqrt(np.square(state[0]).mean(-1))
            np.testing.assert_allclose(found[row, layer, :length], expected, rtol=1e-5)
        assert (found[row, :, length:] == 0).all()


@pytest.mark.parametrize("wrong", [-1, CONFIG.vocab_size])
def test_no_row_has_a_token_that_the_model_does_not_know(wrong):
    context, tokens = make()
    tokens.input_ids[4, 1] = wrong
    message = rf"in \[0, {CONFIG.vocab_size}\), .* found id {wrong} in row 4"
    with pytest.raises(ValueError, match=message):
        inference.predict(context, MODEL, MODEL.params, tokens)
    with pytest.raises(ValueError, match=message):
        inference.predict_attention(context, MODEL, tokens)
