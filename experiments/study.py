"""Runs the grid of a study: tasks x seeds x attacks x arms, each cell once.

Every finished student and every evaluated row is a file; a study that was killed runs
on from there, and one that is finished only gathers its rows.
"""

import functools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments import arms, cells, runtime, tasks
from experiments.arms import ARMS
from experiments.cells import Cell
from experiments.runtime import Context
from protojax import _validate, evals, models, prototypes
from protojax.models import hf


class Job(NamedTuple):
    """One row of the results."""

    cell: Cell
    arm: str

    @property
    def row(self) -> str:
        """The file of the row, below the workdir."""
        return f"{self.cell.folder}/{self.arm}.json"

    @property
    def student_cell(self) -> Cell:
        """The cell that the student is trained in."""
        return self.cell if ARMS[self.arm].attacked else self.cell.clean

    @property
    def student(self) -> str:
        """The student's folder, below the workdir."""
        return f"{self.student_cell.folder}/{self.arm}"


def jobs(config) -> list[Job]:
    """Returns all rows of a study, those that share ingredients side by side."""
    found = []
    for task in config.tasks:
        for seed in config.seeds:
            if not config.attacks:
                cell = Cell(task, seed, None)
                found += [Job(cell, arm) for arm in config.arms]
            for name, attack in config.attacks.items():
                cell = Cell(task, seed, name)
                found += [Job(cell, arm) for arm in attack.arms or config.arms]
    return found


def run(config, workdir: pathlib.Path, *, console: Console) -> list[dict[str, Any]]:
    """Runs what is left of a study and returns all its rows.

    Args:
        config: a `FrozenConfigDict` that `check.check` has seen.
        workdir: the study's folder, made where it does not exist.
        console: where the progress bar is drawn.

    Returns:
        One dictionary per row of the grid, see `evaluate`.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=console,
        speed_estimate_period=600,
    )
    todo = [job for job in jobs(config) if not (workdir / job.row).exists()]
    with progress:
        context = Context(config, workdir, progress, progress.add_task("preparing"))
        preflight(context, todo)
        if todo:
            progress.update(context.task_id, total=_work(context, todo))
        else:
            progress.update(context.task_id, total=1, completed=1)
        for job in todo:
            row = evaluate(context, job)
            runtime.write_json(workdir / job.row, row)
        context.describe("done")
    if not config.export_students:
        for job in jobs(config):
            # First the file that says the student is whole.
            (workdir / job.student / "training.json").unlink(missing_ok=True)
            shutil.rmtree(workdir / job.student / "model", ignore_errors=True)
    return [json.loads((workdir / job.row).read_text()) for job in jobs(config)]


def preflight(context: Context, todo: list[Job]) -> None:
    """Raises on what only the data can tell is impossible, before anything is trained.

    Args:
        context: the study.
        todo: its rows.

    Raises:
        ValueError: a feature layer beyond a model's depth, a target or source beyond
            the classes, too few prototypes for them, or an attack or a defence on a
            task that has scores instead of classes.
    """
    for role in ("teacher", "student", "anchor") if todo else ():
        depth = _model_config(
            context, context.config[role], todo[0].cell.task
        ).num_layers
        for layer in context.config.features.layers:
            _validate.require(
                -depth - 1 <= layer <= depth,
                "features.layers",
                layer,
                f"in {-depth - 1}..{depth}, the states of the {role}",
            )
    for cell in dict.fromkeys(job.cell for job in todo):
        task, _ = cells.task_data(context, cell.task, cell.seed)
        arms_run = [job.arm for job in todo if job.cell == cell]
        if task.problem == "regression":
            for arm in arms_run:
                _validate.one_of(("clean", "plain", "references"), arms=arm)
        else:
            least = task.num_labels
            found = context.config.prototypes.num
            _validate.require(
                found >= least, "prototypes.num", found, f">= {least}, one a class"
            )
        if cell.attack is not None:
            # Both refuse scores, and classes that the task does not have.
            cells.poisoned(context, cell)
            cells.triggered_test(context, cell)


def _work(context: Context, todo: list[Job]) -> float:
    """Returns the training that is left, in the progress bar's units."""
    config, runs = context.config, {}
    for job in todo:
        splits = cells.task_data(context, job.cell.task, job.cell.seed).splits
        rows, few = len(splits.transfer.texts), len(splits.references.texts)
        teacher = cells.teacher_cell(context, job.student_cell).folder
        held_out = round(few * config.quarantine.calibration_share)
        needed = {job.student: (config.student, rows * config.student.epochs)}
        if job.arm == "references":
            needed = {job.student: (config.student, few * config.anchor.epochs)}
        else:
            needed[f"{teacher}/teacher"] = (
                config.teacher,
                rows * config.teacher.epochs,
            )
        if job.arm in ("anchor", "gate"):
            folder = f"{job.cell.clean.folder}/anchor_encoder"
            passes = (few - held_out) * config.anchor.epochs
            needed[folder] = (config.anchor, passes)
        for name, (section, passes) in needed.items():
            if not (context.workdir / name / "model").exists():
                runs[name] = passes * runtime.row_cost(
                    _model_config(context, section, job.cell.task)
                )
    return sum(runs.values())


