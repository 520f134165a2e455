"""Sequences for models that write, and what a teacher says along them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protojax import distillation, validate
from protojax.base import Array, PyTree, SequenceBatch, SequenceOutputs
from protojax.data import tokens as tokens_lib
from protojax.data.sequences import Sequences, check_same_tokens, tokenize_sequences
from protojax.detection.outputs import token_weights
from protojax.distillation.token_losses import over_tokens, top_k_targets
from protojax.models import language
from protojax.models.language import LanguageConfig, LanguageModel
from protojax.training.predict import Features, SequenceLengths, over_rows
from protojax.training.programs import TRACES, shape_of

_LAST = Features()


def tokenize(
    model: LanguageModel,
    sources: Sequence[str],
    outputs: Sequence[str],
    lengths: SequenceLengths,
    *,
    begin_id: int | None = None,
) -> Sequences:
    """The rows as a model's tokens; an output ends with the first of its end tokens.

    Args:
        model: the model with its tokenizer.
        sources: `[rows]`, texts.
        outputs: `[rows]`, texts.
        lengths: the maximum lengths.
        begin_id: see `tokenize_sequences`.
    """
    ends = model.config.end_ids
    validate.require(bool(ends), "end_ids", ends, "with the token that ends an output")
    return tokenize_sequences(
        model.tokenizer,
        sources,
        outputs,
        max_length=lengths.max_length,
        max_output=lengths.max_output,
        end_id=ends[0],
        begin_id=begin_id,
        vocab_size=model.config.vocab_size,
    )


def begin_id_of(model: LanguageModel) -> int | None:
    """The token that a model was trained to write first, None for most.

    Args:
        model: the model with its tokenizer.
    """
    # The start token of other families is the decoder's input and no output.
    bart = model.config.family == "bart"
    return model.tokenizer.bos_token_id if bart else None


def weights_without(
    model: LanguageModel,
    rows: Sequences,
    outputs: Sequence[str],
    masked: Sequence[Sequence[tuple[int, int]]],
) -> np.ndarray:
    """The weights of the tokens of outputs, 0 where a token has masked words.

    A column of a training run, `output_weights` of `SequenceBatch`.

    Args:
        model: its tokenizer, which made the rows, returns character offsets.
        rows: the rows.
        outputs: `[rows]`, their texts.
        masked: `[rows]`, the spans of words that shall not teach.

    Returns:
        `[rows, max_output]`, float32. The token that ends an output teaches.
    """
    ids, _, lengths, _ = rows.outputs
    places = np.zeros((*ids.shape, 2), int)
    found = model.tokenizer(
        list(outputs),
        add_special_tokens=False,
        truncation=True,
        max_length=ids.shape[1],
        return_offsets_mapping=True,
    )["offset_mapping"]
    begins = int(begin_id_of(model) is not None)
    for row, offsets in enumerate(found):
        # Without the token that ends the output.
        offsets = offsets[: lengths[row] - begins - 1]
        places[row, begins : begins + len(offsets)] = offsets
    return token_weights(places, masked)


def teacher_forced_outputs(
    teacher: LanguageModel,
    sequences: Sequences,
    lengths: SequenceLengths,
    *,
    tokenizer: Any,
    k: int = 16,
    features: Features = _LAST,
) -> SequenceOutputs:
    """A teacher's most probable tokens along given outputs, in the order of the rows.

    Args:
        teacher: the teacher with its tokenizer.
        sequences: the rows.
        lengths: how rows are padded.
        tokenizer: the tokenizer that made the rows, the student's.
        k: how many tokens are kept; the rest is one number. Of logits over the
            vocabulary none leaves the device.
        features: the hidden states of the sources to return.

    Raises:
        ValueError: the tokenizers differ, or a token id is outside the teacher's word
            embedding.
    """
    check_same_tokens(teacher.tokenizer, tokenizer)
    for tokens in sequences:
        tokens_lib.check_ids(tokens, teacher.config.vocab_size)
    outputs = sequences.outputs
    width = outputs.input_ids.shape[1]
    # Rows of the embedding beyond the tokenizer's are no tokens.
    real = min(len(teacher.tokenizer), teacher.config.vocab_size)
    forward = _top_k_of(teacher.config, k, real, width, features)
    found = over_rows(forward, teacher.params, sequences, lengths)
    return SequenceOutputs(outputs.input_ids, outputs.lengths, *found)


@functools.cache
def _top_k_of(
    config: LanguageConfig, k: int, vocabulary: int, width: int, features: Features
):
    """`(params, batch) -> SequenceOutputs[2:]`, compiled once per shape."""
    apply, head = language.apply_fn(config), language.head_fn(config)
    name = f"top {k}/{config.num_layers}x{config.hidden_size}"

    @jax.jit
    def forward(params: PyTree, batch: SequenceBatch):
        TRACES[name, shape_of(batch)] += 1
        output = apply(params, batch, hidden_states=True)

        def of_tokens(states: Array) -> tuple[Array, ...]:
            logits = head(params, states)[..., :vocabulary]
            ids, log_probs, rest = top_k_targets(logits, k)
            # Stored as float16, which has no number as low as those of no token.
            least = jnp.finfo(jnp.float16).min
            return ids, jnp.maximum(log_probs, least).astype(jnp.float16), rest

        def padded(found: Array) -> Array:
            # All buckets return one width, so that their rows can be joined.
            found = found[:, :width]
            widths = [(0, 0), (0, width - found.shape[1])] + [(0, 0)] * (found.ndim - 2)
            return jnp.pad(found, widths)

        targets = over_tokens(of_tokens, output.states, chunk=256)
        pooled = distillation.features(
            output,
            batch.attention_mask,
            layers=features.layers,
            pooling=features.pooling,
        )
        return *map(padded, targets), pooled

    return forward


def columns_of(
    outputs: SequenceOutputs, rows: Sequences | None = None
) -> dict[str, np.ndarray]:
    """A teacher's probabilities as columns of a training run, see `trainer.Run`.

    Args:
        outputs: what it said along the outputs that it wrote or read.
        rows: the outputs that are taught, where some have other tokens by now. Such a
            token has no weight: of it the teacher said nothing.
    """
    found = {
        "top_ids": outputs.top_ids,
        "top_log_probs": outputs.top_log_probs,
        "rest_log_prob": outputs.rest_log_prob,
        "teacher_features": outputs.features,
    }
    if rows is not None:
        same = outputs.ids == rows.outputs.input_ids
        found["output_weights"] = same.astype(np.float32)
    return found
