"""Models fine-tuned on labels, several seeds at once, each saved with its tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protojax.base import Examples
from protojax.federated import replicas
from protojax.federated.replicas import Surroundings
from protojax.models import Model, saved
from protojax.training import predict
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run


class FineTuning(NamedTuple):
    """A model that learns from labels.

    Attributes:
        name: its unique name, and that of its folder.
        model: the model to start from, with its tokenizer.
        train: settings of the training steps and their number.
        examples: the rows to learn from.
        seed: the seed of the order of rows and of dropout.
    """

    name: str
    model: Model
    train: TrainConfig
    examples: Examples
    seed: int


def fine_tune(
    wanted: Sequence[FineTuning],
    folder: Path,
    around: Surroundings,
    *,
    at_once: int = 1,
) -> None:
    """Trains models and saves each to `folder/NAME/model`, unless it exists.

    Saved models are not changed. They train again only where a model that is missing
    shares a compiled program with them, see `replicas.train_all`.

    Args:
        wanted: the models to train, including those already saved.
        folder: the folder that they are saved in.
        around: the surroundings of their runs: lengths, storage and progress.
        at_once: the most models that train at once.
    """
    # A model appears in its folder only when it is complete, so existence is enough.
    done = {one.name for one in wanted if (folder / one.name / "model").exists()}
    # All runs are given, also those done, so that a resumed study forms the same
    # groups of seeds and gets the same figures.
    runs = []
    for name, model, train, examples, seed in wanted:
        tokens = predict.tokenize(model, examples, around.lengths)
        runs.append(Run(name, model, tokens, examples.labels, train, seed))
    left = [run for run in runs if run.name not in done]
    ended = replicas.train_all(runs, around, at_once=at_once, done=done)
    for run, trained in zip(left, ended, strict=True):
        model = run.model._replace(params=trained.params)
        saved.save(folder / run.name / "model", model)
