"""Runs the grid of a study: tasks x seeds x attacks x arms, each scenario once.

Every finished student and every evaluated row is a file; a study that was killed runs
on from there, and one that is finished only gathers its rows.
"""

import json
import pathlib
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.arms import federated
from experiments.runtime import Context
from experiments.settings import Settings
from experiments.study import students
from experiments.study.evaluate import evaluate
from experiments.study.grid import Job, Training, is_trained, jobs, needed, trainings
from experiments.study.preflight import check_unchanged, fingerprints, preflight, work
from experiments.world import adaptive_attacks, artifacts
from protojax import storage, validate
from protojax.training import processes, programs

_END = "end of the study"  # where processes wait for each other


def progress_bar(console: Console) -> Progress:
    """The progress bar of a study, with an estimate of what is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=console,
        speed_estimate_period=600,
    )


def run(
    config: Settings, workdir: pathlib.Path, progress: Progress
) -> list[dict[str, Any]]:
    """All rows of a study, once what is left of it has run.

    Args:
        config: what `check.check` has made of the command line's.
        workdir: the study's folder, made where it does not exist.
        progress: moved while it runs.

    Returns:
        One dictionary per row of the grid, see `evaluate`.
    """
    alone, found = not processes.are_several(), config.replicas
    bound = "1 with several processes"
    validate.require(found == 1 or alone, "replicas", found, bound)
    todo = _todo(config, workdir)
    with progress:
        context = Context(config, workdir, progress, progress.add_task("preparing"))
        context = preflight(context, todo)
        models = trainings(config, todo)
        total = work(context.config, workdir, models)
        # A bar without work would never be full.
        progress.update(context.task_id, total=total or 1, completed=not total)
        for training in models:
            programs.clear_caches_near_limit()
            train(context, training)
        for job in todo:
            context.describe(job.row)
            storage.write_json(workdir / job.row, evaluate(context, job))
        context.describe("done")
    processes.meet(_END)
    if not config.export_students:
        listed = jobs(config)
        before = [other for job in listed for other in needed(config, job)]
        for job in [*listed, *before]:
            students.remove(workdir, job)
    return [json.loads((workdir / job.row).read_text()) for job in jobs(config)]


def train(context: Context, training: Training) -> None:
    """Trains a model that others, or rows, need, unless it is there."""
    if training.job is not None:
        students.train(context, training.job)
    elif not is_trained(context.workdir, training):
        varied = context.varied(training.variant)
        artifacts.fine_tune(varied, training.tuning, training.scenario)


def _todo(config: Settings, workdir: pathlib.Path) -> list[Job]:
    """The jobs whose rows are not written yet; seeds that train at once together."""
    left = [job for job in jobs(config) if not (workdir / job.row).exists()]
    if config.replicas == 1:
        return left
    found: dict[tuple, list[Job]] = {}
    for job in left:
        found.setdefault((job.scenario.task, job.scenario.attack, job.arm), []).append(
            job
        )
    return [job for group in found.values() for job in group]


def follow(config, workdir: pathlib.Path) -> None:
    """Does a process's share of a study that the first of several processes runs.

    It trains the nodes that live on its devices, and leaves the rest to the first.

    Args:
        config: as in `run`.
        workdir: the study's folder, which all processes see.
    """
    progress = Progress(console=Console(quiet=True))
    context = Context(config, workdir, progress, progress.add_task("following"))
    for training in trainings(config, _todo(config, workdir)):
        programs.clear_caches_near_limit()
        job = training.job
        if job and job.federation and not is_trained(workdir, training):
            # By then it has written its data's hashes, and searched the triggers.
            processes.wait_for_leader(workdir / job.student / federated.READY)
            check_unchanged(fingerprints(config, workdir, job.scenario))
            found = adaptive_attacks.with_found(context, [job.scenario])
            students.distil_federated(found, job)
    processes.meet(_END)
