"""Hugging Face checkpoints of language models in and out.

`load_language_model` reads what transformers saves, `save_language_model` writes what
transformers loads: config.json, generation_config.json, safetensors, tokenizer. Nothing
here runs code from a checkpoint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from protojax import validate
from protojax.models import _config_json, _hub, _tensors
from protojax.models.language._parameters import expected_tensors, read_params
from protojax.models.language._settings import (
    read_settings,
    read_values,
    write_settings,
)
from protojax.models.language.config import LanguageConfig
from protojax.models.language.families import LANGUAGE_MODELS
from protojax.models.language.model import LanguageModel, select_layers


def load_language_model(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    remat: bool = False,
    layers: Sequence[int] = (),
    revision: str | None = None,
) -> LanguageModel:
    """A checkpoint as a language model.

    The ids of start, padding and end are those of generation_config.json, else of
    config.json, else of the tokenizer. Other settings of generation, and the several
    dropout rates of some families, are not kept: there is one rate, the one that acts
    on what each layer adds.

    Args:
        name_or_path: a local folder, `~` for the home folder, or a name on the Hugging
            Face Hub.
        dtype: "float32" or "bfloat16", what the body computes in.
        remat: recompute each layer in the backward pass to save memory.
        layers: the layers of the decoder to keep, ascending; all by default.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: where the checkpoint is not available, lacks a file or holds an
            incomplete one.
        ValueError: where protojax has no such family or variant of it, config.json or
            the tokenizer contradicts the tensors, a weight is not finite, or tensors do
            not fit; one message names all of them.
    """
    # Templates of chats lie in a file of their own.
    folder = _hub.fetch(name_or_path, revision, further=["*.jinja"])
    raw = _config_json.read_config(folder, LANGUAGE_MODELS)
    # The headers come first: they bound the sizes that config.json may give.
    found = _tensors.headers(folder, _plain(raw["model_type"]))
    # Before the tokenizer, with which transformers reads config.json too.
    values = read_values(folder, raw, found)
    tokenizer = _hub.load_tokenizer(folder)
    config = read_settings(folder, raw, values, found, tokenizer)
    _hub.check_tokenizer(folder, tokenizer, config.vocab_size)
    params = read_params(folder, config, found)
    config = dataclasses.replace(config, dtype=dtype, remat=remat)
    model = LanguageModel(config, params, tokenizer)
    return select_layers(model, layers) if layers else model


def save_language_model(folder: str | Path, model: LanguageModel) -> None:
    """Writes a folder that transformers loads with the class of the family.

    The folder is written under a temporary name next to its path and then renamed. An
    older checkpoint there is replaced; a folder that holds anything else is refused.
    Files of weights have at most 5 GB.

    Args:
        folder: the target; its parents are created.
        model: the model to save, with its tokenizer if it has one.

    Raises:
        FileExistsError: where the folder holds files that this function never writes.
        ValueError: where the family's config.json cannot express the model.
    """
    config = model.config
    validate.one_of(LANGUAGE_MODELS, family=config.family)
    for name, value in LANGUAGE_MODELS[config.family].fixed.items():
        _require_equal(config, name, value)
    with _hub.new_folder(folder) as new:
        write_settings(new, config, model.tokenizer)
        _tensors.write(new, expected_tensors(config), flatten_dict(model.params))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)
        _check_saved(new, model)


def _plain(family: str) -> Callable[[str], str]:
    """The function that removes a family's prefix from a tensor's name."""
    prefix = LANGUAGE_MODELS[family].prefix
    return lambda name: name.removeprefix(prefix)


def _check_saved(folder: Path, model: LanguageModel) -> None:
    """Raises where what was written says something else than the model's config."""
    config = dataclasses.replace(model.config, dtype="float32", remat=False)
    if not config.encoder_layers:
        config = dataclasses.replace(config, start_id=0)
    raw = _config_json.read_config(folder, LANGUAGE_MODELS)
    found = _tensors.headers(folder, _plain(config.family))
    values = read_values(folder, raw, found)
    read = read_settings(folder, raw, values, found, model.tokenizer)
    for field in dataclasses.fields(config):
        _require_equal(config, field.name, getattr(read, field.name))


def _require_equal(config: LanguageConfig, name: str, value: Any) -> None:
    """Raises unless a field has the only value that the family's files can express."""
    found = getattr(config, name)
    bound = f"{value!r}, all that config.json of {config.family} can express"
    validate.require(found == value, name, found, bound)
