"""The dispatches of a whole training run, in order."""

import numpy as np

from protojax.data import batches
from protojax.training.predict import AnyLengths
from protojax.training.step import TrainConfig


def epochs_plan(
    row_lengths: np.ndarray, train: TrainConfig, lengths: AnyLengths, seed: int
) -> list[batches.Dispatch]:
    """The dispatches of all epochs of a run, in order."""
    return [
        item
        for epoch in range(train.epochs)
        for item in batches.plan_epoch(
            row_lengths,
            batch_size=train.batch_size,
            buckets=lengths.buckets,
            steps_per_dispatch=lengths.steps_per_dispatch,
            seed=seed,
            epoch=epoch,
        )
    ]


def poisson_steps(rows: int, epochs: int, batch_size: int) -> int:
    """The number of Poisson batches whose expected rows cover the given epochs."""
    return -(-rows * epochs // batch_size)


def poisson_plan(
    row_lengths: np.ndarray, train: TrainConfig, lengths: AnyLengths, seed: int
) -> list[batches.Dispatch]:
    """The dispatches of a run whose batches are Poisson samples of the rows."""
    return batches.plan_poisson(
        row_lengths,
        expected_rows=train.batch_size,
        num_steps=poisson_steps(len(row_lengths), train.epochs, train.batch_size),
        buckets=lengths.buckets,
        steps_per_dispatch=lengths.steps_per_dispatch,
        seed=seed,
    )
