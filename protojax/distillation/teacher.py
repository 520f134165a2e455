"""The teacher's outputs over a transfer set, computed once and stored on disk.

A frozen teacher has the same outputs on a text in every epoch, and computing them each
time would be most of the work of a distillation. The file contains a key of the inputs
it was computed from and a hash of its content: an outdated or damaged file is never
used, but computed again.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protojax import storage, validate
from protojax.base import PyTree, SequenceOutputs, TeacherOutputs

_logger = logging.getLogger("protojax")

Outputs = TypeVar("Outputs", TeacherOutputs, SequenceOutputs)


def cache_key(params: PyTree, *parts: str) -> str:
    """The SHA-256 of parameters and of everything else that determines an output.

    Args:
        params: the teacher's parameters; path, dtype, shape and bytes of each count.
        *parts: hashes or names, such as those of the data, tokenizer and pooling.

    Returns:
        64 hexadecimal digits.

    >>> key = cache_key({"weight": np.ones(2)}, "data", "tokenizer")
    >>> key == cache_key({"weight": np.ones(2)}, "data", "tokenizer")
    True
    >>> key == cache_key({"weight": np.ones(2)}, "data", "another tokenizer")
    False
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return storage.hash_arrays(arrays, *parts)


def cached_outputs(
    path: str | os.PathLike,
    key: str,
    compute: Callable[[], Outputs],
    *,
    kind: type[Outputs] = TeacherOutputs,
) -> Outputs:
    """The outputs stored under this key, computed and stored first if necessary.

    Args:
        path: a safetensors file; its folder is created if it does not exist.
        key: the hash of everything that the outputs depend on, see `cache_key`.
        compute: called once, and only if the file is absent, was made from other inputs
            or is damaged; the latter two leave a warning in the log.
        kind: the type of the outputs, `TeacherOutputs` or `SequenceOutputs`.

    Returns:
        The outputs as NumPy arrays of the types that `kind` states, the same whether
        read or computed.

    Raises:
        ValueError: computed outputs whose shapes do not fit.

    >>> import tempfile
    >>> outputs = TeacherOutputs(np.zeros((3, 2)), np.zeros((3, 1, 4)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/teacher.safetensors"
    ...     first = cached_outputs(path, "key", lambda: outputs)
    ...     again = cached_outputs(path, "key", lambda: None)
    >>> again.features.shape
    (3, 1, 4)
    """
    # A damaged file costs time, not the run: it is computed again.
    path = Path(path)
    if path.exists():
        try:
            return _read(path, key, kind)
        except (SafetensorError, ValueError) as reason:
            _logger.warning("%s is computed again: %s", path, reason)
    # One type whatever the teacher computes in: a cached file equals a fresh one.
    outputs = _checked(compute())
    _write(path, key, outputs)
    return outputs


def _checked(outputs: Outputs) -> Outputs:
    """The outputs in the types of their kind, if their shapes fit."""
    arrays = {name: np.asarray(array) for name, array in outputs._asdict().items()}
    if isinstance(outputs, TeacherOutputs):
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        logits, features = arrays.values()
        if logits.ndim != 2 or features.ndim != 3 or len(logits) != len(features):
            raise ValueError(
                "Expected logits [rows, num_labels] and features [rows, layers, dim], "
                f"found {logits.shape} and {features.shape}."
            )
        return TeacherOutputs(**arrays)
    tokens, k = arrays["ids"].shape, arrays["top_ids"].shape[-1:]
    shapes = {
        "lengths": tokens[:1],
        "top_ids": tokens + k,
        "top_log_probs": tokens + k,
        "rest_log_prob": tokens,
        "features": tokens[:1] + arrays["features"].shape[1:],
    }
    for name, shape in shapes.items():
        validate.shape(shape, **{name: arrays[name]})
    # The least finite float16: the difference of two infinities is NaN.
    least = np.finfo(np.float16).min
    arrays["top_log_probs"] = np.maximum(arrays["top_log_probs"], least)
    types = {
        "top_log_probs": np.float16,
        **dict.fromkeys(("rest_log_prob", "features"), np.float32),
    }
    return SequenceOutputs(
        **{name: x.astype(types.get(name, np.int32)) for name, x in arrays.items()}
    )


def _read(path: Path, key: str, kind: type[Outputs]) -> Outputs:
    """The outputs in a file, which must be intact and made for this key."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        # Before the tensors: an outdated file need not be read.
        if metadata.get("key") != key:
            raise ValueError("it was made from other inputs")
        outputs = kind(*map(file.get_tensor, kind._fields))
    # A file whose bytes were altered may still parse.
    if metadata.get("sha256") != cache_key(outputs):
        raise ValueError("its content has another SHA-256")
    return outputs


def _write(path: Path, key: str, outputs: TeacherOutputs | SequenceOutputs) -> None:
    """Writes a file that appears under its name only when it is complete."""
    # safetensors writes the buffer as it is: a view's rows would change their order.
    tensors = {name: np.ascontiguousarray(x) for name, x in outputs._asdict().items()}
    with storage.atomic_path(path) as temporary:
        save_file(tensors, temporary, {"key": key, "sha256": cache_key(outputs)})
