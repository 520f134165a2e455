"""Takes words that do not belong out of transfer texts, as ONION does.

Reads what the defender has: the texts as they arrived, the references, an encoder.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from experiments import inference
from experiments.runtime import Context
from experiments.world import artifacts, scenario, trusted_model
from experiments.world.scenario import Cell
from protojax import data, models
from protojax.base import Batch, Examples
from protojax.detection.onion import word_outlier_scores
from protojax.models import Model


def without_outlier_words(context: Context, cell: Cell, examples: Examples) -> Examples:
    """Returns rows without the words that make them unlike trusted texts.

    A word goes if its score (`outliers.word_outlier_scores`) is one that no more than a
    share `filters.outlier_share` of the words of held-out references exceed. A text of
    outliers only stays as it is, and so do the second texts of pairs.

    Args:
        context: the study.
        cell: whose references are trusted.
        examples: the rows.

    Returns:
        The rows in their order.
    """
    config = context.config.filters
    judge = trusted_model.anchor(context, cell)
    encoder = _encoder(context, cell, judge.model)
    references = scenario.references(context, cell)
    others = np.setdiff1d(np.arange(len(references.texts)), judge.calibration)
    trusted = _means(context, encoder, data.take(references, others))
    held_out = data.take(references, judge.calibration)
    scores, words, _ = _scores(context, encoder, trusted, held_out)
    firsts = np.diff(words, axis=1, prepend=-1) > 0
    level = np.quantile(scores[firsts], 1 - config.outlier_share)
    scores, words, spans = _scores(context, encoder, trusted, examples)
    # What no score was given to would move up into the model's view.
    counts = (words >= 0).sum(1)
    ends = np.where(
        counts == counts.max(), spans[:, :, 1].max(1), np.iinfo(np.int32).max
    )
    texts = [
        _cut(text[:end], where[flagged])
        for text, end, where, flagged in zip(
            examples.texts, ends, spans, scores > level, strict=True
        )
    ]
    return examples._replace(texts=texts)


def _cut(text: str, spans: np.ndarray) -> str:
    """Returns a text without some stretches `[stretches, 2]` of its characters.

    >>> _cut("a cf good film", np.array([[2, 4]]))
    'a good film'
    """
    kept = np.ones(len(text), bool)
    for start, end in spans:
        kept[start:end] = False
    rest = "".join(letter for letter, keep in zip(text, kept, strict=True) if keep)
    return re.sub(r"\s+", " ", rest).strip() or text


def _encoder(context: Context, cell: Cell, tuned: Model) -> Model:
    """Returns the encoder as it was pretrained; the tuned one has eyes for classes."""
    section = context.config.anchor
    if section.model == "scratch":
        return tuned
    return artifacts.build_model(context, section, cell)


def _means(context: Context, encoder: Model, examples: Examples) -> np.ndarray:
    """Returns the mean hidden states `[rows, dim]` of some rows' first texts."""
    forward = inference.compiled_forward(encoder.config, (-1,), "mean")
    tokens = artifacts.tokenize(context, encoder, examples._replace(pairs=None))
    _, features = inference.over_rows(context, forward, encoder.params, tokens)
    return features[:, 0]


def _scores(context: Context, encoder: Model, trusted, examples: Examples):
    """Returns the score, the word and the characters of each token.

    Returns:
        Scores and words `[rows, max_length]`, -inf and -1 where no word is, and
        stretches of characters `[rows, max_length, 2]`.
    """
    tokens = artifacts.tokenize(context, encoder, examples._replace(pairs=None))
    width = tokens.input_ids.shape[1]
    words = np.full(tokens.input_ids.shape, -1, np.int32)
    spans = np.zeros((*words.shape, 2), np.int32)
    encoded = encoder.tokenizer(
        examples.texts, truncation=True, max_length=width, return_offsets_mapping=True
    )
    for row, length in enumerate(tokens.lengths):
        found = encoded.word_ids(row)[:length]
        words[row, :length] = [-1 if word is None else word for word in found]
        spans[row, :length] = encoded["offset_mapping"][row][:length]
    forward = _compiled_scores(
        encoder.config, width, context.config.filters.outlier_neighbours
    )
    (scores,) = inference.over_rows(
        context, forward, (encoder.params, trusted), tokens, labels=words
    )
    return scores, words, spans


@functools.cache
def _compiled_scores(model_config, width: int, num_neighbours: int):
    """Returns `((params, trusted), batch) -> (scores,)`, padded to one length.

    The words of the tokens come as the batch's labels.
    """
    apply = models.apply_fn(model_config)

    @jax.jit
    def forward(given, batch: Batch):
        params, trusted = given
        hidden = apply(params, batch, hidden_states=True).hidden_states[-1]
        length = hidden.shape[1]
        known = min(length, width)
        words = (
            jnp.full(hidden.shape[:2], -1).at[:, :known].set(batch.labels[:, :known])
        )
        found = word_outlier_scores(
            hidden,
            batch.attention_mask,
            words,
            trusted,
            num_neighbours=num_neighbours,
        )
        empty = jnp.full((len(found), width), -jnp.inf)
        return (empty.at[:, :known].set(found[:, :known]),)

    return forward
