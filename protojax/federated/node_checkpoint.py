"""Checkpoints of a federation: a folder for each node, and one for the server.

`directory/node_003/step_XXXXXXXX` holds the state of node 3, and `directory/server/...`
that of the server. Each is written by `storage.checkpoint` with a manifest of hashes
that names its owner. A step is complete once every folder has it. Nodes are read one by
one, so they can be restored on another number of devices or processes.
"""

import concurrent.futures
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protojax import validate
from protojax.base import PyTree
from protojax.federated import nodes
from protojax.federated.federation import Federation
from protojax.storage import checkpoint

_logger = logging.getLogger("protojax")


class NodeWriter:
    """A writer of a federation's checkpoints that works in the background.

    A save first waits for the previous one, so at most one is in progress. An error in
    a save is raised by the next call.

    Args:
        directory: the folder, visible to all processes; the first one writes for all.
        keep: the number of steps to keep for each node, at least 2: if a process were
            killed in the middle of a save with 1, no step might be left that all nodes
            have in common.
        identity: the run's identity, which is required to restore its checkpoints.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep: int = 2, identity: str = ""
    ) -> None:
        """Starts the writing thread."""
        validate.require(keep >= 2, "keep", keep, ">= 2")
        self.directory, self.keep = Path(directory), keep
        self.identity = identity
        # One thread, so that steps are written in their order.
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None

    def save(
        self, federation: Federation, step: int, extra: dict[str, Any] | None = None
    ) -> None:
        """Copies the state, then writes the copy in the background.

        All processes must call it at the same point.

        Args:
            federation: the state; may be donated once this has returned.
            step: the training step, which names the checkpoint.
            extra: further values to store, as JSON.
        """
        self.wait()
        parts = _parts(federation)
        self._pending = self._pool.submit(self._write, parts, step, extra)

    def _write(self, parts: dict[str, PyTree], step: int, extra: Any) -> None:
        """Writes each part to its folder."""
        for name, part in parts.items():
            checkpoint.save(
                self.directory / name,
                part,
                step,
                extra=extra,
                keep=self.keep,
                identity=_identity(self.identity, name, len(parts) - 1),
            )

    def wait(self) -> None:
        """Waits until the last save is on disk, and raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "NodeWriter":
        """The writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the save in progress."""
        self._pool.shutdown()
        self.wait()


def latest_step(directory: str | os.PathLike, num_nodes: int) -> int | None:
    """The latest step that every node and the server have, or None.

    >>> latest_step("no/such/folder", 2) is None
    True
    """
    return max(_common_steps(Path(directory), num_nodes), default=None)


def restore_nodes(
    directory: str | os.PathLike,
    like: Federation,
    *,
    fallback: bool = False,
    identity: str = "",
) -> tuple[Federation, int, dict[str, Any]]:
    """A federation restored bit for bit, after every node's hashes were verified.

    Args:
        directory: the folder of a `NodeWriter`, visible to all processes.
        like: a state with the shapes and shardings to restore.
        fallback: whether to fall back, with a warning in the log, to the latest earlier
            step that is intact at all nodes if a step is damaged at some node or
            belongs to another.
        identity: the identity given to the `NodeWriter`.

    Returns:
        The federation, its step and its `extra`.

    Raises:
        FileNotFoundError: no step that all nodes have.
        ValueError: a damaged file (named); a folder of another step, node, number of
            nodes or identity; leaves that differ from `like`.
    """
    directory = Path(directory)
    num_nodes = jax.tree.leaves(like.nodes)[0].shape[0]
    steps = _common_steps(directory, num_nodes)
    if not steps:
        raise FileNotFoundError(
            f"Expected a step of {num_nodes} nodes and the server in {directory}, "
            "found none."
        )
    for step in sorted(steps, reverse=True):
        try:
            # Every process verifies all folders, so that all choose the same step.
            for name in _folders(num_nodes):
                extra = checkpoint.verify(
                    directory / name,
                    step,
                    identity=_identity(identity, name, num_nodes),
                )
        except ValueError as damage:
            if not fallback:
                raise
            _logger.warning("Step %d is passed over: %s", step, damage)
            continue
        return _read(directory, like, step, identity), step, extra
    raise ValueError(f"Expected an intact step in {directory}, found none.")


