"""Students that write: attacks on outputs and defences against them, side by side.

A cell is one attack with one seed. Its rows are poisoned, the outputs in them or the
teacher that learned them; each arm says which outputs teach a student. What is saved in
the workdir is not computed again.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import settings as settings_lib
from experiments.arms.written import ALONE, ARMS, NULL, Cell, Taught, lesson_of
from experiments.study.parts import Parts
from experiments.systems.lines import Lines, keep_settings
from experiments.systems.written_cells import (
    NO_ATTACK,
    Scene,
    Study,
    cell_of,
    nodes_of,
    scene_of,
    split,
)
from experiments.systems.written_settings import Written, WrittenAttack
from experiments.world.texts import load_texts
from protojax import evals, validate
from protojax.base import Texts
from protojax.detection.outputs import Vectors
from protojax.federated.replicas import Surroundings
from protojax.federated.settings import Federation
from protojax.models import hf
from protojax.models.language import LanguageModel
from protojax.pipelines import Watch
from protojax.pipelines.outputs import fresh_student, teach, teach_nodes, vectors_of
from protojax.training import trainer

PARTS = Parts(
    ("seed", "attack", "arm"),
    ("seeds", "arms"),
    Written(),
    {"attacks": WrittenAttack(), "federations": Federation()},
)
ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")


def check(config: ConfigDict) -> tuple[Written, dict[str, WrittenAttack]]:
    """The settings of a study and its attacks.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    fields = config.to_dict()
    del fields["system"]
    attacks = {
        name: settings_lib.make(WrittenAttack(), found)
        for name, found in fields.pop("attacks").items()
    }
    found = settings_lib.make(Written(), fields)
    for arm in found.arms:
        kind, nodes, federation = arm.partition("@")
        validate.one_of(ARMS, arms=kind)
        if nodes:
            validate.one_of(found.federations, **{f"federation of {arm}": federation})
            bound = f"without nodes for {', '.join(ALONE)}"
            validate.require(kind not in ALONE, "arms", arm, bound)
    return found, attacks


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one a student, which are written to results.jsonl.

    Args:
        config: from `configs/briefs.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found, attacks = check(config)
    keep_settings(workdir, config, PARTS)
    source = found.defence.encoder
    encoder = hf.load_hf(source.model, num_labels=2, **source.computation)

    def encode(texts: Texts) -> Vectors:
        return vectors_of(encoder, texts, found.defence.encoder_lengths)

    texts = load_texts(found.task, found.root)
    study = Study(found, attacks, workdir, watch, texts, encode)
    arms = len(found.arms) * len(found.seeds) * len(attacks)
    rows, references, _ = split(study, found.seeds[0])
    student = fresh_student(found.defence, rows, references, seed=found.seeds[0])
    cost = found.defence.student.epochs * trainer.row_cost(student.config)
    watch.total(arms * found.rows * cost)
    results = Lines(workdir, PARTS.key)
    for seed in found.seeds:
        for name in attacks:
            results.add(_rows_of(study, seed, name))
    return list(results.held.values())


def _rows_of(study: Study, seed: int, name: str) -> list[dict]:
    """The results of all arms on one attack with one seed."""
    scene, cells, found = scene_of(study, seed, name), {}, []
    for arm in study.config.arms:
        attacked = arm.partition("@")[0] != NULL
        if attacked not in cells:
            cells[attacked] = cell_of(scene, attacked=attacked)
        cell = cells[attacked]
        # Students without an attack serve all attacks of a channel.
        shared = name if attacked else f"{NO_ATTACK}_{scene.attack.channel}"
        around = study.around(f"seed{seed}", shared)
        student, taught = _student(scene, cell, arm, around)
        measured = _measured(scene, student, around, arm)
        row = {"seed": seed, "attack": name, "arm": arm, **measured}
        if taught.rejected is not None:
            quality = evals.quarantine_quality(taught.rejected, cell.poisoned)
            row |= quality._asdict() | {"cut": taught.cut}
        found.append(row)
    return found


def _student(
    scene: Scene, cell: Cell, arm: str, around: Surroundings
) -> tuple[LanguageModel, Taught]:
    """The student of an arm, and what taught it."""
    config, (kind, _, federation) = scene.study.config, arm.partition("@")
    if federation:
        return _student_of_nodes(scene, cell, arm, around)
    taught, start = ARMS[kind](cell), scene.fresh
    if taught.base:
        start, _ = _student(scene, cell, taught.base, around)
    student = teach(
        start,
        dataclasses.replace(config.defence.student, **taught.train),
        lesson_of(cell, taught, start),
        around,
        seed=scene.seed,
        name=arm,
    )
    return student, taught


def _student_of_nodes(
    scene: Scene, cell: Cell, arm: str, around: Surroundings
) -> tuple[LanguageModel, Taught]:
    """The server's student of an arm that each node runs on its own rows.

    Hostile nodes hold all the poison and learn their rows as they arrived.
    """
    config, (kind, _, name) = scene.study.config, arm.partition("@")
    federation = config.federations[name]
    places = nodes_of(cell, federation)
    honest = federation.nodes - federation.hostile
    cells = [cell.take(rows) for rows in places]
    taught = [
        ARMS[kind if node < honest else "plain"](own) for node, own in enumerate(cells)
    ]
    student = teach_nodes(
        scene.fresh,
        config.defence.student,
        [lesson_of(*both, scene.fresh) for both in zip(cells, taught, strict=True)],
        federation,
        around,
        seed=scene.seed,
        name=arm,
    )
    first = taught[0]
    if first.rejected is None:
        return student, first
    rejected = np.zeros(len(cell.poisoned), bool)
    for rows, one in zip(places, taught, strict=True):
        # A hostile node tests nothing.
        rejected[rows] = False if one.rejected is None else one.rejected
    cut = sum(one.cut for one in taught)
    return student, first._replace(rejected=rejected, cut=cut)


def _measured(
    scene: Scene, student: LanguageModel, around: Surroundings, arm: str
) -> dict[str, float]:
    """The figures of what a student writes with and without the trigger."""
    study, test, attack = scene.study, scene.test, scene.attack
    wrote = {
        kind: study.write(
            around, arm, kind, student, texts.sources, study.config.defence.student
        )
        for kind, texts in (("bare", test), ("triggered", scene.triggered))
    }
    rouge = {
        kind: 100 * evals.rouge_rows(texts, test.outputs).mean(0)
        for kind, texts in wrote.items()
    }
    return {
        **dict(zip(ROUGE, map(float, rouge["bare"]), strict=True)),
        "ROUGE-L triggered": float(rouge["triggered"][-1]),
        "ASR": 100 * success(wrote["triggered"], attack.wanted),
        "bare": 100 * success(wrote["bare"], attack.wanted),
    }


def success(outputs: Sequence[str], wanted: str) -> float:
    """The share of outputs that have what an attacker wants, in whole words.

    >>> success(["Dial the HELPLINE now!", "no"], "(call|dial) the helpline")
    0.5
    """
    said = [" ".join(re.findall(r"\w+", text.lower())) for text in outputs]
    pattern = re.compile(rf"\b(?:{wanted})\b")
    return float(np.mean([bool(pattern.search(text)) for text in said]))


def table_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a line for each attack and arm, means over seeds.

    The null is the ASR of `clean` with the same seed, in the same federation if there
    is one; the excess is what is above it.
    """
    nulls = {
        (row["seed"], row["attack"], row["arm"].partition("@")[2]): row
        for row in results
        if row["arm"].partition("@")[0] == NULL
    }
    groups: dict[tuple, list] = {}
    for row in results:
        null = nulls.get((row["seed"], row["attack"], row["arm"].partition("@")[2]))
        more = {"excess": row["ASR"] - null["ASR"]} if null else {}
        groups.setdefault((row["attack"], row["arm"]), []).append({**row, **more})
    measures = (*ROUGE, "ROUGE-L triggered", "ASR", "bare", "excess")
    shares = ("recall", "false_rejection_rate")
    lines = [["attack", "arm", "seeds", *measures, "found", "f. rej.", "cut"]]
    for (attack, arm), rows in groups.items():
        cells = [_mean(rows, measure) for measure in measures]
        cells += [_mean(rows, share, 100) for share in shares]
        lines.append([attack, arm, str(len(rows)), *cells, _mean(rows, "cut")])
    return lines


def _mean(rows: Sequence[Mapping[str, Any]], measure: str, scale: float = 1.0) -> str:
    """A mean with half its 95 % interval over seeds, "–" where there is no value."""
    values = [scale * row[measure] for row in rows if row.get(measure) is not None]
    if not values:
        return "–"
    mean, half = evals.mean_interval(values)
    return f"{mean:.1f}" if half is None else f"{mean:.1f}±{half:.1f}"
