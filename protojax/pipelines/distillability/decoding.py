"""Language models on the level of tokens: what they write, and what they say of it.

Prompts are padded on the left to one width, and batches to one size, so that each model
has one program of each kind, however many rows there are.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree, SequenceBatch
from protojax.distillability.traps import Readings, tail_mass, token_readings
from protojax.distillation.token_losses import (
    over_tokens,
    token_log_probs,
    top_k_targets,
)
from protojax.generation import generate
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
)
from protojax.pipelines.distillability.experts import Experts, writer_of

Ids = Sequence[int]


class Shape(NamedTuple):
    """The sizes of a model's programs.

    Attributes:
        width: tokens of a prompt, the beginning of an output included.
        max_new: the most tokens of an output, the stop token included.
        rows: of a batch.
        chunk: tokens whose logits are in memory at once.
    """

    width: int
    max_new: int
    rows: int = 16
    chunk: int = 64


class Written(NamedTuple):
    """Outputs of models, on the host.

    Attributes:
        ids: `[rows, max_new]`, int32, the stop token included, 0 beyond.
        where: `[rows, max_new]`, bool, the tokens.
        ended: `[rows]`, bool, whether a stop token is the last.
    """

    ids: np.ndarray
    where: np.ndarray
    ended: np.ndarray

    def tokens(self, row: int) -> list[int]:
        """The tokens of an output without the stop token."""
        size = int(self.where[row].sum()) - bool(self.ended[row])
        return self.ids[row, :size].tolist()


def read_prompts(
    model: LanguageModel, prompts: Sequence[str], *, max_length: int
) -> list[list[int]]:
    """The tokens of prompts; of one that is too long the last ones.

    Args:
        model: with its tokenizer.
        prompts: `[rows]`, in the form that the model reads.
        max_length: the most tokens.

    Raises:
        ValueError: without a tokenizer, or on a prompt without tokens.
    """
    validate.require(model.tokenizer is not None, "tokenizer", None, "a tokenizer")
    found = [ids[-max_length:] for ids in model.tokenizer(list(prompts))["input_ids"]]
    for row, ids in enumerate(found):
        validate.require(bool(ids), f"prompts[{row}]", prompts[row], "with a token")
    return found


def text_of(model: LanguageModel, ids: Ids) -> str:
    """The text of tokens, special ones left out."""
    return model.tokenizer.decode(ids, skip_special_tokens=True)


def draw(
    model: LanguageModel,
    prompts: Sequence[Ids],
    shape: Shape,
    *,
    key: Array,
    temperature: float = 1.0,
    experts: Experts | None = None,
) -> Written:
    """A text that the model draws for each prompt.

    Args:
        model: a decoder.
        prompts: `[rows]`, tokens.
        shape: of the programs.
        key: of the draws; that of a row depends on its place, not on the batch size.
        temperature: 0 for the most probable tokens.
        experts: that the model writes together with, or None.
    """
    config, functions = model.config, writer_of(model, experts)
    keys = jax.random.split(key, len(prompts))
    found = []
    for rows in _batches(len(prompts), shape.rows):
        ids, mask = _left_padded([prompts[row] for row in rows], shape)
        # The last batch is filled up with rows without tokens, and some key.
        of_rows = keys[jnp.asarray(np.resize(rows, shape.rows))]
        written = generate(
            *functions,
            jax.device_put(ids),
            jax.device_put(mask),
            max_new=shape.max_new,
            stop_ids=config.end_ids,
            pad_id=config.pad_id,
            key=of_rows if temperature > 0 else None,
            temperature=temperature,
        )
        parts = written.ids, written.where, written.ended
        found.append([part[: len(rows)] for part in jax.device_get(parts)])
    ids, where, ended = (np.concatenate(part) for part in zip(*found, strict=True))
    return Written(np.where(where, ids, 0), where, ended)


def outputs_of(rows: Sequence[Ids], ends: Sequence[bool], end_id: int, max_new: int):
    """Tokens as `Written`, cut to `max_new`, with the end token where one ended."""
    ids = np.zeros((len(rows), max_new), np.int32)
    where, ended = np.zeros(ids.shape, bool), np.zeros(len(rows), bool)
    for row, (tokens, ends_here) in enumerate(zip(rows, ends, strict=True)):
        tokens = [*tokens, *([end_id] if ends_here else [])]
        ended[row] = ends_here and len(tokens) <= max_new
        tokens = tokens[:max_new]
        ids[row, : len(tokens)], where[row, : len(tokens)] = tokens, True
    return Written(ids, where, ended)


def read_pair(
    teacher: LanguageModel,
    student: LanguageModel,
    prompts: Sequence[Ids],
    written: Written,
    shape: Shape,
    *,
    k: int,
    vocabulary: int,
) -> Readings:
    """Teacher's and student's readings of outputs, `[rows, max_new]` each, on the host.

    Args:
        teacher: a decoder.
        student: a decoder with the same tokens.
        prompts: `[rows]`, tokens.
        written: outputs for them.
        shape: of the programs. Of logits over the vocabulary those of `chunk` tokens
            are in memory, of both models.
        k: see `token_readings`.
        vocabulary: the number of tokens; rows of embeddings beyond it are left out.
    """
    forward = _pair_fn(teacher.config, student.config, k, vocabulary, shape.chunk)
    given = _on_device(teacher.params), _on_device(student.params)
    return Readings(*over(forward, given, prompts, written, shape))


def read_own(
    model: LanguageModel,
    prompts: Sequence[Ids],
    written: Written,
    shape: Shape,
    *,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A model's log probability of each token, and its tail mass there.

    Args:
        model: a decoder.
        prompts: `[rows]`, tokens.
        written: outputs for them.
        shape: of the programs.
        k: see `tail_mass`.
    """
    forward = _own_fn(model.config, k, vocabulary_of(model), shape.chunk)
    return over(forward, (_on_device(model.params),), prompts, written, shape)


