"""An arm: the recipe of its student, and all that a study has to know of it."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.settings import Settings
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax.base import Examples, Prototypes
from protojax.detection.evidence import Verdict
from protojax.detection.quarantine import TrainingRows
from protojax.models import Model
from protojax.pipelines.students import objective_of
from protojax.training import predict
from protojax.training.objective import Objective
from protojax.training.trainer import Run


class Recipe(NamedTuple):
    """The training of one student: its rows, and how it learns from them.

    Attributes:
        examples: its rows; their labels are those the student may see.
        columns: the batch's other columns, `[rows, ...]`.
        objective: what it minimises.
        prototypes: constrain the student, or None.
        verdict: a detector's, of the transfer rows, or None.
        train: fields of the student's training that differ from the study's.
    """

    examples: Examples
    columns: Mapping[str, np.ndarray]
    objective: Objective
    prototypes: Prototypes | None = None
    verdict: Verdict | None = None
    train: Mapping[str, Any] = MappingProxyType({})

    def take(self, rows: np.ndarray) -> "Recipe":
        """The recipe over some of its rows, `[taken]` indices."""
        return self.over(TrainingRows(self.examples, dict(self.columns)).take(rows))

    def over(self, rows: TrainingRows) -> "Recipe":
        """The recipe over other rows."""
        return self._replace(examples=rows.examples, columns=rows.columns)

    def run(self, name: str, model: Model, config: Settings, seed: int) -> Run:
        """The training run of a student.

        Args:
            name: of the run.
            model: the initial student.
            config: the study's.
            seed: of the order of rows and of dropout.
        """
        return Run(
            name,
            model,
            predict.tokenize(model, self.examples, config.lengths),
            self.examples.labels,
            dataclasses.replace(config.student, **self.train),
            seed=seed,
            columns=self.columns,
            objective=self.objective,
            prototypes=self.prototypes,
            secret=self.objective.private and not config.dp.reproducible,
        )


class Name(NamedTuple):
    """The parts of an arm's name, `kind+variant@federation`, "" where it has none.

    Attributes:
        kind: in `ARMS`.
        variant: in the config's `variants`.
        federation: in the config's `federations`.
    """

    kind: str
    variant: str
    federation: str


def parse(arm: str) -> Name:
    """The parts of an arm's name.

    >>> parse("defended+drop@four")
    Name(kind='defended', variant='drop', federation='four')
    """
    name, _, federation = arm.partition("@")
    kind, _, variant = name.partition("+")
    return Name(kind, variant, federation)


def own(config: Settings, scenario: Scenario) -> Scenario:
    """The scenario itself: the student learns in the world of the attack."""
    del config
    return scenario


def clean(config: Settings, scenario: Scenario) -> Scenario:
    """The scenario without its attack."""
    del config
    return scenario.clean


def over_transfer(config: Settings, rows: int, references: int) -> int:
    """The rows that a student of the transfer set goes through, over all epochs."""
    del references
    return rows * config.student.epochs


# Each role is that of one arm:
#   null: distilled without the attack; the gain of an attack is measured against it;
#   undefended: without any defence; hostile nodes run it, and the time and clean metric
#     of other arms are compared with its own;
#   recommended: the defence to use; tables highlight it.
ROLES = ("null", "undefended", "recommended")


class Arm(NamedTuple):
    """A recipe, and all that other modules know of the arm.

    Attributes:
        recipe: `World -> Recipe`.
        learns_in: `(config, scenario) -> Scenario`, the scenario that the student
            depends on; a student that does not depend on the attack is trained once for
            all attacks.
        needs: the arms whose students have to be trained before.
        starts_from_first: whether the student starts from the student of the first of
            these, not from scratch.
        in_federations: whether it makes sense over many nodes.
        asks_trusted_model: whether it asks the trusted models, which then have to be
            trained.
        tests: whether it rejects rows at the rate `detection.false_rejection`.
        constrained: whether prototypes constrain it.
        scores_words: whether words are scored against trusted texts.
        taught: whether a teacher is asked at all.
        private: whether training is differentially private.
        scores: whether it can learn scores instead of classes.
        passes: `(config, rows, references) -> rows`, the number of rows that its
            student goes through, for the progress bar.
        packages: optional packages that have to be installed.
        role: in `ROLES`, "" for none; each role is that of one arm.
        hypothetical: whether no defender could run it, since it takes knowledge of the
            attack; it is a bound, and not compared with defences.
        colour: in pictures, "" for one that is free.
        overview: measure -> its column in the line that the overview has for an attack.
        published: attack success and loss of the clean metric, in percent and points,
            as published for another setting; () for an arm that is shown beside these
            figures without its own, None for one that is not.
    """

    recipe: Callable[[World], Recipe]
    learns_in: Callable[[Settings, Scenario], Scenario] = own
    needs: tuple[str, ...] = ()
    starts_from_first: bool = False
    in_federations: bool = True
    asks_trusted_model: bool = False
    tests: bool = False
    constrained: bool = False
    scores_words: bool = False
    taught: bool = True
    private: bool = False
    scores: bool = False
    passes: Callable[[Settings, int, int], int] = over_transfer
    packages: tuple[str, ...] = ()
    role: str = ""
    hypothetical: bool = False
    colour: str = ""
    overview: Mapping[str, str] = MappingProxyType({})
    published: tuple[float, ...] | None = None


def distillation(
    config: Settings, assignment: str = "", weight: float | None = None
) -> Objective:
    """The objective of distillation, with a constraint where one is named.

    Args:
        config: the study's.
        assignment: of the prototype constraint, "" for none.
        weight: of the constraint, None for the study's.
    """
    if not assignment:
        return objective_of(config.kd, config.features)
    weight = config.margin.weight if weight is None else weight
    margin = dataclasses.replace(config.margin, assignment=assignment, weight=weight)
    metric = config.prototypes.metric
    return objective_of(config.kd, config.features, margin, metric=metric)
