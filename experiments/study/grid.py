"""The rows of a study: which arm learns in which cell."""

from typing import NamedTuple

from experiments import arms
from experiments.arms import ARMS
from experiments.world.scenario import Cell

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
                found += [job_of(config, cell, arm) for arm in config.arms]
            for name, attack in config.attacks.items():
                if attack.tasks and task not in attack.tasks:
                    continue
                cell = Cell(task, seed, name)
                arms_run = attack.arms or config.arms
                found += [job_of(config, cell, arm) for arm in arms_run]
    return found


def job_of(config, cell: Cell, arm: str) -> Job:
    """Returns an arm's job on a cell."""
    kind, _, federation = arms.parse(arm)
    student_cell = ARMS[kind].learns_in(config, cell)
    return Job(cell, arm, student_cell._replace(federation=federation))


def needed(config, job: Job) -> list[Job]:
    """Returns the jobs whose students a job starts from or imitates."""
    return [job_of(config, job.cell, arm) for arm in ARMS[job.kind].needs]
