"""A teacher's probabilities along texts, for students with another tokenizer."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from protojax.base import Array, PyTree, SequenceBatch, Texts
from protojax.distillability.across import Targets, matched_targets, matched_tokens
from protojax.distillability.alignment import byte_spans, common_boundaries
from protojax.distillation.token_losses import over_tokens
from protojax.models.language import LanguageModel
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Ids, Shape, Written
from protojax.pipelines.distillability.experts import params_of, reader_of
from protojax.pipelines.distillability.holding import Query


def matched_of(
    student: LanguageModel, teacher: LanguageModel
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of tokens that two models have in common; the end of a text is one.

    Args:
        student: with its tokenizer.
        teacher: with its tokenizer.

    Returns:
        The student's ids and the teacher's, `[matched]`, int32.
    """
    models = student, teacher
    ids = np.stack(
        matched_tokens(*(model.tokenizer.get_vocab() for model in models)), axis=1
    )
    ends = np.array([model.config.end_ids[0] for model in models], np.int32)
    # Tokens without a row of embeddings have no probability.
    kept = (ids < list(map(decoding.vocabulary_of, models))).all(1)
    ids = np.concatenate([ends[None], ids[kept & (ids != ends).all(1)]])
    return ids[:, 0], ids[:, 1]


def across_columns(
    student: LanguageModel,
    query: Query,
    texts: Texts,
    written: Written,
    shape: Shape,
    *,
    k: int,
) -> tuple[np.ndarray, Targets]:
    """The student's tokens before which the teacher has a cut, and what it says there.

    Args:
        student: a decoder with its tokenizer.
        query: the teacher.
        texts: `[rows]`, prompts and outputs.
        written: the outputs as the student's tokens.
        shape: of the programs.
        k: tokens that are kept of those that both have, and of the others.

    Returns:
        `[rows, max_new]`, bool, and the teacher's targets, `[rows, max_new, ...]`.
    """
    teacher = query.model
    ours, theirs = matched_of(student, teacher)
    prompts = decoding.read_prompts(teacher, texts.sources, max_length=shape.width)
    spans, read = _spans(teacher, texts.outputs)
    # A power of two, so that few programs are compiled.
    longest = 1 + max(map(len, read))
    own = shape._replace(max_new=1 << (longest - 1).bit_length())
    ended = [True] * len(read)
    outputs = decoding.outputs_of(read, ended, teacher.config.end_ids[0], own.max_new)
    forward = _reader(
        *reader_of(teacher.config, query.experts),
        min(k, len(ours)),
        k,
        decoding.vocabulary_of(teacher),
        shape.chunk,
    )
    given = jax.device_put((params_of(teacher, query.experts), ours, theirs))
    said = decoding.over(forward, given, prompts, outputs, own)
    begins = np.zeros(written.where.shape, bool)
    places = np.zeros(begins.shape, int)
    student_spans, _ = _spans(student, texts.outputs)
    for row, sides in enumerate(zip(student_spans, spans, strict=True)):
        for first, second in _cuts(*sides):
            if first < begins.shape[1]:
                begins[row, first], places[row, first] = True, second
    rows = np.arange(len(places))[:, None]
    return begins, Targets(*(part[rows, places] for part in said))


def _spans(
    model: LanguageModel, texts: Sequence[str]
) -> tuple[list[np.ndarray], list[Ids]]:
    """The bytes of a model's tokens of each text, and the tokens."""
    found = model.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True
    )
    pairs = zip(texts, found["offset_mapping"], strict=True)
    return [byte_spans(*pair) for pair in pairs], found["input_ids"]


def _cuts(student: np.ndarray, teacher: np.ndarray) -> list[tuple[int, int]]:
    """The tokens of both before which both have a cut; the end of a text is one."""
    end = len(student), len(teacher)
    if not all(end):
        # A text without tokens in one of them: only its end may be compared.
        return [] if any(end) else [end]
    groups = common_boundaries(student, teacher)
    begun = [(g.first[0], g.second[0]) for g in groups if g.first and g.second]
    return [*begun, end]


@functools.cache
def _reader(
    states_of: Callable,
    logits_of: Callable,
    k: int,
    width: int,
    vocabulary: int,
    chunk: int,
) -> Callable[[PyTree, Array, Array, SequenceBatch], tuple[Array, ...]]:
    """`(params, student ids, teacher ids, batch) -> Targets` of each token."""

    @jax.jit
    def read(params: PyTree, ours: Array, theirs: Array, batch: SequenceBatch):
        def of_tokens(*states: Array) -> tuple[Array, ...]:
            logits = logits_of(params, *states)[..., :vocabulary]
            return tuple(matched_targets(logits, ours, theirs, k=k, width=width))

        return over_tokens(of_tokens, *states_of(params, batch), chunk=chunk)

    return read
