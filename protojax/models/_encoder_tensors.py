"""The tensors of an encoder's checkpoint, and a head for one that has none."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict

from protojax import models
from protojax.base import PyTree
from protojax.models import _tensors
from protojax.models._tensors import Expected, Stored
from protojax.models.config import HEAD, EncoderConfig
from protojax.models.encoder import MODELS

_LOG = logging.getLogger("protojax")
# The spelling of checkpoints converted from TensorFlow.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def headers(folder: Path, family: str) -> dict[str, Stored]:
    """The tensors of a checkpoint by plain name, none of them read yet.

    Args:
        folder: the checkpoint.
        family: a name in `MODELS`, whose prefix is removed from the names.

    Raises:
        OSError: where a file is missing or incomplete.
        ValueError: where a tensor occurs twice.
    """

    def plain(name: str) -> str:
        name = name.removeprefix(MODELS[family].prefix)
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    return _tensors.headers(folder, plain)


def expected_tensors(config: EncoderConfig) -> dict[str, Expected]:
    """The tensors of a classifier's checkpoint, by name.

    Args:
        config: the encoder.
    """
    family, tensors = MODELS[config.family], {}
    for path, leaf in flatten_dict(_shapes_of_one_layer(config)).items():
        module, kind = "/".join(path[:-1]), path[-1]
        layered = module.startswith("layers_0/")
        name = family.modules[module.replace("layers_0/", "layers_{i}/", layered)]
        # PyTorch stores a linear layer as [out, in], Flax as [in, out].
        transposed = kind == "kernel"
        shape = leaf.shape[::-1] if transposed else leaf.shape
        for i in range(config.num_layers if layered else 1):
            place = (f"layers_{i}", *path[1:]) if layered else path
            stored = f"{name.format(i=i)}.{_tensors.LEAVES[kind]}"
            tensors[stored] = Expected({place: leaf.shape}, shape, transposed)
    return tensors


def fresh_modules(config: EncoderConfig, found: Mapping[str, Stored]) -> list[str]:
    """The parts of the head of which a checkpoint has no tensor.

    Args:
        config: the encoder.
        found: the result of `headers`.
    """
    held = {
        _module(tensor)
        for name, tensor in _by_plain_name(config).items()
        if name in found
    }
    return [module for module in HEAD if module not in held]


def read_params(
    folder: Path, config: EncoderConfig, found: Mapping[str, Stored], seed: int
) -> PyTree:
    """The parameters of a checkpoint, with a missing head drawn from the seed.

    Args:
        folder: the checkpoint, for messages.
        config: the encoder.
        found: the result of `headers`.
        seed: the seed of a fresh head.

    Raises:
        ValueError: where tensors do not fit, are not floats or not finite.
    """
    fresh = fresh_modules(config, found)
    expected = {
        name: tensor
        for name, tensor in _by_plain_name(config).items()
        if _module(tensor) not in fresh
    }
    flat = _tensors.read(
        folder,
        config.family,
        expected,
        found,
        # Only what a family names: other tensors may be parts that are not computed.
        ignored=[f"{start}*" for start in MODELS[config.family].ignored],
        hints=_hints(config, expected, found),
    )
    if fresh:
        absent = " and no ".join(fresh)
        _LOG.warning("%s has no %s: drawn from seed %d.", folder, absent, seed)
        shapes = _shapes_of_one_layer(config)
        head = {module: shapes[module] for module in fresh}
        flat |= flatten_dict(models.init_params(head, seed=seed))
    return unflatten_dict(flat)


def _shapes_of_one_layer(config: EncoderConfig) -> PyTree:
    """The shapes of embeddings, head and the first layer.

    The other layers have the same shapes, and tracing thousands of them takes minutes.
    """
    return models.param_shapes(dataclasses.replace(config, num_layers=1))


def _by_plain_name(config: EncoderConfig) -> dict[str, Expected]:
    """The expected tensors of a checkpoint, by names without prefix."""
    prefix = MODELS[config.family].prefix
    return {n.removeprefix(prefix): t for n, t in expected_tensors(config).items()}


def _module(tensor: Expected) -> str:
    """The outermost module that a tensor belongs to."""
    (path,) = tensor.parts
    return path[0]


def _hints(
    config: EncoderConfig,
    expected: Mapping[str, Expected],
    found: Mapping[str, Stored],
) -> Iterator[str]:
    """The error lines on a classifier for another number of labels."""
    for name, tensor in expected.items():
        shape = found[name].shape if name in found else ()
        labels = shape[0] if shape else 0
        kernel = ("classifier", "kernel") in tensor.parts
        if kernel and name in found and labels != config.num_labels:
            yield (
                f"  Its classifier has {labels} labels, found num_labels="
                f"{config.num_labels}. For another task start from a checkpoint "
                "without a classifier."
            )
