"""The user's private and public rows, read and checked before anything is computed."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples
from protojax.data import files
from protojax.models.settings import SCRATCH
from protojax.pipelines import _run_file
from protojax.pipelines.inputs import (
    labelled,
    names_of,
    open_rows,
    sheet_of,
    student_source,
)
from protojax.pipelines.privacy.accounting import guarantee_of
from protojax.pipelines.privacy.run_settings import Privatise
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.privacy.shared import Rows
from protojax.pipelines.settings import Columns, Encoder, flat
from protojax.privacy import overlap

_logger = logging.getLogger("protojax")
# The learning rate of models from scratch.
FRESH_RATE = 3e-3


class PrivateJob(NamedTuple):
    """Everything that a run works on.

    Attributes:
        config: all settings, the sources of the models among them.
        rows: private, public and test rows.
        label_names: of the classes.
        dropped: public rows that hold something of a private one, and such texts that
            were written, left out.
        identity: every setting and the hash of every input.
        paths: of inputs and models, as they were given.
    """

    config: Privatise
    rows: Rows
    label_names: tuple[str, ...]
    dropped: int
    identity: dict[str, Any]
    paths: dict[str, str]


def prepare(
    config: Privatise,
    *,
    private: str | Path,
    public: str | Path,
    teacher: str,
    student: str,
    test: str | Path | None,
    describe: Callable[[str], None] = lambda text: None,
) -> PrivateJob:
    """The inputs of a run; the arguments are those of `pipelines.privatise`.

    Texts are written anew by each call, the same by the seed.

    Raises:
        OSError, ValueError: in one line and without any text of a row, where an input
            is missing or does not fit.
    """
    config = with_models(config, teacher, student)
    given = {"private": private, "public": public, "test": test}
    paths = {name: path and Path(path) for name, path in given.items()}
    if Path(private).exists() and Path(public).exists():
        same = paths["private"].samefile(paths["public"])
        validate.require(not same, "public", str(public), "another file than private")
    columns = config.columns
    sheet = sheet_of(open_rows(paths["private"], columns.encoding), columns)
    names = names_of(sheet, columns.label)
    bound = "two classes or more, each with a name"
    validate.require(len(names) > 1, f"labels of {private}", len(names), bound)
    own = labelled(sheet, names).examples
    _check_groups(own.sources)
    # Whose a row is matters of private rows alone.
    columns = dataclasses.replace(columns, source="")
    open_ = _public(paths["public"], columns, names, labels=config.early_stopping > 0)
    open_, dropped = without_overlap(open_, own, config.overlap)
    trusted = data.take(own, [])
    if test:
        found = sheet_of(open_rows(paths["test"], columns.encoding), columns)
        trusted = labelled(found, names).examples
    written = None
    if config.chosen.transfer == "written":
        written, failed = _written(config, open_, own, describe)
        dropped += failed
    rows = Rows(own, open_, trusted, len(names), written)
    _check_sizes(config, rows)
    if config.stops_unseen and not test:
        _logger.warning(
            "The teacher stops after %d epochs, a fifth of all, whatever it has "
            "learned by then; without a test file the card cannot say what that costs. "
            "Public rows with labels choose the number of epochs: early_stopping.",
            config.chosen.teacher.epochs,
        )
    sources = {"teacher": teacher, "student": config.base.student.model}
    if config.writer.model:
        sources["writer"] = config.writer.model
    try:
        # Needs an extra, which has to be there before hours of training.
        guarantee_of(config.chosen, len(own.texts), queries_of(config.chosen, rows))
    except ImportError as error:
        # In one line, as every other error of an input.
        raise ValueError(str(error)) from error
    return PrivateJob(
        config,
        rows,
        names,
        dropped,
        _run_file.identity_of(flat(config), paths, sources),
        {name: str(path) for name, path in {**paths, **sources}.items() if path},
    )


def with_models(config: Privatise, teacher: str, student: str) -> Privatise:
    """The settings with the sources of the models filled in.

    Args:
        config: the settings.
        teacher: the folder of a pretrained encoder, or "scratch".
        student: likewise, "FOLDER:0,2" for some of its layers, or "layers:0,2" of what
            the teacher starts from, before it has seen a private row.

    Raises:
        ValueError: where there are no layers to take.
    """
    source, layers = student_source(student, None if teacher == SCRATCH else teacher)
    base = config.base
    student_of = dataclasses.replace(
        base.student, model=source, layers=layers or base.student.layers
    )
    changed = dataclasses.replace(
        base,
        teacher=_rated(dataclasses.replace(base.teacher, model=teacher)),
        student=_rated(student_of),
    )
    return dataclasses.replace(config, base=changed)


def _rated(encoder: Encoder) -> Encoder:
    """The encoder, whose rate is that of fresh weights where it has none of its own."""
    usual = encoder.learning_rate == Recipe().teacher.learning_rate
    if encoder.model != SCRATCH or not usual:
        return encoder
    return dataclasses.replace(encoder, learning_rate=FRESH_RATE)


def _public(
    path: Path, columns: Columns, names: tuple[str, ...], *, labels: bool
) -> Examples:
    """The public rows; without labels all are 0."""
    source = open_rows(path, columns.encoding)
    if labels:
        return labelled(sheet_of(source, columns), names).examples
    task = files.Task("files", columns.text, columns.pair or None, label="")
    table = files.read_table(source, task)
    return Examples(table.texts, table.pairs, np.zeros(len(table.texts), np.int32))


def without_overlap(
    public: Examples, private: Examples, action: str, *, name: str = "public"
) -> tuple[Examples, int]:
    """The public rows that hold nothing of a private one, and how many others were.

    Args:
        public: transfer rows.
        private: the rows to protect.
        action: "error" or "drop".
        name: of the transfer rows, for messages.

    Raises:
        ValueError: with counts but no text, where there are such rows, or none is left.
    """
    texts = [" ".join(row) for row in zip(*_columns(public), strict=True)]
    known = [" ".join(row) for row in zip(*_columns(private), strict=True)]
    kept = overlap.clean_rows(texts, known, action=action, name=name)
    return data.take(public, kept), int((~kept).sum())


def _written(
    config: Privatise,
    public: Examples,
    private: Examples,
    describe: Callable[[str], None],
) -> tuple[Examples, int]:
    """The texts that a language model wrote, and how many were left out."""
    texts = config.writer.write(public.texts, seed=config.seed, describe=describe)
    found = Examples(texts, None, np.zeros(len(texts), np.int32))
    return without_overlap(found, private, config.overlap, name="written")


def _columns(examples: Examples) -> list:
    """First and, if there are any, second texts."""
    return [part for part in examples[:2] if part is not None]


def _check_sizes(config: Privatise, rows: Rows) -> None:
    """Raises where rows are too few for what is asked."""
    count, recipe = len(rows.private.texts), config.chosen
    half = count // 2 if config.pipelines else count
    validate.require(half >= 20, "number of private rows", count, ">= 40")
    learned = half // recipe.shards
    bound = "10 for each of recipe shards, of half of the rows"
    validate.require(learned >= 10, "number of private rows", count, bound)
    noisy = {
        "teacher_noise": (recipe.teacher_noise, learned),
        "student_noise": (recipe.student_noise, _transfer_rows(recipe, rows, half)),
    }
    for name, (noise, most) in noisy.items():
        if noise.used:
            bound = f"<= {most}, the rows that a model of a pipeline learns from"
            size = noise.batch_size
            fits = size <= most
            validate.require(fits, f"base.{name}.batch_size", size, bound)


def _check_groups(groups: Sequence[str] | None) -> None:
    """Raises where groups are too few to draw halves of, or a row is in none."""
    if groups is None:
        return
    names = {str(name).strip() for name in groups}
    validate.require("" not in names, "group of a private row", "''", "a name")
    validate.require(len(names) >= 10, "groups of private rows", len(names), ">= 10")


def _transfer_rows(recipe: Recipe, rows: Rows, half: int) -> int:
    """The rows that a student of a pipeline learns from."""
    return half if recipe.transfer == "members" else queries_of(recipe, rows)


def queries_of(recipe: Recipe, rows: Rows) -> int:
    """The transfer rows that teachers answer on.

    Args:
        recipe: of the pipeline.
        rows: of the run.
    """
    if recipe.transfer == "members":
        return len(rows.public.texts)
    return len(rows.transfer(recipe.transfer))
