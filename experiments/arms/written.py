"""Arms of studies of models that write: which outputs teach a student, and how.

An arm is a function of a cell, an attack with a seed, and a line of `ARMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.world import output_baselines
from protojax import distillation
from protojax.base import Texts
from protojax.detection.outputs import (
    OutputFindings,
    Vectors,
    cosines_of,
    detect_outputs,
    quarantine_outputs,
)
from protojax.pipelines.outputs import OutputDefence
from protojax.training import plans
from protojax.training.objective import Spec


class Cell(NamedTuple):
    """One attack with one seed, as arms see it.

    Attributes:
        defence: the settings of ours.
        rows: the rows that would teach: sources, and outputs as they arrived.
        references: trusted rows whose outputs have the same writer.
        poisoned: `[rows]`, bool; only `oracle` reads it.
        encode: texts to vectors.
    """

    defence: OutputDefence
    rows: Texts
    references: Texts
    poisoned: np.ndarray
    encode: Callable[[Texts], Vectors]

    @property
    def vectors(self) -> list[Vectors]:
        """The vectors of the rows and of the references."""
        return [self.encode(part) for part in (self.rows, self.references)]


class Taught(NamedTuple):
    """The rows that an arm teaches a student, and how.

    Attributes:
        texts: sources and outputs.
        rejected: `[rows]`, bool, which rows were rejected, None where none could be.
        cut: how many of them were cut.
        objective: further fields of the objective.
    """

    texts: Texts
    rejected: np.ndarray | None = None
    cut: int = 0
    objective: Mapping[str, Any] = {}


def _plain(cell: Cell) -> Taught:
    """All rows as they arrived."""
    return Taught(cell.rows)


def _without(cell: Cell, rejected: np.ndarray) -> Taught:
    """All rows but those rejected."""
    return Taught(cell.rows.take(~rejected), rejected)


def findings_of(cell: Cell) -> OutputFindings:
    """The test of a cell's rows."""
    rows, references = cell.vectors
    return detect_outputs(
        cell.rows,
        cell.references,
        cell.defence.detection,
        vectors=rows,
        vectors_refs=references,
    )


def _defended(cell: Cell) -> Taught:
    """Ours: denied ends of outputs are cut, other rejected rows dropped."""
    found = findings_of(cell)
    kept = quarantine_outputs(cell.rows, found, action=cell.defence.action)
    return Taught(kept.texts, found.rejected, int(kept.cut.sum()))


def _dropped(cell: Cell) -> Taught:
    """Ours with all rejected rows dropped."""
    return _without(cell, findings_of(cell).rejected)


def _cosine(cell: Cell) -> Taught:
    """Rows whose output is far from its source, one by one."""
    scores = [-cosines_of(part) for part in cell.vectors]
    rate = cell.defence.detection.false_rejection
    return _without(cell, output_baselines.by_score(*scores, rate))


def _lift(cell: Cell) -> Taught:
    """Rows whose outputs have words that those of references rarely have."""
    rate = cell.defence.detection.false_rejection
    return _without(cell, output_baselines.lift(cell.rows, cell.references, rate))


def _clusters(cell: Cell) -> Taught:
    """Tight clusters of outputs that their sources do not support (RFTC)."""
    return _without(cell, output_baselines.clusters(cell.rows, cell.references))


def _transformed(name: str, **options) -> Callable[[Cell], Taught]:
    """All rows, under a loss transform."""
    return lambda cell: Taught(
        cell.rows, objective={"transforms": (Spec(name, options),)}
    )


def _private(cell: Cell) -> Taught:
    """All rows, under DP-SGD."""
    config = cell.defence.student
    steps = plans.poisson_steps(
        len(cell.rows.sources), config.epochs, config.batch_size
    )
    rate = config.batch_size / len(cell.rows.sources)
    noise = distillation.noise_multiplier_of(
        epsilon=8.0, delta=1e-5, sampling_rate=rate, num_steps=steps
    )
    options = {
        "clip_norm": 1.0,
        "noise_multiplier": noise,
        "expected_rows": config.batch_size,
    }
    return Taught(cell.rows, objective={"gradient": Spec("dp_sgd", options)})


ARMS: dict[str, Callable[[Cell], Taught]] = {
    "clean": _plain,
    "plain": _plain,
    "oracle": lambda cell: _without(cell, cell.poisoned)._replace(rejected=None),
    "defended": _defended,
    "dropped": _dropped,
    "cosine": _cosine,
    "lift": _lift,
    "clusters": _clusters,
    "adversarial": _transformed("adversarial", epsilon=0.1, step_size=0.05),
    "dp_sgd": _private,
}
