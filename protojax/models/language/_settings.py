"""The settings of a language model in config.json and generation_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protojax.models import _config_json, _hub
from protojax.models._config_json import FLAG, INTEGER, NAME, SIZE
from protojax.models._tensors import Stored
from protojax.models.language._family import Source
from protojax.models.language.config import LanguageConfig
from protojax.models.language.families import LANGUAGE_MODELS

# Rows of a position embedding, where the family has one.
_POSITIONS = {"learned": {"max_positions": SIZE}}
_DEPTHS = {"num_layers": "decoder", "encoder_layers": "encoder"}
_KINDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), SIZE),
    **dict.fromkeys(("head_dim", "relative_buckets"), SIZE),
    **dict.fromkeys(("num_layers", "encoder_layers", "num_heads"), INTEGER),
    **dict.fromkeys(("num_kv_heads", "max_positions", "relative_distance"), INTEGER),
    **dict.fromkeys(("attention_bias", "output_bias", "mlp_bias", "gated"), FLAG),
    **dict.fromkeys(("tied", "scale_head", "scale_attention"), FLAG),
    "activation": NAME,
}


def read_values(
    folder: Path, raw: Mapping[str, Any], found: Mapping[str, Stored]
) -> dict[str, Any]:
    """The content of config.json, with transformers' defaults for missing fields.

    Args:
        folder: the checkpoint.
        raw: the content of config.json.
        found: the tensors by plain name.

    Raises:
        ValueError: where transformers refuses it, it has more layers than the tensors,
            or its weights are quantised.
    """
    path = folder / "config.json"
    given = raw.get("quantization_config")
    _config_json.require(given is None, "quantization_config", given, "null", path)
    # First, as transformers makes a list of as many layers as the file says.
    _check_depths(path, raw, found)
    return _hub.with_defaults(path)


def read_settings(
    folder: Path,
    raw: Mapping[str, Any],
    values: Mapping[str, Any],
    found: Mapping[str, Stored],
    tokenizer: Any,
) -> LanguageConfig:
    """The config of a language model, with sizes that agree with its tensors.

    Args:
        folder: the checkpoint.
        raw: the content of config.json.
        values: the result of `read_values`.
        found: the tensors by plain name.
        tokenizer: the checkpoint's, or None.

    Raises:
        ValueError: on a value of another type, beyond the tensors, or that stands for
            a computation that protojax does not have; the message names the field.
    """
    path, name = folder / "config.json", raw["model_type"]
    family = LANGUAGE_MODELS[name]
    shapes = {key: stored.shape for key, stored in found.items()}
    for field, allowed in family.demanded.items():
        value = values.get(field, allowed)
        _config_json.require(value == allowed, field, value, repr(allowed), path)
    kinds = _KINDS | _POSITIONS.get(family.fixed["positions"], {})
    own = {ours: values.get(theirs) for ours, theirs in family.fields.items()}
    _config_json.check_values(path, family.fields, kinds, own, shapes)
    _check_depths(path, values, found)
    odd = family.read(Source(path, raw, values, found))
    checked = {ours: ours for ours in odd if ours in kinds}
    _config_json.check_values(path, checked, kinds, odd, shapes)
    tokens = _token_ids(folder, raw, values, tokenizer)
    try:
        return LanguageConfig(family=name, **{**own, **odd, **family.fixed, **tokens})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_settings(folder: Path, config: LanguageConfig, tokenizer: Any) -> None:
    """Writes config.json and generation_config.json.

    Args:
        folder: of the checkpoint.
        config: the model.
        tokenizer: the model's, or None.
    """
    family = LANGUAGE_MODELS[config.family]
    own = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    ends = list(config.end_ids)
    tokens: dict[str, Any] = {"pad_token_id": config.pad_id}
    # Null, not absent, or the family's default would come back.
    tokens["eos_token_id"] = ends if len(ends) > 1 else (ends or [None])[0]
    if config.encoder_layers:
        tokens["decoder_start_token_id"] = config.start_id
    first = getattr(tokenizer, "bos_token_id", None)
    tokens |= {} if first is None else {"bos_token_id": first}
    values = {
        "architectures": [family.architecture],
        # The type of the file, whatever the model computes in.
        "dtype": "float32",
        "model_type": config.family,
        **family.demanded,
        **own,
        **family.write(config),
        **tokens,
    }
    for name, content in {"config": values, "generation_config": tokens}.items():
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text)


def _check_depths(
    path: Path, values: Mapping[str, Any], found: Mapping[str, Stored]
) -> None:
    """Raises where config.json names more layers than the tensors may belong to."""
    family = LANGUAGE_MODELS[values["model_type"]]
    shapes = {key: stored.shape for key, stored in found.items()}
    for ours, stack in _DEPTHS.items():
        layers = values.get(family.fields.get(ours))
        # Others are absent, or refused as no integers.
        if isinstance(layers, int):
            start = family.modules(False)[f"{stack}/layers/mlp_norm"].split("{i}")[0]
            start = start.removeprefix(family.prefix)
            _config_json.check_depth(path, family.fields[ours], layers, start, shapes)


def _token_ids(
    folder: Path, raw: Mapping[str, Any], values: Mapping[str, Any], tokenizer: Any
) -> dict[str, Any]:
    """The ids of start, padding and end."""
    path = folder / "generation_config.json"
    generation = _config_json.read_object(path) if path.is_file() else {}

    def find(name: str) -> list[int]:
        # transformers generates by the second file, where there is one.
        found, place = generation.get(name), path
        if found is None:
            found, place = values.get(name), folder / "config.json"
        if found is None and name not in {**raw, **generation}:
            found = getattr(tokenizer, name, None)
        ids = found if isinstance(found, list) else [found]
        for token in ids if found is not None else ():
            integer = isinstance(token, int) and not isinstance(token, bool)
            _config_json.require(integer, name, found, "an integer, or several", place)
        return [] if found is None else ids

    ends, pads = find("eos_token_id"), find("pad_token_id")
    # What is padded is masked, so that any token will do.
    tokens = {"end_ids": tuple(ends), "pad_id": (pads or ends or [0])[0]}
    if values["is_encoder_decoder"]:
        starts, name = find("decoder_start_token_id"), "decoder_start_token_id"
        alone = len(starts) == 1
        _config_json.require(alone, name, starts, "an integer", folder / "config.json")
        tokens["start_id"] = starts[0]
    return tokens
