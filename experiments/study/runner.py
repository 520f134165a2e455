"""Runs the grid of a study: tasks x seeds x attacks x arms, each cell once.

Every finished student and every evaluated row is a file; a study that was killed runs
on from there, and one that is finished only gathers its rows.
"""

import functools
import json
import pathlib
from typing import Any

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
    arms,
    inference,
    processes,
    runtime,
    saved,
    together,
    trainer,
)
from experiments.arms import ARMS, federated
from experiments.runtime import Context
from experiments.study.grid import DONE, Job, job_of, jobs, needed
from experiments.study.preflight import check_unchanged, fingerprints, preflight, work
from experiments.world import artifacts, scenario, tasks
from experiments.world.scenario import Cell
from protojax import attacks, distillation, evals, models, prototypes, validate
from protojax.data import partition

_END = "end of the study"  # where processes wait for each other
# What is known of the training of a student that has no federation.
_TRAINING = (
    *("step_seconds", "step_rows", "seeds_at_once", "noise_multiplier"),
    "epsilon_nominal",
)


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
    alone, found = not processes.are_several(), config.seeds_at_once
    bound = "1 with several processes"
    validate.require(found == 1 or alone, "seeds_at_once", found, bound)
    todo = _todo(config, workdir)
    with progress:
        context = Context(config, workdir, progress, progress.add_task("preparing"))
        preflight(context, todo)
        if todo:
            progress.update(context.task_id, total=work(context, todo))
        else:
            progress.update(context.task_id, total=1, completed=1)
        for group in _groups(config, todo):
            runtime.make_room()
            for job in group:
                train_students(context, job)
            for job in group:
                row = evaluate(context, job)
                runtime.write_json(workdir / job.row, row)
        context.describe("done")
    processes.meet(_END)
    if not config.export_students:
        listed = jobs(config)
        before = [other for job in listed for other in needed(config, job)]
        for job in [*listed, *before]:
            # First the file that says the student is whole.
            (workdir / job.student / DONE).unlink(missing_ok=True)
            for folder in (workdir / job.student).glob("**/model"):
                saved.remove(folder)
    return [json.loads((workdir / job.row).read_text()) for job in jobs(config)]


def _todo(config, workdir: pathlib.Path) -> list[Job]:
    """Returns the jobs whose rows are not written yet."""
    return [job for job in jobs(config) if not (workdir / job.row).exists()]


def _groups(config, todo: list[Job]) -> list[list[Job]]:
    """Returns jobs in groups that differ in their seed only, to be trained first."""
    if config.seeds_at_once == 1:
        return [[job] for job in todo]
    found: dict[tuple, list[Job]] = {}
    for job in todo:
        found.setdefault((job.cell.task, job.cell.attack, job.arm), []).append(job)
    return list(found.values())


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
        runtime.make_room()
        if job.federation and not _saved(context, job):
            check_unchanged(fingerprints(context, job.cell))
            distil_federated(context, job)
    processes.meet(_END)


def _saved(context: Context, job: Job) -> list[pathlib.Path]:
    """Returns the folders of a job's students, none before they are whole."""
    folder = context.workdir / job.student
    return sorted(folder.glob("**/model")) if (folder / DONE).exists() else []


def students(context: Context, job: Job) -> tuple[list[models.Model], dict[str, Any]]:
    """Returns the students of a job and the facts of their training; trains them once.

    There is one, or one a node where no server merges them.
    """
    train_students(context, job)
    facts = _facts(context, job)
    context = context.varied(job.variant)
    found = [
        artifacts.load_model(
            context,
            folder,
            context.config.student,
            job.student_cell,
            run=context.workdir / job.student,
        )
        for folder in _saved(context, job)
    ]
    return found, facts


def _facts(context: Context, job: Job) -> dict[str, Any]:
    """Returns what is known of the training of a job's students."""
    return json.loads((context.workdir / job.student / DONE).read_text())


def train_students(context: Context, job: Job) -> None:
    """Trains the students of a job, unless they are there.

    With them train those of the seeds that the config puts beside its own, kept or not:
    a study that was killed between two of them goes on with the same group.
    """
    # Attacks share students that do not depend on them.
    if _saved(context, job):
        if _facts(context, job).get("epsilon_nominal") is False:
            # The study may have been killed between the student and this.
            trainer.forget_checkpoints(context, job.student, secret=True)
        return
    if job.federation:
        start, done = distil_federated(context, job)
        _keep(context, job, done, start)
        trainer.forget_checkpoints(context, job.student)
        return
    seeds = together.seeds_beside(context.config, job.cell.seed)
    group = [
        job_of(context.config, job.cell._replace(seed=seed), job.arm) for seed in seeds
    ]
    starts = [_start(context, one) for one in group]
    whole, context = context, context.varied(job.variant)
    done = {one.student for one in group if _saved(context, one)}
    made = []
    for one, start in zip(group, starts, strict=True):
        recipe = ARMS[one.kind].recipe(context, one.student_cell)
        if recipe.student is None:
            made.append((one, start, recipe, _run(context, one, start, recipe)))
        elif one.student not in done:
            before = _facts(whole, needed(whole.config, one)[0])
            facts = {name: before.get(name) for name in _TRAINING}
            params = distillation.student_params(recipe.student.params)
            _keep(context, one, _alone(params, recipe, facts), start)
    ended = together.train(context, [run for *_, run in made], done=done)
    left = [part for part in made if part[0].student not in done]
    for (one, start, recipe, run), trained in zip(left, ended, strict=True):
        rule = recipe.objective.get("gradient", {})
        facts = (
            trained.step_seconds,
            run.section.batch_size,
            trained.at_once,
            rule.get("noise_multiplier"),
            not run.draws_in_secret(context.config) if run.private else None,
        )
        facts = dict(zip(_TRAINING, facts, strict=True))
        params = distillation.student_params(trained.params, trained.projection)
        _keep(context, one, _alone(params, recipe, facts), start)


