"""Execution of a study's grid: tasks x seeds x attacks x arms, each scenario once.

Every finished student and every evaluated row is stored in a file. A study that was
killed resumes from these files; a finished one only reads its rows.
"""

import json
import pathlib
from typing import Any

from rich.console import Console
from rich.progress import Progress

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

_END = "end of the study"  # the barrier at which processes wait for each other


def run(
    config: Settings, workdir: pathlib.Path, progress: Progress
) -> list[dict[str, Any]]:
    """All rows of a study, after its remaining jobs have run.

    Args:
        config: the settings from `check.check`.
        workdir: the study's folder, created if it does not exist.
        progress: the progress bar, advanced while the study runs.

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
        # A bar with a total of 0 would never be full.
        progress.update(context.task_id, total=total or 1, completed=not total)
        for training in models:
            # Between trainings only, since cleared programs must be compiled again.
            programs.clear_caches_near_limit()
            train(context, training)
        for job in todo:
            context.describe(job.row)
            storage.write_json(workdir / job.row, evaluate(context, job))
        context.describe("done")
    # The first process hosts the coordination service, and must not end before others.
    processes.meet(_END)
    if not config.export_students:
        # Only now, since other arms may start from these students.
        listed = jobs(config)
        before = [other for job in listed for other in needed(config, job)]
        for job in [*listed, *before]:
            students.remove(workdir, job)
    # From disk, rows of earlier runs and of this one alike.
    return [json.loads((workdir / job.row).read_text()) for job in jobs(config)]


def train(context: Context, training: Training) -> None:
    """Trains a model that other models or rows need, unless it exists already."""
    if training.job is not None:
        students.train(context, training.job)
    elif not is_trained(context.workdir, training):
        varied = context.varied(training.variant)
        artifacts.fine_tune(varied, training.tuning, training.scenario)


def _todo(config: Settings, workdir: pathlib.Path) -> list[Job]:
    """The jobs without a stored row; seeds that train together are adjacent."""
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
    """Runs the part of a study that falls to any of several processes but the first.

    It trains the nodes on its own devices, and leaves everything else to the first.

    Args:
        config: the settings, as in `run`.
        workdir: the study's folder, visible to all processes.
    """
    progress = Progress(console=Console(quiet=True))
    context = Context(config, workdir, progress, progress.add_task("following"))
    for training in trainings(config, _todo(config, workdir)):
        programs.clear_caches_near_limit()
        job = training.job
        if job and job.federation and not is_trained(workdir, training):
            # By then the first process has written the data's hashes and searched the
            # triggers.
            processes.wait_for_leader(workdir / job.student / federated.READY)
            check_unchanged(fingerprints(config, workdir, job.scenario))
            found = adaptive_attacks.with_found(context, [job.scenario])
            students.distil_federated(found, job)
    processes.meet(_END)
