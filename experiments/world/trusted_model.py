"""The anchor of a cell: what reads meaning for the defender, and what it says of rows.

An encoder and the prototypes of its features on the references; `ANCHORS` says which
encoders there are.
"""

from typing import NamedTuple

import numpy as np

from experiments import inference, runtime
from experiments.runtime import Context
from experiments.world import artifacts, scenario
from experiments.world.artifacts import FineTuning
from experiments.world.scenario import Cell
from protojax import data, prototypes
from protojax.base import Examples, Prototypes
from protojax.detection import conformal
from protojax.models import Model
from protojax.prototypes import geometry


class View(NamedTuple):
    """What the anchor, or a model that is compared with it, says of some rows.

    Attributes:
        classes: `[rows]`, int32; the anchor's by the nearest of its prototypes.
        logits: `[rows, num_labels]`.
    """

    classes: np.ndarray
    logits: np.ndarray


class Anchor(NamedTuple):
    """What reads meaning for the defender, and what it says of the references.

    Attributes:
        model: an encoder, see `ANCHORS`.
        prototypes: of its features, by class.
        temperature: of logits that are distances to them, None where the model has
            learned logits of its own.
        calibration: `[rows]`, the references it was not trained on.
        held_out: what it says of those, None before it is asked.
    """

    model: Model
    prototypes: Prototypes
    temperature: float | None
    calibration: np.ndarray
    held_out: View | None


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


@runtime.kept
def _anchor(context: Context, cell: Cell) -> Anchor:
    """Returns the anchor of an `anchor_cell`."""
    config = context.config
    task = scenario.task_data(context, cell.task, cell.seed).task
    references = scenario.references(context, cell)
    held_out, training = _shared_out(context, cell)
    model = ANCHORS[config.quarantine.anchor](context, cell)
    logits, features = artifacts.predicted(
        context,
        f"{cell.folder}/anchor_references",
        model,
        artifacts.tokenize(context, model, references),
    )
    centres = prototypes.class_prototypes(
        scenario.key(cell, "anchor"),
        features[training, -1],
        references.labels[training],
        task.num_labels,
        num_prototypes=config.prototypes.num,
        metric=config.prototypes.metric,
        num_iters=config.prototypes.num_iters,
    )
    temperature = None
    if config.quarantine.anchor == "frozen":
        # Not on those that calibrate: they have to be like rows under test.
        near = _nearness(context, centres, features[training], task.num_labels)
        temperature = conformal.calibrate_temperature(near, references.labels[training])
    judge = Anchor(model, centres, temperature, held_out, None)
    view = view_of(context, judge, logits[held_out], features[held_out])
    return judge._replace(held_out=view)


def view_of(context: Context, judge: Anchor, logits, features) -> View:
    """Returns what the outputs of an anchor's model say."""
    classes = prototypes.class_of_nearest(
        features[:, -1], judge.prototypes, metric=context.config.prototypes.metric
    )
    if judge.temperature is not None:
        logits = _nearness(context, judge.prototypes, features, logits.shape[1])
        logits /= judge.temperature
    return View(np.asarray(classes), logits)


def _nearness(
    context: Context, centres: Prototypes, features, num_labels: int
) -> np.ndarray:
    """Returns logits `[rows, num_labels]`: minus a class's nearest distance, times 20.

    The factor is the reach of a temperature that is fitted afterwards. A class without
    a prototype is as far away as the farthest of all.
    """
    distances = np.asarray(
        geometry.distances(
            features[:, -1], centres.vectors, metric=context.config.prototypes.metric
        )
    )
    labels, farthest = np.asarray(centres.labels), distances.max(initial=0.0)
    nearest = [
        distances[:, labels == label].min(1, initial=farthest)
        for label in range(num_labels)
    ]
    return -20 * np.stack(nearest, axis=1).astype(np.float32)


def view(context: Context, cell: Cell, examples: Examples) -> View:
    """Returns what a cell's anchor says of any rows."""
    judge = anchor(context, cell)
    outputs = inference.predict(
        context,
        judge.model,
        judge.model.params,
        artifacts.tokenize(context, judge.model, examples),
    )
    return view_of(context, judge, *outputs)


def anchor_view(context: Context, cell: Cell) -> View:
    """Returns what the anchor says of a cell's transfer rows.

    Every node has the same anchor, so what it says of a row is computed once.
    """
    whole = _anchor_view(context, cell.whole)
    if not cell.federation:
        return whole
    rows = scenario.node_rows(context, cell._replace(node=0))[cell.node]
    return View(*(part[rows] for part in whole))


@runtime.kept
def _anchor_view(context: Context, cell: Cell) -> View:
    """Returns what the anchor says of the rows of all nodes together."""
    judge = anchor(context, cell)
    examples = scenario.poisoned(context, cell).examples
    outputs = artifacts.predicted(
        context,
        f"{cell.folder}/anchor_transfer",
        judge.model,
        artifacts.tokenize(context, judge.model, examples),
    )
    return view_of(context, judge, *outputs)
