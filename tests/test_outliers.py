"""Scores of words against a loop over rows and words, and texts without outliers."""

import ml_collections
import numpy as np
import pytest

from experiments.arms import purify
from experiments.runtime import Context
from experiments.study.defaults import defaults
from experiments.world import scenario, trusted_model
from experiments.world.scenario import Cell
from experiments.world.trusted_model import Anchor
from protojax import models
from protojax.base import Examples
from protojax.data.wordpiece import train_wordpiece
from protojax.detection.onion import word_outlier_scores
from protojax.models import hf
from tests.tiny import encoder_config


def make(seed=0, rows=4, length=6, dim=5, texts=9):
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(3, length + 1, (rows, 1))
    words = np.sort(rng.integers(0, 3, (rows, length)), axis=1)
    words[:, 0] = -1  # what stands before every text
    hidden = rng.normal(size=(rows, length, dim)).astype(np.float32)
    trusted = rng.normal(size=(texts, dim)).astype(np.float32)
    return hidden, mask.astype(np.int32), words, trusted


def density(mean, trusted, k):
    cosines = [
        mean @ text / np.linalg.norm(mean) / np.linalg.norm(text) for text in trusted
    ]
    return np.mean(sorted(cosines)[-k:])


@pytest.mark.parametrize("k", [1, 3, 9])
def test_scores_equal_a_loop_over_words(k):
    hidden, mask, words, trusted = make()
    found = word_outlier_scores(hidden, mask, words, trusted, num_neighbours=k)
    for row in range(len(hidden)):
        real = np.flatnonzero(mask[row])
        whole = density(hidden[row, real].mean(0), trusted, k)
        for token in range(mask.shape[1]):
            if not mask[row, token] or words[row, token] < 0:
                assert found[row, token] == -np.inf
                continue
            rest = [t for t in real if words[row, t] != words[row, token]]
            expected = density(hidden[row, rest].mean(0), trusted, k) - whole
            np.testing.assert_allclose(found[row, token], expected, atol=1e-5)


def test_padding_has_no_influence():
    hidden, mask, words, trusted = make()
    found = word_outlier_scores(hidden, mask, words, trusted, num_neighbours=2)
    spoiled = np.where(mask[..., None] == 1, hidden, np.nan)
    again = word_outlier_scores(spoiled, mask, words, trusted, num_neighbours=2)
    np.testing.assert_array_equal(found, again)


def test_no_token_and_one_word_give_finite_scores_or_none():
    hidden, mask, words, trusted = make()
    mask[0], words[1], mask[1] = 0, 0, 1
    found = word_outlier_scores(hidden, mask, words, trusted, num_neighbours=2)
    assert (found[0] == -np.inf).all()
    assert np.isfinite(found[1]).all()  # a mean of nothing is like no text


@pytest.mark.parametrize("k", [0, 10])
def test_too_many_or_no_neighbours_are_refused(k):
    with pytest.raises(ValueError, match="num_neighbours"):
        word_outlier_scores(*make(), num_neighbours=k)


WORDS = ("good", "bad", "film", "plot", "cast", "dull", "fine")


def test_a_word_unlike_all_trusted_texts_goes(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(60)]
    tokenizer = hf.wrap_tokenizer(
        train_wordpiece([*texts, "zyx"] * 3, vocab_size=160),
        **{
            f"{name}_token": f"[{name.upper()}]"
            for name in ("pad", "unk", "cls", "sep", "mask")
        },
    )
    encoder = models.init_model(
        encoder_config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_layers=1,
            intermediate_size=32,
            max_positions=16,
            pad_id=tokenizer.pad_token_id,
        ),
        seed=0,
        tokenizer=tokenizer,
    )
    # The one word that none of the references holds points elsewhere.
    table = np.array(encoder.params["embeddings"]["word"]["embedding"])
    common, other = rng.normal(size=(2, 16))
    table[:] = common + 0.2 * rng.normal(size=table.shape)
    table[tokenizer("zyx", add_special_tokens=False)["input_ids"]] = other
    encoder.params["embeddings"]["word"]["embedding"] = table
    references = Examples(texts, None, np.zeros(60, np.int32))
    config = defaults()
    config.anchor.model = "scratch"
    config.data.max_length = 12
    config.data.buckets = (8, 16)
    context = Context(ml_collections.FrozenConfigDict(config), None, None, 0)
    judge = Anchor(encoder, None, np.arange(20), None)
    monkeypatch.setattr(trusted_model, "anchor", lambda *_: judge)
    monkeypatch.setattr(scenario, "references", lambda *_: references)
    given = ["good film zyx fine plot", "bad zyx cast", "zyx", "dull film"]
    rows = Examples(given, ["a pair"] * 4, np.array([0, 1, 0, 1]))
    found = purify.without_outlier_words(context, Cell("files", 0, "it"), rows)
    assert found.texts[0] == "good film fine plot"
    assert found.texts[1] == "bad cast"
    assert found.texts[2] == "zyx"  # nothing would be left
    assert found.pairs == rows.pairs
    assert found.labels is rows.labels
    # Words beyond the model's view do not move into it.
    long = Examples(["zyx good zyx film zyx fine zyx plot"], None, np.zeros(1, int))
    found = purify.without_outlier_words(context, Cell("files", 0, "it"), long)
    assert "fine" not in found.texts[0]
    assert "plot" not in found.texts[0]
    # On clean text no more than its share goes, give or take what 100 words tell.
    clean = purify.without_outlier_words(context, Cell("files", 0, "it"), references)
    lost = sum(map(len, map(str.split, texts))) - sum(
        map(len, map(str.split, clean.texts))
    )
    assert lost <= 0.2 * 300
