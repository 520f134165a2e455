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
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments import (
    adaptive,
    arms,
    cells,
    federated,
    inference,
    ingredients,
    processes,
    runtime,
    tasks,
)
from experiments.arms import ARMS
from experiments.cells import Cell
from experiments.runtime import Context
from protojax import (
    _validate,
    attacks,
    distillation,
    evals,
    models,
    partition,
    prototypes,
)
from protojax.models import hf

_END = "end of the study"  # where processes wait for each other
DONE = "training.json"  # the file that says that a job's students are whole


class Job(NamedTuple):
    """One row of the results.

    Attributes:
        cell: the task, seed and attack.
        arm: a name in `ARMS`, with `+variant` behind it to change what the config
            says, and `@federation` to run it over many nodes.
        student_cell: the cell that the student is trained in.
    """

    cell: Cell
    arm: str
    student_cell: Cell

    @property
    def kind(self) -> str:
        """The name in `ARMS`."""
        return arms.parse(self.arm).kind

    @property
    def variant(self) -> str:
        """The name in the config's `variants`, "" for none."""
        return arms.parse(self.arm).variant

    @property
    def federation(self) -> str:
        """The name in the config's `federations`, "" for none."""
        return arms.parse(self.arm).federation

    @property
    def row(self) -> str:
        """The file of the row, below the workdir."""
        return f"{self.cell.folder}/{self.arm}.json"

    @property
    def student(self) -> str:
        """The student's folder, below the workdir."""
        return f"{self.student_cell.whole.folder}/{self.arm}"


def jobs(config) -> list[Job]:
    """Returns all rows of a study, those that share ingredients side by side."""
    found = []
    for task in config.tasks:
        for seed in config.seeds:
            if not config.attacks:
                cell = Cell(task, seed, None)
                found += [_job(config, cell, arm) for arm in config.arms]
            for name, attack in config.attacks.items():
                if attack.tasks and task not in attack.tasks:
                    continue
                cell = Cell(task, seed, name)
                arms_run = attack.arms or config.arms
                found += [_job(config, cell, arm) for arm in arms_run]
    return found


def _job(config, cell: Cell, arm: str) -> Job:
    """Returns an arm's job on a cell."""
    kind, _, federation = arms.parse(arm)
    student_cell = ARMS[kind].learns_in(config, cell)
    return Job(cell, arm, student_cell._replace(federation=federation))


def _needed(config, job: Job) -> list[Job]:
    """Returns the jobs whose students a job starts from or imitates."""
    return [_job(config, job.cell, arm) for arm in ARMS[job.kind].needs]


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
    todo = _todo(config, workdir)
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
    processes.meet(_END)
    if not config.export_students:
        listed = jobs(config)
        needed = [other for job in listed for other in _needed(config, job)]
        for job in [*listed, *needed]:
            # First the file that says the student is whole.
            (workdir / job.student / DONE).unlink(missing_ok=True)
            for folder in (workdir / job.student).glob("**/model"):
                shutil.rmtree(folder)
    return [json.loads((workdir / job.row).read_text()) for job in jobs(config)]


def _todo(config, workdir: pathlib.Path) -> list[Job]:
    """Returns the jobs whose rows are not written yet."""
    return [job for job in jobs(config) if not (workdir / job.row).exists()]


def follow(config, workdir: pathlib.Path) -> None:
    """Does a process's share of a study that the first of several processes runs.

    It trains the nodes that live on its devices, and leaves the rest to the first.

    Args:
        config: as in `run`.
        workdir: the study's folder, which all processes see.
    """
    progress = Progress(console=Console(quiet=True))
    context = Context(config, workdir, progress, progress.add_task("following"))
    for job in _todo(config, workdir):
        if job.federation and not _saved(context, job):
            cell = job.student_cell
            distilled = workdir / job.student
            with processes.leader_first(distilled / federated.READY):
                model = _start(context, job)
            federated.distil(context, job.student, cell, ARMS[job.kind], model)
    processes.meet(_END)


