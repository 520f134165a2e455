"""Teachers, proxy and problems of the study of calibrated teachers."""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.systems.distillability.rivals import RIVALS, Offer
from experiments.systems.distillability.settings import ARMS, TURNED, Knob
from experiments.world.small import Lesson, World, pretrained
from protojax import storage
from protojax.models.language import (
    LanguageModel,
    load_language_model,
    save_language_model,
)
from protojax.pipelines import Watch
from protojax.rl import Problems
from protojax.rl.calibration import calibrate
from protojax.training.trainer import Store, remove_checkpoints


class Scene(NamedTuple):
    """The common part of all arms of a study.

    Attributes:
        config: the study.
        folder: of what was computed before.
        lesson: what proxy and students learned before any distillation.
        teacher: the uncalibrated one.
        proxy: the frozen one.
        given: the problems that calibrations and students use.
        asked: the problems that all is measured on.
    """

    config: Knob
    folder: pathlib.Path
    lesson: Lesson
    teacher: LanguageModel
    proxy: LanguageModel
    given: Problems
    asked: Problems

    @property
    def world(self) -> World:
        """The world of the problems."""
        return self.lesson.world

    def student(self, size: str) -> LanguageModel:
        """A student before any distillation.

        Args:
            size: a name in `STUDENTS`.
        """
        lesson = self.lesson._replace(shift=TURNED if size == "stranger" else 0)
        return pretrained(self.folder, size, self.config.size_of(size), lesson)


class Arm(NamedTuple):
    """A teacher: the uncalibrated one, one of an η, a reward and a seed, or a rival."""

    reward: str
    eta: float
    seed: int
    rival: str = ""

    @property
    def name(self) -> str:
        """As results name it."""
        if self.rival:
            return self.rival
        return f"{self.reward}, η = {self.eta:+g}" if self.reward else "original"


def problems_of(config: Knob) -> tuple[Problems, Problems]:
    """The problems that are used, and those that all is measured on.

    Args:
        config: of the study.
    """
    count = config.problems + config.held_out
    found = config.problem_world.problems(count, np.random.default_rng(0))
    parts = found[: config.problems], found[config.problems :]
    return tuple(map(config.problem_world.asked, parts))


def build_scene(config: Knob, folder: pathlib.Path, watch: Watch) -> Scene:
    """The models that are trained once, and the problems.

    Args:
        config: of the study.
        folder: where models are kept.
        watch: is told of the progress.
    """
    fixed = dataclasses.replace(config, **{**dict.fromkeys(ARMS, ()), "seeds": (0,)})
    folder.mkdir(parents=True, exist_ok=True)
    watch.describe("the teacher learns")
    given, asked = problems_of(config)
    lesson = Lesson(
        config.problem_world,
        config.first_styles,
        config.base_steps,
        config.batch_size,
        config.learning_rate,
        frozenset(asked.prompts),
    )
    longer = lesson._replace(styles=config.styles, steps=config.teacher_steps)
    teacher = pretrained(folder, "teacher", config.teacher_size, longer)
    watch.describe("the proxy learns")
    turned = lesson._replace(shift=config.shift)
    proxy = pretrained(folder, "proxy", config.proxy_size, turned)
    return Scene(fixed, folder, lesson, teacher, proxy, given, asked)


def offered(scene: Scene, arm: Arm, watch: Watch) -> Offer:
    """The teacher of an arm, as students may ask it.

    Args:
        scene: of the study.
        arm: which.
        watch: is told of the progress.
    """
    if arm.rival:
        return RIVALS[arm.rival].offer_of(scene.teacher, scene.proxy, scene.world)
    return Offer(calibrated(scene, arm, watch))


def calibrated(scene: Scene, arm: Arm, watch: Watch) -> LanguageModel:
    """The teacher of an arm; kept in the study's folder.

    Args:
        scene: of the study.
        arm: which, no rival.
        watch: is told of the progress.
    """
    if not arm.reward:
        return scene.teacher
    settings = dataclasses.replace(scene.config.calibration, eta=arm.eta, seed=arm.seed)
    key = storage.fingerprint(repr((settings, scene.config)))[:12]
    path = scene.folder / f"{arm.reward}_{arm.eta:+g}_{arm.seed}_{key}"
    if not (path / "model").exists():
        found = calibrate(
            scene.teacher,
            scene.proxy,
            scene.given,
            settings,
            verifiers=[scene.world.rewards[arm.reward]],
            store=Store(path),
            on_rollout=lambda one: watch.describe(
                f"{arm.name}: rollout {one['rollout']}, KL {one['kl']:.1f} nats/text"
            ),
        )
        storage.write_json(
            path / "history.json",
            {
                "history": found.history,
                "evaluations": found.evaluations,
                "stopped": found.stopped,
                "rollouts": found.rollouts,
            },
        )
        save_language_model(path / "model", found.teacher)
        remove_checkpoints(Store(path))
    return load_language_model(path / "model")
