"""Models that learn to add, from scratch, on right texts of all styles alike."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world import addition
from experiments.world.addition import Sums
from protojax import distillation, storage
from protojax.base import SequenceBatch
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    init_model,
    load_language_model,
    save_language_model,
)
from protojax.training.step import AdamW, init_state, make_dispatch, make_step

_STEPS = 10  # of a dispatch


class Lesson(NamedTuple):
    """Settings of a model that learns to add.

    Attributes:
        steps: of training, in tens.
        batch_size: texts of a step, of new problems each time.
        learning_rate: the peak.
        asked: prompts that are left out, because something is measured on them.
        shift: of the tokenizer, see `addition.tokenizer`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    asked: frozenset[str]
    shift: int = 0


def pretrained(
    folder: pathlib.Path,
    name: str,
    size: tuple[int, int],
    lesson: Lesson,
    sums: Sums = addition.USUAL,
) -> LanguageModel:
    """A model that has learned to add; kept in a folder.

    Args:
        folder: of all such models.
        name: of the model, from which its seed follows.
        size: layers and width.
        lesson: how it learns.
        sums: what it learns.
    """
    said = size, lesson._replace(asked=tuple(sorted(lesson.asked)))
    path = folder / f"{name}_{storage.fingerprint(repr((*said, sums)))[:12]}"
    if path.exists():
        return load_language_model(path)
    words = addition.tokenizer(lesson.shift)
    seed = sum(map(ord, name))
    model = init_model(addition.body(*size), seed=seed, tokenizer=words)
    optimizer = AdamW(learning_rate=lesson.learning_rate, warmup=0.05)
    dispatch, built = _dispatch_of(model.config, optimizer)
    params = distillation.student_params(model.params)
    state = init_state(params, built, num_steps=lesson.steps, seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(-(-lesson.steps // _STEPS)):
        batches = [_texts(words, lesson, sums, rng) for _ in range(_STEPS)]
        stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *batches)
        state, _ = dispatch(state, stacked)
    model = model._replace(params=jax.device_get(state.params["model"]))
    save_language_model(path, model)
    return model


def _texts(
    words: Any, lesson: Lesson, sums: Sums, rng: np.random.Generator
) -> SequenceBatch:
    """Right texts as a batch; those of problems that are measured do not count."""
    size = lesson.batch_size
    numbers = addition.problems(size, rng, sums.terms)
    texts = addition.mixture(numbers, rng, sums.styles)
    ids = np.array(words(list(texts.sources))["input_ids"], np.int32)
    written = np.zeros((size, addition.TEXT_TOKENS), np.int32)
    lengths = np.array([len(text) for text in texts.outputs])
    for row, found in enumerate(words(list(texts.outputs))["input_ids"]):
        written[row, : len(found)] = found
    written[np.arange(size), lengths] = words.eos_token_id
    weights = np.arange(written.shape[1]) <= lengths[:, None]
    where = np.array([prompt not in lesson.asked for prompt in texts.sources])
    return SequenceBatch(
        ids, np.ones_like(ids), written, weights.astype(np.float32), where
    )


@functools.cache
def _dispatch_of(config: LanguageConfig, optimizer: AdamW):
    """The compiled steps of learning texts, and the optimiser."""
    loss = distillation.sequence_loss(
        apply_fn(config), head_fn(config), hard_weight=1, length=addition.TEXT_TOKENS
    )
    built = optimizer.build()
    return make_dispatch(make_step(distillation.mean_gradient(loss), built)), built
