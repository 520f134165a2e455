"""Models fine-tuned on labels, several seeds side by side, each saved whole."""

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
        name: tells it from others; its folder below the one they are saved in.
        model: where it starts from, with its tokenizer.
        train: how long and by which steps.
        examples: the rows.
        seed: of order and dropout.
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
    """Trains models and saves each to `folder/NAME/model`, unless it is there.

    Models that were trained before are kept; they train again only as a part of the
    program of one that was not, see `replicas.train_all`.

    Args:
        wanted: the models, all that are to train side by side.
        folder: where they are saved.
        around: what their runs are given.
        at_once: the most that train side by side.
    """
    done = {one.name for one in wanted if (folder / one.name / "model").exists()}
    runs = []
    for name, model, train, examples, seed in wanted:
        tokens = predict.tokenize(model, examples, around.lengths)
        runs.append(Run(name, model, tokens, examples.labels, train, seed))
    left = [run for run in runs if run.name not in done]
    ended = replicas.train_all(runs, around, at_once=at_once, done=done)
    for run, trained in zip(left, ended, strict=True):
        model = run.model._replace(params=trained.params)
        saved.save(folder / run.name / "model", model)
