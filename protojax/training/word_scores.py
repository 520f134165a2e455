"""Outlier scores of the words of a text, from an encoder, for ONION."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from protojax import models
from protojax.base import Batch, Examples
from protojax.detection.baselines.onion import WordScores, word_outlier_scores
from protojax.models import EncoderConfig, Model
from protojax.training import predict
from protojax.training.predict import Features, Lengths


def mean_states(encoder: Model, examples: Examples, lengths: Lengths) -> np.ndarray:
    """The mean hidden states of the rows' first texts, `[rows, dim]`."""
    first = examples._replace(pairs=None)
    return predict.ask(encoder, first, lengths, Features()).features[:, 0]


def score_words(
    encoder: Model,
    examples: Examples,
    trusted: np.ndarray,
    *,
    num_neighbours: int,
    lengths: Lengths,
) -> WordScores:
    """The outlier scores of the words of the rows' first texts.

    Args:
        encoder: a model whose tokenizer returns character offsets.
        examples: the rows.
        trusted: `[texts, dim]`, `mean_states` of trusted texts.
        num_neighbours: the number of trusted texts that a text is compared with.
        lengths: how rows are padded.
    """
    tokens = predict.tokenize(encoder, examples._replace(pairs=None), lengths)
    width = tokens.input_ids.shape[1]
    words = np.full(tokens.input_ids.shape, -1, np.int32)
    spans = np.zeros((*words.shape, 2), np.int32)
    encoded = encoder.tokenizer(
        list(examples.texts),
        truncation=True,
        max_length=width,
        return_offsets_mapping=True,
    )
    for row, length in enumerate(tokens.lengths):
        found = encoded.word_ids(row)[:length]
        words[row, :length] = [-1 if word is None else word for word in found]
        spans[row, :length] = encoded["offset_mapping"][row][:length]
    forward = _scores_of(encoder.config, width, num_neighbours)
    # Arguments, not constants of the program, which would be compiled for each model.
    given = (encoder.params, trusted)
    # The words travel as labels, the one column that is gathered with the tokens.
    (scores,) = predict.over_rows(forward, given, tokens, lengths=lengths, labels=words)
    return WordScores(scores, words, spans)


@functools.cache
def _scores_of(config: EncoderConfig, width: int, num_neighbours: int):
    """`((params, trusted), batch) -> (scores,)`, padded to one length.

    The word indices of the tokens are passed as the batch's labels.
    """
    apply = models.apply_fn(config)

    @jax.jit
    def forward(given, batch: Batch):
        params, trusted = given
        hidden = apply(params, batch, hidden_states=True).hidden_states[-1]
        length = hidden.shape[1]
        # The bucket may be longer or shorter than the tokenized rows.
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
        # What is padding, or was cut off, is never an outlier.
        empty = jnp.full((len(found), width), -jnp.inf)
        return (empty.at[:, :known].set(found[:, :known]),)

    return forward
