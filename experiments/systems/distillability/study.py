"""The lines of the study: teachers and their students, one after the other."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.study.parts import Parts
from experiments.systems.distillability.rivals import RIVALS, Offer
from experiments.systems.distillability.scene import (
    Arm,
    Scene,
    build_scene,
    offered,
)
from experiments.systems.distillability.settings import ARMS, Knob
from experiments.systems.lines import Lines, keep_settings, settings_of
from experiments.world.small import World
from protojax.models.language import LanguageModel
from protojax.pipelines import Watch
from protojax.pipelines.distillability import Query, drawn_texts, train_student
from protojax.pipelines.distillability.decoding import Shape
from protojax.rl import Problems
from protojax.rl.problems import build_world, evaluate

PARTS = Parts(("teacher", "student", "attacker", "seed"), ARMS, Knob())


def measured(scene: Scene, model: LanguageModel, seed: int) -> dict[str, Any]:
    """The figures of a model on the held-out problems, one drawn text each.

    Args:
        scene: of the study.
        model: a teacher or a student.
        seed: of the draws.
    """
    settings = dataclasses.replace(scene.config.calibration, prompts=1, draws=125)
    # As the original, with itself as proxy, so that nothing else is read.
    place = build_world(model, model, scene.asked, settings, [scene.world.right_answer])
    rows = np.arange(len(scene.asked.prompts))
    drawn = evaluate(place, model.params, rows, jax.random.key(seed))
    return figures(
        scene.world, scene.asked, drawn.texts, drawn.ended, float(drawn.tokens.mean())
    )


def measured_offer(scene: Scene, offer: Offer, seed: int) -> dict[str, Any]:
    """The figures of what a teacher gives away for the held-out problems.

    Args:
        scene: of the study.
        offer: the teacher as students may ask it.
        seed: of the draws.
    """
    if offer.experts is None and offer.shown is None:
        return measured(scene, offer.model, seed)
    size = scene.config.training
    found = drawn_texts(
        offer.model,
        scene.asked.prompts,
        Shape(size.max_length, size.max_new, size.batch_size, size.chunk),
        draws=1,
        key=jax.random.key(seed),
        experts=offer.experts,
    )
    shown = offer.shown or str
    texts = [shown(text) for (text,) in found.texts]
    ended = np.concatenate(found.ended)
    tokens = found.tokens / len(texts)
    if offer.shown is not None:
        # The end is a token as well.
        read = offer.model.tokenizer(texts)["input_ids"]
        tokens = float(np.mean([len(ids) + 1 for ids in read]))
    return figures(scene.world, scene.asked, texts, ended, tokens)


def figures(
    world: World,
    asked: Problems,
    texts: Sequence[str],
    ended: np.ndarray,
    tokens: float,
) -> dict[str, Any]:
    """The figures of texts, and each problem's verdict as a letter.

    Args:
        world: of the problems.
        asked: the problems.
        texts: one for each.
        ended: `[problems]`, bool, whether a text has its end; others are not right.
        tokens: of a text, in the mean.
    """
    rows = [*zip(asked.prompts, texts, asked.answers, strict=True)]
    ended = ended.astype(float).tolist()
    answer, chain = (
        [judge(*row) * end for row, end in zip(rows, ended, strict=True)]
        for judge in (world.right_answer, world.right_chain)
    )
    begun = [text[:1] for text in texts]
    return {
        "answer": float(np.mean(answer)),
        "chain": float(np.mean(chain)),
        "styles": {style: begun.count(style) / len(begun) for style in world.styles},
        "tokens": tokens,
        # a: the answer alone is right, t: the whole text is, -: neither
        "items": "".join(
            "t" if whole else "a" if right else "-"
            for right, whole in zip(answer, chain, strict=True)
        ),
    }


def query_of(scene: Scene, offer: Offer) -> Query:
    """All that a student may ask and has.

    Args:
        scene: of the study.
        offer: the teacher as students may ask it.
    """
    world, config = scene.world, scene.config
    asked = frozenset(scene.asked.prompts)
    drawn = world.practice(64, np.random.default_rng(1), asked)
    problems = [one for one in drawn if world.prompt_of(one) not in asked]
    trusted = world.mixture(problems, np.random.default_rng(1), config.styles)
    return Query(
        offer.model,
        answer_of=world.answer_of,
        prefix_of=lambda prompt: config.styles[0],
        hold_out=trusted,
        proxy=scene.proxy,
        experts=offer.experts,
        shown=offer.shown,
        folder=scene.folder / "texts",
    )


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one for each teacher, student, attacker and seed.

    Args:
        config: from `configs/distillability.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found = settings_of(config, PARTS.usual)
    keep_settings(workdir, config, PARTS)
    scene = build_scene(found, workdir / "models", watch)
    lines = Lines(workdir, PARTS.key)
    todo = plan_of(found)
    watch.total(len(todo))
    for arm, size, attacker, seed in todo:
        key = arm.name, size, attacker, seed
        if key not in lines.held:
            watch.describe(f"{arm.name}: {size}, {attacker}, seed {seed}")
            line = _line(scene, arm, size, attacker, seed, watch)
            lines.add([dict(zip(PARTS.key, key, strict=True)) | line])
        watch.advance(1)
    return list(lines.held.values())


def _line(
    scene: Scene, arm: Arm, size: str, attacker: str, seed: int, watch: Watch
) -> dict[str, Any]:
    """The result of a teacher itself, or of a student."""
    if attacker == "none":
        return measured(scene, scene.student(size), seed)
    offer = offered(scene, arm, watch)
    if attacker == "itself":
        return measured_offer(scene, offer, seed)
    settings = dataclasses.replace(scene.config.training, seed=seed)
    found = train_student(
        attacker,
        scene.student(size),
        query_of(scene, offer),
        scene.given.prompts,
        settings,
    )
    about = {"queries": found.budget.queries, "teacher_tokens": found.budget.tokens}
    return measured(scene, found.model, seed) | about


def plan_of(config: Knob) -> list[tuple[Arm, str, str, int]]:
    """Teacher, student, attacker and seed of each line.

    Args:
        config: of the study.
    """
    found = []
    original = Arm("", 0.0, 0)
    for seed in config.seeds:
        arms = [original]
        arms += [Arm(r, eta, seed) for r in config.rewards for eta in config.etas]
        for arm in arms:
            found.append((arm, "", "itself", seed))
            for size in config.students:
                kinds = [x for x in config.attackers if x != "none" or not arm.reward]
                kinds = config.ways_of(size, kinds)
                found += [(arm, size, kind, seed) for kind in kinds]
        for name in config.rivals:
            rival, arm = RIVALS[name], original
            if rival.same_tokens and config.shift:
                continue
            if rival.offer_of is not None:
                arm = original._replace(rival=name)
                found.append((arm, "", "itself", seed))
            for size in config.students:
                kinds = config.ways_of(size, rival.attackers)
                found += [(arm, size, kind, seed) for kind in kinds]
    # A rival of the original may be among its attackers.
    return [*dict.fromkeys(found)]
