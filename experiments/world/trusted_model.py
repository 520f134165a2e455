"""The trusted model of a scenario, and its predictions on rows.

It is an encoder with the prototypes of its features on the references; `TRUSTED_MODELS`
lists the encoders.
"""

from typing import NamedTuple

import numpy as np

from experiments.runtime import Context, cached
from experiments.settings import Settings
from experiments.world import artifacts, scenarios
from experiments.world.artifacts import Tuning
from experiments.world.scenarios import Scenario
from protojax import data
from protojax.base import Examples
from protojax.detection.evidence import Reading
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read
from protojax.federated.replicas import Surroundings
from protojax.models import Model
from protojax.pipelines import FineTuning
from protojax.pipelines.trusted_folds import TrustedFolds, trusted_folds
from protojax.training import predict

# The folds of the references, each of which one trusted model did not learn from.
FOLDS = 3


@cached
def folds(context: Context, scenario: Scenario) -> TrustedFolds:
    """The trusted models of the parts of a scenario's references, and their readings.

    All references teach, and all are read by a model that did not see them.

    Args:
        context: the study.
        scenario: the scenario.
    """
    config, owner = (
        context.config,
        scenarios.reference_scenario(context.config, scenario),
    )
    return trusted_folds(
        artifacts.build_model(config, config.trusted_model, owner),
        config.trusted_model,
        scenarios.poisoned(config, scenario.whole).examples,
        scenarios.references(config, owner),
        within(context.around, f"{owner.folder}/folds"),
        folds=FOLDS,
        seed=owner.seed,
    )


def within(around: Surroundings, folder: str) -> Surroundings:
    """The surroundings of runs whose names are below a folder.

    Args:
        around: those of the study.
        folder: relative to its workdir.
    """
    return around._replace(store=lambda name: around.store(f"{folder}/{name}"))


class Trusted(NamedTuple):
    """The trusted model of a scenario, and its predictions on the references.

    Attributes:
        model: an encoder, see `TRUSTED_MODELS`.
        reading: the map from its outputs to classes and logits.
        calibration: `[rows]`, the references that it was not trained on.
        held_out: its predictions on those.
    """

    model: Model
    reading: TrustedModel
    calibration: np.ndarray
    held_out: Reading


def trusted(context: Context, scenario: Scenario) -> Trusted:
    """A scenario's trusted model, the same for all attacks with clean references."""
    return _trusted(context, trusted_scenario(context.config, scenario))


def trusted_scenario(config: Settings, scenario: Scenario) -> Scenario:
    """The scenario whose trusted model this one uses."""
    owner = scenarios.reference_scenario(config, scenario)
    # The teacher depends on an attack even where the references do not.
    if config.quarantine.trusted_model == "teacher" and owner.attack is None:
        return artifacts.teacher_scenario(config, scenario)
    return owner


def trusted_name(config: Settings, scenario: Scenario) -> str:
    """The folder of a scenario's tuned encoder, below the workdir."""
    name = f"{trusted_scenario(config, scenario).folder}/trusted_model"
    few = config.quarantine.references
    # A variant with fewer references has a model of its own in the same workdir.
    return f"{name}_{few}" if few else name


def trusted_tuning(config: Settings, scenario: Scenario) -> FineTuning:
    """The training of a scenario's encoder, on references that do not calibrate."""
    owner = trusted_scenario(config, scenario)
    _, training = _shared_out(config, owner)
    known = data.take(scenarios.references(config, owner), training)
    return FineTuning(
        trusted_name(config, scenario),
        artifacts.build_model(config, config.trusted_model, owner),
        config.trusted_model,
        known,
        owner.seed,
    )


def training_of(config: Settings, scenario: Scenario) -> tuple[str, Tuning] | None:
    """The folder and the training of a trusted model, None for a frozen one."""
    if config.quarantine.trusted_model == "tuned":
        return trusted_name(config, scenario), trusted_tuning
    if config.quarantine.trusted_model == "frozen":
        return None
    owner = trusted_scenario(config, scenario)
    return artifacts.teacher_name(config, owner), _teacher_as_trusted_model


def _teacher_as_trusted_model(config: Settings, scenario: Scenario) -> FineTuning:
    """The training of the teacher that serves as a scenario's trusted model."""
    return artifacts.teacher_tuning(config, trusted_scenario(config, scenario))


def _shared_out(config: Settings, scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """The references that calibrate a trusted model, and those it learns from."""
    count = scenarios.num_references(config)
    # Disjoint: on rows that it learned from, the model errs less than on others.
    order = scenarios.draws(scenario, "calibration").permutation(count)
    cut = round(config.quarantine.calibration_share * count)
    return np.sort(order[:cut]), np.sort(order[cut:])


def _tuned(context: Context, scenario: Scenario) -> Model:
    """The encoder, fine-tuned."""
    config = context.config
    name = trusted_name(config, scenario)
    return artifacts.fine_tuned(context, name, config.trusted_model, scenario)


def _frozen(context: Context, scenario: Scenario) -> Model:
    """The encoder as it was before any training on references."""
    return artifacts.build_model(context.config, context.config.trusted_model, scenario)


TRUSTED_MODELS = {
    "tuned": _tuned,
    "frozen": _frozen,
    "teacher": artifacts.teacher_model,
}


@cached
def _trusted(context: Context, scenario: Scenario) -> Trusted:
    """The trusted model of a `trusted_scenario`."""
    config = context.config
    references = scenarios.references(context.config, scenario)
    held_out, training = _shared_out(context.config, scenario)
    model = TRUSTED_MODELS[config.quarantine.trusted_model](context, scenario)
    outputs = artifacts.predicted(
        context,
        f"{scenario.folder}/trusted_references",
        model,
        references,
    )
    # "anchor" is the purpose of recorded draws: another name would change figures.
    reading = fit_trusted_model(
        scenarios.key(scenario, "anchor"),
        outputs.take(training),
        references.labels[training],
        num_prototypes=config.prototypes.num,
        metric=config.prototypes.metric,
        num_iters=config.prototypes.num_iters,
        frozen=config.quarantine.trusted_model == "frozen",
    )
    known = outputs.take(held_out)
    return Trusted(model, reading, held_out, read(reading, known))


def view(context: Context, scenario: Scenario, examples: Examples) -> Reading:
    """The predictions of a scenario's trusted model on any rows."""
    judge = trusted(context, scenario)
    config = context.config
    outputs = predict.ask(judge.model, examples, config.lengths, config.features)
    return read(judge.reading, outputs)


def trusted_reading(context: Context, scenario: Scenario) -> Reading:
    """The predictions of the trusted model on a scenario's transfer rows.

    Every node has the same trusted model, so its prediction on a row is computed once.
    """
    whole = _trusted_reading(context, scenario.whole)
    if not scenario.federation:
        return whole
    return whole.take(
        scenarios.node_rows(context.config, scenario._replace(node=0))[scenario.node]
    )


@cached
def _trusted_reading(context: Context, scenario: Scenario) -> Reading:
    """The predictions of the trusted model on the rows of all nodes together."""
    judge = trusted(context, scenario)
    examples = scenarios.poisoned(context.config, scenario).examples
    outputs = artifacts.predicted(
        context,
        f"{scenario.folder}/trusted_transfer",
        judge.model,
        examples,
    )
    return read(judge.reading, outputs)
