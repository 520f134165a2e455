"""The tensors of a checkpoint: headers are read first, then only expected tensors.

A tensor under two names, or in two files, is refused: transformers might read one of
them and protojax the other.
"""

import fnmatch
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protojax.base import PyTree
from protojax.models import _config_json

_LOG = logging.getLogger("protojax")
# No integers: those are quantised weights, whose scales would be lost.
_DTYPES = ("F64", "F32", "F16", "BF16")
_SHARD_BYTES = 5 * 10**9
_LISTED = 40  # at most this many names of a kind in a message
# The names in checkpoints, by the last part of a parameter's path.
LEAVES = {"bias": "bias", "embedding": "weight", "kernel": "weight", "scale": "weight"}


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
        parts: the parameters that lie side by side in its transpose, or in itself:
            path -> shape, that of one layer where layers are stacked.
        shape: its shape in a checkpoint.
        transposed: whether the parameters are its transpose.
        layer: the place in stacked parameters; None where they are not stacked.
        twins: further names of the same tensor. One that is present must be equal, and
            stands for the tensor where that is absent.
        optional: whether it may be absent, and is zero then.
    """

    parts: Mapping[tuple[str, ...], tuple[int, ...]]
    shape: tuple[int, ...]
    transposed: bool
    layer: int | None = None
    twins: tuple[str, ...] = ()
    optional: bool = False


def headers(folder: Path, plain: Callable[[str], str]) -> dict[str, Stored]:
    """The tensors of a checkpoint by plain name, none of them read yet.

    Args:
        folder: the checkpoint.
        plain: from a tensor's name to the plain one, such as that without prefix.

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
            known = plain(name)
            if known in found:
                other = found[known]
                raise ValueError(
                    f"Expected one tensor {known} in {folder}, found two, {other.name} "
                    f"in {other.path.name} and {name} in {path.name}: which one counts "
                    "depends on the program that reads them."
                )
            # Reads the header only, so a wrong shape costs no memory.
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
            found[known] = Stored(path, file, name, shape, dtype)
    return found


def read(
    folder: Path,
    family: str,
    expected: Mapping[str, Expected],
    found: Mapping[str, Stored],
    *,
    ignored: Sequence[str],
    hints: Iterable[str] = (),
) -> dict[tuple[str, ...], PyTree]:
    """The parameters of a checkpoint by path, in float32.

    Args:
        folder: the checkpoint, for messages.
        family: the name of the family, for messages.
        expected: the tensors that the model needs, by plain name.
        found: the result of `headers`.
        ignored: patterns of plain names that the model does not use.
        hints: further lines of the error about tensors that do not fit.

    Raises:
        ValueError: where tensors do not fit, are not floats or not finite, or where
            two that must be equal differ.
    """
    needed: dict[str, Expected] = {}
    twins: dict[str, str] = {}
    for name, tensor in expected.items():
        held = [twin for twin in (name, *tensor.twins) if twin in found]
        if held or not tensor.optional:
            first, *others = held or [name]
            needed[first] = tensor
            twins |= dict.fromkeys(others, first)
    doubled = {twin: needed[name] for twin, name in twins.items()}
    _check(folder, family, needed | doubled, found, ignored, hints)
    for twin, name in twins.items():
        require_equal(found[name], found[twin])
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name, tensor in needed.items():
        for path, part in _parts(tensor, _value(found[name])):
            layers.setdefault(path, []).append(part)
    # One at a time, so that no more than one tensor is held twice.
    stacked = {p: t.layer is not None for t in needed.values() for p in t.parts}
    flat = {}
    for path in list(layers):
        parts = layers.pop(path)
        flat[path] = jax.device_put(np.stack(parts) if stacked[path] else parts[0])
    return flat


