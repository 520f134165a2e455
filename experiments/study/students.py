"""The students of a study: their training, storage and loading."""

import json
import pathlib
from typing import Any

import numpy as np

from experiments import runtime
from experiments.arms import ARMS, Recipe, federated
from experiments.runtime import Context
from experiments.settings import Settings
from experiments.study.grid import DONE, Job, job_of, needed
from experiments.world import artifacts, scenarios
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax import distillation, evals, models, prototypes, storage
from protojax.federated import replicas
from protojax.models import saved
from protojax.training import processes, trainer

# The facts recorded about the training of a student without a federation.
_TRAINING = (
    *("step_seconds", "step_rows", "replicas", "noise_multiplier"),
    "epsilon_nominal",
)


def folders(workdir: pathlib.Path, job: Job) -> list[pathlib.Path]:
    """The folders of a job's students; none before all of them are complete."""
    folder = workdir / job.student
    # Sorted, so that a student's place in the list is its node's number.
    return sorted(folder.glob("**/model")) if (folder / DONE).exists() else []


def facts_of(workdir: pathlib.Path, job: Job) -> dict[str, Any]:
    """The facts recorded about the training of a job's students."""
    return json.loads((workdir / job.student / DONE).read_text())


def load(context: Context, job: Job) -> list[models.Model]:
    """The students of a job: one, or one per node if no server merges them."""
    config = context.varied(job.variant).config
    task = scenarios.task_data(config, job.scenario.task, job.scenario.seed).task
    run = context.workdir / job.student
    return [
        artifacts.load_model(folder, config.student, task, run=run)
        for folder in folders(context.workdir, job)
    ]


def remove(workdir: pathlib.Path, job: Job) -> None:
    """Removes the students of a job."""
    # First the file that marks them as complete, in case the process is killed here.
    (workdir / job.student / DONE).unlink(missing_ok=True)
    for folder in (workdir / job.student).glob("**/model"):
        saved.remove(folder)


def train(context: Context, job: Job) -> None:
    """Trains the students of a job; the models that they need must exist.

    All seeds of its group (`replicas.seeds_beside`) train with it, even those that are
    stored already, so that a study that was killed resumes with the same group.
    """
    config, workdir = context.config, context.workdir
    if folders(workdir, job):
        if facts_of(workdir, job).get("epsilon_nominal") is False:
            # The study may have been killed after the student was stored and before its
            # secret checkpoints were removed.
            trainer.remove_checkpoints(context.around.store(job.student), secret=True)
        return
    if job.federation:
        start, done = distil_federated(context, job)
        _keep(context, job, done, start)
        # Only now: the students are stored.
        trainer.remove_checkpoints(context.around.store(job.student))
        return
    seeds = replicas.seeds_beside(config.seeds, config.replicas, job.scenario.seed)
    group = [
        job_of(config, job.scenario._replace(seed=seed), job.arm) for seed in seeds
    ]
    done = {one.student for one in group if folders(workdir, one)}
    made = []
    for one in group:
        varied = context.varied(one.variant)
        start = _start(context, one)
        recipe = ARMS[one.kind].recipe(World(varied, one.student_scenario))
        run = recipe.run(one.student, start, varied.config, one.scenario.seed)
        made.append((one, start, recipe, run))
    ended = replicas.train_all(
        [run for *_, run in made],
        context.around,
        at_once=config.replicas,
        done=done,
    )
    left = [part for part in made if part[0].student not in done]
    for (one, start, recipe, run), trained in zip(left, ended, strict=True):
        facts = (
            trained.step_seconds,
            run.train.batch_size,
            trained.at_once,
            run.objective.gradient.options.get("noise_multiplier"),
            not run.secret if run.private else None,
        )
        params = distillation.student_params(trained.params, trained.projection)
        facts = dict(zip(_TRAINING, facts, strict=True))
        _keep(context, one, _alone(params, recipe, facts), start)


def _start(context: Context, job: Job) -> models.Model:
    """The initial student of a job's training: a new one, or that of another arm."""
    if ARMS[job.kind].starts_from_first:
        (student,) = load(context, needed(context.config, job)[0])
        return student
    config = context.varied(job.variant).config
    return artifacts.build_model(config, config.student, job.student_scenario)


def _alone(params, recipe: Recipe, facts: dict[str, Any]) -> federated.Distilled:
    """The result for a student without a federation, in the form of a federated one."""
    held = [] if recipe.prototypes is None else [recipe.prototypes]
    return federated.Distilled([params], [recipe], held, np.zeros(1, bool), facts)


def distil_federated(
    context: Context, job: Job
) -> tuple[models.Model, federated.Distilled]:
    """The initial student of a job and the result of its federated training.

    All processes must call it.

    Args:
        context: the study.
        job: a job whose arm runs in a federation.
    """
    processes.wait_for_leader(context.workdir / job.student / federated.READY)
    start = _start(context, job)
    context = context.varied(job.variant)
    context.describe(job.student)
    arm = ARMS[job.kind]
    done = federated.distil(context, job.student, job.student_scenario, arm, start)
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
            with storage.atomic(place / "projection.npy") as file:
                # Beside the model, since it is no part of a checkpoint of transformers.
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
        **_quarantine_facts(context.config, job.student_scenario, done),
    }
    # Written last, since this file marks the students as complete.
    storage.write_json(folder / DONE, facts)


def _quarantine_facts(config: Settings, scenario: Scenario, done: federated.Distilled):
    """The quality of a quarantine, measured against the ground truth.

    Nothing else here may use the ground truth, which no defence knows.
    """
    judged = [
        (
            recipe.verdict,
            scenarios.poisoned(config, scenario._replace(node=node)).rows,
        )
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
        # Negated: the smaller its p-value, the more suspect a row is.
        "detection_auc": evals.detection_auc(-p_values, truth) if truth.any() else None,
    }
