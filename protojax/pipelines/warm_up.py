"""A briefly trained student, whose features no teacher's channel controls."""

import numpy as np

from protojax import data
from protojax.base import Examples, TeacherOutputs
from protojax.detection.quarantine import as_they_arrived
from protojax.federated.replicas import Surroundings
from protojax.models import Model
from protojax.training import predict, trainer
from protojax.training.objective import Objective
from protojax.training.predict import Features
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run


def warm_up(
    name: str,
    model: Model,
    transfer: Examples,
    teacher: TeacherOutputs,
    references: Examples,
    around: Surroundings,
    *,
    train: TrainConfig,
    objective: Objective,
    features: Features,
    seed: int,
) -> TeacherOutputs:
    """The outputs of a student on transfer rows, then on references.

    Args:
        name: of its run.
        model: where it starts from, with its tokenizer.
        transfer: the rows that it is distilled on.
        teacher: what the teacher says of them.
        references: other rows that it is asked about.
        around: what its run is given.
        train: how long and by which steps.
        objective: what it minimises.
        features: which of its hidden states are kept.
        seed: of order and dropout.
    """
    rows = as_they_arrived(transfer, teacher)
    run = Run(
        name,
        model,
        predict.tokenize(model, transfer, around.lengths),
        transfer.labels,
        train,
        seed=seed,
        objective=objective,
        columns=rows.columns,
    )
    around.describe(name)
    store = around.store(name)
    trained = trainer.train(
        run, lengths=around.lengths, store=store, on_progress=around.on_progress
    )
    trainer.remove_checkpoints(store)
    model = model._replace(params=trained.params)
    everything = data.concatenate(transfer, references)
    return predict.ask(model, everything, around.lengths, features)


def parted(outputs: TeacherOutputs, rows: int) -> tuple[TeacherOutputs, TeacherOutputs]:
    """The outputs on the first rows, and on the others."""
    first, second = zip(*(np.split(part, [rows]) for part in outputs), strict=True)
    return TeacherOutputs(*first), TeacherOutputs(*second)
