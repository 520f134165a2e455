"""Prototypes on disk: safetensors files that contain the hash of their content."""

import os

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from protojax import storage
from protojax.base import Prototypes


def num_bytes(prototypes: Prototypes) -> int:
    """The size of the arrays in bytes, which is the amount that a node sends.

    >>> num_bytes(Prototypes(jnp.zeros((5, 8)), jnp.zeros(5, jnp.int32), jnp.zeros(5)))
    200
    """
    return sum(leaf.nbytes for leaf in prototypes)


def without_rare(prototypes: Prototypes, least: int) -> Prototypes:
    """The prototypes of at least so many rows; one of a single row is that row.

    Args:
        prototypes: of one layer, vectors `[num_prototypes, dim]`.
        least: rows.

    >>> whole = Prototypes(np.eye(3), np.arange(3), np.array([9, 10, 0]))
    >>> found = without_rare(whole, 10)
    >>> found.labels.tolist(), found.vectors.shape
    ([1], (1, 3))
    """
    kept = np.flatnonzero(np.asarray(prototypes.counts) >= least)
    return Prototypes(*(np.asarray(leaf)[kept] for leaf in prototypes))


def save_prototypes(path: str | os.PathLike, prototypes: Prototypes) -> str:
    """The content hash of a safetensors file that prototypes are written to.

    The file contains the hash too, and appears under its name only when complete.

    Args:
        path: the file; its folder is created if it does not exist.
        prototypes: vectors `[..., num_prototypes, dim]`.

    Returns:
        The SHA-256 of vectors, labels and counts, in hexadecimal. If it is passed on
        by another channel than the file, `load_prototypes` detects a replaced file.
    """
    arrays = {
        name: np.ascontiguousarray(leaf) for name, leaf in prototypes._asdict().items()
    }
    digest = _content_hash(arrays)
    with storage.atomic(path) as file:
        file.write(safetensors.numpy.save(arrays, {"sha256": digest}))
    return digest


def load_prototypes(
    path: str | os.PathLike, *, expected_hash: str | None = None
) -> Prototypes:
    """The prototypes in a file of `save_prototypes`, whose hash is checked.

    Args:
        path: the file.
        expected_hash: the hash that `save_prototypes` returned. Without it, a damaged
            file is detected, but a file replaced on purpose is not.

    Returns:
        Prototypes.

    Raises:
        ValueError: the file, which the message names, is damaged or not the expected
            one.
    """
    try:
        # No pickle: other nodes send these files, and reading must run no code.
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = (file.metadata() or {}).get("sha256")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"Cannot read prototypes from {path}: {error}") from error
    found = _content_hash(arrays)
    for wanted in (stored, found if expected_hash is None else expected_hash):
        if found != wanted or set(arrays) != set(Prototypes._fields):
            raise ValueError(f"Expected sha256={wanted} in {path}, found {found}.")
    return Prototypes(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _content_hash(arrays: dict[str, np.ndarray]) -> str:
    """The SHA-256 over the names, types, shapes and bytes of arrays."""
    # Sorted, because a file may list its arrays in any order.
    return storage.hash_arrays({name: arrays[name] for name in sorted(arrays)})
