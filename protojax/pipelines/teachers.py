"""The teacher's outputs on the rows: asked of a model, or read from a file."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples, TeacherOutputs
from protojax.distillation import teacher as teacher_lib
from protojax.models import Model
from protojax.pipelines.inputs import Sheet
from protojax.training import predict
from protojax.training.predict import Features, Lengths

# The beginning of the name of a column that holds the logits of a class.
LOGIT = "logit:"


class Given(NamedTuple):
    """The outputs of a teacher that nobody can be asked for again.

    Attributes:
        names: of its classes, () where the file has none.
        rows: its outputs on the rows; features have no layers where there are none.
        references: its outputs on the references.
    """

    names: tuple[str, ...]
    rows: TeacherOutputs
    references: TeacherOutputs


def ask(
    folder: Path,
    name: str,
    model: Model,
    examples: Examples,
    lengths: Lengths,
    features: Features,
) -> TeacherOutputs:
    """The outputs of a model over rows, computed once and kept in a file.

    Args:
        folder: of the file.
        name: the beginning of the file's name.
        model: the model.
        examples: the rows.
        lengths: how rows are padded.
        features: the hidden states to return.
    """
    tokens = predict.tokenize(model, examples, lengths)
    key = teacher_lib.cache_key(
        model.params,
        data.fingerprint(tokens.input_ids, tokens.token_type_ids, tokens.lengths),
        repr((model.config, features)),
    )
    return teacher_lib.cached_outputs(
        folder / f"{name}_{key[:16]}.safetensors",
        key,
        lambda: predict.predict(model, tokens, lengths, features),
    )


def read_arrays(path: Path, rows: Sheet, references: Sheet) -> Given:
    """The outputs in an npz file, one line for each line of the user's files.

    Args:
        path: with `rows` and `references`, each `[lines, classes]`, and if it has them
            `rows_features` and `references_features` `[lines, dim]`, or `[lines,
            layers, dim]`, and `label_names` `[classes]`.
        rows: the user's rows.
        references: the user's references.

    Raises:
        OSError, ValueError: in one line that names the file and the array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}, found none.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{path} is no npz file: {error}".splitlines()[0]) from error
    sheets = {"rows": rows, "references": references}
    for part in sheets:
        held = ", ".join(arrays)
        validate.require(part in arrays, f"arrays in {path}", held, f"with {part!r}")
    parts = {}
    for part, sheet in sheets.items():
        logits = _array(path, part, arrays[part], sheet, dims=(2,))
        name = f"{part}_features"
        features = np.zeros((len(logits), 0, 0), np.float32)
        if all(f"{one}_features" in arrays for one in sheets):
            features = _array(path, name, arrays[name], sheet, dims=(2, 3))
            features = features.reshape(len(features), -1, features.shape[-1])
        parts[part] = TeacherOutputs(logits, features)
    _check_shapes(path, *parts.values())
    names = tuple(map(str, arrays.get("label_names", np.array([])).ravel()))
    classes = parts["rows"].logits.shape[1]
    bound = f"{classes} names, one for each class, in {path}"
    one_each = not names or len(set(names)) == len(names) == classes
    validate.require(one_each, "label_names", names, bound)
    return Given(names, **parts)


def _array(
    path: Path, name: str, array: np.ndarray, sheet: Sheet, *, dims: Sequence[int]
) -> np.ndarray:
    """An array for the rows of a file that have a text, checked."""
    where = f"{name}.shape in {path}"
    bound = f"with {' or '.join(map(str, dims))} dimensions"
    validate.require(array.ndim in dims, where, array.shape, bound)
    bound = f"[{sheet.total}, ...], as many as {sheet.table.source} has"
    validate.require(len(array) == sheet.total, where, array.shape, bound)
    number = np.issubdtype(array.dtype, np.number)
    finite = number and bool(np.isfinite(array).all())
    validate.require(finite, name, path.name, "finite numbers")
    return array[sheet.places].astype(np.float32)


def _check_shapes(path: Path, rows: TeacherOutputs, references: TeacherOutputs) -> None:
    """Raises where rows and references have other numbers of classes or features."""
    for field in TeacherOutputs._fields:
        first, second = (
            getattr(outputs, field).shape[1:] for outputs in (rows, references)
        )
        bound = f"{first} in {path}, as the rows'"
        validate.require(first == second, f"the references' {field}", second, bound)


def read_columns(rows: Sheet, references: Sheet) -> Given:
    """The outputs in columns `logit:NAME` of the user's files.

    Args:
        rows: the user's rows.
        references: the user's references.

    Raises:
        ValueError: in one line that names the file, the row and the column.
    """
    columns = [name for name in rows.cells[0] if name.startswith(LOGIT)]
    bound = f"columns {LOGIT}NAME, two or more, in {rows.table.source}"
    validate.require(len(columns) > 1, "teacher_logits", "columns", bound)
    parts = []
    for sheet in (rows, references):
        logits = np.empty((len(sheet.cells), len(columns)), np.float32)
        for place, cells in enumerate(sheet.cells):
            where = f"{sheet.table.source}, row {sheet.table.numbers[place]}"
            for number, name in enumerate(columns):
                logits[place, number] = _number(cells.get(name), name, where)
        parts.append(TeacherOutputs(logits, np.zeros((len(logits), 0, 0), np.float32)))
    return Given(tuple(name.removeprefix(LOGIT) for name in columns), *parts)


def _number(value: object, name: str, where: str) -> float:
    """A cell as a finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    validate.require(math.isfinite(found), name, value, f"a finite number in {where}")
    return found
