"""The evidence of a scenario's defender, and the interface of arms to a scenario.

`gather` is the only function that makes `Evidence` from a scenario. `World` is all that
an arm can access of the scenario that its student learns in.
"""

import dataclasses

import numpy as np

from experiments.runtime import Context
from experiments.settings import Settings
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world import warm_up as warm_up_lib
from experiments.world.scenarios import Scenario
from protojax import data
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.detection.evidence import Evidence
from protojax.models import Model
from protojax.pipelines.trusted_folds import TrustedFolds
from protojax.training.objective import Objective


def gather(
    context: Context, scenario: Scenario, *, warm_up: Objective | None = None
) -> Evidence:
    """All that the defender of a scenario holds; a node holds its part of the rows.

    Args:
        context: the study.
        scenario: the scenario.
        warm_up: the objective of a briefly trained student whose outputs are included,
            None for no such student.
    """
    # The transfer set as it arrives has no field for which rows are poisoned.
    transfer = artifacts.transfer(context, scenario)
    evidence = Evidence(
        transfer=transfer.examples,
        teacher=TeacherOutputs(transfer.logits, transfer.features),
        references=scenarios.references(context.config, scenario),
        teacher_on_references=artifacts.reference_outputs(context, scenario),
    )
    if warm_up is not None:
        student = warm_up_lib.warmed_up(context, scenario, warm_up)
        evidence = evidence._replace(student=student)
    return evidence


@dataclasses.dataclass(frozen=True)
class World:
    """The interface of an arm to the scenario that its student learns in.

    Attributes:
        context: the study.
        scenario: the scenario, or one node's part of it.
    """

    context: Context
    scenario: Scenario

    @property
    def config(self) -> Settings:
        """The study's settings, with the changes of the arm's variant."""
        return self.context.config

    @property
    def references(self) -> Examples:
        """The rows that the defender trusts."""
        return scenarios.references(self.context.config, self.scenario)

    @property
    def own_references(self) -> np.ndarray:
        """The references that a student learns from: all, or a node's share."""
        return scenarios.own_references(self.config, self.scenario)

    @property
    def prototypes(self) -> Prototypes:
        """The prototypes that constrain a student, with a leading `[layers]` axis."""
        return artifacts.held_prototypes(self.context, self.scenario)

    def prototypes_on(self, evidence: Evidence) -> Prototypes:
        """The prototypes fitted on the references of some evidence alone."""
        outputs, labels = evidence.teacher_on_references, evidence.references.labels
        return artifacts.fitted_prototypes(self.context, self.scenario, outputs, labels)

    def evidence(self, *, warm_up: Objective | None = None) -> Evidence:
        """The evidence of the defender, see `gather`."""
        return gather(self.context, self.scenario, warm_up=warm_up)

    def folds(self) -> TrustedFolds:
        """The trusted models of the parts of the references."""
        return trusted_model.folds(self.context, self.scenario)

    def ask_again(self, pure: Examples, changed: np.ndarray) -> TeacherOutputs:
        """The teacher's outputs on rewritten rows, through the same channel.

        Args:
            pure: the transfer rows and then the references, rewritten.
            changed: `[rows + references]`, bool, those that changed; only these are
                asked about.
        """
        context, scenario = self.context, self.scenario
        asked = artifacts.teacher_outputs(
            context, scenario, "without_triggers", data.take(pure, changed)
        )
        # The channel alters a row by what the teacher says of the others, of all nodes.
        rows = scenarios.rows_of(self.config, scenario)
        rows = rows[changed[: len(rows)]]
        honest = artifacts.honest_outputs(context, scenario.whole)
        for part, new in zip(honest, asked, strict=True):
            part[rows] = new[: len(rows)]
        arrived = artifacts.through_channel(context, scenario.whole, honest)
        for part, new in zip(asked, arrived.take(rows), strict=True):
            part[: len(rows)] = new
        return asked

    def ask(self, name: str, examples: Examples) -> TeacherOutputs:
        """The teacher's outputs on the transfer rows with other texts, as they arrive.

        Args:
            name: of the texts, in the names of files.
            examples: the rows.
        """
        return artifacts.arriving(self.context, self.scenario, name, examples)

    def student(self, arm: str) -> Model:
        """The trained student of an arm that this one needs."""
        return artifacts.student_model(self.context, self.scenario, arm)

    def ground_truth(self) -> np.ndarray:
        """The mask of poisoned transfer rows, `[rows]`: for the oracle alone."""
        return scenarios.poisoned(self.context.config, self.scenario).rows
