"""Checkpoints that are complete and intact, or not there at all.

Orbax writes the arrays; this module adds hashes and atomic replacement. A step is
written to a temporary folder, then a manifest with the SHA-256 of every file, then the
folder takes its final name: a process killed at any moment leaves the previous step as
it was. Restoring checks every hash, because Orbax alone would read a flipped bit as
another weight, and takes an abstract state, so that no dtype, shape or placement
changes unnoticed. The manifest names the step and the run, so that no folder is
mistaken for another.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as legacy
from orbax.checkpoint import v1 as ocp

from protojax import validate
from protojax.base import PyTree
from protojax.storage import files, manifest

_logger = logging.getLogger("protojax")

_FOLDER = re.compile(r"step_(\d{8,})")
# The names of half-written steps in earlier versions of this module and of Orbax.
_LEFTOVER = re.compile(r"step_\d{8,}\.tmp(\.orbax-checkpoint-tmp)?")


def save(
    directory: str | os.PathLike,
    state: PyTree,
    step: int,
    *,
    extra: dict[str, Any] | None = None,
    keep: int = 1,
    identity: str = "",
) -> Path:
    """The folder `directory/step_XXXXXXXX` of a saved state; removes superseded steps.

    Of several processes only the first saves: Orbax drops the arrays of the others.
    Arrays on the devices of others must first be brought to its host by `nodes.gather`.

    Guarantees:
      * A process that dies at any moment leaves the previous step restorable.
      * Older steps, and later ones that a fallback has skipped, are removed only
        once the new step has its name.

    Args:
        directory: a local path, made if it does not exist.
        state: arrays of any kind, JAX's PRNG keys (typed or raw) and None included.
        step: the optimiser steps taken; an existing step is replaced.
        extra: further values to store, as JSON.
        keep: how many steps to keep, the new one included.
        identity: a name for the owner of the state, such as a run's name and the hash
            of its rows; `restore` must be given the same one.

    Returns:
        The folder.

    Raises:
        ValueError: a leaf that is not an array, has no element or lies partly on
            devices of another process, no leaf at all, a negative step, `keep` < 1, or
            a process other than the first.
        TypeError: `extra` that is not JSON.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, {"weight": jnp.ones(2)}, step=7).name
    'step_00000007'
    """
    validate.non_negative(step=step)
    validate.positive(keep=keep)
    directory = _local(directory)
    content = {
        "step": int(step),
        "identity": identity,
        # As JSON gives it back, so that the manifest's own hash can be recomputed.
        "extra": json.loads(json.dumps(extra or {})),
        "leaves": _describe(state),
    }
    _require_own(state)
    folder = directory / f"step_{step:08d}"
    directory.mkdir(parents=True, exist_ok=True)
    # Before anything is written: what a killed process left may be as large as a step.
    files.remove_leftovers(directory)
    for leftover in _folders(directory, _LEFTOVER):
        shutil.rmtree(leftover)
    with files.atomic_folder(folder) as temporary:
        _write(temporary, jax.tree.map(_raw, state))
        # Last of all, because a folder with a manifest counts as a complete step.
        manifest.write(temporary, content)
    _remove_superseded(directory, step, keep)
    return folder


def restore(
    directory: str | os.PathLike,
    like: PyTree,
    *,
    step: int | None = None,
    fallback: bool = False,
    identity: str = "",
) -> tuple[PyTree, int, dict[str, Any]]:
    """A saved state, bit for bit, with its step and `extra`, after a check of hashes.

    Any process may restore on its own.

    Args:
        directory: the one given to `save`.
        like: the tree to fill, of arrays or `jax.ShapeDtypeStruct`. Each leaf comes
            back with its dtype and shape, in the same place: on its sharding, on the
            host (NumPy), or, if it has neither, uncommitted on the default device.
        step: the step to restore; the latest by default.
        fallback: whether to replace a step that is damaged in any way, or of another
            identity, by the latest intact one before it, with a warning in the log.
        identity: the one it was saved with.

    Returns:
        The state, its step and its `extra`.

    Raises:
        FileNotFoundError: no such step.
        ValueError: a damaged or unreadable file, with its name; a folder of another
            step or identity; leaves that differ from `like`, with all their names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder, {"weight": jnp.ones(2)}, step=7, extra={"epoch": 1})
    ...     state, step, extra = restore(folder, {"weight": jnp.zeros(2)})
    >>> state["weight"].tolist(), step, extra
    ([1.0, 1.0], 7, {'epoch': 1})
    """
    steps = _steps(_local(directory))
    if step is None:
        step = max(steps, default=None)
    if step not in steps:
        raise FileNotFoundError(
            f"Expected step one of {sorted(steps)} in {directory}, found step={step}."
        )
    for number in sorted((n for n in steps if n <= step), reverse=True):
        try:
            content = manifest.verify(steps[number], number, identity)
            return _load(steps[number], like, content), number, content["extra"]
        except manifest.DamagedError as damage:
            if not fallback:
                raise
            _logger.warning("Step %d is passed over: %s", number, damage)
    raise ValueError(f"Expected an intact step <= {step} in {directory}, found none.")


def latest_step(directory: str | os.PathLike) -> int | None:
    """The latest complete step, or None; its hashes are not checked.

    >>> latest_step("no/such/folder") is None
    True
    """
    return max(_steps(_local(directory)), default=None)


def complete_steps(directory: str | os.PathLike) -> list[int]:
    """The complete steps, ascending; their hashes are not checked.

    >>> complete_steps("no/such/folder")
    []
    """
    return sorted(_steps(_local(directory)))


def verify(
    directory: str | os.PathLike, step: int, *, identity: str = ""
) -> dict[str, Any]:
    """The `extra` of a step, after a check of every hash and of its identity.

    Args:
        directory: the one given to `save`.
        step: one of `complete_steps(directory)`.
        identity: the one it was saved with.

    Returns:
        Its `extra`.

    Raises:
        FileNotFoundError: no such step.
        ValueError: a damaged or unreadable file, with its name; a folder of another
            step or identity.
    """
    steps = _steps(_local(directory))
    if step not in steps:
        raise FileNotFoundError(f"Expected step {step} in {directory}, found none.")
    return manifest.verify(steps[step], step, identity)["extra"]


def _local(directory: str | os.PathLike) -> Path:
    """The absolute path, which Orbax requires."""
    allowed = "to be a local path: only there is a rename atomic"
    validate.require("://" not in str(directory), "directory", directory, allowed)
    return Path(directory).absolute()


def _steps(directory: Path) -> dict[int, Path]:
    """The complete steps and their folders."""
    places = {path: path for path in _folders(directory, _FOLDER)}
    # A step that was set aside for its replacement is valid until that is in place.
    for place, old in files.set_aside(directory).items():
        if _FOLDER.fullmatch(place.name):
            places[place] = old
    return {
        int(_FOLDER.fullmatch(place.name)[1]): path
        for place, path in places.items()
        # `Path.exists` may raise on a folder without access; `os.path` returns False.
        if os.path.exists(path / manifest.NAME)
    }


def _folders(directory: Path, pattern: re.Pattern) -> list[Path]:
    """The folders whose full names match; links and files are not steps."""
    return [
        path
        for path in sorted(directory.glob("step_*"))
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _remove_superseded(directory: Path, step: int, keep: int) -> None:
    """Removes every step except this one and the `keep - 1` before it."""
    steps = _steps(directory)
    kept = {steps[n] for n in sorted(n for n in steps if n <= step)[-keep:]}
    for path in _folders(directory, _FOLDER):
        if path not in kept:
            _remove(path)


def _remove(folder: Path) -> None:
    """Removes a folder, its manifest first, so that a partial removal is no step."""
    with contextlib.suppress(OSError):  # a damaged step may have a folder there
        (folder / manifest.NAME).unlink()
    shutil.rmtree(folder)


def _describe(tree: PyTree) -> dict[str, str]:
    """The path of every leaf with its dtype and shape."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise ValueError(f"Expected an array at {name}, found {type(leaf)}.")
        # Refused here, where the leaf can be named, and not inside Orbax.
        if 0 in leaf.shape:
            raise ValueError(f"Expected elements at {name}, found shape {leaf.shape}.")
        leaves[name] = f"{leaf.dtype}{list(leaf.shape)}"
    validate.positive(num_leaves=len(leaves))
    return leaves


