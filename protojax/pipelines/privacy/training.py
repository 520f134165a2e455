"""Pipelines from private rows to a model that is shipped, several side by side.

Tokenizers and numbers of epochs come from public rows alone. What a pipeline learned
from private rows is its teachers; their answers on transfer rows are all that its
student sees.
"""

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from protojax.base import PyTree
from protojax.federated import nodes
from protojax.models import EncoderConfig
from protojax.models.encoder import init_params, param_shapes
from protojax.pipelines.privacy import _replicas
from protojax.pipelines.privacy._replicas import Lesson
from protojax.pipelines.privacy.accounting import noise_of
from protojax.pipelines.privacy.answers import soft_answers, votes
from protojax.pipelines.privacy.settings import Noise, Recipe
from protojax.pipelines.privacy.shared import Learner, Shared, drawn_head
from protojax.pipelines.settings import Encoder
from protojax.training import plans, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.predict import Lengths
from protojax.training.step import TrainConfig

# A private step computes the gradient of each row.
_NOISY_COST = 3.0
# The deviation of `models.init_params`.
_USUAL = 0.02
# The parts of a pipeline, each with draws of its own.
_TEACHER, _STUDENT, _SHARDS, _VOTES = range(4)


class Outcome(NamedTuple):
    """The result of one recipe in K pipelines.

    Attributes:
        logits: `[K, rows, classes]`, float32, of the shipped model on all rows.
        params: of the shipped models, `[K, ...]`.
    """

    logits: np.ndarray
    params: PyTree


def run_family(
    shared: Shared,
    recipes: Mapping[str, Recipe],
    members: np.ndarray,
    numbers: Sequence[int],
) -> dict[str, Outcome]:
    """The results of recipes that share a teacher, in K pipelines side by side.

    Args:
        shared: what the pipelines have in common.
        recipes: name -> recipe, all of one family.
        members: `[K, private rows]`, bool, the rows that each pipeline learns from.
        numbers: `[K]`, of the pipelines: their own seeds.
    """
    family = next(iter(recipes.values())).family
    private, _, _ = shared.rows.places
    own = [private[row] for row in np.asarray(members, bool)]
    parts = [
        _shards(shared, rows, family, number)
        for rows, number in zip(own, numbers, strict=True)
    ]
    answers = []
    for shard in range(family.shards):
        learned = [part[shard] for part in parts]
        params, logits = _teacher(shared, family, learned, numbers, shard)
        answers.append(logits)
    found = {}
    for name, recipe in recipes.items():
        if recipe.shipped == "teacher":
            found[name] = Outcome(answers[0], params)
        else:
            found[name] = _student(shared, recipe, np.stack(answers, 1), own, numbers)
    return found


def _draws(shared: Shared, number: int, *part: int) -> np.random.Generator:
    """The random draws of one part of one pipeline that need not be secret."""
    return np.random.default_rng((shared.seed, number, *part))


def _shards(
    shared: Shared, rows: np.ndarray, family: Recipe, number: int
) -> list[np.ndarray]:
    """The rows of each of a pipeline's teachers."""
    if family.shards == 1:
        return [rows]
    order = _draws(shared, number, _SHARDS).permutation(len(rows))
    return np.array_split(rows[order], family.shards)


def _teacher(
    shared: Shared,
    family: Recipe,
    learned: Sequence[np.ndarray],
    numbers: Sequence[int],
    shard: int,
) -> tuple[PyTree, np.ndarray]:
    """The teachers of one shard in all pipelines, and their logits on all rows."""
    labels = np.asarray(shared.rows.all.labels)
    labels = np.broadcast_to(labels, (len(numbers), len(labels)))
    targets = None
    if family.smoothing:
        classes = shared.rows.num_labels
        share = (1 - family.smoothing) * np.eye(classes) + family.smoothing / classes
        targets = np.log(share, dtype=np.float32)[labels]
    return _taught(
        shared,
        family.teacher,
        family.teacher_noise,
        learned,
        labels,
        targets,
        numbers,
        (_TEACHER, shard),
    )


def _student(
    shared: Shared,
    recipe: Recipe,
    answers: np.ndarray,
    own: Sequence[np.ndarray],
    numbers: Sequence[int],
) -> Outcome:
    """The students of one recipe in all pipelines.

    Args:
        shared: what the pipelines have in common.
        recipe: of the students.
        answers: `[K, shards, rows, classes]`, the teachers' logits on all rows.
        own: the rows that each pipeline learns from.
        numbers: `[K]`, of the pipelines.
    """
    learned = own
    if recipe.transfer != "members":
        learned = [shared.rows.transfer(recipe.transfer)] * len(own)
    labels = np.zeros(answers.shape[:1] + answers.shape[2:3], np.int32)
    targets = None
    if recipe.answers == "soft":
        targets = soft_answers(answers)
    elif recipe.answers == "hard":
        labels = soft_answers(answers).argmax(-1)
    else:
        secret = not recipe.teacher_noise.reproducible
        rngs = [
            np.random.default_rng(secrets.randbits(128))
            if secret
            else _draws(shared, number, _VOTES)
            for number in numbers
        ]
        labels = votes(answers, recipe.vote_noise, rngs)
    params, logits = _taught(
        shared,
        recipe.student,
        recipe.student_noise,
        learned,
        labels,
        targets,
        numbers,
        (_STUDENT, 0),
        temperature=recipe.temperature,
    )
    return Outcome(logits, params)


