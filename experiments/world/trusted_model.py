"""The anchor of a cell: what reads meaning for the defender, and what it says of rows.

An encoder and the prototypes of its features on the references; `ANCHORS` says which
encoders there are.
"""

from typing import NamedTuple

import numpy as np

from experiments import runtime
from experiments.runtime import Context
from experiments.world import artifacts, scenario
from experiments.world.artifacts import FineTuning
from experiments.world.scenario import Cell
from protojax import data
from protojax.base import Examples
from protojax.detection.evidence import Reading
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read
from protojax.models import Model
from protojax.training import predict


class Anchor(NamedTuple):
    """The trusted model of a cell, and what it says of the references.

    Attributes:
        model: an encoder, see `ANCHORS`.
        reading: how its outputs are read.
        calibration: `[rows]`, the references it was not trained on.
        held_out: what it says of those.
    """

    model: Model
    reading: TrustedModel
    calibration: np.ndarray
    held_out: Reading


def anchor(context: Context, cell: Cell) -> Anchor:
    """Returns the anchor of a cell, the same for all attacks that spare references."""
    return _anchor(context, anchor_cell(context, cell))


def anchor_cell(context: Context, cell: Cell) -> Cell:
    """Returns the cell whose anchor this one has."""
    owner = scenario.reference_cell(context.config, cell)
    if context.config.quarantine.anchor == "teacher" and owner.attack is None:
        return artifacts.teacher_cell(context, cell)
    return owner


def anchor_tuning(context: Context, cell: Cell) -> FineTuning:
    """Returns how the anchor's encoder is trained: on references that do not judge."""
    cell = anchor_cell(context, cell)
    name = f"{cell.folder}/anchor_encoder"
    if few := context.config.quarantine.references:
        name += f"_{few}"
    _, training = _shared_out(context, cell)
    known = data.take(scenario.references(context, cell), training)
    return FineTuning(name, context.config.anchor, cell, known)


def _shared_out(context: Context, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Returns the references that calibrate an anchor, and those it learns from."""
    count = scenario.num_references(context.config)
    order = scenario.draws(cell, "calibration").permutation(count)
    cut = round(context.config.quarantine.calibration_share * count)
    return np.sort(order[:cut]), np.sort(order[cut:])


def _tuned(context: Context, cell: Cell) -> Model:
    """Returns the anchor's encoder, fine-tuned."""
    return artifacts.fine_tuned(context, anchor_tuning, cell)


def _frozen(context: Context, cell: Cell) -> Model:
    """Returns the anchor's encoder as it was before it saw a reference."""
    return artifacts.build_model(context, context.config.anchor, cell)


ANCHORS = {"tuned": _tuned, "frozen": _frozen, "teacher": artifacts.teacher_model}


@runtime.cached
def _anchor(context: Context, cell: Cell) -> Anchor:
    """Returns the anchor of an `anchor_cell`."""
    config = context.config
    references = scenario.references(context, cell)
    held_out, training = _shared_out(context, cell)
    model = ANCHORS[config.quarantine.anchor](context, cell)
    outputs = artifacts.predicted(
        context,
        f"{cell.folder}/anchor_references",
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
        frozen=config.quarantine.anchor == "frozen",
    )
    known = outputs.take(held_out)
    return Anchor(model, reading, held_out, read(reading, known))


def view(context: Context, cell: Cell, examples: Examples) -> Reading:
    """Returns what a cell's anchor says of any rows."""
    judge = anchor(context, cell)
    config = context.config
    outputs = predict.ask(judge.model, examples, config.lengths, config.features)
    return read(judge.reading, outputs)


def anchor_view(context: Context, cell: Cell) -> Reading:
    """Returns what the anchor says of a cell's transfer rows.

    Every node has the same anchor, so what it says of a row is computed once.
    """
    whole = _anchor_view(context, cell.whole)
    if not cell.federation:
        return whole
    return whole.take(scenario.node_rows(context, cell._replace(node=0))[cell.node])


@runtime.cached
def _anchor_view(context: Context, cell: Cell) -> Reading:
    """Returns what the anchor says of the rows of all nodes together."""
    judge = anchor(context, cell)
    examples = scenario.poisoned(context, cell).examples
    outputs = artifacts.predicted(
        context,
        f"{cell.folder}/anchor_transfer",
        judge.model,
        examples,
    )
    return read(judge.reading, outputs)
