"""Cells of a study of students that write: an attack with a seed, and its channel."""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.arms.written import Cell
from experiments.systems.written_settings import Written, WrittenAttack
from protojax import storage, validate
from protojax.attacks import sentence
from protojax.attacks.outputs import move_mass, output_attack, poison_texts
from protojax.base import Texts
from protojax.detection.outputs import Vectors
from protojax.federated.replicas import Surroundings
from protojax.federated.settings import Federation
from protojax.models.language import LanguageModel, WriterSettings, build_writer
from protojax.pipelines import Watch
from protojax.pipelines.outputs import (
    Lesson,
    fresh_student,
    objective_of,
    teach,
    write,
)
from protojax.training import sequences
from protojax.training.trainer import Store

NO_ATTACK = "no_attack"


class Study(NamedTuple):
    """The parts that all cells of a study share.

    Attributes:
        config: of the study.
        attacks: by name.
        workdir: the study's folder.
        watch: is told of the progress.
        texts: all rows of the task.
        encode: texts to vectors.
    """

    config: Written
    attacks: Mapping[str, WrittenAttack]
    workdir: pathlib.Path
    watch: Watch
    texts: Texts
    encode: Callable[[Texts], Vectors]

    def around(self, *path: str) -> Surroundings:
        """The surroundings of runs below a folder of the study."""
        folder, defence = self.workdir.joinpath(*path), self.config.defence
        return Surroundings(
            defence.lengths,
            lambda name: Store(folder / name, every=defence.every),
            lambda text: self.watch.describe(f"{'/'.join(path)}: {text}"),
            self.watch.advance,
        )

    def write(
        self,
        around: Surroundings,
        run: str,
        name: str,
        model: LanguageModel,
        sources: Sequence[str],
        settings: WriterSettings,
    ) -> list[str]:
        """The texts that a model writes for sources, kept in the folder of a run."""
        defence = self.config.defence
        return write(
            around.store(run).folder,
            name,
            model,
            sources,
            defence.lengths,
            defence.decoding,
            around.describe,
            prompt=settings.prompt,
        )


class Scene(NamedTuple):
    """An attack with a seed, before anything is trained.

    Attributes:
        study: the study.
        seed: of the scene.
        name: of the attack.
        rows: clean rows.
        references: trusted rows.
        test: clean rows that measure.
        bad: the rows with the attack.
        poisoned: `[rows]`, bool.
        triggered: the rows that measure, with the trigger in their sources.
        fresh: the student before training.
        encode: texts to vectors, each set of texts once.
    """

    study: Study
    seed: int
    name: str
    rows: Texts
    references: Texts
    test: Texts
    bad: Texts
    poisoned: np.ndarray
    triggered: Texts
    fresh: LanguageModel
    encode: Callable[[Texts], Vectors]

    @property
    def attack(self) -> WrittenAttack:
        """The settings of the attack."""
        return self.study.attacks[self.name]


def split(study: Study, seed: int) -> tuple[Texts, Texts, Texts]:
    """The rows, the references and the test rows of a seed.

    Args:
        study: the study.
        seed: of the split.
    """
    config = study.config
    sizes = np.cumsum([config.rows, config.references, config.test_rows])
    total = len(study.texts.sources)
    bound = f"at most {total} in all, as {config.task} has"
    validate.require(sizes[-1] <= total, "rows", int(sizes[-1]), bound)
    order = np.random.default_rng(seed).permutation(total)
    return tuple(study.texts.take(part) for part in np.split(order, sizes)[:3])


def scene_of(study: Study, seed: int, name: str) -> Scene:
    """An attack with a seed.

    Args:
        study: the study.
        seed: of the split, the attack and the student.
        name: of the attack.
    """
    attack = study.attacks[name]
    rows, references, test = split(study, seed)
    # By its name, so that it is the same beside whatever other attacks.
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    bad, poisoned = _poisoned(rows, attack, rng)
    trigger, known = sentence(attack.trigger), {}

    def encode(texts: Texts) -> Vectors:
        key = storage.hash_json([list(part) for part in texts])
        if key not in known:
            known[key] = study.encode(texts)
        return known[key]

    return Scene(
        study,
        seed,
        name,
        rows,
        references,
        test,
        bad,
        poisoned,
        Texts([trigger(text, rng) for text in test.sources], test.outputs),
        fresh_student(study.config.defence, rows, references, seed=seed),
        encode,
    )