def _require_own(state: PyTree) -> None:
    """Raises on a process, or a leaf, whose data Orbax would silently drop."""
    validate.require(
        jax.process_index() == 0,
        "process",
        jax.process_index(),
        "0, the one that saves",
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"Expected values of this process, found those of others at {name}: "
                "bring them to the host with nodes.gather."
            )


def _write(folder: Path, state: PyTree) -> None:
    """Writes a state with Orbax, without waiting for other processes."""
    with _quiet():
        if jax.process_count() == 1:
            with _context():
                ocp.save(folder, state)
            return
        # In version 1 all processes must save together. In version 0 one process can
        # save NumPy arrays alone, in a form that version 1 reads.
        alone = legacy.options.MultiprocessingOptions(
            active_processes={0}, barrier_sync_key_prefix="first"
        )
        handler = legacy.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with legacy.Checkpointer(handler, multiprocessing_options=alone) as writer:
            writer.save(folder, args=legacy.args.PyTreeSave(jax.device_get(state)))


def _raw(leaf: Any) -> Any:
    """The integers of a typed PRNG key; any other leaf unchanged."""
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        words = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def _abstract(leaf: Any) -> Any:
    """The target that Orbax restores a leaf to: a NumPy array, or one on devices.

    An uncommitted array is read to the host first: Orbax would commit it to one
    device, and a jitted step over a mesh would refuse it.
    """
    leaf = _raw(leaf)
    committed = getattr(leaf, "committed", True)
    sharding = getattr(leaf, "sharding", None) if committed else None
    if sharding is None:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _concrete(value: Any, leaf: Any) -> Any:
    """The array that Orbax has read, as the requested kind of array."""
    if isinstance(leaf, np.ndarray):
        return value
    value = jax.device_put(value)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # `key_impl` takes an array; the leaf may be abstract and have only the dtype.
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.random.wrap_key_data(value, impl=impl)
    return value