def preflight(context: Context, todo: list[Job]) -> None:
    """Raises on what only the data can tell is impossible, before hours are spent.

    A trigger that is searched takes an anchor, which is trained here.

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
    searched = {
        name
        for name, attack in context.config.attacks.items()
        if attack.trigger == "searched"
    }
    # Those whose trigger takes an anchor to be found come last.
    for cell in sorted(
        dict.fromkeys(job.cell for job in todo), key=lambda c: c.attack in searched
    ):
        task, splits = cells.task_data(context, cell.task, cell.seed)
        arms_run = [job.kind for job in todo if job.cell == cell]
        rows, expected = len(splits.transfer.texts), context.config.dp.batch_size
        if "dp_sgd" in arms_run:
            bound = f"<= {rows}, the transfer rows of {cell.task}"
            _validate.require(expected <= rows, "dp.batch_size", expected, bound)
            delta = context.config.dp.delta
            bound = f"< 1 / {rows}, the transfer rows of {cell.task}"
            _validate.require(delta < 1 / rows, "dp.delta", delta, bound)
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
            adaptive.prepare(context, cell)
            # These refuse scores, and classes that the task does not have.
            cells.poisoned(context, cell)
            cells.triggered_test(context, cell)
            try:
                cells.references(context, cell)
            except ValueError as error:
                name = f"attacks.{cell.attack}.reference_rate"
                raise ValueError(f"{name}: {error}") from error


def _work(context: Context, todo: list[Job]) -> float:
    """Returns the training that is left, in the progress bar's units."""
    config, runs = context.config, {}
    for job in todo:
        splits = cells.task_data(context, job.cell.task, job.cell.seed).splits
        rows, few = len(splits.transfer.texts), len(splits.references.texts)
        passes = {
            "references": few * config.anchor.epochs,
            "fine_tuned": few * config.fine_tuning.epochs,
            "nad": few * config.fine_tuning.epochs,
            "dp_sgd": rows * config.dp.epochs,
        }
        teacher = ingredients.teacher_cell(context, job.student_cell).folder
        held_out = round(few * config.quarantine.calibration_share)
        needed = {
            other.student: (
                config.student,
                passes.get(other.kind, rows * config.student.epochs),
            )
            for other in (job, *_needed(config, job))
        }
        if job.kind != "references":
            needed[f"{teacher}/teacher"] = (
                config.teacher,
                rows * config.teacher.epochs,
            )
        if ARMS[job.kind].anchored:
            folder = f"{cells.reference_cell(config, job.cell).folder}/anchor_encoder"
            needed[folder] = (config.anchor, (few - held_out) * config.anchor.epochs)
        for name, (section, work) in needed.items():
            folder = context.workdir / name
            if not (folder / "model").exists() and not (folder / DONE).exists():
                runs[name] = work * runtime.row_cost(
                    _model_config(context, section, job.cell.task)
                )
    return sum(runs.values())


@functools.cache
def _model_config(context: Context, section, task: str) -> models.EncoderConfig:
    """Returns the config of a section's model on a task, read once for all seeds."""
    cell = Cell(task, context.config.seeds[0], None)
    return ingredients.build_model(context, section, cell).config


def _saved(context: Context, job: Job) -> list[pathlib.Path]:
    """Returns the folders of a job's students, none before they are whole."""
    folder = context.workdir / job.student
    return sorted(folder.glob("**/model")) if (folder / DONE).exists() else []


def students(context: Context, job: Job) -> tuple[list[models.Model], dict[str, Any]]:
    """Returns the students of a job and the facts of their training; trains them once.

    There is one, or one a node where no server merges them.
    """
    context = context.varied(job.variant)
    config, cell = context.config, job.student_cell
    folder = context.workdir / job.student
    if saved := _saved(context, job):
        found = [
            ingredients.load_model(context, s, config.student, cell) for s in saved
        ]
        return found, json.loads((folder / DONE).read_text())
    context.describe(job.student)
    untrained = _start(context, job)
    distil = federated.distil if job.federation else _distil
    done = distil(context, job.student, cell, ARMS[job.kind], untrained)
    found = [untrained._replace(params=params["model"]) for params in done.params]
    one_each = len(found) > 1
    for node, (model, params) in enumerate(zip(found, done.params, strict=True)):
        place = folder / f"node_{node:03d}" if one_each else folder
        hf.save_hf(place / "model", model)
        if "projection" in params:
            with runtime.atomic(place / "projection.npy") as file:
                np.save(file, params["projection"])
    held = done.recipes[0].prototypes
    if held is not None:
        for layer in range(held.vectors.shape[0]):
            prototypes.save_prototypes(
                folder / f"prototypes_{layer}.safetensors",
                type(held)(*(leaf[layer] for leaf in held)),
            )
    facts = {
        "commit": runtime.commit(),
        **done.facts,
        "transfer_rows": sum(len(recipe.examples.texts) for recipe in done.recipes),
        "bytes_per_node": 0 if held is None else prototypes.num_bytes(held),
        "hostile_nodes": int(done.hostile.sum()),
        **_quarantine_facts(context, cell, done),
    }
    # Written last: this file says that the students are whole.
    runtime.write_json(folder / DONE, facts)
    runtime.forget_checkpoints(context, job.student)
    return found, facts


def _start(context: Context, job: Job) -> models.Model:
    """Returns what a job's training starts from: a new student, or another arm's."""
    before = [students(context, other)[0] for other in _needed(context.config, job)]
    if before:
        return before[0][0]
    return ingredients.build_model(context, context.config.student, job.student_cell)


