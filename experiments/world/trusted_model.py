"""The trusted model of a cell: what reads meaning for the defender, and what it says of
rows.

An encoder and the prototypes of its features on the references; `TRUSTED_MODELS` says
which encoders there are.
"""

from typing import NamedTuple

import numpy as np

from experiments.runtime import Context, cached
from experiments.settings import Settings
from experiments.world import artifacts, scenario
from experiments.world.artifacts import Tuning
from experiments.world.scenario import Cell
from protojax import data
from protojax.base import Examples
from protojax.detection.evidence import Reading
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read
from protojax.models import Model
from protojax.pipelines import FineTuning
from protojax.training import predict


class Trusted(NamedTuple):
    """The trusted model of a cell, and what it says of the references.

    Attributes:
        model: an encoder, see `TRUSTED_MODELS`.
        reading: how its outputs are read.
        calibration: `[rows]`, the references it was not trained on.
        held_out: what it says of those.
    """

    model: Model
    reading: TrustedModel
    calibration: np.ndarray
    held_out: Reading


def trusted(context: Context, cell: Cell) -> Trusted:
    """The trusted model of a cell, the same for all attacks that spare references."""
    return _trusted(context, trusted_cell(context.config, cell))


def trusted_cell(config: Settings, cell: Cell) -> Cell:
    """The cell whose trusted model this one has."""
    owner = scenario.reference_cell(config, cell)
    if config.quarantine.trusted_model == "teacher" and owner.attack is None:
        return artifacts.teacher_cell(config, cell)
    return owner


def trusted_name(config: Settings, cell: Cell) -> str:
    """The folder of a cell's tuned encoder, below the workdir."""
    name = f"{trusted_cell(config, cell).folder}/trusted_model"
    few = config.quarantine.references
    return f"{name}_{few}" if few else name


def trusted_tuning(config: Settings, cell: Cell) -> FineTuning:
    """The training of a cell's encoder: on references that do not judge."""
    owner = trusted_cell(config, cell)
    _, training = _shared_out(config, owner)
    known = data.take(scenario.references(config, owner), training)
    return FineTuning(
        trusted_name(config, cell),
        artifacts.build_model(config, config.trusted_model, owner),
        config.trusted_model,
        known,
        owner.seed,
    )


def training_of(config: Settings, cell: Cell) -> tuple[str, Tuning] | None:
    """The folder and the training of a cell's trusted model, None where it has none."""
    if config.quarantine.trusted_model == "tuned":
        return trusted_name(config, cell), trusted_tuning
    if config.quarantine.trusted_model == "frozen":
        return None
    owner = trusted_cell(config, cell)
    return artifacts.teacher_name(config, owner), _teacher_as_trusted_model


def _teacher_as_trusted_model(config: Settings, cell: Cell) -> FineTuning:
    """The training of the teacher that is a cell's trusted model."""
    return artifacts.teacher_tuning(config, trusted_cell(config, cell))


def _shared_out(config: Settings, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """The references that calibrate a trusted model, and those it learns from."""
    count = scenario.num_references(config)
    order = scenario.draws(cell, "calibration").permutation(count)
    cut = round(config.quarantine.calibration_share * count)
    return np.sort(order[:cut]), np.sort(order[cut:])


def _tuned(context: Context, cell: Cell) -> Model:
    """The encoder, fine-tuned."""
    config = context.config
    name = trusted_name(config, cell)
    return artifacts.fine_tuned(context, name, config.trusted_model, cell)


def _frozen(context: Context, cell: Cell) -> Model:
    """The encoder as it was before it saw a reference."""
    return artifacts.build_model(context.config, context.config.trusted_model, cell)


TRUSTED_MODELS = {
    "tuned": _tuned,
    "frozen": _frozen,
    "teacher": artifacts.teacher_model,
}


@cached
def _trusted(context: Context, cell: Cell) -> Trusted:
    """Returns the trusted model of an `trusted_cell`."""
    config = context.config
    references = scenario.references(context.config, cell)
    held_out, training = _shared_out(context.config, cell)
    model = TRUSTED_MODELS[config.quarantine.trusted_model](context, cell)
    outputs = artifacts.predicted(
        context,
        f"{cell.folder}/trusted_references",
        model,
        references,
    )
    reading = fit_trusted_model(
        scenario.key(cell, "anchor"),
        outputs.take(training),
        references.labels[training],
        num_prototypes=config.prototypes.num,
        metric=config.prototypes.metric,
        num_iters=config.prototypes.num_iters,
        frozen=config.quarantine.trusted_model == "frozen",
    )
    known = outputs.take(held_out)
    return Trusted(model, reading, held_out, read(reading, known))


def view(context: Context, cell: Cell, examples: Examples) -> Reading:
    """Returns what a cell's trusted model says of any rows."""
    judge = trusted(context, cell)
    config = context.config
    outputs = predict.ask(judge.model, examples, config.lengths, config.features)
    return read(judge.reading, outputs)


def trusted_reading(context: Context, cell: Cell) -> Reading:
    """Returns what the trusted model says of a cell's transfer rows.

    Every node has the same trusted model, so what it says of a row is computed once.
    """
    whole = _trusted_reading(context, cell.whole)
    if not cell.federation:
        return whole
    return whole.take(
        scenario.node_rows(context.config, cell._replace(node=0))[cell.node]
    )


@cached
def _trusted_reading(context: Context, cell: Cell) -> Reading:
    """Returns what the trusted model says of the rows of all nodes together."""
    judge = trusted(context, cell)
    examples = scenario.poisoned(context.config, cell).examples
    outputs = artifacts.predicted(
        context,
        f"{cell.folder}/trusted_transfer",
        judge.model,
        examples,
    )
    return read(judge.reading, outputs)
