"""An arm: what its student learns from, and all that a study has to know of it."""

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
from protojax.training.objective import Objective, Spec


class Recipe(NamedTuple):
    """What one student is trained on, and how.

    Attributes:
        examples: its rows; their labels are those the student may see.
        columns: the batch's other columns, `[rows, ...]`.
        objective: what it minimises.
        prototypes: constrain the student, or None.
        verdict: what a detector says of the transfer rows, or None.
        train: fields of the student's training that differ from the study's.
        student: one that is taken as it is, without any training, or None.
    """

    examples: Examples
    columns: Mapping[str, np.ndarray]
    objective: Objective
    prototypes: Prototypes | None = None
    verdict: Verdict | None = None
    train: Mapping[str, Any] = MappingProxyType({})
    student: Model | None = None

    def take(self, rows: np.ndarray) -> "Recipe":
        """The recipe over some of its rows, `[taken]` indices."""
        return self.over(TrainingRows(self.examples, dict(self.columns)).take(rows))

    def over(self, rows: TrainingRows) -> "Recipe":
        """The recipe over other rows."""
        return self._replace(examples=rows.examples, columns=rows.columns)


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

    >>> parse("group_test+drop@four")
    Name(kind='group_test', variant='drop', federation='four')
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
    """The rows that a student goes through which learns from the transfer set."""
    del references
    return rows * config.student.epochs


# What is asked of the one arm that
#   null: is distilled without the attack; others are compared with it for what the
#     attack gained;
#   undefended: does nothing against it; hostile nodes run it, and the time and clean
#     metric of others are compared with its own;
#   recommended: is the defence to use; tables highlight it.
ROLES = ("null", "undefended", "recommended")


class Arm(NamedTuple):
    """A named composition, and all that other modules know of it.

    Attributes:
        recipe: `World -> Recipe`.
        learns_in: `(config, scenario) -> Scenario`, the scenario that the student
            depends on; one that does not depend on the attack is trained once for all
            of them.
        needs: the arms whose students are trained before.
        starts_from_first: whether the student starts from that of the first of these,
            or anew.
        in_federations: whether it makes sense over many nodes.
        asks_trusted_model: whether it asks the trusted model, which then has to be
            trained.
        constrained: whether prototypes constrain it.
        scores_words: whether words are scored against trusted texts.
        taught: whether a teacher is asked at all.
        private: whether training is differentially private.
        searches_triggers: whether it searches for trigger words in the student of the
            first that it needs, as the study has it, and says with the help of the
            references what those words mean.
        groups: the kinds of groups of the group test that it relies on.
        scores: whether it can learn scores instead of classes.
        passes: `(config, rows, references) -> rows`, how many rows its student goes
            through, for the progress bar.
        packages: what has to be installed, with the extra that brings it.
        role: in `ROLES`, "" for none; each is had by one arm.
        hypothetical: whether no defender could run it, since it knows what the attack
            did; it is a bound, no rival of defences.
        colour: in pictures, "" for one that is free.
        overview: measure -> its column in the line that the overview has for an attack.
        published: attack success and what is lost of the clean metric, in percent and
            points, as published for another setting; () for an arm that stands beside
            these figures without its own, None for one that does not.
    """

    recipe: Callable[[World], Recipe]
    learns_in: Callable[[Settings, Scenario], Scenario] = own
    needs: tuple[str, ...] = ()
    starts_from_first: bool = False
    in_federations: bool = True
    asks_trusted_model: bool = False
    constrained: bool = False
    scores_words: bool = False
    taught: bool = True
    private: bool = False
    searches_triggers: bool = False
    groups: tuple[str, ...] = ()
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
    features, margin = config.features, config.margin
    loss = Spec(
        "distillation",
        {
            **vars(config.kd),
            "layers": features.layers,
            "pooling": features.pooling,
        },
    )
    if not assignment:
        return Objective(loss)
    weight = margin.weight if weight is None else weight
    constraint = Spec(
        "prototype",
        {
            "weight": Spec(
                margin.weight_schedule, margin.weight_schedule_args, (weight,)
            ),
            "margin": Spec(margin.schedule, margin.schedule_args, (margin.value,)),
            "assignment": assignment,
            "metric": config.prototypes.metric,
            "layer_weights": margin.layer_weights,
        },
    )
    return Objective(loss, (constraint,))