def write(
    folder: Path,
    expected: Mapping[str, Expected],
    params: Mapping[tuple[str, ...], Any],
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes model.safetensors, or several files and their index.

    Args:
        folder: of the checkpoint.
        expected: the tensors to write, by name.
        params: the parameters by path.
        shard_bytes: the most bytes of tensors in a file, unless one tensor has more.
    """
    shards: list[dict[str, Expected]] = [{}]
    size = total = 0
    for name, tensor in expected.items():
        length = 4 * math.prod(tensor.shape)
        if shards[-1] and size + length > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + length, total + length
    # Once, as layers are taken one by one.
    held = {path: np.asarray(value, np.float32) for path, value in params.items()}
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        several = len(shards) > 1
        name = "model" + f"-{i:05}-of-{len(shards):05}" * several + ".safetensors"
        weight_map |= dict.fromkeys(shard, name)
        tensors = {key: _joined(tensor, held) for key, tensor in shard.items()}
        # Older versions of transformers refuse a file without it.
        save_file(tensors, folder / name, metadata={"format": "pt"})
        # safetensors creates files that only their owner can read.
        (folder / name).chmod((folder / "config.json").stat().st_mode)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)


def equal(first: Stored, second: Stored) -> bool:
    """Whether two tensors are the same.

    Args:
        first: a tensor.
        second: another one.
    """
    return first.shape == second.shape and np.array_equal(_value(first), _value(second))


def require_equal(first: Stored, second: Stored) -> None:
    """Raises where two names of one tensor differ.

    Args:
        first: the tensor.
        second: the same one under another name.

    Raises:
        ValueError: where they differ.
    """
    if not equal(first, second):
        raise ValueError(
            f"Expected {second.name} of {second.path} equal to {first.name} of "
            f"{first.path.name}, as config.json says that they are one tensor, found "
            "other values: which one counts depends on the program that reads them."
        )


def _parts(tensor: Expected, value: np.ndarray) -> Iterable[tuple[Any, np.ndarray]]:
    """The parameters in a tensor, with their paths."""
    value, start = value.T if tensor.transposed else value, 0
    for path, shape in tensor.parts.items():
        if len(tensor.parts) > 1:
            yield path, value[..., start : start + shape[-1]]
            start += shape[-1]
        else:
            yield path, value.reshape(shape)


def _joined(
    tensor: Expected, params: Mapping[tuple[str, ...], np.ndarray]
) -> np.ndarray:
    """A tensor made of its parameters."""
    whole = [params[path] for path in tensor.parts]
    parts = whole if tensor.layer is None else [part[tensor.layer] for part in whole]
    value = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    value = value.T if tensor.transposed else value
    # safetensors writes memory as it lies.
    return np.ascontiguousarray(value.reshape(tensor.shape))


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
        "trust it, convert it once where PyTorch is installed, with the class of "
        "transformers that config.json names in architectures: "
        "CLASS.from_pretrained(OLD).save_pretrained(NEW)."
    )


def _value(stored: Stored) -> np.ndarray:
    """The values of a tensor in float32."""
    with np.errstate(over="ignore"):  # what overflows in float32 is refused below
        value = jnp.asarray(stored.file.get_tensor(stored.name), jnp.float32)
    # In NumPy, because JAX would compile a program for every shape.
    value = np.asarray(value)
    bad = np.count_nonzero(~np.isfinite(value))
    if bad:
        raise ValueError(
            f"Expected finite weights, found {bad} of {value.size} NaN or infinite in "
            f"{stored.name} of {stored.path}. The training that wrote it diverged, or "
            "the file is damaged."
        )
    return value


def _check(
    folder: Path,
    family: str,
    expected: Mapping[str, Expected],
    found: Mapping[str, Stored],
    ignored: Sequence[str],
    hints: Iterable[str],
) -> None:
    """Raises one error that lists every tensor that does not fit."""
    extra = sorted(found.keys() - expected.keys())
    # Only what a family names: other tensors may be parts that are not computed.
    unused = [n for n in extra if any(fnmatch.fnmatchcase(n, p) for p in ignored)]
    if unused:
        _LOG.info("%s: ignored %s.", folder, ", ".join(unused))
    present = [(n, found[n], tensor) for n, tensor in expected.items() if n in found]
    # All at once: one error per attempt would take many attempts to mend a mapping.
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(set(extra) - set(unused)),
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
    lines = [f"The tensors in {folder} do not fit {family}."]
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
            listed = ", ".join(names[:_LISTED])
            lines.append(f"  {len(names)} {kind}: {listed}{more}")
    raise ValueError("\n".join([*lines, *hints]))