def _load(folder: Path, like: PyTree, content: dict[str, Any]) -> PyTree:
    """The state in a verified folder, if its leaves match those of `like`."""
    stored, asked = content["leaves"], _describe(like)
    differences = [
        f"{name}: {stored.get(name, 'nothing')} stored, {asked.get(name, 'nothing')} "
        "asked for"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    ]
    # No `DamagedError`, at which a fallback goes on: older steps would differ too.
    if differences:
        raise ValueError(
            f"Expected {folder} to hold the state asked for, found "
            f"{'; '.join(differences)}."
        )
    try:
        with _quiet(), _context():
            state = ocp.load(folder, jax.tree.map(_abstract, like))
    # The hashes were right a moment ago, so this is the disk, or a file just removed.
    except OSError as error:
        raise manifest.DamagedError(
            f"Expected {folder} intact, found {error}."
        ) from error
    return jax.tree.map(_concrete, state, like)


def _context() -> ocp.Context:
    """Orbax's options, without compression: it is slow, and weights hardly shrink."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    if jax.process_count() > 1:
        me = jax.process_index()
        # Each process reads alone: Orbax's barriers would wait for the others.
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
        context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context that keeps Orbax's forty lines per step, and warnings, out of the log.

    Its errors are exceptions. Version 0.12.0 warns that each of its own checkpoints may
    be malformed.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)
