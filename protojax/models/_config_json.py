"""The config.json of a checkpoint, checked before a model is built.

The file may come from an untrusted source. Every error is an OSError or a ValueError in
one line that names the file.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protojax import validate
from protojax.base import PROBLEMS
from protojax.models import bert
from protojax.models.config import EncoderConfig
from protojax.models.encoder import MODELS

PROBLEM_TYPES = dict(
    zip(PROBLEMS, ["single_label_classification", "regression"], strict=True)
)
_INTEGERS = {
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "max_positions",
    "type_vocab_size",
    "embedding_size",
    "pad_id",
}
# Dimensions of tensors, unlike the numbers of layers and heads.
_SIZES = _INTEGERS - {"num_layers", "num_heads", "pad_id"}
_POINTER = b"version https://git-lfs.github.com/spec/"


def one_line(error: BaseException) -> str:
    """The type and message of an error, in one line of limited length."""
    # The text may be the file's own, which must not fill a log or forge lines of it.
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= 300 else said[:297] + '...'}"


def refuse_pointer(path: Path) -> None:
    """Raises where a file is only the Git LFS pointer to a large one.

    Args:
        path: a file.

    Raises:
        OSError: on a Git LFS pointer.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise OSError(
                f"{path} is an LFS pointer: git lfs pull, in its repository, gets the "
                "file that it stands for."
            )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is not JSON, or not an object.
    """
    refuse_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}).") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ValueError(f"Expected a JSON object in {path}, found a {kind}.")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json of a checkpoint of a known family.

    Args:
        folder: the checkpoint.

    Raises:
        OSError: where there is none, or only an adapter.
        ValueError: on another family, or a variant of a known one.
    """
    path = folder / "config.json"
    # With the package peft installed, transformers would apply the adapter to the
    # model.
    if (folder / "adapter_config.json").exists():
        raise OSError(
            f"{folder} holds adapter_config.json, an adapter: merge it first, with "
            "model.merge_and_unload() of the package peft, and save what that returns."
        )
    if not path.is_file():
        raise FileNotFoundError(f"No config.json in {folder}: not a checkpoint.")
    raw = read_object(path)
    family = raw.get("model_type")
    # No nearest name is suggested: another family is not a typing error.
    known = f"one of {', '.join(MODELS)}, the families that protojax has,"
    _require(family in list(MODELS), "model_type", family, known, path)
    # Variants under the same name, which would compute something else.
    for name, allowed in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }.items():
        found = raw.get(name, allowed)
        _require(found == allowed, name, found, repr(allowed), path)
    return raw


def encoder_config(
    path: Path,
    family: str,
    found: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    pad_id: int | None,
    **settings: Any,
) -> EncoderConfig:
    """The config of an encoder, with sizes that agree with its tensors.

    Args:
        path: of config.json, for messages.
        family: a name in `MODELS`.
        found: the content of config.json, with defaults for missing fields.
        shapes: of the tensors, by their name without prefix.
        pad_id: the tokenizer's, used where `found` has none and no position depends
            on it.
        **settings: further fields of `EncoderConfig`.

    Raises:
        ValueError: on a value of another type, or beyond the tensors.
    """
    fields, fixed = MODELS[family].fields, MODELS[family].fixed
    values = {ours: found.get(theirs) for ours, theirs in fields.items()}
    for ours in [name for name in fixed if name in fields]:
        if values[ours] is None:
            values[ours] = fixed[ours]
        bound = f"{fixed[ours]}, as in any {family},"
        _require(values[ours] == fixed[ours], fields[ours], values[ours], bound, path)
    # transformers takes null this way.
    if values["classifier_dropout"] is None:
        values["classifier_dropout"] = values["dropout"]
    # Where positions do not depend on it, what is masked may be anything.
    if values["pad_id"] is None and MODELS[family].embed is bert.embed:
        values["pad_id"] = pad_id or 0
    _check_values(path, family, values, shapes)
    # As wide as the layers: no projection between them, which 0 stands for.
    if values.get("embedding_size") == values["hidden_size"]:
        values["embedding_size"] = 0
    try:
        config = EncoderConfig(family=family, **{**values, **fixed})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(config, **settings)


