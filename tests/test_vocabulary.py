"""A word embedding cut down to the words at hand, and put back."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import distillation, models, training
from protojax.base import Batch
from protojax.data.tokens import Tokens
from protojax.distillation import mean_gradient
from protojax.models import vocabulary
from protojax.training import trainer
from tests.tiny import FAMILIES, encoder_config


def model_of(family="bert", vocab_size=60, **fields):
    sizes = {"vocab_size": vocab_size, "num_layers": 1, "max_positions": 16}
    config = encoder_config(family, **sizes, **fields)
    return models.init_model(config, seed=0)


def batch_of(ids):
    ids = np.asarray(ids, np.int32)
    rows = len(ids)
    mask = np.ones_like(ids)
    labels = np.arange(rows, dtype=np.int32) % 2
    return Batch(ids, mask, np.zeros_like(ids), labels, np.ones(rows, bool))


@pytest.fixture
def small(monkeypatch):
    """Sizes are multiples of 16, so that tiny models can be cut down."""
    monkeypatch.setattr(vocabulary, "MULTIPLE", 16)


def test_ids_kept_are_those_used_and_the_first_unused_ones(small):
    kept = vocabulary.used_ids(np.array([[50, 3], [50, 20]]), 60, pad_id=1)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 50]
    # Where few would be left out, none is.
    kept = vocabulary.used_ids(np.arange(50)[None], 60)
    assert kept.tolist() == list(range(60))
    empty = vocabulary.used_ids(np.zeros((0, 4), int), 60)
    assert empty.tolist() == list(range(16))


@pytest.mark.parametrize("lost", [5, 9, -1])
def test_ids_that_were_not_kept_are_refused(lost):
    kept = np.array([0, 3, 7])
    assert vocabulary.renumber(np.array([[7, 0], [3, 3]]), kept).tolist() == [
        [2, 0],
        [1, 1],
    ]
    with pytest.raises(ValueError, match=f"kept, found input_ids={lost}"):
        vocabulary.renumber(np.array([[0, lost]]), kept)
    assert vocabulary.renumber(np.zeros((0, 4), np.int32), kept).dtype == np.int32


def test_ids_beyond_the_vocabulary_are_refused(small):
    with pytest.raises(ValueError, match="input_ids < 60, found input_ids=60"):
        vocabulary.used_ids(np.array([[60]]), 60)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_the_same_of_rows_whose_words_it_keeps(small, family):
    fields = {"roberta": {"pad_id": 1, "type_vocab_size": 1}}.get(family, {})
    model = model_of(family, **fields)
    pad_id = model.config.pad_id
    ids = np.array([[2, 50, 31, 3], [2, 7, 3, pad_id]])
    batch = batch_of(ids)._replace(attention_mask=(ids != pad_id).astype(np.int32))
    kept = vocabulary.used_ids(ids, 60, pad_id=pad_id)
    narrow = vocabulary.narrow(model, kept)
    assert narrow.config.vocab_size == len(kept) == 16
    renumbered = batch._replace(input_ids=vocabulary.renumber(ids, kept))
    np.testing.assert_array_equal(
        models.apply_fn(narrow.config)(narrow.params, renumbered).logits,
        models.apply_fn(model.config)(model.params, batch).logits,
    )


def test_a_word_is_not_given_the_number_of_the_models_padding(small):
    ids = np.array([[2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 0]])
    tokens = Tokens(ids, np.zeros_like(ids), np.array([8, 7]), pad_id=0)
    run = types.SimpleNamespace(private=False, model=model_of("mpnet"), tokens=tokens)
    assert run.model.config.pad_id == 1
    # Without the model's, these 16 ids would be all that are kept.
    assert trainer.used_ids([run])[:3].tolist() == [0, 1, 2]


def test_training_without_unused_words_is_training_with_them(small):
    model = model_of(dropout=0.0, classifier_dropout=0.0, attention_dropout=0.0)
    ids = np.array([[2, 50, 31, 3], [2, 7, 50, 3]])
    kept = vocabulary.used_ids(ids, 60)
    narrow = vocabulary.narrow(model, kept)
    optimizer = training.adamw(learning_rate=1e-2, weight_decay=0.0)

    def trained(model, ids):
        loss = distillation.supervised_loss(models.apply_fn(model.config))
        step = jax.jit(training.make_step(mean_gradient(loss), optimizer))
        params = distillation.student_params(model.params)
        state = training.init_state(params, optimizer, num_steps=5, seed=0)
        for _ in range(5):
            state, _ = step(state, batch_of(ids))
        return state.params["model"]

    whole = trained(model, ids)
    widened = vocabulary.widen(
        model.params, trained(narrow, vocabulary.renumber(ids, kept)), kept
    )
    assert jax.tree.structure(whole) == jax.tree.structure(widened)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, widened
    )
    unused = np.setdiff1d(np.arange(60), ids)
    np.testing.assert_array_equal(
        vocabulary.words(widened)[unused], vocabulary.words(model.params)[unused]
    )
    moved = jnp.abs(vocabulary.words(widened) - vocabulary.words(model.params)).max(1)
    assert (moved[np.unique(ids)] > 0).all()
