"""A teacher and a student compared along texts, whether or not they share tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from protojax.distillability.alignment import common_boundaries, span_log_probs
from protojax.distillability.traps import sampled_overlap
from protojax.models.language import LanguageModel
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Ids, Shape, Written
from protojax.pipelines.distillability.spans import read_again, written_spans

# Widths of prompts are multiples of it.
_STEP = 16


class Side(NamedTuple):
    """One of two models with its prompts and its texts.

    Attributes:
        model: a decoder with its tokenizer.
        prompts: `[rows]`, tokens.
        shape: of its programs.
        written: `[rows]`, the texts that it drew.
        texts: `[rows]`, the same as text.
    """

    model: LanguageModel
    prompts: Sequence[Ids]
    shape: Shape
    written: Written
    texts: Sequence[str]


class Compared(NamedTuple):
    """Two models' readings of the texts of one of them, the writer.

    Attributes:
        gaps: `[rows]`, nats a text, whose mean is KL(writer ‖ reader).
        positions: `[rows, places]`, parts of these, by token or common cut.
        where: `[rows, places]`, bool.
        overlap: the probability that both share, see `sampled_overlap` where tokens
            differ.
        tail_mass: of the teacher at these tokens, None where it has others.
        tail_share: see `tail_gradient_share`, or None.
    """

    gaps: np.ndarray
    positions: np.ndarray
    where: np.ndarray
    overlap: float
    tail_mass: float | None
    tail_share: float | None


def side_of(
    model: LanguageModel,
    prompts: Sequence[str],
    shape: Shape,
    key: jax.Array,
    *,
    room: int = 0,
) -> Side:
    """A model with a text that it draws for each prompt.

    Args:
        model: a decoder with its tokenizer.
        prompts: `[rows]`, in the form that it reads.
        shape: of its programs, which becomes as narrow as the prompts allow.
        key: of the draws.
        room: tokens of a beginning that may follow a prompt.
    """
    limit = shape.width - room
    ids = decoding.read_prompts(model, prompts, max_length=limit)
    longest = max(map(len, ids))
    # In steps, so that a few more prompts are not another program.
    longest = min(longest + -longest % _STEP, limit)
    shape = shape._replace(width=longest + room)
    written = decoding.draw(model, ids, shape, key=key)
    rows = range(len(prompts))
    texts = [decoding.text_of(model, written.tokens(row)) for row in rows]
    return Side(model, ids, shape, written, texts)


def share_tokens(teacher: Side, student: Side) -> bool:
    """Whether both models have the same tokens and read the same prompts."""
    ours, theirs = (side.model.tokenizer.get_vocab() for side in (teacher, student))
    return ours == theirs and list(teacher.prompts) == list(student.prompts)


def compare(
    teacher: Side, student: Side, *, on_teacher: bool, same: bool, k: int
) -> Compared:
    """Both models along the texts of one of them.

    Args:
        teacher: with its texts.
        student: with its texts.
        on_teacher: whose texts are read.
        same: see `share_tokens`.
        k: the tokens of the teacher that are no tail.
    """
    if same:
        return _by_tokens(teacher, student, on_teacher, k)
    return _by_cuts(teacher, student, on_teacher, k)


def _by_tokens(teacher: Side, student: Side, on_teacher: bool, k: int) -> Compared:
    """The comparison of models with the same tokens, exact over the vocabulary."""
    writer = teacher if on_teacher else student
    models = teacher.model, student.model
    vocabulary = min(map(decoding.vocabulary_of, models))
    found = decoding.read_pair(
        *models,
        writer.prompts,
        writer.written,
        writer.shape,
        k=min(k, vocabulary),
        vocabulary=vocabulary,
    )
    where = writer.written.where
    gaps = found.forward_kl if on_teacher else found.reverse_kl
    gaps = np.where(where, gaps, 0)
    return Compared(
        gaps.sum(1),
        gaps,
        where,
        float(found.overlap[where].mean()),
        float(found.tail_mass[where].mean()),
        float(found.tail_share[where].mean()),
    )


def _by_cuts(teacher: Side, student: Side, on_teacher: bool, k: int) -> Compared:
    """The comparison of models with other tokens, by log probabilities between cuts."""
    writer, reader = (teacher, student) if on_teacher else (student, teacher)
    k = min(k, decoding.vocabulary_of(writer.model))
    log_probs, tails = decoding.read_own(
        writer.model, writer.prompts, writer.written, writer.shape, k=k
    )
    read, spans = read_again(
        reader.model, writer.texts, writer.written.ended, reader.shape.width
    )
    shape = reader.shape._replace(max_new=read.ids.shape[1])
    theirs, _ = decoding.read_own(reader.model, reader.prompts, read, shape, k=1)
    parts, gaps = [], []
    for row, text in enumerate(writer.texts):
        ours = written_spans(writer.model, writer.written.tokens(row), text)
        sides = [
            _with_end(part, written.where[row])
            for part, written in ((ours, writer.written), (spans[row], read))
        ]
        values = log_probs[row, : len(sides[0])], theirs[row, : len(sides[1])]
        gaps.append(float(values[0].sum() - values[1].sum()))
        if not (len(sides[0]) and len(sides[1])):
            # An output without any token in one of both has no cuts.
            parts.append(np.array([gaps[-1]]))
            continue
        groups = common_boundaries(*sides)
        first = span_log_probs(values[0], [group.first for group in groups])
        second = span_log_probs(values[1], [group.second for group in groups])
        parts.append(first - second)
    where = np.arange(max(map(len, parts))) < np.array([[len(p)] for p in parts])
    positions = np.zeros(where.shape)
    positions[where] = np.concatenate(parts)
    tail = float(tails[writer.written.where].mean()) if on_teacher else None
    parts = positions[where]
    overlap = float(sampled_overlap(parts, np.zeros(len(parts))).mean())
    return Compared(np.array(gaps), positions, where, overlap, tail, None)


def _with_end(spans: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The spans, and an empty one of the end token where the output has it."""
    missing = int(where.sum()) - len(spans)
    end = spans[-1:, 1] if len(spans) else np.zeros(1, int)
    return np.concatenate([spans, np.repeat(end, 2 * missing).reshape(-1, 2)])