@functools.cache
def _model_config(context: Context, section, task: str) -> models.EncoderConfig:
    """Returns the config of a section's model on a task, read once for all seeds."""
    cell = Cell(task, context.config.seeds[0], None)
    return cells.build_model(context, section, cell).config


def student(context: Context, job: Job) -> tuple[models.Model, dict[str, Any]]:
    """Returns the student of a job and the facts of its training; trains it once."""
    config, cell = context.config, job.student_cell
    folder = context.workdir / job.student
    if (folder / "training.json").exists() and (folder / "model").exists():
        model = cells.load_model(context, folder / "model", config.student, cell)
        return model, json.loads((folder / "training.json").read_text())
    context.describe(job.student)
    recipe = ARMS[job.arm].recipe(context, cell)
    context.describe(job.student)
    untrained = cells.build_model(context, config.student, cell)
    section = config.student
    if recipe.epochs is not None:
        section = FrozenConfigDict({**section.to_dict(), "epochs": recipe.epochs})
    features = recipe.columns.get("teacher_features")
    trained = runtime.train(
        context,
        job.student,
        untrained,
        cells.tokenize(context, untrained, recipe.examples),
        recipe.examples.labels,
        section,
        seed=cell.seed,
        objective=recipe.objective,
        prototypes=recipe.prototypes,
        teacher_dim=None if features is None else features.shape[-1],
        **recipe.columns,
    )
    model = untrained._replace(params=trained.params)
    facts = {
        "commit": runtime.commit(),
        "step_seconds": trained.step_seconds,
        "transfer_rows": len(recipe.examples.texts),
        "bytes_per_node": 0
        if recipe.prototypes is None
        else prototypes.num_bytes(recipe.prototypes),
        **_quarantine_facts(context, cell, recipe),
    }
    hf.save_hf(folder / "model", model)
    if trained.projection is not None:
        with runtime.atomic(folder / "projection.npy") as file:
            np.save(file, trained.projection)
    if recipe.prototypes is not None:
        layers = recipe.prototypes.vectors.shape[0]
        for layer in range(layers):
            prototypes.save_prototypes(
                folder / f"prototypes_{layer}.safetensors",
                type(recipe.prototypes)(*(leaf[layer] for leaf in recipe.prototypes)),
            )
    # Written last: this file says that the student is whole.
    runtime.write_json(folder / "training.json", facts)
    runtime.forget_checkpoints(context, job.student)
    return model, facts


def _quarantine_facts(context: Context, cell: Cell, recipe: arms.Recipe):
    """Returns how good a quarantine was; the only use of the ground truth here."""
    if recipe.verdict is None:
        return {}
    truth = cells.poisoned(context, cell).rows
    quality = evals.quarantine_quality(recipe.verdict.rejected, truth)
    return {
        "quarantine_precision": quality.precision,
        "quarantine_recall": quality.recall,
        "false_rejection": quality.false_rejection_rate,
        "detection_auc": evals.detection_auc(-recipe.verdict.p_values, truth)
        if truth.any()
        else None,
    }


def evaluate(context: Context, job: Job) -> dict[str, Any]:
    """Returns one row of the results: a student on clean and on triggered text."""
    model, facts = student(context, job)
    task, splits = cells.task_data(context, job.cell.task, job.cell.seed)
    outputs, _ = runtime.predict(
        context, model, model.params, cells.tokenize(context, model, splits.test)
    )
    predicted = outputs[:, 0] if task.problem == "regression" else outputs.argmax(-1)
    metrics = {
        name: tasks.METRICS[name](splits.test.labels, predicted)
        for name in task.metrics
    }
    row = {
        "task": job.cell.task,
        "attack": job.cell.attack,
        "arm": job.arm,
        "seed": job.cell.seed,
        "clean_metric": metrics[task.metrics[0]],
        "metric_name": task.metrics[0],
        "metrics": metrics,
        "test_rows": len(splits.test.texts),
        "asr": None,
        "robust_accuracy": None,
        **facts,
    }
    if job.cell.attack is not None:
        target = context.config.attacks[job.cell.attack].target
        triggered = cells.triggered_test(context, job.cell)
        outputs, _ = runtime.predict(
            context, model, model.params, cells.tokenize(context, model, triggered)
        )
        predicted = outputs.argmax(-1)
        row["asr"] = evals.attack_success_rate(
            predicted, triggered.labels, target=target
        )
        row["robust_accuracy"] = evals.robust_accuracy(predicted, triggered.labels)
    return row
