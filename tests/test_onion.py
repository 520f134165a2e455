"""Scores of words against a loop over rows and words, and texts without outliers."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from protojax import data, models
from protojax.base import Batch, Examples
from protojax.data.wordpiece import train_wordpiece
from protojax.detection.baselines.onion import (
    WordScores,
    outlier_level,
    without_outlier_words,
    word_outlier_scores,
)
from protojax.models import Model, hf
from protojax.training.predict import Lengths
from protojax.training.word_scores import mean_states, score_words
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
    corrupted = np.where(mask[..., None] == 1, hidden, np.nan)
    again = word_outlier_scores(corrupted, mask, words, trusted, num_neighbours=2)
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


# -- words of an encoder ------------------------------------------------------------

WORDS = ("good", "bad", "film", "plot", "cast", "dull", "fine")
LENGTHS = Lengths(max_length=12, buckets=(8, 16), evaluation_rows=16)


class Read(NamedTuple):
    """An encoder with a tokenizer, texts that it is trusted with, and their means."""

    encoder: Model
    held_out: Examples
    others: Examples
    means: np.ndarray

    def scores(self, rows, num_neighbours=10):
        return score_words(
            self.encoder,
            rows,
            self.means,
            num_neighbours=num_neighbours,
            lengths=LENGTHS,
        )


def rows_of(texts, pairs=None):
    return Examples(list(texts), pairs, np.zeros(len(texts), np.int32))


@pytest.fixture(scope="module")
def trusted():
    """An encoder to which the one word that no trusted text holds is unlike them."""
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
    table = np.array(encoder.params["embeddings"]["word"]["embedding"])
    common, other = rng.normal(size=(2, 16))
    table[:] = common + 0.2 * rng.normal(size=table.shape)
    table[tokenizer("zyx", add_special_tokens=False)["input_ids"]] = other
    encoder.params["embeddings"]["word"]["embedding"] = table
    references = rows_of(texts)
    others = data.take(references, np.arange(20, 60))
    means = mean_states(encoder, others, LENGTHS)
    return Read(encoder, data.take(references, np.arange(20)), others, means)


@functools.cache
def forward_of(config):
    """Rows to outputs, compiled once a shape: by itself, each operation would be."""
    return jax.jit(functools.partial(models.apply_fn(config), hidden_states=True))


def hidden_of(model, text, max_length=12):
    """The last hidden states of a text alone, and the word of each of its tokens."""
    found = model.tokenizer(text, truncation=True, max_length=max_length)
    ids = np.array([found["input_ids"]], np.int32)
    batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids), np.zeros(1, int), True)
    states = forward_of(model.config)(model.params, batch).hidden_states[-1]
    return np.asarray(states[0]), found.word_ids(0)


def test_mean_states_are_means_over_tokens_of_the_first_texts(trusted):
    texts = [*trusted.others.texts[:3], "good"]
    found = mean_states(trusted.encoder, rows_of(texts, ["a pair"] * 4), LENGTHS)
    for row, text in enumerate(texts):
        expected = hidden_of(trusted.encoder, text)[0].mean(0)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_words_of_texts_are_scored_as_in_a_loop(trusted):
    # Of two buckets, one too long for the model, one with a word of several tokens.
    texts = ["good film", "bad zyx plot cast dull", " ".join(WORDS * 2), "zz  film"]
    found = trusted.scores(rows_of(texts, ["a pair"] * 4), num_neighbours=3)
    assert found.scores.shape == found.words.shape == (4, 12)
    assert found.spans.shape == (4, 12, 2)
    several = False
    for row, text in enumerate(texts):
        hidden, words = hidden_of(trusted.encoder, text)
        whole = density(hidden.mean(0), trusted.means, 3)
        assert (found.scores[row, len(words) :] == -np.inf).all()
        assert (found.words[row, len(words) :] == -1).all()
        shown = {}
        for token, word in enumerate(words):
            if word is None:
                assert found.words[row, token] == -1
                assert found.scores[row, token] == -np.inf
                continue
            assert found.words[row, token] == word
            rest = [other != word for other in words]
            expected = density(hidden[rest].mean(0), trusted.means, 3) - whole
            np.testing.assert_allclose(found.scores[row, token], expected, atol=1e-5)
            start, end = found.spans[row, token]
            shown[word] = shown.get(word, "") + text[start:end]
            several |= words.count(word) > 1
        assert list(shown.values()) == text.split()[: len(shown)]
    assert several


def test_a_word_unlike_all_trusted_texts_goes(trusted):
    level = outlier_level(trusted.scores(trusted.held_out), outlier_share=0.1)
    given = ["good film zyx fine plot", "bad zyx cast", "zyx", "dull film"]
    rows = Examples(given, ["a pair"] * 4, np.array([0, 1, 0, 1]))
    found = without_outlier_words(rows, trusted.scores(rows), level)
    assert found.texts[0] == "good film fine plot"
    assert found.texts[1] == "bad cast"
    assert found.texts[2] == "zyx"  # nothing would be left
    assert found.pairs == rows.pairs
    assert found.labels is rows.labels
    # Words beyond the model's view do not move into it.
    long = rows_of(["zyx good zyx film zyx fine zyx plot"])
    found = without_outlier_words(long, trusted.scores(long), level)
    assert "fine" not in found.texts[0]
    assert "plot" not in found.texts[0]
    # On clean text no more than its share goes, give or take what 100 words tell.
    references = data.concatenate(trusted.held_out, trusted.others)
    clean = without_outlier_words(references, trusted.scores(references), level)
    lost = sum(map(len, map(str.split, references.texts))) - sum(
        map(len, map(str.split, clean.texts))
    )
    assert lost <= 0.2 * 300


# -- levels and texts ---------------------------------------------------------------


def scored(texts, values, length=8):
    """Scores of words that are one token each, between two tokens of no word."""
    scores = np.full((len(texts), length), -np.inf)
    words = np.full((len(texts), length), -1)
    spans = np.zeros((len(texts), length, 2), int)
    for row, text in enumerate(texts):
        found = list(re.finditer(r"\S+", text))[: length - 2]
        for word, (match, value) in enumerate(zip(found, values[row], strict=False)):
            scores[row, word + 1], words[row, word + 1] = value, word
            spans[row, word + 1] = match.span()
    return WordScores(scores, words, spans)


def test_the_level_is_a_quantile_over_words_not_tokens():
    words = scored(["a b c", "d e"], [[1.0, 2.0, 3.0], [4.0, 5.0]])
    assert outlier_level(words, outlier_share=0.5) == 3.0
    assert outlier_level(words, outlier_share=0.25) == 4.0
    # The last word gets a second token.
    words.words[1, 3], words.scores[1, 3] = 1, 5.0
    assert outlier_level(words, outlier_share=0.5) == 3.0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.9])
def test_a_share_of_trusted_words_exceed_the_level_up_to_one(share):
    values = np.random.default_rng(0).normal(size=(30, 5))
    words = scored(["a b c d e"] * 30, values)
    level = outlier_level(words, outlier_share=share)
    assert abs(np.sum(values > level) - 150 * share) < 1


@pytest.mark.parametrize("share", [0, 1, np.nan])
def test_a_share_of_outliers_out_of_range(share):
    with pytest.raises(ValueError, match="outlier_share in"):
        outlier_level(scored(["a"], [[1.0]]), outlier_share=share)


@pytest.mark.parametrize("texts", [[], [""], ["", " "]])
def test_texts_without_a_word_have_no_level(texts):
    with pytest.raises(ValueError, match="words > 0"):
        outlier_level(scored(texts, [[]] * len(texts)), outlier_share=0.5)


def test_a_score_that_is_not_finite_gives_no_level():
    with pytest.raises(ValueError, match="non-finite scores"):
        outlier_level(scored(["a b"], [[1.0, np.nan]]), outlier_share=0.5)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (9.0, ["one two three", "four five"]),
        (2.5, ["one two", "four"]),
        (2.0, ["one two", "four"]),
        (1.0, ["one", "four"]),
        (-np.inf, ["one two three", "four  five"]),  # nothing would be left
    ],
)
def test_words_above_the_level_go(level, expected):
    rows = rows_of(["one two three", "four  five"], ["x", "y"])
    words = scored(rows.texts, [[1.0, 2.0, 3.0], [0.5, 3.0]])
    found = without_outlier_words(rows, words, level)
    assert found.texts == expected
    assert found._replace(texts=rows.texts) == rows


def test_a_text_of_outliers_only_stays():
    rows = rows_of(["one", "two words"])
    words = scored(rows.texts, [[5.0], [5.0, 5.0]])
    assert without_outlier_words(rows, words, 0.0).texts == rows.texts


def test_what_has_no_score_is_cut_off():
    rows = rows_of(["a b c d e f g h", "a b"])
    words = scored(rows.texts, [[0, 9, 0, 9, 0, 0], [0, 9]])
    assert without_outlier_words(rows, words, 1.0).texts == ["a c e f", "a"]


def test_no_row_stays_no_row():
    none = rows_of([])
    assert without_outlier_words(none, scored([], []), 0.0) == none._replace(texts=[])


def test_scores_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same number of rows"):
        without_outlier_words(rows_of(["a"]), scored(["a", "b"], [[0], [0]]), 0.0)
