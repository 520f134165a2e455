"""Trusted models of parts of the references, so that each reads rows it never saw.

A model knows the rows that it learned from better than others. Each reference is
therefore read by the model that learned from the other folds, and each row under test
by one model too, so that rows and references are exchangeable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from protojax import data
from protojax.base import Examples
from protojax.detection import detect
from protojax.detection.evidence import Evidence, Findings, Reading
from protojax.detection.masking import Reread
from protojax.detection.settings import Detection
from protojax.federated.replicas import Surroundings
from protojax.models import Model, hf, saved
from protojax.pipelines import teachers
from protojax.pipelines.fine_tuning import FineTuning
from protojax.pipelines.settings import Encoder
from protojax.training.predict import Features


class TrustedFolds(NamedTuple):
    """The trusted models, and their readings for the test.

    Attributes:
        models: one for each fold of the references, which it did not learn from.
        on_rows: of each row, by one of the models.
        on_references: of each reference, by the model that did not learn from it.
        readers: `[rows + references]`, the number of the model that reads each.
    """

    models: tuple[Model, ...]
    on_rows: Reading
    on_references: Reading
    readers: np.ndarray

    def take(self, rows: np.ndarray) -> "TrustedFolds":
        """The readings of some of the rows, with all references.

        Args:
            rows: `[taken]`, indices.
        """
        own, references = np.split(self.readers, [len(self.on_rows.classes)])
        readers = np.concatenate([own[rows], references])
        return self._replace(on_rows=self.on_rows.take(rows), readers=readers)

    def read(self, examples: Examples, around: Surroundings) -> Reading:
        """The reading of rows by all models together.

        Args:
            examples: the rows.
            around: the surroundings of the runs.
        """
        readings = [read(model, examples, around, "rejected") for model in self.models]
        return mean_reading(readings)

    def reread(self, around: Surroundings) -> Reread:
        """The function by which rows are read again with other texts.

        Args:
            around: the surroundings of the runs.
        """

        def read_again(rows: np.ndarray, examples: Examples) -> Reading:
            readers = self.readers[rows]
            return _each(self.models, examples, readers, around, "masked")

        return read_again


def with_readings(evidence: Evidence, folds: TrustedFolds) -> Evidence:
    """The evidence with the trusted models' readings; all references are held out.

    Args:
        evidence: without a trusted model.
        folds: of the same rows and references.
    """
    return evidence._replace(
        held_out=np.arange(len(evidence.references.texts)),
        trusted_on_transfer=folds.on_rows,
        trusted_on_held_out=folds.on_references,
    )


def tested(
    evidence: Evidence, folds: TrustedFolds, settings: Detection, around: Surroundings
) -> tuple[Evidence, Findings]:
    """The evidence with the trusted models' readings, and the result of the test.

    Args:
        evidence: without a trusted model.
        folds: of the same rows and references.
        settings: of the test.
        around: the surroundings of the runs, for what is read again.
    """
    evidence = with_readings(evidence, folds)
    reread = folds.reread(around) if settings.suspect_references else None
    return evidence, detect(evidence, settings, reread=reread)


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each reference, `[references]`; classes are spread over all folds.

    Args:
        labels: `[references]`, int.
        folds: their number.
        seed: of the order within a class.

    >>> labels = np.array([0, 0, 1, 0, 1, 1])
    >>> found = fold_of(labels, 3, seed=0)
    >>> sorted(found[labels == 0].tolist()), sorted(found[labels == 1].tolist())
    ([0, 1, 2], [0, 1, 2])
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # Stable: within a class the order stays the shuffled one.
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) % folds
    return found


def fold_tunings(
    model: Model, settings: Encoder, references: Examples, *, folds: int, seed: int
) -> list[FineTuning]:
    """The training of each trusted model, on the references of the other folds.

    Args:
        model: the model that all start from, with its tokenizer.
        settings: of their training.
        references: trusted rows with trusted labels.
        folds: the number of models.
        seed: of the folds, and of training.
    """
    fold = fold_of(references.labels, folds, seed)
    return [
        FineTuning(
            f"trusted_model_{number}",
            model,
            settings,
            data.take(references, fold != number),
            seed + number,
        )
        for number in range(folds)
    ]


def trusted_folds(
    settings: Encoder,
    num_labels: int,
    rows: Examples,
    references: Examples,
    around: Surroundings,
    *,
    folds: int,
    seed: int,
) -> TrustedFolds:
    """The trusted models of all folds, and their readings of rows and references.

    Args:
        settings: of the models.
        num_labels: the number of classes.
        rows: the rows under test; row i is read by model i mod folds.
        references: trusted rows with trusted labels.
        around: the surroundings of the runs, in whose folder the models of
            `fold_tunings` were saved.
        folds: the number of models.
        seed: of the folds.
    """
    folder, models = around.store("").folder, []
    for number in range(folds):
        name = f"trusted_model_{number}"
        saved.check(folder / name / "model", run=folder / name)
        found = hf.load_hf(
            folder / name / "model",
            num_labels=num_labels,
            **settings.computation,
        )
        models.append(found)
    fold = fold_of(references.labels, folds, seed)
    turn = np.arange(len(rows.texts)) % folds
    return TrustedFolds(
        tuple(models),
        _each(models, rows, turn, around, "rows"),
        _each(models, references, fold, around, "references"),
        np.concatenate([turn, fold]),
    )


def _each(
    models: Sequence[Model],
    examples: Examples,
    reader: np.ndarray,
    around: Surroundings,
    name: str,
) -> Reading:
    """The reading of each row by one of the models, by its number `[rows]`."""
    logits = np.empty((len(reader), models[0].config.num_labels), np.float32)
    for number, model in enumerate(models):
        own = np.flatnonzero(reader == number)
        if len(own):
            logits[own] = read(model, data.take(examples, own), around, name).logits
    return Reading(logits.argmax(1), logits)


def read(model: Model, examples: Examples, around: Surroundings, name: str) -> Reading:
    """The reading of rows by one trusted model, computed once and kept in a file.

    Args:
        model: the model.
        examples: the rows.
        around: the surroundings of the runs.
        name: the beginning of the file's name.
    """
    around.describe(f"the trusted model reads {name}")
    folder = around.store("").folder
    name = f"trusted_on_{name}"
    logits = teachers.ask(
        folder, name, model, examples, around.lengths, Features()
    ).logits
    return Reading(logits.argmax(1), logits)


def mean_reading(readings: Sequence[Reading]) -> Reading:
    """The reading by several models together: the mean of their log posteriors.

    Args:
        readings: of the same rows.

    >>> sure = Reading(np.array([0]), np.array([[4.0, 0.0]]))
    >>> unsure = Reading(np.array([1]), np.array([[0.0, 1.0]]))
    >>> mean_reading([sure, unsure]).classes.tolist()
    [0]
    """
    logits = np.mean([special.log_softmax(r.logits, axis=1) for r in readings], axis=0)
    return Reading(logits.argmax(1), logits.astype(np.float32))
