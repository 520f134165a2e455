"""The bridge from a scenario of a study to what a defender holds.

`gather` is the only function that turns one into the other. `World` is what an arm may
ask of the scenario that its student learns in.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.runtime import Context
from experiments.settings import Settings
from experiments.world import artifacts, scenario, trusted_model
from experiments.world import warm_up as warm_up_lib
from experiments.world.artifacts import Rewrite, Transfer
from experiments.world.scenario import Cell
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.detection.evidence import Evidence
from protojax.models import Model
from protojax.training.objective import Objective


def gather(
    context: Context, cell: Cell, *, trusted: bool, warm_up: Objective | None = None
) -> Evidence:
    """All that the defender of a cell holds; a node's is a part of all nodes'.

    Args:
        context: the study.
        cell: the cell.
        trusted: whether the trusted model is asked.
        warm_up: what a student minimises that is trained briefly and asked too, None
            for no such student.
    """
    transfer = artifacts.transfer(context, cell)
    evidence = Evidence(
        transfer=transfer.examples,
        teacher=TeacherOutputs(transfer.logits, transfer.features),
        references=scenario.references(context.config, cell),
        teacher_on_references=artifacts.reference_outputs(context, cell),
    )
    if trusted:
        found = trusted_model.trusted(context, cell)
        evidence = evidence._replace(
            held_out=found.calibration,
            trusted_on_transfer=trusted_model.trusted_reading(context, cell),
            trusted_on_held_out=found.held_out,
        )
    if warm_up is not None:
        student, on_references = warm_up_lib.warmed_up(context, cell, warm_up)
        evidence = evidence._replace(
            student=student, student_on_references=on_references
        )
    return evidence


@dataclasses.dataclass(frozen=True)
class World:
    """What an arm may ask of the scenario that its student learns in.

    Attributes:
        context: the study.
        cell: the scenario, or what one node sees of it.
    """

    context: Context
    cell: Cell

    @property
    def config(self) -> Settings:
        """The study's settings, as the arm's variant has them."""
        return self.context.config

    @property
    def references(self) -> Examples:
        """The rows that the defender trusts."""
        return scenario.references(self.context.config, self.cell)

    @property
    def own_references(self) -> np.ndarray:
        """The references that a student learns from: all, or a node's share."""
        return scenario.own_references(self.config, self.cell)

    @property
    def prototypes(self) -> Prototypes:
        """The prototypes that constrain a student, with a leading `[layers]` axis."""
        return artifacts.held_prototypes(self.context, self.cell)

    def evidence(
        self, *, trusted: bool = False, warm_up: Objective | None = None
    ) -> Evidence:
        """What the defender holds, see `gather`."""
        return gather(self.context, self.cell, trusted=trusted, warm_up=warm_up)

    def rewritten(self, rewrite: Rewrite) -> Transfer:
        """The transfer set with other texts, and what the teacher says of those.

        Args:
            rewrite: `(context, cell, examples) -> examples`.
        """
        return artifacts.transfer(self.context, self.cell, rewrite)

    def student(self, arm: str) -> Model:
        """The student of an arm that this one needs."""
        return artifacts.student_model(self.context, self.cell, arm)

    def ground_truth(self) -> np.ndarray:
        """Which transfer rows are poisoned, `[rows]`: for the oracle alone."""
        return scenario.poisoned(self.context.config, self.cell).rows

    def at(self, **changes: Any) -> "World":
        """The same study in another scenario."""
        return World(self.context, self.cell._replace(**changes))