def _distil(
    context: Context, name: str, cell: Cell, arm: arms.Arm, model: models.Model
) -> federated.Distilled:
    """Distils one student from all rows in one place."""
    recipe = arm.recipe(context, cell)
    context.describe(name)
    features = recipe.columns.get("teacher_features")
    section = runtime.changed(context.config.student, **recipe.section)
    trained = runtime.train(
        context,
        name,
        model,
        ingredients.tokenize(context, model, recipe.examples),
        recipe.examples.labels,
        section,
        seed=cell.seed,
        objective=recipe.objective,
        prototypes=recipe.prototypes,
        teacher_dim=None if features is None else features.shape[-1],
        **recipe.columns,
    )
    params = distillation.student_params(trained.params, trained.projection)
    rule = recipe.objective.get("gradient", {})
    facts = {
        "step_seconds": trained.step_seconds,
        "step_rows": section.batch_size,
        "noise_multiplier": rule.get("noise_multiplier"),
    }
    return federated.Distilled([params], [recipe], np.zeros(1, bool), facts)


def _quarantine_facts(context: Context, cell: Cell, done: federated.Distilled):
    """Returns how good a quarantine was; the only use of the ground truth here."""
    judged = [
        (recipe.verdict, cells.poisoned(context, cell._replace(node=node)).rows)
        for node, recipe in enumerate(done.recipes)
        if recipe.verdict is not None
    ]
    if not judged:
        return {}
    rejected = np.concatenate([verdict.rejected for verdict, _ in judged])
    p_values = np.concatenate([verdict.p_values for verdict, _ in judged])
    truth = np.concatenate([rows for _, rows in judged])
    quality = evals.quarantine_quality(rejected, truth)
    return {
        "quarantine_precision": quality.precision,
        "quarantine_recall": quality.recall,
        "false_rejection": quality.false_rejection_rate,
        "detection_auc": evals.detection_auc(-p_values, truth) if truth.any() else None,
    }


def evaluate(context: Context, job: Job) -> dict[str, Any]:
    """Returns one row of the results: students on clean and on triggered text.

    Of several students, one a node, the honest nodes' count, each as much.
    """
    found, facts = students(context, job)
    if len(found) > 1:
        found = found[: len(found) - facts["hostile_nodes"]]
    task, splits = cells.task_data(context, job.cell.task, job.cell.seed)
    predicted = _predict(context, task, found, splits.test)
    metrics = {
        name: float(
            np.mean([tasks.METRICS[name](splits.test.labels, p) for p in predicted])
        )
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
        "untriggered_asr": None,
        "robust_accuracy": None,
        **facts,
        **_fairness(context, job, predicted, facts),
    }
    if job.cell.attack is not None:
        attack = context.config.attacks[job.cell.attack]
        success = functools.partial(evals.attack_success_rate, target=attack.target)
        # Ready rows have no twins without their trigger here.
        if attack.trigger != "file":
            truth = splits.test.labels
            kept = attacks.measured_rows(
                truth,
                target=attack.target,
                source_classes=tuple(attack.source_classes),
            )
            row["untriggered_asr"] = float(
                np.mean([success(p[kept], truth[kept]) for p in predicted])
            )
        triggered = cells.triggered_test(context, job.cell)
        predicted = _predict(context, task, found, triggered)
        truth = triggered.labels
        row["asr"] = float(np.mean([success(p, truth) for p in predicted]))
        row["robust_accuracy"] = float(
            np.mean([evals.robust_accuracy(p, truth) for p in predicted])
        )
    return row


def _predict(
    context: Context, task, found: list[models.Model], examples
) -> list[np.ndarray]:
    """Returns what each student says of some rows: classes or scores."""
    tokens = ingredients.tokenize(context, found[0], examples)
    outputs = [inference.predict(context, m, m.params, tokens)[0] for m in found]
    if task.problem == "regression":
        return [logits[:, 0] for logits in outputs]
    return [logits.argmax(-1) for logits in outputs]


def _fairness(context: Context, job: Job, predicted, facts) -> dict[str, Any]:
    """Returns how the honest nodes of a federation differ in accuracy.

    A node's accuracy is over its own mix of classes.
    """
    task, splits = cells.task_data(context, job.cell.task, job.cell.seed)
    if not job.federation or task.problem == "regression":
        return {}
    rows = cells.node_rows(context, job.student_cell)
    honest = len(rows) - facts["hostile_nodes"]
    # By the labels that nature gave: what a node is for does not change with an attack.
    shares = partition.class_shares(
        splits.transfer.labels, rows[:honest], task.num_labels
    )
    accuracies = evals.node_accuracies(
        np.broadcast_to(predicted, (honest, len(splits.test.labels))),
        splits.test.labels,
        shares,
    )
    return {
        "node_accuracies": accuracies.tolist(),
        "node_variance": float(accuracies.var()),
        "worst_node": float(accuracies.min()),
        "bytes_sent": facts["traffic"]["total"],
    }
