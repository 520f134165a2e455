"""The material of a student of `ATTACKERS` before it learns, and its price."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from protojax import distillation, validate
from protojax.base import Array, Texts
from protojax.distillability.answers import answer_of
from protojax.distillability.selection import Held
from protojax.distillability.students import ATTACKERS, Budget
from protojax.distillability.values import hold_out_direction, learning_value
from protojax.models.language import LanguageConfig, LanguageModel, apply_fn, head_fn
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Shape, Written
from protojax.pipelines.distillability.experts import Experts
from protojax.pipelines.distillability.settings import StudentSettings
from protojax.pipelines.distillability.texts import drawn_texts


class Query(NamedTuple):
    """A teacher as a student may ask it, and what was asked.

    Attributes:
        model: the teacher.
        answer_of: text -> the answer in it; the rest is not given away where a student
            buys answers alone.
        prefix_of: prompt -> the beginning that a student with that interface writes.
        hold_out: trusted texts of the student, for those that use some.
        proxy: a second small model of the attacker, or None.
        experts: that the teacher writes and is read together with, a defence, or None.
        shown: text -> what of it is given away, a defence, such as the answer without
            the steps; None for all. Then there are no log probabilities.
        folder: where drawn texts are kept and found again, or None. Students of one
            teacher, seed and number of draws ask for the same texts.
    """

    model: LanguageModel
    answer_of: Callable[[str], str] = answer_of
    prefix_of: Callable[[str], str] | None = None
    hold_out: Texts | None = None
    proxy: LanguageModel | None = None
    experts: Experts | None = None
    shown: Callable[[str], str] | None = None
    folder: Path | None = None


def held_of(
    name: str,
    student: LanguageModel,
    query: Query,
    prompts: Sequence[str],
    settings: StudentSettings,
    shape: Shape,
    key: Array,
) -> tuple[Held, Budget]:
    """The student's material before it learns, and its price.

    Args:
        name: in `ATTACKERS`.
        student: before training.
        query: the teacher.
        prompts: `[prompts]`.
        settings: of the training.
        shape: of the programs.
        key: of the draws.
    """
    attacker, keys = ATTACKERS[name], jax.random.split(key, 2)
    held, budget = Held(list(prompts)), Budget(0, 0)
    begun = [""] * len(prompts)
    if "prefixes" in attacker.needs:
        bound = "given: this attack writes beginnings"
        validate.require(query.prefix_of is not None, "prefix_of", None, bound)
        begun = [query.prefix_of(prompt) for prompt in prompts]
        held = held._replace(prefixes=begun)
    if "texts" in attacker.needs or "answers" in attacker.needs:
        draws = settings.draws if attacker.draws else 1
        asked = [a + b for a, b in zip(prompts, begun, strict=True)]
        # An answer is asked for as a buyer does: the most probable one.
        cold = attacker.greedy or "answers" in attacker.needs
        texts, tokens, _ = drawn_texts(
            query.model,
            asked,
            shape,
            draws=draws,
            key=keys[0],
            temperature=0.0 if cold else 1.0,
            experts=query.experts,
            folder=query.folder,
        )
        if "answers" in attacker.needs:
            answers = [query.answer_of(text) for (text,) in texts]
            tokens = _tokens(query.model, answers)
            held = held._replace(answers=answers)
        else:
            if query.shown is not None:
                texts = [[query.shown(text) for text in several] for several in texts]
                tokens = _tokens(query.model, itertools.chain.from_iterable(texts))
            held = held._replace(texts=texts)
        budget += Budget(len(prompts) * draws, tokens)
    if "own" in attacker.needs:
        own = drawn_texts(
            student,
            prompts,
            shape,
            draws=settings.own_draws,
            key=keys[1],
            folder=query.folder,
        ).texts
        found = [[query.answer_of(text) for text in several] for several in own]
        held = held._replace(own=own, own_answers=found)
    if "scores" in attacker.needs:
        held = held._replace(scores=_scores(student, held, shape))
    if "proxy_scores" in attacker.needs:
        bound = "given: this attack reads texts with it"
        validate.require(query.proxy is not None, "proxy", None, bound)
        held = held._replace(proxy_scores=_scores(query.proxy, held, shape))
    if "values" in attacker.needs:
        bound = "given: this attack compares with a few trusted texts"
        validate.require(query.hold_out is not None, "hold_out", None, bound)
        held = held._replace(values=_values(student, held, query.hold_out, shape))
    return held, budget


def _tokens(model: LanguageModel, texts: Iterable[str]) -> int:
    """How many tokens texts have together, without stop tokens."""
    found = (
        model.tokenizer(text, add_special_tokens=False).input_ids for text in texts
    )
    return sum(map(len, found))


def tokens_of(
    model: LanguageModel, texts: Texts, shape: Shape
) -> tuple[list[list[int]], Written]:
    """Prompts and outputs as a model's tokens; each output ends.

    Args:
        model: with its tokenizer.
        texts: the rows.
        shape: bounds prompts and outputs.
    """
    ids = decoding.read_prompts(model, texts.sources, max_length=shape.width)
    found = model.tokenizer(list(texts.outputs), add_special_tokens=False)["input_ids"]
    ends = [True] * len(found)
    end_id = model.config.end_ids[0]
    return ids, decoding.outputs_of(found, ends, end_id, shape.max_new)


def _texts(held: Held) -> Texts:
    """All texts of the teacher with their prompts."""
    draws = [len(drawn) for drawn in held.texts]
    sources = [p for p, n in zip(held.prompts, draws, strict=True) for _ in range(n)]
    return Texts(sources, [text for drawn in held.texts for text in drawn])


def _scores(model: LanguageModel, held: Held, shape: Shape) -> np.ndarray:
    """Log probability a token of each text under a model, `[prompts, draws]`."""
    ids, written = tokens_of(model, _texts(held), shape)
    log_probs, _ = decoding.read_own(model, ids, written, shape, k=1)
    counts = np.maximum(written.where.sum(1), 1)
    scores = np.where(written.where, log_probs, 0).sum(1) / counts
    return scores.reshape(len(held.texts), -1)


def _values(
    student: LanguageModel, held: Held, hold_out: Texts, shape: Shape
) -> np.ndarray:
    """The learning value of each text, `[prompts, draws]`."""
    vocabulary = decoding.vocabulary_of(student)
    direction_of, value_of = _value_fns(student.config, vocabulary, shape.chunk)
    params = distillation.student_params(student.params)
    batches = decoding.batches_of(*tokens_of(student, hold_out, shape), shape)
    slopes = [direction_of(params, batch) for batch in batches]
    direction = jax.tree.map(lambda *parts: sum(parts) / len(parts), *slopes)
    batches = decoding.batches_of(*tokens_of(student, _texts(held), shape), shape)
    values = [np.asarray(value_of(params, batch, direction)) for batch in batches]
    count = sum(len(drawn) for drawn in held.texts)
    return np.concatenate(values)[:count].reshape(len(held.texts), -1)


@functools.cache
def _value_fns(config: LanguageConfig, vocabulary: int, chunk: int):
    """The compiled functions of `hold_out_direction` and `learning_value`."""
    loss_fn = distillation.sequence_loss(
        apply_fn(config),
        head_fn(config),
        hard_weight=1.0,
        vocabulary=vocabulary,
        chunk=chunk,
    )
    return tuple(
        jax.jit(functools.partial(function, loss_fn))
        for function in (hold_out_direction, learning_value)
    )
