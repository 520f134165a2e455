"""Students of `ATTACKERS`, trained: passive, adaptive, on texts of their own."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import distillation, validate
from protojax.base import Array, PyTree, SequenceBatch, TrainState
from protojax.data.sequences import check_same_tokens
from protojax.distillability.long_horizon import OwnTexts, long_horizon_loss
from protojax.distillability.selection import Lessons, resampled
from protojax.distillability.students import ATTACKERS, Budget, Phase
from protojax.distillability.values import token_gate
from protojax.distillation.token_losses import (
    over_tokens,
    token_log_probs,
    top_k_targets,
)
from protojax.models.language import LanguageConfig, LanguageModel, apply_fn, head_fn
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Ids, Shape, Written
from protojax.pipelines.distillability.holding import Query, held_of, tokens_of
from protojax.pipelines.distillability.settings import StudentSettings
from protojax.training.step import AdamW, init_state, make_dispatch, make_step


class Trained(NamedTuple):
    """A student after its training.

    Attributes:
        model: the student.
        budget: what it took from the teacher.
        lessons: texts that it learned from and did not write while it learned.
    """

    model: LanguageModel
    budget: Budget
    lessons: int


def train_student(
    name: str,
    student: LanguageModel,
    query: Query,
    prompts: Sequence[str],
    settings: StudentSettings,
) -> Trained:
    """A student of one kind, trained from a teacher that it may query.

    Teacher and student need the same tokenizer where probabilities of tokens teach.
    Training is not kept on disk: it is short.

    Args:
        name: in `ATTACKERS`.
        student: a decoder with its tokenizer, before training.
        query: the teacher.
        prompts: `[prompts]`, in the form that both read.
        settings: of the training.

    Raises:
        ValueError: an unknown name, tokenizers that differ, or something missing that
            the attack uses.
    """
    validate.one_of(ATTACKERS, name=name)
    validate.positive(prompts=len(prompts))
    attacker = ATTACKERS[name]
    if "log_probs" in attacker.interface:
        check_same_tokens(query.model.tokenizer, student.tokenizer)
    room = settings.max_new if "prefixes" in attacker.needs else 0
    width = settings.max_length + room
    shape = Shape(width, settings.max_new, settings.batch_size, settings.chunk)
    keys = jax.random.split(jax.random.key(settings.seed), 2 + len(attacker.phases))
    lessons, budget = None, Budget(0, 0)
    if attacker.select is not None:
        held, budget = held_of(name, student, query, prompts, settings, shape, keys[0])
        lessons = attacker.select(held)
        validate.positive(lessons=len(lessons.weights))
    base, model = student, student
    for number, phase in enumerate(attacker.phases):
        rows = _Rows(base, prompts, lessons, phase, settings, shape, number)
        model, asked = _learn(model, query.model, rows, keys[2 + number])
        budget += asked
    return Trained(model, budget, 0 if lessons is None else len(lessons.weights))


class _Rows(NamedTuple):
    """The input of a phase: all that `_learn` needs but models and key."""

    base: LanguageModel
    prompts: Sequence[str]
    lessons: Lessons | None
    phase: Phase
    settings: StudentSettings
    shape: Shape
    number: int


def _learn(
    model: LanguageModel, teacher: LanguageModel, rows: _Rows, key: Array
) -> tuple[LanguageModel, Budget]:
    """The model after a phase, and what it asked of the teacher meanwhile."""
    phase, settings, shape = rows.phase, rows.settings, rows.shape
    config, vocabulary = model.config, decoding.vocabulary_of(model)
    optimizer, dispatch = _dispatch_of(config, phase, settings, vocabulary)
    params = distillation.student_params(model.params)
    state = init_state(
        params, optimizer, num_steps=settings.steps, seed=settings.seed + rows.number
    )
    rng = np.random.default_rng([settings.seed, rows.number])
    given = _given(rows, rng)
    own_prompts = decoding.read_prompts(
        model, rows.prompts, max_length=settings.max_length
    )
    # Text alone teaches where the loss reads no probabilities.
    reads = phase.loss == "long_horizon" or phase.options["hard_weight"] < 1
    k = min(settings.top_k, vocabulary)
    read = _read_fn(teacher.config, k, vocabulary, shape.chunk)
    teacher_params = jax.tree.map(jnp.asarray, teacher.params) if reads else None
    asked = Budget(0, 0)
    for step, key_ in enumerate(jax.random.split(key, settings.steps)):
        batch, own = _batch(model, state, given, own_prompts, rows, step, rng, key_)
        if reads:
            top, log_probs = read(teacher_params, batch)
            batch = batch._replace(**top)
            if phase.loss == "long_horizon":
                batch = OwnTexts(batch, log_probs)
            asked += own
        state, _ = dispatch(state, jax.tree.map(lambda x: jnp.asarray(x)[None], batch))
    trained = jax.device_get(state.params["model"])
    return model._replace(params=trained), asked


class _Given(NamedTuple):
    """Selected texts as tokens, in the order of training."""

    prompts: list[list[int]]
    written: Written
    weights: np.ndarray


def _given(rows: _Rows, rng: np.random.Generator) -> _Given | None:
    """The selected texts, each as often as its weight says."""
    if rows.lessons is None or rows.phase.source == "own":
        return None
    texts = resampled(rows.lessons, rng)
    ids, written = tokens_of(rows.base, texts, rows.shape)
    weights = written.where.astype(np.float32)
    if rows.phase.gated:
        log_probs, _ = decoding.read_own(rows.base, ids, written, rows.shape, k=1)
        weights = token_gate(log_probs, written.where, share=rows.settings.gate)
    return _Given(ids, written, weights)


def _batch(
    model: LanguageModel,
    state: TrainState,
    given: _Given | None,
    own_prompts: Sequence[Ids],
    rows: _Rows,
    step: int,
    rng: np.random.Generator,
    key: Array,
) -> tuple[SequenceBatch, Budget]:
    """The texts of a step, and what the teacher has to score of the student's."""
    size, share = rows.settings.batch_size, rows.settings.own_share
    share = {"given": 0.0, "own": 1.0, "mixed": share}[rows.phase.source]
    # Whole numbers, so that the share is exact.
    count = round(share * size)
    prompts, parts, weights, own = [], [], [], Budget(0, 0)
    if count:
        chosen = rng.choice(len(own_prompts), count, replace=count > len(own_prompts))
        prompts += [own_prompts[row] for row in chosen]
        now = model._replace(params=state.params["model"])
        # All rows of the program are written: their number is fixed.
        written = decoding.draw(now, prompts, rows.shape, key=key)
        parts.append(written)
        weights.append(written.where.astype(np.float32))
        own = Budget(count, int(written.where.sum()))
    if count < size:
        chosen = rng.choice(
            len(given.prompts), size - count, replace=size - count > len(given.prompts)
        )
        prompts += [given.prompts[row] for row in chosen]
        parts.append(Written(*(column[chosen] for column in given.written)))
        weights.append(given.weights[chosen])
    written = Written(*map(np.concatenate, zip(*parts, strict=True)))
    columns = {"output_weights": np.concatenate(weights)}
    return decoding.sequence_batch(prompts, written, rows.shape, **columns), own


