"""A teacher's probabilities along texts, for students with another tokenizer."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree, SequenceBatch, Texts
from protojax.distillability.across import (
    OtherTokens,
    Targets,
    matched_targets,
    matched_tokens,
)
from protojax.distillability.alignment import common_boundaries
from protojax.distillation.token_losses import over_tokens
from protojax.models.language import LanguageModel
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Shape
from protojax.pipelines.distillability.experts import params_of, reader_of
from protojax.pipelines.distillability.holding import Query
from protojax.pipelines.distillability.spans import read_again, token_texts


class Matched(NamedTuple):
    """The tokens that two models have in common, `[matched]` each, int32.

    Attributes:
        student: ids; that of the end of a text is the first.
        teacher: ids of the same tokens.
    """

    student: np.ndarray
    teacher: np.ndarray


class Along(NamedTuple):
    """A teacher's predictions along texts, and the student's tokens that they are of.

    Attributes:
        said: `[rows, teacher's tokens, ...]`, the predictions of its own tokens.
        begins: `[rows, max_new]`, bool, the student's tokens that are the teacher's at
            the same place of the text.
        places: `[rows, max_new]`, int, the number of that token of the teacher's.
    """

    said: Targets
    begins: np.ndarray
    places: np.ndarray

    def batch(self, batch: SequenceBatch, rows: np.ndarray) -> OtherTokens:
        """Some rows as a batch of a student.

        Args:
            batch: their texts, in the student's tokens.
            rows: `[batch]`, int, their numbers.
        """
        at = rows[:, None], self.places[rows]
        return OtherTokens(
            batch, self.begins[rows], Targets(*(part[at] for part in self.said))
        )


def matched_of(student: LanguageModel, teacher: LanguageModel) -> Matched:
    """The tokens that two models have in common; the end of a text is one.

    Args:
        student: with its tokenizer.
        teacher: with its tokenizer.

    Raises:
        ValueError: the id of a model's end is no token of it.
    """
    models = student, teacher
    bounds = [*map(decoding.vocabulary_of, models)]
    for model, most in zip(models, bounds, strict=True):
        for end in model.config.end_ids:
            validate.require(end < most, "end_ids", end, f"< {most}, the tokens")
    pairs = [np.stack(matched_tokens(*both), axis=1) for both in _names(*models)]
    ids = np.concatenate(pairs)
    ends = [np.isin(ids[:, n], models[n].config.end_ids) for n in range(2)]
    # Tokens without a row of embeddings have no probability.
    ids = ids[(ids < bounds).all(1) & ~ends[0] & ~ends[1]]
    first = np.array([[model.config.end_ids[0] for model in models]], np.int32)
    return Matched(*np.concatenate([first, ids]).T)


def _names(
    student: LanguageModel, teacher: LanguageModel
) -> list[tuple[Mapping[str, int], Mapping[str, int]]]:
    """The names of the tokens of two models, in groups in which a name is one token."""
    made = student.tokenizer, teacher.tokenizer
    vocabularies = tuple(one.get_vocab() for one in made)
    if vocabularies[0] == vocabularies[1]:
        return [vocabularies]
    # Special tokens are no text.
    special = (
        dict(zip(one.all_special_tokens, one.all_special_ids, strict=True))
        for one in made
    )
    return [tuple(map(token_texts, made)), tuple(special)]


def read_along(
    student: LanguageModel,
    query: Query,
    texts: Texts,
    matched: Matched,
    shape: Shape,
    *,
    k: int,
) -> Along:
    """A teacher's predictions along texts, for a student with another tokenizer.

    Args:
        student: a decoder with its tokenizer.
        query: the teacher.
        texts: `[rows]`, prompts and outputs.
        matched: of both, see `matched_of`.
        shape: of the programs; of longer outputs the beginnings count.
        k: tokens that are kept of those that both have, and of the others.
    """
    teacher = query.model
    prompts = decoding.read_prompts(teacher, texts.sources, max_length=shape.width)
    ended = [True] * len(prompts)
    outputs, spans = read_again(teacher, texts.outputs, ended, shape.width)
    own = shape._replace(max_new=outputs.ids.shape[1])
    forward = _reader(
        *reader_of(teacher.config, query.experts),
        min(k, len(matched.teacher)),
        k,
        decoding.vocabulary_of(teacher),
        teacher.config.end_ids,
        shape.chunk,
    )
    given = jax.device_put((params_of(teacher, query.experts), *matched))
    said = Targets(*decoding.over(forward, given, prompts, outputs, own))
    written, own_spans = read_again(student, texts.outputs, ended, shape.width)
    pairs = {*zip(*(ids.tolist() for ids in matched), strict=True)}
    begins = np.zeros((len(prompts), shape.max_new), bool)
    places = np.zeros(begins.shape, int)
    for row, sides in enumerate(zip(own_spans, spans, strict=True)):
        for ours, theirs in _cuts(*sides):
            if ours >= shape.max_new or theirs >= own.max_new:
                break
            pair = int(written.ids[row, ours]), int(outputs.ids[row, theirs])
            begins[row, ours], places[row, ours] = pair in pairs, theirs
    return Along(said, begins, places)


def _cuts(student: np.ndarray, teacher: np.ndarray) -> list[tuple[int, int]]:
    """The tokens of both before which both have a cut; the end of a text is one."""
    end = len(student), len(teacher)
    if not all(end):
        # A text without tokens for one of them is compared where it has none for both.
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
    ends: tuple[int, ...],
    chunk: int,
) -> Callable[[PyTree, Array, Array, SequenceBatch], tuple[Array, ...]]:
    """`(params, student ids, teacher ids, batch) -> Targets` of each token."""

    @jax.jit
    def read(params: PyTree, ours: Array, theirs: Array, batch: SequenceBatch):
        def of_tokens(*states: Array) -> tuple[Array, ...]:
            logits = logits_of(params, *states)[..., :vocabulary].astype(jnp.float32)
            # A text may have several ends; for a student they are one.
            end = jax.nn.logsumexp(logits[..., ends], axis=-1)
            logits = logits.at[..., ends].set(-1e30).at[..., ends[0]].set(end)
            return tuple(matched_targets(logits, ours, theirs, k=k, width=width))

        return over_tokens(of_tokens, *states_of(params, batch), chunk=chunk)

    return read