def first_tokens(
    model: LanguageModel, prompts: Sequence[Ids], shape: Shape, *, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable first tokens of outputs, and their probabilities.

    Args:
        model: a decoder.
        prompts: `[rows]`, tokens.
        shape: of the programs.
        number: of tokens.

    Returns:
        Ids and probabilities, `[rows, number]`.
    """
    forward = _first_fn(model.config, number, vocabulary_of(model))
    empty = np.zeros((len(prompts), 1), np.int32)
    written = Written(empty, empty > 0, empty[:, 0] > 0)
    given = (_on_device(model.params),)
    ids, log_probs = over(forward, given, prompts, written, shape)
    return ids, np.exp(log_probs)


def vocabulary_of(model: LanguageModel) -> int:
    """The number of a model's tokens: embeddings may have more rows than that."""
    return min(len(model.tokenizer), model.config.vocab_size)


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
    """The rows of each batch."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count))


def _left_padded(prompts: Sequence[Ids], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[rows, width]`, filled up with rows without tokens."""
    ids = np.zeros((shape.rows, shape.width), np.int32)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        size = len(tokens)
        bound = f"<= width={shape.width}"
        validate.require(size <= shape.width, "tokens of a prompt", size, bound)
        ids[row, shape.width - size :], mask[row, shape.width - size :] = tokens, 1
    return ids, mask


def sequence_batch(
    prompts: Sequence[Ids], written: Written, shape: Shape, **columns: Any
) -> SequenceBatch:
    """Prompts and outputs as one batch of `shape.rows` rows.

    Args:
        prompts: `[rows]`, tokens, at most `shape.rows` of them.
        written: outputs for them.
        shape: of the batch.
        **columns: further fields, `[rows, ...]`.
    """
    ids, mask = _left_padded(prompts, shape)
    empty = shape.rows - len(prompts)

    def filled(column: np.ndarray) -> np.ndarray:
        column = np.asarray(column)
        return np.pad(column, [(0, empty)] + [(0, 0)] * (column.ndim - 1))

    return SequenceBatch(
        input_ids=ids,
        attention_mask=mask,
        output_ids=filled(written.ids),
        where=filled(np.ones(len(prompts), bool)),
        **{
            "output_weights": filled(written.where.astype(np.float32)),
            **{name: filled(column) for name, column in columns.items()},
        },
    )


def batches_of(
    prompts: Sequence[Ids], written: Written, shape: Shape
) -> Iterator[SequenceBatch]:
    """Batches of rows in their order, the last one filled up.

    Args:
        prompts: `[rows]`, tokens.
        written: outputs for them.
        shape: of the batches.
    """
    for rows in _batches(len(prompts), shape.rows):
        part = Written(*(column[rows] for column in written))
        yield sequence_batch([prompts[row] for row in rows], part, shape)


def over(
    forward: Callable[..., PyTree],
    given: tuple[PyTree, ...],
    prompts: Sequence[Ids],
    written: Written,
    shape: Shape,
) -> tuple[np.ndarray, ...]:
    """The outputs of a compiled function for all rows, joined, on the host.

    Args:
        forward: `(*given, batch) -> columns`, `[batch, ...]` each.
        given: what is the same for all batches.
        prompts: `[rows]`, tokens.
        written: outputs for them.
        shape: of the batches.
    """
    found = [
        jax.device_get(forward(*given, batch))
        for batch in batches_of(prompts, written, shape)
    ]
    # The last batch is filled up.
    columns = zip(*found, strict=True)
    return tuple(np.concatenate(column)[: len(prompts)] for column in columns)


def _on_device(params: PyTree) -> PyTree:
    """The parameters on the device, once for all batches."""
    return jax.device_put(params)


@functools.cache
def _pair_fn(
    teacher: LanguageConfig,
    student: LanguageConfig,
    k: int,
    vocabulary: int,
    chunk: int,
):
    """`(teacher params, student params, batch) -> Readings`, compiled once a shape."""
    head_t, head_s = head_fn(teacher), head_fn(student)

    @jax.jit
    def forward(params_t: PyTree, params_s: PyTree, batch: SequenceBatch):
        states_t = apply_fn(teacher)(params_t, batch).states
        states_s = apply_fn(student)(params_s, batch).states

        def of_tokens(states_t: Array, states_s: Array, ids: Array) -> Readings:
            return token_readings(
                head_s(params_s, states_s)[..., :vocabulary],
                head_t(params_t, states_t)[..., :vocabulary],
                ids,
                k=k,
            )

        columns = states_t, states_s, batch.output_ids
        return tuple(over_tokens(of_tokens, *columns, chunk=chunk))

    return forward


@functools.cache
def _own_fn(config: LanguageConfig, k: int, vocabulary: int, chunk: int):
    """`(params, batch) -> log probabilities and tail mass`."""
    head = head_fn(config)

    @jax.jit
    def forward(params: PyTree, batch: SequenceBatch):
        def of_tokens(states: Array, ids: Array) -> tuple[Array, Array]:
            logits = head(params, states)[..., :vocabulary]
            return token_log_probs(logits, ids), tail_mass(logits, k)

        states = apply_fn(config)(params, batch).states
        return over_tokens(of_tokens, states, batch.output_ids, chunk=chunk)

    return forward


@functools.cache
def _first_fn(config: LanguageConfig, number: int, vocabulary: int):
    """`(params, batch) -> ids and log probabilities of first tokens`."""

    @jax.jit
    def forward(params: PyTree, batch: SequenceBatch):
        states = apply_fn(config)(params, batch).states[:, 0]
        logits = head_fn(config)(params, states)[..., :vocabulary]
        return top_k_targets(logits, number)[:2]

    return forward