def _taught(
    shared: Shared,
    encoder: Encoder,
    noise: Noise,
    learned: Sequence[np.ndarray],
    labels: np.ndarray,
    targets: np.ndarray | None,
    numbers: Sequence[int],
    part: tuple[int, int],
    *,
    temperature: float = 1.0,
) -> tuple[PyTree, np.ndarray]:
    """The models of one part of all pipelines, and their logits on all rows."""
    learner = shared.learners[encoder]
    config = learner.model.config
    train = noise.over(encoder)
    objective = _objective(noise, train, len(learned[0]), targets, temperature)
    rngs = [_draws(shared, number, *part) for number in numbers]
    seeds = [int(rng.integers(2**31)) for rng in rngs]
    secret = noise.used and not noise.reproducible
    plan_seeds = [secrets.randbits(128) if secret else seed for seed in seeds]
    lesson = Lesson(
        _plans(learned, train, shared, plan_seeds, private=noise.used),
        labels,
        targets,
        objective,
        train.optimizer,
    )
    params = [initial_params(learner, seed) for seed in seeds]
    cost = trainer.row_cost(config) * (_NOISY_COST if noise.used else 1.0)
    trained = _replicas.train(
        config,
        params,
        learner.held,
        lesson,
        shared.machine,
        seeds=[None if secret else seed for seed in seeds],
        on_progress=lambda rows: shared.on_progress(rows * cost),
    )
    logits = _replicas.read(config, trained, learner.held, shared.machine)
    return nodes.gather(trained["model"], shared.machine.mesh), logits


def initial_params(learner: Learner, seed: int) -> PyTree:
    """The parameters that a model of one pipeline starts from.

    Args:
        learner: from scratch, or pretrained with a head or without.
        seed: of what is fresh.
    """
    config = learner.model.config
    if learner.fresh:
        return fresh_params(config, seed)
    if not learner.head:
        return learner.model.params
    return {**learner.model.params, **drawn_head(config, learner.head, seed)}


def fresh_params(config: EncoderConfig, seed: int) -> PyTree:
    """Fresh parameters whose linear layers keep the size of what they are given.

    A kernel has deviation 1 / √inputs in place of the usual 0.02, which suits widths
    of hundreds: with a width of 64 it makes of every text nearly the same vector, and
    a thousand rows hardly train the encoder.

    Args:
        config: of the encoder.
        seed: a tensor's values depend on it and on the tensor's path.
    """

    def scaled(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        return leaf * (leaf.shape[0] ** -0.5 / _USUAL)

    drawn = init_params(param_shapes(config), seed=seed)
    return jax.tree.map_with_path(scaled, drawn)


def _objective(
    noise: Noise,
    train: TrainConfig,
    rows: int,
    targets: np.ndarray | None,
    temperature: float,
) -> Objective:
    """The objective of a model."""
    loss, gradient = Spec("supervised"), Spec("mean")
    if targets is not None:
        loss = Spec("distillation", {"temperature": temperature})
    if noise.used:
        options = {
            "clip_norm": noise.clip_norm,
            "noise_multiplier": noise_of(noise, rows),
            "expected_rows": train.batch_size,
            "microbatch": noise.microbatch,
            "frozen": noise.frozen,
        }
        gradient = Spec("dp_sgd", options)
    return Objective(loss, gradient=gradient)


def _plans(
    learned: Sequence[np.ndarray],
    train: TrainConfig,
    shared: Shared,
    seeds: Sequence[int],
    *,
    private: bool,
) -> list[np.ndarray]:
    """The rows of each pipeline's steps, `[steps, batch]`, of one batch size."""
    # Of one length: nothing but row numbers may differ between pipelines.
    alike = Lengths(1, (1,), steps_per_dispatch=1)
    make = plans.poisson_plan if private else plans.epochs_plan
    found = []
    for rows, seed in zip(learned, seeds, strict=True):
        plan = make(np.ones(len(rows), np.int32), train, alike, seed)
        steps = np.concatenate([item.rows for item in plan])
        found.append(np.where(steps >= 0, rows[steps], -1))
    widest = max(steps.shape[1] for steps in found)
    if private:
        # Four deviations above the mean, so that nearly all groups have one program.
        usual = train.batch_size + 4 * math.ceil(train.batch_size**0.5)
        widest = max(widest, usual + -usual % 8)
    return [
        np.pad(steps, ((0, 0), (0, widest - steps.shape[1])), constant_values=-1)
        for steps in found
    ]


def teacher_alone(recipe: Recipe) -> Recipe:
    """The recipe that ships the teacher of another, the first of its shards.

    Args:
        recipe: of the pipeline.
    """
    return dataclasses.replace(recipe.family, shards=1, shipped="teacher")


def work_of(shared: Shared, recipes: Mapping[str, Recipe], rows: int) -> float:
    """The work of training one pipeline of recipes that share a teacher.

    Args:
        shared: what the pipelines have in common.
        recipes: name -> recipe, all of one family.
        rows: that it learns from.
    """

    def one(encoder: Encoder, noise: Noise, rows: int) -> float:
        cost = trainer.row_cost(shared.learners[encoder].model.config)
        factor = _NOISY_COST if noise.used else 1.0
        return rows * noise.over(encoder).epochs * cost * factor

    family = next(iter(recipes.values())).family
    total = one(family.teacher, family.teacher_noise, rows)
    for recipe in recipes.values():
        if recipe.shipped == "student":
            learned = rows
            if recipe.transfer != "members":
                learned = len(shared.rows.transfer(recipe.transfer))
            total += one(recipe.student, recipe.student_noise, learned)
    return total
