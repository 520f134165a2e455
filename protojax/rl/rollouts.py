"""Rollouts: texts that a policy draws for prompts, with what training needs of them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, Examples, PyTree, SequenceBatch
from protojax.data.tokens import tokenize
from protojax.distillation.token_losses import over_tokens, token_log_probs
from protojax.generation import generate
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    split_layers,
    start_fn,
    step_fn,
)
from protojax.rl.policy import log_probs_of
from protojax.training.programs import TRACES, shape_of


class Prompts(NamedTuple):
    """Prompts as a model reads them, padded to one length.

    Attributes:
        input_ids: `[prompts, length]`, int32.
        attention_mask: `[prompts, length]`, int32, 1 on tokens and 0 on padding.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray

    def take(self, rows: np.ndarray) -> "Prompts":
        """Some of the prompts.

        Args:
            rows: `[taken]`, indices, which may repeat.
        """
        return Prompts(self.input_ids[rows], self.attention_mask[rows])


class Rollout(NamedTuple):
    """Texts that a policy drew; the draws of a prompt are neighbours.

    Attributes:
        sequences: prompts and texts. The ids are those that were drawn: a text that is
            tokenised again may have others.
        log_probs: `[rows, max_new]`, float32, of each token under the policy, by the
            forward pass that training uses; 0 beyond a text's end.
        reference_log_probs: `[rows, max_new]`, float32, under the original.
        kl: `[rows, max_new]`, float32, KL(policy ‖ original) of the next token after
            each prefix, over the whole vocabulary; 0 beyond a text's end. The mean over
            texts of its sum is the divergence of texts, with less noise than that of
            log ratios.
        ended: `[rows]`, bool, False for a text that was cut at `max_new`.
    """

    sequences: SequenceBatch
    log_probs: Array
    reference_log_probs: Array
    kl: Array
    ended: Array


def read_prompts(model: LanguageModel, texts: Sequence[str]) -> Prompts:
    """Prompts as a model's tokens, padded on the left, as decoders need.

    Args:
        model: the model with its tokenizer; an encoder-decoder's are padded on the
            right.
        texts: `[prompts]`, in the form that the model reads.

    Raises:
        ValueError: no tokenizer, no prompt, or a prompt without a token.
    """
    validate.positive(prompts=len(texts))
    validate.require(model.tokenizer is not None, "tokenizer", None, "a tokenizer")
    # Longer than any prompt, so that none is cut.
    longest = max(len(ids) for ids in model.tokenizer(list(texts))["input_ids"]) + 1
    tokens = tokenize(
        model.tokenizer,
        Examples(texts, None, np.zeros(len(texts), np.int32)),
        max_length=longest + model.tokenizer.num_special_tokens_to_add(False),
        vocab_size=model.config.vocab_size,
    )
    for row in np.flatnonzero(tokens.lengths == 0):
        validate.require(False, f"prompt {row}", texts[row], "with a token")
    width = int(tokens.lengths.max())
    mask = np.arange(width) < tokens.lengths[:, None]
    ids = np.where(mask, tokens.input_ids[:, :width], tokens.pad_id)
    if model.config.encoder_layers == 0:
        order = (np.arange(width) + tokens.lengths[:, None]) % width
        ids, mask = (np.take_along_axis(x, order, axis=1) for x in (ids, mask))
    return Prompts(ids.astype(np.int32), mask.astype(np.int32))


def rollout(
    config: LanguageConfig,
    params: PyTree,
    reference: PyTree,
    prompts: Prompts,
    key: Array,
    *,
    draws: int,
    max_new: int,
) -> Rollout:
    """Texts drawn from a policy at temperature 1, unfiltered.

    Any other distribution would not be the policy's: the first update would be off it.

    Args:
        config: the policy's, and the original's.
        params: the policy's parameters.
        reference: the original's.
        prompts: one of each prompt.
        key: a PRNG key.
        draws: texts of each prompt.
        max_new: the most tokens of a text, the stop token included.

    Returns:
        The texts, `[prompts * draws]`, on the device.

    Raises:
        ValueError: no draw, or no token that ends a text.
    """
    validate.positive(draws=draws, max_new=max_new)
    ends = config.end_ids
    validate.require(bool(ends), "end_ids", ends, "a token that ends a text")
    rows = np.repeat(np.arange(len(prompts.input_ids)), draws)
    given = prompts.take(rows)
    ids, mask = jax.device_put((given.input_ids, given.attention_mask))
    written = generate(
        start_fn(config),
        step_fn(config),
        split_layers(params),
        ids,
        mask,
        max_new=max_new,
        stop_ids=ends,
        pad_id=config.pad_id,
        key=key,
        temperature=1.0,
    )
    sequences, *found = _compare_fn(config)(
        params, reference, ids, mask, written.ids, written.where
    )
    return Rollout(sequences, *found, written.ended)


def texts_of(tokenizer: Any, found: Rollout) -> list[str]:
    """The texts of a rollout, without their stop token; special tokens are shown.

    A special token in the middle of a text is part of what was emitted. Left out, it
    would be free for the policy, and unseen by verifiers and proxies.

    Args:
        tokenizer: the policy's.
        found: on the host.
    """
    where = found.sequences.output_weights > 0
    sizes = where.sum(1) - np.asarray(found.ended)
    return [
        tokenizer.decode(
            ids[:size], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        for ids, size in zip(found.sequences.output_ids, sizes, strict=True)
    ]


@functools.cache
def score_fn(config: LanguageConfig) -> Callable[[PyTree, SequenceBatch], Array]:
    """The function `(params, batch) -> [rows, output_length]`, compiled once a shape.

    It gives the log probability of each output token, 0 where a token has no weight.

    Args:
        config: the model.
    """
    apply, head = apply_fn(config), head_fn(config)
    name = f"score/{config.num_layers}x{config.hidden_size}"

    @jax.jit
    def score(params: PyTree, batch: SequenceBatch) -> Array:
        TRACES[name, shape_of(batch)] += 1
        found = log_probs_of(apply, head, params, batch)
        return jnp.where(batch.output_weights > 0, found, 0)

    return score


@functools.cache
def _compare_fn(config: LanguageConfig):
    """`(params, reference, ids, mask, written, where)` to `Rollout[:-1]`."""
    apply, head = apply_fn(config), head_fn(config)
    name = f"rollout/{config.num_layers}x{config.hidden_size}"

    @jax.jit
    def compare(
        params: PyTree,
        reference: PyTree,
        input_ids: Array,
        attention_mask: Array,
        written: Array,
        where: Array,
    ) -> tuple[SequenceBatch, Array, Array, Array]:
        batch = SequenceBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_ids=jnp.where(where, written, 0),
            output_weights=where.astype(jnp.float32),
            where=where.any(1),
        )
        TRACES[name, shape_of(batch)] += 1

        def of_tokens(own: Array, original: Array, ids: Array) -> tuple[Array, ...]:
            logits = head(params, own), head(reference, original)
            log_q, log_p = (jax.nn.log_softmax(x, axis=-1) for x in logits)
            # 0 where a token is impossible: 0 times the log of 0 is NaN.
            q = jnp.exp(log_q)
            gaps = jnp.where(q > 0, q * (log_q - log_p), 0)
            return *(token_log_probs(x, ids) for x in logits), gaps.sum(-1)

        states = (apply(x, batch).states for x in (params, reference))
        found = over_tokens(of_tokens, *states, batch.output_ids, chunk=256)
        return batch, *(jnp.where(where, x, 0) for x in found)

    return compare