def _folders(num_nodes: int) -> list[str]:
    """The names of the folders of a federation's checkpoints."""
    return [*(f"node_{node:03d}" for node in range(num_nodes)), "server"]


def _identity(run: str, name: str, num_nodes: int) -> str:
    """The identity in the manifests of one folder of a run."""
    return f"{run}/{name} of {num_nodes}"


def _common_steps(directory: Path, num_nodes: int) -> set[int]:
    """The steps that every folder has."""
    found = (checkpoint.complete_steps(directory / n) for n in _folders(num_nodes))
    # A killed save leaves a step at some nodes only, which is none of the federation's.
    return set.intersection(*map(set, found))


def _split(federation: Federation) -> tuple[PyTree, PyTree]:
    """The nodes' part of the state, with a `[nodes]` axis, and the server's part."""
    states, origin, round_ = federation
    leaf, of_nodes = jax.tree.leaves(origin)[0], jax.tree.leaves(states.params)[0]
    if leaf.ndim == of_nodes.ndim:  # no server: each node has an origin of its own
        return {"state": states, "origin": origin}, {"round": round_}
    return {"state": states}, {"origin": origin, "round": round_}


def _join(held: PyTree, server: PyTree) -> Federation:
    """The federation from the two parts that `_split` returns."""
    origin = held["origin"] if "origin" in held else server["origin"]
    return Federation(held["state"], origin, server["round"])


def _parts(federation: Federation) -> dict[str, PyTree]:
    """The states to write, copied to the host, by folder; empty unless the leader."""
    held, server = _split(federation)
    if jax.process_count() > 1:
        mesh = jax.tree.leaves(held)[0].sharding.mesh
        # A collective: all processes take part, although only the first writes.
        held, server = nodes.gather((held, server), mesh)
    if jax.process_index() > 0:
        return {}
    # A copy, since on CPUs a view would change with the donated buffer.
    held, server = jax.tree.map(np.array, (held, server))
    num_nodes = len(jax.tree.leaves(held)[0])
    # The ellipsis keeps scalars as arrays instead of NumPy numbers.
    parts = [
        jax.tree.map(lambda leaf, node=node: leaf[node, ...], held)
        for node in range(num_nodes)
    ]
    return dict(zip(_folders(num_nodes), [*parts, server], strict=True))


def _read(directory: Path, like: Federation, step: int, identity: str) -> Federation:
    """The federation of a verified step; reads this process's nodes and the server."""

    def read(name: str, part: PyTree) -> PyTree:
        # NumPy, so that Orbax reads to the host and places nothing on a device.
        empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), part)
        whose = _identity(identity, name, num_nodes)
        return checkpoint.restore(directory / name, empty, step=step, identity=whose)[0]

    held, server = _split(like)
    num_nodes = len(jax.tree.leaves(held)[0])
    shapes = jax.eval_shape(lambda tree: nodes.unstack(tree, 0), held)
    leaves, structure = jax.tree.flatten(held)
    mine = sorted(_own_nodes(leaves[0]))
    rows = {node: jax.tree.leaves(read(f"node_{node:03d}", shapes)) for node in mine}

    def place(number: int, leaf: jax.Array) -> jax.Array:
        def block(index: tuple[slice, ...]) -> np.ndarray:
            wanted = range(*index[0].indices(leaf.shape[0]))
            return np.stack([rows[node][number] for node in wanted])

        # Each process passes its own shards only, which is all that it has read.
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, block)

    held = jax.tree.unflatten(
        structure, [place(number, leaf) for number, leaf in enumerate(leaves)]
    )
    found = read("server", server)
    server = jax.tree.map(
        lambda value, leaf: jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: value[index]
        ),
        found,
        server,
    )
    return _join(held, server)


def _own_nodes(leaf: jax.Array) -> set[int]:
    """The nodes whose values are held by this process."""
    return {
        node
        for shard in leaf.addressable_shards
        for node in range(*shard.index[0].indices(leaf.shape[0]))
    }