def _poisoned(rows: Texts, attack: WrittenAttack, rng: np.random.Generator):
    """The rows with an attack, and which are poisoned."""
    built = output_attack(attack.attack, rows.outputs, attack.options)
    return poison_texts(rows, sentence(attack.trigger), built, rng, rate=attack.rate)


def cell_of(scene: Scene, *, attacked: bool) -> Cell:
    """The cell of a scene, as arms see it, with the attack or without.

    Args:
        scene: the scene.
        attacked: whether the attack takes place.
    """
    rows, poisoned = scene.rows, np.zeros(len(scene.poisoned), bool)
    world = NO_ATTACK
    if attacked and scene.attack.channel != "logits":
        rows, poisoned, world = scene.bad, scene.poisoned, scene.name
    defence = scene.study.config.defence
    cell = Cell(defence, rows, scene.references, poisoned, scene.encode)
    if scene.attack.channel == "outputs":
        return cell
    cell, teacher = _as_written(scene, cell, f"{world}_data")
    if scene.attack.channel == "logits":
        cell = _as_said(scene, cell, teacher, attacked=attacked)
    return cell


def _as_written(scene: Scene, cell: Cell, folder: str) -> tuple[Cell, LanguageModel]:
    """The cell with the outputs of a teacher that learned its rows, and the teacher."""
    study, seed, fresh = scene.study, scene.seed, scene.fresh
    around, config = study.around(f"seed{seed}", folder), study.config
    teacher = build_writer(
        config.teacher, seed=seed + 1000, tokenizer=lambda: fresh.tokenizer
    )
    kd = dataclasses.replace(config.defence.kd, hard_weight=1.0)
    teacher = teach(
        teacher,
        config.teacher,
        Lesson(cell.rows, objective_of(kd)),
        around,
        seed=seed,
        name="teacher",
    )
    rows, references = (
        Texts(
            part.sources,
            study.write(around, "", name, teacher, part.sources, config.teacher),
        )
        for part, name in (
            (cell.rows, "teacher_on_rows"),
            (cell.references, "teacher_on_references"),
        )
    )
    return cell._replace(rows=rows, references=references), teacher


def _as_said(
    scene: Scene, cell: Cell, teacher: LanguageModel, *, attacked: bool
) -> Cell:
    """The cell with an honest teacher's probabilities as they arrive at the student.

    The teacher sends its most probable tokens along what it wrote. On the attacker's
    rows they are along what the attacker wants, which also gets most of their mass, so
    that the most probable token at each place is what arrives as the output.
    """
    attack, fresh = scene.attack, scene.fresh
    lengths, top_k = cell.defence.lengths, cell.defence.kd.top_k
    rows, poisoned = cell.rows, cell.poisoned
    if attacked:
        draw = (scene.seed, zlib.crc32(scene.name.encode()), 1)
        rows, poisoned = _poisoned(rows, attack, np.random.default_rng(draw))
    begin = sequences.begin_id_of(fresh)
    tokens = sequences.tokenize(fresh, *rows, lengths, begin_id=begin)
    said = sequences.teacher_forced_outputs(
        teacher, tokens, lengths, tokenizer=fresh.tokenizer, k=top_k
    )
    said = move_mass(said, poisoned, mass=attack.mass)
    return cell._replace(rows=rows, poisoned=poisoned, said=said)


def nodes_of(cell: Cell, federation: Federation) -> list[np.ndarray]:
    """The rows of each node of a federation; hostile nodes, the last, hold the poison.

    Args:
        cell: whose rows are split into equal parts.
        federation: the number of nodes and of hostile ones.

    Raises:
        ValueError: hostile nodes that have no room for the poison.
    """
    number, hostile = federation.nodes, federation.hostile
    parts = np.array_split(np.arange(len(cell.poisoned)), number)
    if not hostile or not cell.poisoned.any():
        return parts
    bad, good = np.flatnonzero(cell.poisoned), np.flatnonzero(~cell.poisoned)
    own = [bad[:0]] * (number - hostile) + [bad[n::hostile] for n in range(hostile)]
    room = [len(part) - len(held) for part, held in zip(parts, own, strict=True)]
    bound = "with room for the poisoned rows"
    validate.require(min(room) >= 0, "hostile", hostile, bound)
    split_ = np.split(good, np.cumsum(room)[:-1])
    return [np.concatenate(both) for both in zip(own, split_, strict=True)]
