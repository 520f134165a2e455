"""Students of `ATTACKERS`, trained: passive, adaptive, on texts of their own."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import distillation, validate
from protojax.base import Array, PyTree, SequenceBatch, Texts, TrainState
from protojax.data.sequences import check_same_tokens
from protojax.distillability.across import OtherTokens, across_loss
from protojax.distillability.long_horizon import OwnTexts, long_horizon_loss
from protojax.distillability.selection import Lessons, resampled
from protojax.distillability.students import ATTACKERS, Budget, Phase
from protojax.distillability.values import token_gate
from protojax.distillation.token_losses import (
    over_tokens,
    token_log_probs,
    top_k_targets,
)
from protojax.models.language import LanguageModel, apply_fn, head_fn
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.across import (
    Along,
    Matched,
    matched_of,
    read_along,
)
from protojax.pipelines.distillability.decoding import Ids, Shape, Written
from protojax.pipelines.distillability.experts import params_of, reader_of
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

    Teacher and student need the same tokenizer where probabilities of tokens teach, but
    for "other_tokens". Training is not kept on disk: it is short.

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
    if attacker.same_tokens:
        check_same_tokens(query.model.tokenizer, student.tokenizer)
    if "log_probs" in attacker.interface:
        # Probabilities along texts that are not given away would give them away.
        bound = f"None, as {name} learns from log probabilities"
        validate.require(query.shown is None, "shown", query.shown, bound)
    if query.experts is not None:
        query.experts.checked(query.model)
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
        model, asked = _learn(model, query, rows, keys[2 + number])
        budget += asked
    return Trained(model, budget, 0 if lessons is None else len(lessons.weights))


def learn_texts(
    student: LanguageModel, texts: Texts, settings: StudentSettings
) -> LanguageModel:
    """A student that has learned texts, without a teacher.

    Args:
        student: a decoder with its tokenizer.
        texts: the rows.
        settings: of the training.

    Raises:
        ValueError: there is no row.
    """
    validate.positive(texts=len(texts.sources))
    shape = Shape(
        settings.max_length, settings.max_new, settings.batch_size, settings.chunk
    )
    lessons = Lessons(texts, np.ones(len(texts.sources)))
    phase = ATTACKERS["sft"].phases[0]
    rows = _Rows(student, texts.sources, lessons, phase, settings, shape, 0)
    return _learn(student, Query(student), rows, jax.random.key(settings.seed))[0]


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
    model: LanguageModel, query: Query, rows: _Rows, key: Array
) -> tuple[LanguageModel, Budget]:
    """The model after a phase, and what it asked of the teacher meanwhile."""
    phase, settings, shape = rows.phase, rows.settings, rows.shape
    vocabulary = decoding.vocabulary_of(model)
    matched = matched_of(model, query.model) if phase.loss == "across" else None
    optimizer, dispatch = _dispatch_of(model, phase, settings, matched)
    params = distillation.student_params(model.params)
    state = init_state(
        params, optimizer, num_steps=settings.steps, seed=settings.seed + rows.number
    )
    rng = np.random.default_rng([settings.seed, rows.number])
    given = _given(rows, query, matched, rng)
    own_prompts = decoding.read_prompts(
        model, rows.prompts, max_length=settings.max_length
    )
    # Text alone teaches where the loss reads no probabilities.
    reads = phase.loss == "long_horizon" or phase.options.get("hard_weight", 1) < 1
    k = min(settings.top_k, vocabulary)
    read = read_fn(
        *reader_of(query.model.config, query.experts), k, vocabulary, shape.chunk
    )
    given_params = params_of(query.model, query.experts) if reads else None
    teacher_params = jax.tree.map(jnp.asarray, given_params)
    asked = Budget(0, 0)
    for key_ in jax.random.split(key, settings.steps):
        batch, own = _batch(model, state, given, own_prompts, rows, rng, key_)
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
    """Selected texts as tokens, in the order of training.

    Where the teacher has other tokens, `along` is what it says of the texts.
    """

    prompts: list[list[int]]
    written: Written
    weights: np.ndarray
    along: Along | None = None


def _given(
    rows: _Rows, query: Query, matched: Matched | None, rng: np.random.Generator
) -> _Given | None:
    """The selected texts, each as often as its weight says."""
    if rows.lessons is None or rows.phase.source == "own":
        return None
    texts = resampled(rows.lessons, rng)
    ids, written = tokens_of(rows.base, texts, rows.shape)
    weights = written.where.astype(np.float32)
    if rows.phase.gated:
        log_probs, _ = decoding.read_own(rows.base, ids, written, rows.shape, k=1)
        weights = token_gate(log_probs, written.where, share=rows.settings.gate)
    found = _Given(ids, written, weights)
    if matched is None:
        return found
    k = rows.settings.top_k
    along = read_along(rows.base, query, texts, matched, rows.shape, k=k)
    return found._replace(along=along)


def _batch(
    model: LanguageModel,
    state: TrainState,
    given: _Given | None,
    own_prompts: Sequence[Ids],
    rows: _Rows,
    rng: np.random.Generator,
    key: Array,
) -> tuple[SequenceBatch | OtherTokens, Budget]:
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
    batch = decoding.sequence_batch(prompts, written, rows.shape, **columns)
    if given is not None and given.along is not None:
        # No row is one's own in such a phase.
        return given.along.batch(batch, chosen), own
    return batch, own


@functools.cache
def _programs(config, loss, options, optimizer, vocabulary, chunk):
    """The optimiser and the compiled step of one kind of phase."""
    builder = {
        "sequence": distillation.sequence_loss,
        "long_horizon": long_horizon_loss,
        "across": across_loss,
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
    model: LanguageModel,
    phase: Phase,
    settings: StudentSettings,
    matched: Matched | None,
) -> tuple[Any, Any]:
    """The same, for a phase and settings."""
    names = [field.name for field in dataclasses.fields(AdamW)]
    optimizer = AdamW(**{name: getattr(settings, name) for name in names})
    options = dict(phase.options) | {"length": settings.length}
    if matched is not None:
        options["student_ids"] = (*matched.student.tolist(),)
    vocabulary, items = decoding.vocabulary_of(model), (*sorted(options.items()),)
    return _programs(
        model.config, phase.loss, items, optimizer, vocabulary, settings.chunk
    )


@functools.cache
def read_fn(
    states_of: Callable, logits_of: Callable, k: int, vocabulary: int, chunk: int
) -> Callable[[tuple[PyTree, ...], SequenceBatch], tuple[dict[str, Array], Array]]:
    """`(params, batch) -> what the teacher says of each token`, compiled.

    It gives the columns that `distillation.sequence_loss` reads, by their names, and
    the log probability of each token, `[batch, output_length]`.

    Args:
        states_of: see `experts.reader_of`.
        logits_of: likewise.
        k: the most probable tokens that are kept at each place.
        vocabulary: the number of tokens.
        chunk: tokens whose logits are in memory at once.
    """

    @jax.jit
    def read(params: PyTree, batch: SequenceBatch):
        def of_tokens(*columns: Array):
            *states, ids = columns
            logits = logits_of(params, *states)[..., :vocabulary]
            ids_k, log_probs, rest = top_k_targets(logits, k)
            return ids_k, log_probs, rest, token_log_probs(logits, ids)

        columns = *states_of(params, batch), batch.output_ids
        ids_k, log_probs, rest, own = over_tokens(of_tokens, *columns, chunk=chunk)
        top = {"top_ids": ids_k, "top_log_probs": log_probs, "rest_log_prob": rest}
        return top, own

    return read