@functools.cache
def _programs(config, loss, options, optimizer, vocabulary, chunk):
    """The optimiser and the compiled step of one kind of phase."""
    builder = {
        "sequence": distillation.sequence_loss,
        "long_horizon": long_horizon_loss,
    }[loss]
    loss_fn = builder(
        apply_fn(config),
        head_fn(config),
        vocabulary=vocabulary,
        chunk=chunk,
        **dict(options),
    )
    built = optimizer.build()
    step = make_step(distillation.mean_gradient(loss_fn), built)
    return built, make_dispatch(step)


def _dispatch_of(
    config: LanguageConfig, phase: Phase, settings: StudentSettings, vocabulary: int
) -> tuple[Any, Any]:
    """The same, for a phase and settings."""
    names = [field.name for field in dataclasses.fields(AdamW)]
    optimizer = AdamW(**{name: getattr(settings, name) for name in names})
    options = tuple(sorted(phase.options.items()))
    return _programs(config, phase.loss, options, optimizer, vocabulary, settings.chunk)


@functools.cache
def _read_fn(config: LanguageConfig, k: int, vocabulary: int, chunk: int):
    """`(params, batch) -> what the teacher says of each token`, compiled."""
    head = head_fn(config)

    @jax.jit
    def read(params: PyTree, batch: SequenceBatch):
        def of_tokens(states: Array, ids: Array):
            logits = head(params, states)[..., :vocabulary]
            ids_k, log_probs, rest = top_k_targets(logits, k)
            return ids_k, log_probs, rest, token_log_probs(logits, ids)

        states = apply_fn(config)(params, batch).states
        columns = states, batch.output_ids
        ids_k, log_probs, rest, own = over_tokens(of_tokens, *columns, chunk=chunk)
        top = {"top_ids": ids_k, "top_log_probs": log_probs, "rest_log_prob": rest}
        return top, own

    return read
