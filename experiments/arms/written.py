"""Arms of studies of models that write: which outputs teach a student, and how.

An arm is a function of a cell, an attack with a seed, and a line of `ARMS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings import FineTuning
from experiments.world import output_baselines
from protojax import distillation
from protojax.base import Prototypes, SequenceOutputs, Texts
from protojax.data.sequences import Sequences
from protojax.detection.outputs import (
    OutputFindings,
    Vectors,
    cosines_of,
    detect_outputs,
    quarantine_outputs,
)
from protojax.distillation.settings import Margin, Nearest
from protojax.models.language import LanguageModel
from protojax.pipelines.outputs import Lesson, OutputDefence, objective_of
from protojax.prototypes import kmeans
from protojax.prototypes.settings import Prototypes as PrototypeSettings
from protojax.training import plans, sequences
from protojax.training.objective import Spec


class Cell(NamedTuple):
    """One attack with one seed, as arms see it.

    Attributes:
        defence: the settings of ours.
        rows: the rows that would teach: sources, and outputs as they arrived.
        references: trusted rows whose outputs have the same writer.
        poisoned: `[rows]`, bool; only `oracle` reads it.
        encode: texts to vectors.
        said: a teacher's probabilities of the rows' tokens as they arrived, which teach
            in place of the tokens; None where the outputs alone arrived.
    """

    defence: OutputDefence
    rows: Texts
    references: Texts
    poisoned: np.ndarray
    encode: Callable[[Texts], Vectors]
    said: SequenceOutputs | None = None

    @property
    def vectors(self) -> list[Vectors]:
        """The vectors of the rows and of the references."""
        return [self.encode(part) for part in (self.rows, self.references)]

    def take(self, rows: np.ndarray) -> "Cell":
        """The cell with some of its rows, `[taken]` indices."""
        return self._replace(
            rows=self.rows.take(rows),
            poisoned=self.poisoned[rows],
            said=None if self.said is None else self.said.take(rows),
        )


class Taught(NamedTuple):
    """The rows that an arm teaches a student, and how.

    Attributes:
        texts: sources and outputs.
        places: `[texts]`, int, where they are among the cell's rows; None where they
            are other rows, such as references.
        rejected: `[rows]`, bool, which rows were rejected, None where none could be.
        cut: how many of them were cut.
        masked: `[texts]`, the spans of words that do not teach, or None.
        objective: further arguments of `objective_of`.
        columns: further columns of the batches, `[texts, ...]`.
        prototypes: for an objective with a prototype constraint.
        base: the arm whose student learns further, "" for a fresh one.
        train: fields of the student's training that differ.
    """

    texts: Texts
    places: np.ndarray | None = None
    rejected: np.ndarray | None = None
    cut: int = 0
    masked: tuple | None = None
    objective: Mapping[str, Any] = {}
    columns: Mapping[str, np.ndarray] = {}
    prototypes: Prototypes | None = None
    base: str = ""
    train: Mapping[str, Any] = {}


def lesson_of(cell: Cell, taught: Taught, student: LanguageModel) -> Lesson:
    """The lesson of an arm's student.

    Args:
        cell: the attack.
        taught: what the arm teaches.
        student: whose tokenizer makes the tokens.
    """
    said, kd = None, cell.defence.kd
    if cell.said is not None:
        # References arrive as outputs alone.
        received = taught.places is not None
        said = cell.said.take(taught.places) if received else None
        kd = dataclasses.replace(kd, hard_weight=0.0 if received else 1.0)

    def columns(rows: Sequences) -> dict[str, np.ndarray]:
        found = {}
        if said is not None:
            found |= sequences.columns_of(said, rows)
        if taught.masked is not None:
            weights = sequences.weights_without(
                student, rows, taught.texts.outputs, taught.masked
            )
            found["output_weights"] = weights * found.get("output_weights", 1)
        return {**found, **taught.columns}

    objective = objective_of(kd, **taught.objective)
    return Lesson(taught.texts, objective, columns, taught.prototypes)


def _plain(cell: Cell) -> Taught:
    """All rows as they arrived."""
    return Taught(cell.rows, np.arange(len(cell.rows.sources)))


def _without(cell: Cell, rejected: np.ndarray) -> Taught:
    """All rows but those rejected."""
    return Taught(cell.rows.take(~rejected), np.flatnonzero(~rejected), rejected)


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


def _quarantined(action: str = "") -> Callable[[Cell], Taught]:
    """Ours: what the test rejects is cut, masked or dropped.

    Args:
        action: of the quarantine; "" for that of the cell's settings.
    """

    def arm(cell: Cell) -> Taught:
        found, chosen = findings_of(cell), action or cell.defence.action
        kept = quarantine_outputs(cell.rows, found, action=chosen)
        return Taught(
            kept.texts,
            kept.rows,
            found.rejected,
            int(kept.cut.sum()),
            kept.masked if chosen == "mask" else None,
        )

    return arm


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


def _sequential(cell: Cell) -> Taught:
    """Rows whose output's prototype is rare given their source's prototype."""
    rate = cell.defence.detection.false_rejection
    return _without(cell, output_baselines.sequential(*cell.vectors, rate))


def _prototype(cell: Cell) -> Taught:
    """All rows, under the constraint as published: near any prototype of references.

    Prototypes are the centres of the sources' vectors by the trusted encoder; the
    student's pooled states of a source, projected to its width, have to be near any.
    """
    settings = PrototypeSettings()
    rows, references = (jnp.asarray(part.sources) for part in cell.vectors)
    centres = kmeans(
        jax.random.key(0),
        references,
        min(settings.num, len(references)),
        num_iters=settings.num_iters,
        metric=settings.metric,
    )
    constraint = {
        "weight": Spec("constant", args=(Nearest().weight,)),
        "margin": Spec("constant", args=(Margin().value,)),
        "assignment": "nearest",
        "metric": settings.metric,
    }
    return _plain(cell)._replace(
        objective={"transforms": (Spec("prototype", constraint),)},
        # Their width is that of the prototypes, to which the student is projected.
        columns={"teacher_features": np.asarray(rows)[:, None]},
        # One layer.
        prototypes=jax.tree.map(lambda leaf: np.asarray(leaf)[None], centres),
    )


def _fine_tuned(**objective) -> Callable[[Cell], Taught]:
    """The plain student, tuned on the references alone at a tenth of its rate.

    Args:
        **objective: arguments of `objective_of`.
    """

    def arm(cell: Cell) -> Taught:
        rate = cell.defence.student.learning_rate / 10
        train = {"epochs": FineTuning().epochs, "learning_rate": rate}
        return Taught(cell.references, objective=objective, base="plain", train=train)

    return arm


def _transformed(name: str, **options) -> Callable[[Cell], Taught]:
    """All rows, under a loss transform."""
    return lambda cell: _plain(cell)._replace(
        objective={"transforms": (Spec(name, options),)}
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
    return _plain(cell)._replace(objective={"gradient": Spec("dp_sgd", options)})


# The arm without an attack, whose attack success is the null of all others.
NULL = "clean"
ARMS: dict[str, Callable[[Cell], Taught]] = {
    NULL: _plain,
    "plain": _plain,
    "oracle": lambda cell: _without(cell, cell.poisoned)._replace(rejected=None),
    "defended": _quarantined(),
    "dropped": _quarantined("drop"),
    "masked": _quarantined("mask"),
    "cosine": _cosine,
    "lift": _lift,
    "clusters": _clusters,
    "sequential": _sequential,
    "prototype": _prototype,
    "fine_tuned": _fine_tuned(),
    "crow": _fine_tuned(consistency={}),
    "adversarial": _transformed("adversarial", epsilon=0.1, step_size=0.05),
    "dp_sgd": _private,
}
# Those that no node of a federation can run: students tuned after training, and
# batches drawn at random from all rows.
ALONE = ("fine_tuned", "crow", "dp_sgd")
