"""The knob on a teacher's distillability, in the toy world of addition.

A teacher that knows four styles is calibrated against a small proxy, with η below, at
and above 0, and with a task reward that looks at the answer alone or at the whole text.
Students of several sizes and kinds learn from each teacher. Every line holds what was
right of the same held-out problems, so that arms are compared problem by problem.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.systems.lines import Lines, keep_settings, settings_of
from experiments.world import addition
from experiments.world.adders import Lesson, pretrained
from protojax import storage, validate
from protojax.distillability import ATTACKERS
from protojax.models.language import (
    LanguageModel,
    load_language_model,
    save_language_model,
)
from protojax.pipelines import Watch
from protojax.pipelines.distillability import Query, StudentSettings, train_student
from protojax.rl import Calibration, Problems
from protojax.rl.calibration import calibrate
from protojax.rl.problems import Drawn, build_world, evaluate
from protojax.training.trainer import Store, remove_checkpoints

# layers and width
TEACHER, PROXY = (3, 96), (2, 32)
STUDENTS = {"student": (2, 48), "large": (3, 72), "proxy_sized": (2, 32)}
REWARDS = {"answer": addition.right_answer, "chain": addition.right_chain}


@dataclasses.dataclass(frozen=True)
class Knob:
    """A study of calibrated teachers and their students.

    Attributes:
        seeds: of calibrations and of students.
        etas: of the calibrations; the uncalibrated teacher is always there.
        rewards: what the task reward looks at, names in `REWARDS`.
        students: names in `STUDENTS`.
        attackers: names in `distillability.ATTACKERS`; "none" is no teacher.
        shift: by which the proxy's tokens are turned, see `addition.tokenizer`.
        teacher_steps: of the teacher's own training.
        base_steps: of that of proxy and students, before any distillation.
        batch_size: texts of a step of these.
        learning_rate: of these.
        problems: whose prompts calibrations and students use.
        held_out: problems on which all is measured.
        calibration: of the teachers, except for η and seed.
        training: of the students, except for the seed.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    etas: tuple[float, ...] = (-1.0, 0.0, 1.0)
    rewards: tuple[str, ...] = ("answer", "chain")
    students: tuple[str, ...] = ("student", "large", "proxy_sized")
    attackers: tuple[str, ...] = ("none", "sft", "forward_kl", "gkd", "answers_only")
    shift: int = 0
    teacher_steps: int = 2500
    base_steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    problems: int = 4096
    held_out: int = 500
    calibration: Calibration = dataclasses.field(
        default_factory=lambda: Calibration(
            warmup=0.13,
            max_new=addition.TEXT_TOKENS,
            kl_target=4.0,
            kl_budget=20.0,
            skill_loss=0.2,
            evaluate_every=50,
            held_out=0.05,
        )
    )
    training: StudentSettings = dataclasses.field(
        default_factory=lambda: StudentSettings(
            learning_rate=1e-3,
            max_length=addition.PROMPT_TOKENS,
            max_new=addition.TEXT_TOKENS,
        )
    )

    def __post_init__(self):
        for name in ("seeds", "etas", "rewards", "students", "attackers"):
            validate.tuples(self, name)
        for name in self.rewards:
            validate.one_of(REWARDS, rewards=name)
        for name in self.students:
            validate.one_of(STUDENTS, students=name)
        for name in self.attackers:
            validate.one_of(["none", *ATTACKERS], attackers=name)
        for name in ("teacher_steps", "base_steps", "batch_size", "problems"):
            validate.positive(**{name: getattr(self, name)})
        validate.positive(held_out=self.held_out, learning_rate=self.learning_rate)


class Scene(NamedTuple):
    """The common part of all arms of a study.

    Attributes:
        config: the study.
        folder: of what was computed before.
        lesson: how models were trained before any distillation.
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


class Arm(NamedTuple):
    """A teacher: the uncalibrated one, or one of an η, a reward and a seed."""

    reward: str
    eta: float
    seed: int

    @property
    def name(self) -> str:
        """As results name it."""
        return f"{self.reward}, η = {self.eta:+g}" if self.reward else "original"


def problems_of(config: Knob) -> tuple[Problems, Problems]:
    """The problems that are used, and those that all is measured on.

    Args:
        config: of the study.
    """
    count = config.problems + config.held_out
    numbers = addition.problems(count, np.random.default_rng(0)).tolist()
    rows = [(addition.prompt_of(row), f"{sum(row):03d}") for row in numbers]
    parts = rows[: config.problems], rows[config.problems :]
    return tuple(Problems(*map(list, zip(*part, strict=True))) for part in parts)


def calibrated(scene: Scene, arm: Arm, watch: Watch) -> LanguageModel:
    """The teacher of an arm; kept in the study's folder.

    Args:
        scene: of the study.
        arm: which.
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
            verifiers=[REWARDS[arm.reward]],
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


def measured(scene: Scene, model: LanguageModel, seed: int) -> dict[str, Any]:
    """The figures of a model on the held-out problems, one drawn text each.

    Args:
        scene: of the study.
        model: a teacher or a student.
        seed: of the draws.
    """
    settings = dataclasses.replace(scene.config.calibration, prompts=1, draws=125)
    # As the original, with itself as proxy, so that nothing else is read.
    place = build_world(model, model, scene.asked, settings, [addition.right_answer])
    rows = np.arange(len(scene.asked.prompts))
    drawn = evaluate(place, model.params, rows, jax.random.key(seed))
    return _record(scene.asked, drawn)


