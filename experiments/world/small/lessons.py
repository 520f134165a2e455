"""Models that learn a small world, from scratch, on right texts of several styles."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.world.small.base import World
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
    """Settings of a model that learns a world.

    Attributes:
        world: with its problems.
        styles: of the texts; one that is there twice is twice as frequent.
        steps: of training, in tens.
        batch_size: texts of a step, of new problems each time.
        learning_rate: the peak.
        asked: prompts that are left out, because something is measured on them.
        shift: of the tokenizer, see `Tokens`.
    """

    world: World
    styles: tuple[str, ...]
    steps: int
    batch_size: int
    learning_rate: float
    asked: frozenset[str]
    shift: int = 0


def pretrained(
    folder: pathlib.Path, name: str, size: tuple[int, int], lesson: Lesson
) -> LanguageModel:
    """A model that has learned a world; kept in a folder.

    Args:
        folder: of all such models.
        name: of the model, from which its seed follows.
        size: layers and width.
        lesson: what it learns, and how.
    """
    world, asked = lesson.world.name, tuple(sorted(lesson.asked))
    said = repr((size, lesson._replace(world=world, asked=asked)))
    path = folder / f"{name}_{storage.fingerprint(said)[:12]}"
    if path.exists():
        return load_language_model(path)
    words = lesson.world.tokens.tokenizer(lesson.shift)
    seed = sum(map(ord, name))
    model = init_model(lesson.world.body(*size), seed=seed, tokenizer=words)
    optimizer = AdamW(learning_rate=lesson.learning_rate, warmup=0.05)
    dispatch, built = _dispatch_of(model.config, optimizer, lesson.world.text_tokens)
    params = distillation.student_params(model.params)
    state = init_state(params, built, num_steps=lesson.steps, seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(-(-lesson.steps // _STEPS)):
        batches = [texts_of(words, lesson, rng) for _ in range(_STEPS)]
        stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *batches)
        state, _ = dispatch(state, stacked)
    model = model._replace(params=jax.device_get(state.params["model"]))
    save_language_model(path, model)
    return model


def texts_of(words: Any, lesson: Lesson, rng: np.random.Generator) -> SequenceBatch:
    """Right texts as a batch; those of problems that are measured do not count.

    Args:
        words: the tokenizer.
        lesson: names the world and the rows.
        rng: of problems and styles.
    """
    world, size = lesson.world, lesson.batch_size
    texts = world.mixture(world.practice(size, rng, lesson.asked), rng, lesson.styles)
    ids = np.zeros((size, world.prompt_tokens), np.int32)
    mask = np.zeros_like(ids)
    for row, found in enumerate(words(list(texts.sources))["input_ids"]):
        # On the right, as decoders read prompts.
        ids[row, ids.shape[1] - len(found) :] = found
        mask[row, ids.shape[1] - len(found) :] = 1
    written = np.zeros((size, world.text_tokens), np.int32)
    weights = np.zeros(written.shape, np.float32)
    for row, found in enumerate(words(list(texts.outputs))["input_ids"]):
        written[row, : len(found) + 1] = [*found, words.eos_token_id]
        weights[row, : len(found) + 1] = 1
    where = np.array([prompt not in lesson.asked for prompt in texts.sources])
    return SequenceBatch(ids, mask, written, weights, where)


@functools.cache
def _dispatch_of(config: LanguageConfig, optimizer: AdamW, length: int):
    """The compiled steps of learning texts, and the optimiser."""
    loss = distillation.sequence_loss(
        apply_fn(config), head_fn(config), hard_weight=1, length=length
    )
    built = optimizer.build()
    return make_dispatch(make_step(distillation.mean_gradient(loss), built)), built
