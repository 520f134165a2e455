"""The tensors of a checkpoint: headers are read first, then only expected tensors.

A tensor under two names, or in two files, is refused: transformers might read one of
them and protojax the other.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from protojax import models
from protojax.base import PyTree
from protojax.models import _config_json
from protojax.models.config import HEAD, EncoderConfig
from protojax.models.encoder import MODELS

_LOG = logging.getLogger("protojax")
# The spelling of checkpoints converted from TensorFlow.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_LEAVES = {
    "bias": "bias",
    "embedding": "weight",
    "kernel": "weight",
    "scale": "weight",
}
# No integers: those are quantised weights, whose scales would be lost.
_DTYPES = ("F64", "F32", "F16", "BF16")
_LISTED = 40  # at most this many names of a kind in a message


class Stored(NamedTuple):
    """A tensor in a file of a checkpoint.

    Attributes:
        path: the file.
        file: the open file.
        name: the tensor's name in it.
        shape: its shape.
        dtype: its type, as safetensors calls it.
    """

    path: Path
    file: Any
    name: str
    shape: tuple[int, ...]
    dtype: str


class Expected(NamedTuple):
    """A tensor that a model needs.

    Attributes:
        path: the path of the parameter.
        shape: its shape in a checkpoint.
        transposed: whether the parameter is its transpose.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


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
            stored = f"{name.format(i=i)}.{_LEAVES[kind]}"
            tensors[stored] = Expected(place, shape, transposed)
    return tensors


def _shapes_of_one_layer(config: EncoderConfig) -> PyTree:
    """The shapes of embeddings, head and the first layer.

    The other layers have the same shapes, and tracing thousands of them takes minutes.
    """
    return models.param_shapes(dataclasses.replace(config, num_layers=1))


def headers(folder: Path, family: str) -> dict[str, Stored]:
    """The tensors of a checkpoint by plain name, none of them read yet.

    Args:
        folder: the checkpoint.
        family: a name in `MODELS`, whose prefix is removed from the names.

    Raises:
        OSError: where a file is missing or incomplete.
        ValueError: where a tensor occurs twice.
    """
    found: dict[str, Stored] = {}
    for path in _weight_files(folder):
        _config_json.refuse_pointer(path)
        try:
            file = safe_open(path, framework="flax")
        except SafetensorError as error:
            raise OSError(
                f"{path} is no safetensors file, or not all of one "
                f"({_config_json.one_line(error)}). Get it anew."
            ) from error
        for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
            plain = _plain_name(name, MODELS[family].prefix)
            if plain in found:
                other = found[plain]
                raise ValueError(
                    f"Expected one tensor {plain} in {folder}, found two, {other.name} "
                    f"in {other.path.name} and {name} in {path.name}: which one counts "
                    "depends on the program that reads them."
                )
            # Reads the header only, so a wrong shape costs no memory.
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
            found[plain] = Stored(path, file, name, shape, dtype)
    return found


def fresh_modules(config: EncoderConfig, found: Mapping[str, Stored]) -> list[str]:
    """The parts of the head of which a checkpoint has no tensor.

    Args:
        config: the encoder.
        found: the result of `headers`.
    """
    held = {
        tensor.path[0]
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
        if tensor.path[0] not in fresh
    }
    _check(folder, config, expected, found)
    flat = {}
    for name, tensor in expected.items():
        value = _value(found[name])
        flat[tensor.path] = value.T if tensor.transposed else value
    if fresh:
        absent = " and no ".join(fresh)
        _LOG.warning("%s has no %s: drawn from seed %d.", folder, absent, seed)
        shapes = _shapes_of_one_layer(config)
        head = {module: shapes[module] for module in fresh}
        flat |= flatten_dict(models.init_params(head, seed=seed))
    return unflatten_dict(flat)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    single, index = (
        folder / "model.safetensors",
        folder / "model.safetensors.index.json",
    )
    if single.is_file():
        return [single]
    if index.is_file():
        shards = _config_json.read_object(index).get("weight_map")
        named = isinstance(shards, dict) and all(
            isinstance(shard, str) for shard in shards.values()
        )
        if not named:
            raise ValueError(
                f"Expected weight_map in {index} to name the file of each tensor."
            )
        # The name alone, so that an index cannot point outside this folder.
        files = [folder / Path(shard).name for shard in sorted(set(shards.values()))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}.")
        return files
    raise FileNotFoundError(
        f"No model.safetensors in {folder}. If it holds pytorch_model.bin instead: "
        "that is a pickle, which can run any code, and protojax opens none. If you "
        "trust it, convert it once where PyTorch is installed: transformers."
        "AutoModelForSequenceClassification.from_pretrained(OLD).save_pretrained(NEW)."
    )


def _by_plain_name(config: EncoderConfig) -> dict[str, Expected]:
    """The expected tensors of a checkpoint, by names without prefix."""
    prefix = MODELS[config.family].prefix
    return {n.removeprefix(prefix): t for n, t in expected_tensors(config).items()}


def _plain_name(name: str, prefix: str) -> str:
    """A tensor's name without prefix and in the present spelling."""
    name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def _value(stored: Stored) -> Any:
    """The values of a tensor in float32."""
    with np.errstate(over="ignore"):  # what overflows in float32 is refused below
        value = jnp.asarray(stored.file.get_tensor(stored.name), jnp.float32)
    # In NumPy, because JAX would compile a program for every shape.
    bad = np.count_nonzero(~np.isfinite(np.asarray(value)))
    if bad:
        raise ValueError(
            f"Expected finite weights, found {bad} of {value.size} NaN or infinite in "
            f"{stored.name} of {stored.path}. The training that wrote it diverged, or "
            "the file is damaged."
        )
    return value


def _check(
    folder: Path,
    config: EncoderConfig,
    expected: dict[str, Expected],
    found: Mapping[str, Stored],
) -> None:
    """Raises one error that lists every tensor that does not fit."""
    extra = sorted(found.keys() - expected.keys())
    # Only what a family names: other tensors may be parts that are not computed.
    ignored = [n for n in extra if n.startswith(MODELS[config.family].ignored)]
    if ignored:
        _LOG.info("%s: ignored %s.", folder, ", ".join(ignored))
    present = [(n, found[n], tensor) for n, tensor in expected.items() if n in found]
    # All at once: one error per attempt would take many attempts to mend a mapping.
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": [name for name in extra if name not in ignored],
        "mis-shaped": [
            f"{name} {stored.shape} instead of {tensor.shape}"
            for name, stored, tensor in present
            if stored.shape != tensor.shape
        ],
        "of another type than " + ", ".join(_DTYPES): [
            f"{name} {stored.dtype}"
            for name, stored, _ in present
            if stored.dtype not in _DTYPES
        ],
    }
    if not any(problems.values()):
        return
    lines = [f"The tensors in {folder} do not fit {config.family}."]
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
            listed = ", ".join(names[:_LISTED])
            lines.append(f"  {len(names)} {kind}: {listed}{more}")
    for _, stored, tensor in present:
        labels = stored.shape[0] if stored.shape else 0
        if tensor.path == ("classifier", "kernel") and labels != config.num_labels:
            lines.append(
                f"  Its classifier has {labels} labels, found num_labels="
                f"{config.num_labels}. For another task start from a checkpoint "
                "without a classifier."
            )
    raise ValueError("\n".join(lines))
