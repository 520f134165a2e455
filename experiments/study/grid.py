"""The grid of a study: its jobs, one per arm and scenario, and the models they need."""

import pathlib
from typing import NamedTuple

from experiments import arms
from experiments.arms import ARMS
from experiments.runtime import varied
from experiments.settings import Settings
from experiments.world import artifacts, trusted_model
from experiments.world.artifacts import Tuning
from experiments.world.scenarios import Scenario
from protojax.federated import replicas

DONE = "training.json"  # the file that marks a job's students as complete


class Job(NamedTuple):
    """One row of the results.

    Attributes:
        scenario: the task, seed and attack.
        arm: a name in `ARMS`, followed by `+variant` to change settings of the config,
            and by `@federation` to run it over several nodes.
        student_scenario: the scenario in which the student is trained; it differs from
            `scenario` if, for example, the student is trained without the attack.
    """

    scenario: Scenario
    arm: str
    student_scenario: Scenario

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
        """The path of the row's file, relative to the workdir."""
        return f"{self.scenario.folder}/{self.arm}.json"

    @property
    def student(self) -> str:
        """The student's folder, relative to the workdir."""
        return f"{self.student_scenario.whole.folder}/{self.arm}"


class Training(NamedTuple):
    """The training of a model that a study needs.

    Attributes:
        name: the model's folder, relative to the workdir.
        scenario: the scenario.
        variant: a variant of the study, "" for the study itself.
        tuning: how a teacher or a trusted model is trained; None for students.
        job: the job of the students; None for teachers and trusted models.
    """

    name: str
    scenario: Scenario
    variant: str = ""
    tuning: Tuning | None = None
    job: Job | None = None


def is_trained(workdir: pathlib.Path, training: Training) -> bool:
    """Whether a model has been trained and stored completely."""
    folder = workdir / training.name
    # A model's folder gets its name when it is whole; students may be several.
    return (folder / ("model" if training.job is None else DONE)).exists()


def trainings(config: Settings, todo: list[Job]) -> list[Training]:
    """The trainings that some jobs need, each once, in the order of dependencies.

    Args:
        config: the study's settings.
        todo: the jobs.
    """
    found: dict[str, Training] = {}

    def add(job: Job) -> None:
        if job.student in found:
            return
        seeds = replicas.seeds_beside(config.seeds, config.replicas, job.scenario.seed)
        # Seeds that train together need the models of all of them.
        for seed in seeds:
            beside = job_of(config, job.scenario._replace(seed=seed), job.arm)
            for before in needed(config, beside):
                add(before)
            for training in _models_of(config, beside):
                found.setdefault(training.name, training)
        # Added last, since dictionaries keep the order in which trainings must run.
        found[job.student] = Training(
            job.student, job.student_scenario, job.variant, job=job
        )

    for job in todo:
        add(job)
    return list(found.values())


def _models_of(config: Settings, job: Job) -> list[Training]:
    """The trainings of the teacher and the trusted models that a job's students use."""
    arm, scenario, found = ARMS[job.kind], job.student_scenario, []
    config = varied(config, job.variant)
    if arm.taught:
        name = artifacts.teacher_name(config, scenario)
        found.append(Training(name, scenario, job.variant, artifacts.teacher_tuning))
    if arm.asks_trusted_model:
        found += [
            Training(name, scenario, job.variant, tuning)
            for name, tuning in trusted_model.tunings(config, scenario)
        ]
    return found


def jobs(config: Settings) -> list[Job]:
    """All jobs of a study, with those that share models next to each other."""
    found = []
    for task in config.tasks:
        for seed in config.seeds:
            if not config.attacks:
                scenario = Scenario(task, seed, None)
                found += [job_of(config, scenario, arm) for arm in config.arms]
            for name, attack in config.attacks.items():
                if attack.tasks and task not in attack.tasks:
                    continue
                scenario = Scenario(task, seed, name)
                arms_run = attack.arms or config.arms
                found += [job_of(config, scenario, arm) for arm in arms_run]
    return found


def job_of(config, scenario: Scenario, arm: str) -> Job:
    """The job of an arm in a scenario."""
    kind, _, federation = arms.parse(arm)
    student_scenario = ARMS[kind].learns_in(config, scenario)
    return Job(scenario, arm, student_scenario._replace(federation=federation))


def needed(config, job: Job) -> list[Job]:
    """The jobs whose students a job starts from or learns from."""
    return [job_of(config, job.scenario, arm) for arm in ARMS[job.kind].needs]
