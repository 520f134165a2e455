"""A briefly trained student: features that an attacker of the channel cannot set."""

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
    around: Surroundings,
    *,
    train: TrainConfig,
    objective: Objective,
    features: Features,
    seed: int,
) -> TeacherOutputs:
    """The outputs of a briefly trained student on the transfer rows.

    Args:
        name: the name of its run.
        model: the model to start from, with its tokenizer.
        transfer: the rows that it is distilled on.
        teacher: the teacher's outputs on them.
        around: the surroundings of its run: lengths, storage and progress.
        train: settings of the training steps and their number.
        objective: the objective that it minimises.
        features: the layers and pooling of its hidden states.
        seed: the seed of the order of rows and of dropout.
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
    # Only the outputs are of use later, not the student itself.
    trainer.remove_checkpoints(store)
    model = model._replace(params=trained.params)
    return predict.ask(model, transfer, around.lengths, features)
