"""The rows of a study: which arm learns in which scenario."""

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

DONE = "training.json"  # the file that says that a job's students are whole


class Job(NamedTuple):
    """One row of the results.

    Attributes:
        scenario: the task, seed and attack.
        arm: a name in `ARMS`, with `+variant` behind it to change what the config
            says, and `@federation` to run it over many nodes.
        student_scenario: the scenario that the student is trained in.
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
        """The file of the row, below the workdir."""
        return f"{self.scenario.folder}/{self.arm}.json"

    @property
    def student(self) -> str:
        """The student's folder, below the workdir."""
        return f"{self.student_scenario.whole.folder}/{self.arm}"


class Training(NamedTuple):
    """A model that a study needs, after those that it needs itself.

    Attributes:
        name: its folder below the workdir.
        scenario: the scenario.
        variant: of the study, "" for the study itself.
        tuning: how a teacher or a trusted model is trained; None for the students of
            the job.
        job: whose students they are; None for teachers and trusted models.
    """

    name: str
    scenario: Scenario
    variant: str = ""
    tuning: Tuning | None = None
    job: Job | None = None


def is_trained(workdir: pathlib.Path, training: Training) -> bool:
    """Whether a model is there, whole."""
    folder = workdir / training.name
    return (folder / ("model" if training.job is None else DONE)).exists()


def trainings(config: Settings, todo: list[Job]) -> list[Training]:
    """The models that some rows need, each once, those that others need before them.

    Args:
        config: the study's.
        todo: the rows.
    """
    found: dict[str, Training] = {}

    def add(job: Job) -> None:
        if job.student in found:
            return
        seeds = replicas.seeds_beside(config.seeds, config.replicas, job.scenario.seed)
        # Seeds that train side by side need what each of them needs.
        for seed in seeds:
            beside = job_of(config, job.scenario._replace(seed=seed), job.arm)
            for before in needed(config, beside):
                add(before)
            for training in _models_of(config, beside):
                found.setdefault(training.name, training)
        found[job.student] = Training(
            job.student, job.student_scenario, job.variant, job=job
        )

    for job in todo:
        add(job)
    return list(found.values())


def _models_of(config: Settings, job: Job) -> list[Training]:
    """The teacher and the trusted model that a job's students learn from."""
    arm, scenario, found = ARMS[job.kind], job.student_scenario, []
    config = varied(config, job.variant)
    if arm.taught:
        name = artifacts.teacher_name(config, scenario)
        found.append(Training(name, scenario, job.variant, artifacts.teacher_tuning))
    trusted = (
        trusted_model.training_of(config, scenario) if arm.asks_trusted_model else None
    )
    if trusted is not None:
        name, tuning = trusted
        found.append(Training(name, scenario, job.variant, tuning))
    return found


def jobs(config: Settings) -> list[Job]:
    """All rows of a study, those that share models side by side."""
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
    """Returns an arm's job on a scenario."""
    kind, _, federation = arms.parse(arm)
    student_scenario = ARMS[kind].learns_in(config, scenario)
    return Job(scenario, arm, student_scenario._replace(federation=federation))


def needed(config, job: Job) -> list[Job]:
    """Returns the jobs whose students a job starts from or imitates."""
    return [job_of(config, job.scenario, arm) for arm in ARMS[job.kind].needs]