def _check_values(
    path: Path,
    family: str,
    values: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises on a value of another type, or on a size that no tensor has."""
    # The file may claim any size; no more is allocated than the tensors fill.
    largest = max((max(s) for s in shapes.values() if s and 0 not in s), default=0)
    for ours, theirs in MODELS[family].fields.items():
        value = values[ours]
        # True and False are integers in Python.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if ours == "activation":
            fits, kind = isinstance(value, str), "a name"
        elif ours in _INTEGERS:
            fits, kind = number and isinstance(value, int), "an integer"
        else:
            fits, kind = number and math.isfinite(value), "a finite number"
        _require(fits, theirs, value, kind, path)
        if ours in _SIZES:
            bound = f"<= {largest}, the largest dimension of the tensors"
            _require(value <= largest, theirs, value, bound, path)
    theirs, depth = MODELS[family].fields, _depth(family, shapes)
    bound = f"<= {depth}, the layers of the tensors"
    layers, pad_id = values["num_layers"], values["pad_id"]
    _require(layers <= depth, theirs["num_layers"], layers, bound, path)
    bound = f"< vocab_size={values['vocab_size']}"
    _require(pad_id < values["vocab_size"], theirs["pad_id"], pad_id, bound, path)


def _depth(family: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of layers that the tensors may belong to."""
    start = MODELS[family].modules["layers_{i}/up"].split("{i}")[0]
    start = start.removeprefix(MODELS[family].prefix)
    numbers = {
        name.removeprefix(start).split(".")[0]
        for name in shapes
        if name.startswith(start)
    }
    # Where all have other names, the list of these says more than their number.
    return len(numbers) or len(shapes)


def check_problem(path: Path, raw: Mapping[str, Any], problem: str) -> None:
    """Raises where a checkpoint's head was trained for another kind of problem.

    Args:
        path: of config.json, for messages.
        raw: the content of config.json.
        problem: "classification" or "regression".

    Raises:
        ValueError: for example on a classifier with several labels per row, whose
            logits are those of sigmoids.
    """
    allowed = PROBLEM_TYPES[problem]
    found = raw.get("problem_type")
    bound = f"{allowed!r} or null, for problem={problem!r}"
    # Null is allowed: transformers then derives the kind from the labels.
    _require(found in (None, allowed), "problem_type", found, bound, path)


def label_names(path: Path, raw: Mapping[str, Any], num_labels: int) -> tuple[str, ...]:
    """The name of each class, none where they are LABEL_0, LABEL_1, ...

    >>> label_names(Path("config.json"), {"id2label": {"1": "good", "0": "bad"}}, 2)
    ('bad', 'good')
    >>> label_names(Path("config.json"), {"id2label": {"0": "LABEL_0"}}, 1)
    ()

    Args:
        path: of config.json, for messages.
        raw: the content of config.json.
        num_labels: how many classes there are.

    Raises:
        ValueError: where there is not one name per class, or label2id contradicts the
            names.
    """
    found = raw.get("id2label")
    if found is None:
        return ()
    kind = f"an object with the name of each of {num_labels} classes"
    _require(isinstance(found, dict), "id2label", found, kind, path)
    # transformers writes these names where it was given none, so they say nothing.
    if found == placeholders(len(found)):
        return ()
    scalars = all(isinstance(name, str | int | float) for name in found.values())
    names = tuple(str(found[str(i)]) for i in range(num_labels) if str(i) in found)
    several = len(set(names)) == len(found) == num_labels
    if not (scalars and several):
        said = ", ".join(f"{key}: {name}" for key, name in found.items() if scalars)
        raise ValueError(
            f"Expected id2label in {path} to name each of {num_labels} classes, 0 to "
            f"{num_labels - 1}, each by another name, found {len(found)}: {said[:300]}"
        )
    numbers = raw.get("label2id")
    # In files with names edited by hand, label2id may still hold the old names.
    if isinstance(numbers, dict) and set(numbers) == set(names):
        for i, name in enumerate(names):
            bound = f"{i}, as id2label says,"
            _require(
                numbers[name] == i, f"label2id[{name!r}]", numbers[name], bound, path
            )
    return names


def placeholders(num_labels: int) -> dict[str, str]:
    """The names that transformers gives to classes without names.

    >>> placeholders(2)
    {'0': 'LABEL_0', '1': 'LABEL_1'}
    """
    return {str(i): f"LABEL_{i}" for i in range(num_labels)}


def _require(condition: bool, name: str, value: Any, allowed: str, path: Path) -> None:
    """Raises where a value of config.json is not allowed."""
    # Lists may be nested so deeply that they cannot be printed.
    shown = value if isinstance(value, str | int | float | None) else type(value)
    validate.require(condition, name, shown, f"{allowed} in {path}")
