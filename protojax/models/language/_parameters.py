"""The tensors of a language model's checkpoint, and its parameters."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from protojax.base import PyTree
from protojax.models import _tensors
from protojax.models._tensors import Expected, Stored
from protojax.models.language.body import param_shapes
from protojax.models.language.config import LanguageConfig
from protojax.models.language.families import LANGUAGE_MODELS

_HEAD = ("head", "kernel")
_WORDS = ("embedding", "embedding")
_LOGITS_BIAS = ("head", "bias")


def expected_tensors(config: LanguageConfig) -> dict[str, Expected]:
    """The tensors of a checkpoint, by name.

    Args:
        config: the model.
    """
    family = LANGUAGE_MODELS[config.family]
    shapes = _shapes_of_one_layer(config)
    tensors = {}
    for name, paths in _names(config, shapes).items():
        stack, layered = paths[0][0], paths[0][1] == "layers"
        parts = {path: shapes[path][1:] if layered else shapes[path] for path in paths}
        *rest, _ = parts[paths[0]]
        shape = (*rest, sum(part[-1] for part in parts.values()))
        # PyTorch stores a linear layer as [out, in], Flax as [in, out].
        transposed = paths[0][-1] == "kernel" and (
            family.transposed or paths[0] == _HEAD
        )
        tensor = Expected(parts, shape[::-1] if transposed else shape, transposed)
        if paths[0] == _WORDS:
            head = ("lm_head.weight",) if config.tied else ()
            tensor = tensor._replace(twins=(*family.twins, *head))
        if paths[0] == _LOGITS_BIAS:
            tensor = tensor._replace(shape=(1, *shape), optional=True)
        if not layered:
            tensors[name] = tensor
            continue
        depth = config.encoder_layers if stack == "encoder" else config.num_layers
        for i in range(depth):
            tensors[name.format(i=i)] = tensor._replace(layer=i)
    return tensors


def read_params(
    folder: Path, config: LanguageConfig, found: dict[str, Stored]
) -> PyTree:
    """The parameters of a checkpoint.

    Args:
        folder: the checkpoint, for messages.
        config: the model.
        found: the result of `headers`.

    Raises:
        ValueError: where tensors do not fit, are not floats or not finite, or where
            two that must be equal differ.
    """
    family = LANGUAGE_MODELS[config.family]
    expected = {
        name.removeprefix(family.prefix): tensor
        for name, tensor in expected_tensors(config).items()
    }
    flat = _tensors.read(folder, config.family, expected, found, ignored=family.ignored)
    if config.head_bias and _LOGITS_BIAS not in flat:
        flat[_LOGITS_BIAS] = jnp.zeros(config.vocab_size, jnp.float32)
    return unflatten_dict(flat)


def _names(
    config: LanguageConfig, shapes: dict[tuple[str, ...], tuple[int, ...]]
) -> dict[str, list[tuple[str, ...]]]:
    """The parameters in each tensor, by its name with `{i}` for a layer."""
    names: dict[str, list[tuple[str, ...]]] = {}
    modules = LANGUAGE_MODELS[config.family].modules(config.gated)
    for place, name in modules.items():
        path = tuple(place.split("/"))
        if path in shapes:
            names[name] = [path]
        for leaf, theirs in _tensors.LEAVES.items():
            if (*path, leaf) in shapes and f"{place}/{leaf}" not in modules:
                names.setdefault(f"{name}.{theirs}", []).append((*path, leaf))
    return names


def _shapes_of_one_layer(
    config: LanguageConfig,
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of parameters by path, with one layer in each stack.

    Their number changes no shape but the first dimension.
    """
    config = dataclasses.replace(
        config, num_layers=1, encoder_layers=min(config.encoder_layers, 1)
    )
    flat = flatten_dict(param_shapes(config))
    return {path: leaf.shape for path, leaf in flat.items()}
