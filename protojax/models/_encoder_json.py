"""The settings of an encoder in config.json: its sizes, problem and classes' names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protojax.base import PROBLEMS
from protojax.models import _config_json, bert
from protojax.models.config import EncoderConfig
from protojax.models.encoder import MODELS

PROBLEM_TYPES = dict(
    zip(PROBLEMS, ["single_label_classification", "regression"], strict=True)
)
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "max_positions"),
    *("type_vocab_size", "embedding_size"),
)
_KINDS = {
    "activation": _config_json.NAME,
    **dict.fromkeys(("num_layers", "num_heads", "pad_id"), _config_json.INTEGER),
    **dict.fromkeys(_SIZES, _config_json.SIZE),
}


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json of an encoder of a known family.

    Args:
        folder: the checkpoint.

    Raises:
        OSError: where there is none, or only an adapter.
        ValueError: on another family, or a variant of a known one.
    """
    raw = _config_json.read_config(folder, MODELS)
    # Variants under the same name, which would compute something else.
    for name, allowed in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }.items():
        found, path = raw.get(name, allowed), folder / "config.json"
        _config_json.require(found == allowed, name, found, repr(allowed), path)
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
        _config_json.require(
            values[ours] == fixed[ours], fields[ours], values[ours], bound, path
        )
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
    theirs = MODELS[family].fields
    _config_json.check_values(path, theirs, _KINDS, values, shapes)
    start = MODELS[family].modules["layers_{i}/up"].split("{i}")[0]
    start = start.removeprefix(MODELS[family].prefix)
    layers, pad_id = values["num_layers"], values["pad_id"]
    _config_json.check_depth(path, theirs["num_layers"], layers, start, shapes)
    bound = f"< vocab_size={values['vocab_size']}"
    fits = pad_id < values["vocab_size"]
    _config_json.require(fits, theirs["pad_id"], pad_id, bound, path)


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
    _config_json.require(found in (None, allowed), "problem_type", found, bound, path)


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
    _config_json.require(isinstance(found, dict), "id2label", found, kind, path)
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
            _config_json.require(
                numbers[name] == i, f"label2id[{name!r}]", numbers[name], bound, path
            )
    return names


def placeholders(num_labels: int) -> dict[str, str]:
    """The names that transformers gives to classes without names.

    >>> placeholders(2)
    {'0': 'LABEL_0', '1': 'LABEL_1'}
    """
    return {str(i): f"LABEL_{i}" for i in range(num_labels)}
