"""The user's sources and outputs, read and checked before anything is computed."""

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Texts
from protojax.data import files, readers
from protojax.models.settings import SCRATCH
from protojax.pipelines import _run_file
from protojax.pipelines.inputs import (
    open_both,
    open_rows,
    student_source,
    warn_of_references,
)
from protojax.pipelines.outputs.settings import OutputColumns, OutputDefence
from protojax.pipelines.settings import flat


class Written(NamedTuple):
    """Sources and outputs out of a file.

    Attributes:
        texts: the rows that have both.
        lines: `[rows]`, int, their lines in the user's file.
    """

    texts: Texts
    lines: np.ndarray


class OutputJob(NamedTuple):
    """Everything that a defence of outputs works on.

    Attributes:
        config: all settings, the sources of the models among them.
        rows: the rows under test.
        references: the trusted rows.
        test: trusted test rows, or None.
        has_teacher: whether a teacher writes the outputs; else those of the files are
            tested and taught.
        has_encoder: whether an encoder reads sources and outputs.
        identity: every setting and the hash of every input.
        paths: of inputs and models, as they were given.
    """

    config: OutputDefence
    rows: Written
    references: Written
    test: Written | None
    has_teacher: bool
    has_encoder: bool
    identity: dict[str, Any]
    paths: dict[str, str]


def prepare(
    config: OutputDefence,
    *,
    rows: str | Path,
    references: str | Path | None,
    teacher: str | Path | None,
    student: str,
    encoder: str | Path | None,
    test: str | Path | None,
) -> OutputJob:
    """The inputs of a defence; the arguments are those of `defend_outputs`.

    Raises:
        OSError, ValueError: in one line, where an input is missing or does not fit.
    """
    columns = config.columns
    for name, source in {"teacher": teacher, "encoder": encoder}.items():
        bound = "a folder or the name of a model"
        validate.require(str(source) not in ("", SCRATCH), name, source, bound)
    # A config may name them as well.
    teacher = teacher or _named(config.teacher.model)
    encoder = encoder or _named(config.encoder.model)
    config = _with_models(config, student, teacher, encoder)
    if test and importlib.util.find_spec("rouge_score") is None:
        raise ValueError("--test: ROUGE needs the package rouge-score.")
    bound = "1 without a teacher, whose probabilities of tokens teach"
    weight = config.kd.hard_weight
    validate.require(bool(teacher) or weight == 1, "kd.hard_weight", weight, bound)
    files_ = {"rows": rows, "references": references, "test": test}
    paths = {name: path and Path(path) for name, path in files_.items()}
    parts = open_both(
        paths["rows"], paths["references"], columns.reference, columns.encoding
    )
    # A teacher writes the outputs of either.
    reads = not teacher
    under_test, trusted = (_written(part, columns, outputs=reads) for part in parts)
    check_references(under_test.texts, trusted.texts, config, two=bool(encoder))
    tests = None
    if test:
        tests = _written(open_rows(paths["test"], columns.encoding), columns)
    sources = {
        "teacher": teacher and str(teacher),
        "student": config.student.model,
        "encoder": encoder and str(encoder),
    }
    return OutputJob(
        config,
        under_test,
        trusted,
        tests,
        bool(teacher),
        bool(encoder),
        _run_file.identity_of(flat(config), paths, sources),
        {name: str(path) for name, path in {**paths, **sources}.items() if path},
    )


def _with_models(
    config: OutputDefence,
    student: str,
    teacher: str | Path | None,
    encoder: str | Path | None,
) -> OutputDefence:
    """The settings with the sources of the models filled in."""
    source, layers = student_source(student, teacher and str(teacher))
    layers = layers or config.student.layers
    changed = dataclasses.replace(config.student, model=source, layers=layers)
    return dataclasses.replace(
        config,
        student=changed,
        teacher=dataclasses.replace(config.teacher, model=str(teacher or SCRATCH)),
        encoder=dataclasses.replace(config.encoder, model=str(encoder or SCRATCH)),
    )


def _named(model: str) -> str | None:
    """The source of a model that the settings name, None for none."""
    return None if model in ("", SCRATCH) else model


def _written(
    source: readers.Source, columns: OutputColumns, *, outputs: bool = True
) -> Written:
    """The rows of a file that have a source and, where it is read, an output."""
    task = files.Task("files", columns.text, columns.output if outputs else None, "")
    table = files.read_table(source, task)
    written = table.pairs if outputs else [""] * len(table.texts)
    return Written(Texts(table.texts, written), np.array(table.numbers))


def check_references(
    rows: Texts, references: Texts, config: OutputDefence, *, two: bool
) -> None:
    """Checks that the references suffice, and says how many of the rows they repeat.

    Args:
        rows: the rows under test.
        references: the trusted rows.
        config: names the rate at which honest rows may be rejected.
        two: whether meaning is tested besides words.

    Raises:
        ValueError: on fewer references than the rate needs.
    """
    count, rate = len(references.sources), config.detection.false_rejection
    # Rounded, because 1 / 0.01 may be a little above 100.
    least = max(4, math.ceil(round((1 + two) / rate - 1, 6)))
    bound = f">= {least}, as detection.false_rejection={rate} needs"
    validate.require(count >= least, "number of references", count, bound)
    warn_of_references(rows.sources, references.sources)