def _run(
    context: Context, job: Job, start: models.Model, recipe: arms.Recipe
) -> trainer.Run:
    """Returns the training run of a recipe, of a student that has no federation."""
    return trainer.Run(
        job.student,
        start,
        artifacts.tokenize(context, start, recipe.examples),
        recipe.examples.labels,
        runtime.changed(context.config.student, **recipe.section),
        seed=job.cell.seed,
        columns=recipe.columns,
        objective=recipe.objective,
        prototypes=recipe.prototypes,
    )


def _alone(params, recipe: arms.Recipe, facts: dict[str, Any]) -> federated.Distilled:
    """Returns what came of a student that has no federation."""
    held = [] if recipe.prototypes is None else [recipe.prototypes]
    return federated.Distilled([params], [recipe], held, np.zeros(1, bool), facts)


def distil_federated(
    context: Context, job: Job
) -> tuple[models.Model, federated.Distilled]:
    """Trains the students of a job over its federation.

    Every process of several calls it.

    Args:
        context: the study.
        job: one whose arm runs in a federation.

    Returns:
        What they started from, and what came of it.
    """
    processes.wait_for_leader(context.workdir / job.student / federated.READY)
    start = _start(context, job)
    context = context.varied(job.variant)
    context.describe(job.student)
    arm = ARMS[job.kind]
    done = federated.distil(context, job.student, job.student_cell, arm, start)
    return start, done


def _keep(
    context: Context, job: Job, done: federated.Distilled, start: models.Model
) -> None:
    """Writes the students of a job and the facts of their training."""
    folder = context.workdir / job.student
    one_each = len(done.params) > 1
    for node, params in enumerate(done.params):
        place = folder / f"node_{node:03d}" if one_each else folder
        saved.save(place / "model", start._replace(params=params["model"]))
        if "projection" in params:
            with runtime.atomic(place / "projection.npy") as file:
                np.save(file, params["projection"])
    for node, held in enumerate(done.prototypes):
        place = folder if len(done.prototypes) == 1 else folder / f"node_{node:03d}"
        place.mkdir(parents=True, exist_ok=True)
        for layer in range(held.vectors.shape[0]):
            prototypes.save_prototypes(
                place / f"prototypes_{layer}.safetensors",
                type(held)(*(leaf[layer] for leaf in held)),
            )
    facts = {
        "commit": runtime.commit(),
        **done.facts,
        "transfer_rows": sum(len(recipe.examples.texts) for recipe in done.recipes),
        "bytes_per_node": sum(map(prototypes.num_bytes, done.prototypes[:1])),
        "hostile_nodes": int(done.hostile.sum()),
        **_quarantine_facts(context, job.student_cell, done),
    }
    # Written last: this file says that the students are whole.
    runtime.write_json(folder / DONE, facts)


def _start(context: Context, job: Job) -> models.Model:
    """Returns what a job's training starts from: a new student, or another arm's."""
    before = needed(context.config, job)
    for other in before:
        train_students(context, other)
    if ARMS[job.kind].goes_on:
        (student,), _ = students(context, before[0])
        return student
    section = context.varied(job.variant).config.student
    return artifacts.build_model(context, section, job.student_cell)


def _quarantine_facts(context: Context, cell: Cell, done: federated.Distilled):
    """Returns how good a quarantine was; the only use of the ground truth here."""
    judged = [
        (recipe.verdict, scenario.poisoned(context, cell._replace(node=node)).rows)
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
    task, splits = scenario.task_data(context, job.cell.task, job.cell.seed)
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
        "target_kept": None,
        "evaluated_commit": runtime.commit(),
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
            of_target = scenario.triggered_target(context, job.cell)
            said = _predict(context, task, found, of_target)
            row["target_kept"] = float(
                np.mean([evals.robust_accuracy(p, of_target.labels) for p in said])
            )
        triggered = scenario.triggered_test(context, job.cell)
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
    tokens = artifacts.tokenize(context, found[0], examples)
    outputs = [inference.predict(context, m, m.params, tokens)[0] for m in found]
    if task.problem == "regression":
        return [logits[:, 0] for logits in outputs]
    return [logits.argmax(-1) for logits in outputs]


def _fairness(context: Context, job: Job, predicted, facts) -> dict[str, Any]:
    """Returns how the honest nodes of a federation differ in accuracy.

    A node's accuracy is over its own mix of classes.
    """
    task, splits = scenario.task_data(context, job.cell.task, job.cell.seed)
    if not job.federation or task.problem == "regression":
        return {}
    rows = scenario.node_rows(context, job.student_cell)
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