def _record(asked: Problems, drawn: Drawn) -> dict[str, Any]:
    """The figures of drawn texts, and each problem's verdict as a letter."""
    columns = (asked.prompts, drawn.texts, asked.answers)
    rows = [*zip(*columns, strict=True)]
    answer = [addition.right_answer(*row) * end for row, end in _ended(rows, drawn)]
    chain = [addition.right_chain(*row) * end for row, end in _ended(rows, drawn)]
    begun = [text[:1] for text in drawn.texts]
    return {
        "answer": float(np.mean(answer)),
        "chain": float(np.mean(chain)),
        "styles": {style: begun.count(style) / len(begun) for style in addition.STYLES},
        "tokens": float(drawn.tokens.mean()),
        # a: the answer alone is right, t: the whole text is, -: neither
        "items": "".join(
            "t" if whole else "a" if right else "-"
            for right, whole in zip(answer, chain, strict=True)
        ),
    }


def _ended(rows: Sequence[tuple], drawn: Drawn) -> list[tuple[tuple, float]]:
    """The rows with 1 where a text has its end, else 0."""
    return [*zip(rows, drawn.ended.astype(float).tolist(), strict=True)]


def _student_line(
    scene: Scene, teacher: LanguageModel, arm: Arm, size: str, attacker: str, seed: int
) -> dict[str, Any]:
    """The result of a student."""
    config = scene.config
    base = pretrained(scene.folder, size, STUDENTS[size], scene.lesson)
    if attacker == "none":
        return measured(scene, base, seed)
    trusted = addition.mixture(
        addition.problems(64, np.random.default_rng(1)), np.random.default_rng(1)
    )
    query = Query(
        teacher,
        answer_of=addition.answer_of,
        prefix_of=lambda prompt: "c",
        hold_out=trusted,
        proxy=scene.proxy if not config.shift else None,
    )
    settings = dataclasses.replace(config.training, seed=seed)
    found = train_student(attacker, base, query, scene.given.prompts, settings)
    about = {"queries": found.budget.queries, "teacher_tokens": found.budget.tokens}
    return measured(scene, found.model, seed) | about


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one for each teacher, student, attacker and seed.

    Args:
        config: from `configs/distillability.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found = settings_of(config, Knob())
    free = ("seeds", "etas", "rewards", "students", "attackers")
    keep_settings(workdir, config, free)
    scene = _scene(found, workdir / "models", watch)
    lines = Lines(workdir, ("teacher", "student", "attacker", "seed"))
    todo = _todo(found)
    watch.total(len(todo))
    for arm, size, attacker, seed in todo:
        key = arm.name, size, attacker, seed
        if key not in lines.held:
            watch.describe(f"{arm.name}: {size}, {attacker}, seed {seed}")
            teacher = calibrated(scene, arm, watch)
            if attacker == "itself":
                line = measured(scene, teacher, seed)
            else:
                line = _student_line(scene, teacher, arm, size, attacker, seed)
            names = ("teacher", "student", "attacker", "seed")
            lines.add([dict(zip(names, key, strict=True)) | line])
        watch.advance(1)
    return list(lines.held.values())


def _scene(config: Knob, folder: pathlib.Path, watch: Watch) -> Scene:
    """The models that are trained once, and the problems."""
    # Other arms of a study have the same models.
    fixed = dataclasses.replace(
        config, seeds=(0,), etas=(), rewards=(), students=(), attackers=()
    )
    folder.mkdir(parents=True, exist_ok=True)
    watch.describe("the teacher learns to add")
    given, asked = problems_of(config)
    lesson = Lesson(
        config.base_steps,
        config.batch_size,
        config.learning_rate,
        frozenset(asked.prompts),
    )
    teacher = pretrained(
        folder, "teacher", TEACHER, lesson._replace(steps=config.teacher_steps)
    )
    watch.describe("the proxy learns to add")
    proxy = pretrained(folder, "proxy", PROXY, lesson._replace(shift=config.shift))
    return Scene(fixed, folder, lesson, teacher, proxy, given, asked)


def _todo(config: Knob) -> list[tuple[Arm, str, str, int]]:
    """Teacher, student, attacker and seed of each line."""
    found = []
    for seed in config.seeds:
        arms = [Arm("", 0.0, 0)]
        arms += [Arm(r, eta, seed) for r in config.rewards for eta in config.etas]
        for arm in arms:
            found.append((arm, "", "itself", seed))
            for size in config.students:
                kinds = [x for x in config.attackers if x != "none" or not arm.reward]
                found += [(arm, size, kind, seed) for kind in kinds]
    return found


def table_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a line for each teacher and kind of student.

    A cell is the share of answers that are right / of whole texts, in percent: the mean
    over seeds, and the least and most of answers.
    """
    groups: dict[tuple, list] = {}
    for row in results:
        key = row["teacher"], row["student"], row["attacker"]
        groups.setdefault(key, []).append(row)
    lines = [["teacher", "student", "learns by", "seeds", "answer", "whole text"]]
    for (teacher, student, attacker), rows in groups.items():
        answers = [100 * row["answer"] for row in rows]
        cell = f"{np.mean(answers):.1f} ({min(answers):.1f} to {max(answers):.1f})"
        chain = f"{np.mean([100 * row['chain'] for row in rows]):.1f}"
        lines.append([teacher, student or "–", attacker, str(len(rows)), cell, chain])
    return lines
