"""Students that write: attacks on outputs and defences against them, side by side.

A cell is one attack with one seed. Its rows are poisoned, the outputs in them or the
teacher that learned them; each arm says which outputs teach a student. What is saved in
the workdir is not computed again.
"""

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import settings as settings_lib
from experiments.arms.written import ARMS, Cell
from experiments.study.lines import Lines, keep_settings
from experiments.study.settings import Written, WrittenAttack
from experiments.world.texts import load_texts
from protojax import evals, validate
from protojax.attacks import sentence
from protojax.attacks.outputs import OUTPUT_ATTACKS, poison_texts
from protojax.base import Texts
from protojax.detection.outputs import Vectors
from protojax.federated.replicas import Surroundings
from protojax.models import hf
from protojax.models.language import LanguageModel, WriterSettings, build_writer
from protojax.pipelines import Watch
from protojax.pipelines.outputs import (
    fresh_student,
    objective_of,
    teach,
    vectors_of,
    write,
)
from protojax.training import trainer
from protojax.training.trainer import Store

ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")


class _Study(NamedTuple):
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
        validate.one_of(ARMS, arms=arm)
    return found, attacks


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one a student, which are written to results.jsonl.

    Args:
        config: from `configs/briefs.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found, attacks = check(config)
    keep_settings(workdir, config, ("seeds", "arms"))
    source = found.defence.encoder
    encoder = hf.load_hf(source.model, num_labels=2, **source.computation)

    def encode(texts: Texts) -> Vectors:
        return vectors_of(encoder, texts, found.defence.encoder_lengths)

    texts = load_texts(found.task, found.root)
    study = _Study(found, attacks, workdir, watch, texts, encode)
    arms = len(found.arms) * len(found.seeds) * len(attacks)
    rows, references, _ = split(study, found.seeds[0])
    student = fresh_student(found.defence, rows, references, seed=found.seeds[0])
    cost = found.defence.student.epochs * trainer.row_cost(student.config)
    watch.total(arms * found.rows * cost)
    results = Lines(workdir, ("seed", "attack", "arm"))
    for seed in found.seeds:
        for name in attacks:
            results.add(_rows_of(study, seed, name))
    return list(results.held.values())


def split(study: _Study, seed: int) -> tuple[Texts, Texts, Texts]:
    """The rows, the references and the test rows of a seed."""
    config = study.config
    sizes = np.cumsum([config.rows, config.references, config.test_rows])
    total = len(study.texts.sources)
    bound = f"at most {total} in all, as {config.task} has"
    validate.require(sizes[-1] <= total, "rows", int(sizes[-1]), bound)
    order = np.random.default_rng(seed).permutation(total)
    return tuple(study.texts.take(part) for part in np.split(order, sizes)[:3])


def _rows_of(study: _Study, seed: int, name: str) -> list[dict]:
    """The results of all arms on one attack with one seed."""
    attack, found, config = study.attacks[name], [], study.config
    rows, references, test = split(study, seed)
    fresh = fresh_student(config.defence, rows, references, seed=seed)
    # By its name, so that it is the same beside whatever other attacks.
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    options = dict(attack.options)
    if attack.attack == "other_output":
        options["outputs"] = rows.outputs
    trigger = sentence(attack.trigger)
    bad, poisoned = poison_texts(
        rows, trigger, OUTPUT_ATTACKS[attack.attack](**options), rng, rate=attack.rate
    )
    triggered = Texts([trigger(text, rng) for text in test.sources], test.outputs)
    worlds = {
        "no_attack": (rows, np.zeros(len(poisoned), bool)),
        name: (bad, poisoned),
    }
    cells = {}
    for arm in config.arms:
        world = "no_attack" if arm == "clean" else name
        if world not in cells:
            given, truth = worlds[world]
            cell = Cell(config.defence, given, references, truth, study.encode)
            if attack.channel == "data":
                cell = _as_written(study, cell, fresh, seed, f"{world}_data")
            cells[world] = cell
        # Students without an attack serve all attacks of a channel.
        shared = f"no_attack_{attack.channel}" if arm == "clean" else name
        around = study.around(f"seed{seed}", shared)
        taught = ARMS[arm](cells[world])
        student = teach(
            fresh,
            config.defence.student,
            taught.texts,
            objective_of(config.defence.kd, **taught.objective),
            around,
            seed=seed,
            name=arm,
        )
        measured = _measured(study, student, test, triggered, attack, around, arm)
        row = {"seed": seed, "attack": name, "arm": arm, **measured}
        if taught.rejected is not None:
            quality = evals.quarantine_quality(taught.rejected, poisoned)
            row |= quality._asdict() | {"cut": taught.cut}
        found.append(row)
    return found


def _as_written(
    study: _Study, cell: Cell, fresh: LanguageModel, seed: int, folder: str
) -> Cell:
    """The cell with the outputs of a teacher that learned its rows."""
    around, config = study.around(f"seed{seed}", folder), study.config
    teacher = build_writer(
        config.teacher, seed=seed + 1000, tokenizer=lambda: fresh.tokenizer
    )
    kd = dataclasses.replace(config.defence.kd, hard_weight=1.0)
    teacher = teach(
        teacher,
        config.teacher,
        cell.rows,
        objective_of(kd),
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
    return cell._replace(rows=rows, references=references)


def _measured(
    study: _Study,
    student: LanguageModel,
    test: Texts,
    triggered: Texts,
    attack: WrittenAttack,
    around: Surroundings,
    arm: str,
) -> dict[str, float]:
    """The figures of what a student writes with and without the trigger."""
    wrote = {
        kind: study.write(
            around, arm, kind, student, texts.sources, study.config.defence.student
        )
        for kind, texts in (("bare", test), ("triggered", triggered))
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

    The null is the ASR of `clean` with the same seed, the excess what is above it.
    """
    nulls = {
        (row["seed"], row["attack"]): row for row in results if row["arm"] == "clean"
    }
    groups: dict[tuple, list] = {}
    for row in results:
        null = nulls.get((row["seed"], row["attack"]))
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
