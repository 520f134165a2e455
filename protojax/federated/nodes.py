"""Nodes as an array axis.

Every value that differs between nodes has a leading `[nodes]` axis, which lies over the
mesh axis `"nodes"`. Code for one node never sees it: `per_node` lifts a function of one
node to all of them. The same program runs on one device, on emulated ones, on a GPU or
TPU slice and in several processes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from protojax import validate
from protojax.base import PyTree

AXIS = "nodes"


def emulate_devices(num_devices: int) -> None:
    """Makes this process see several CPU devices; before any other use of JAX.

    Raises:
        RuntimeError: JAX has begun already with another number.
    """
    validate.positive(num_devices=num_devices)
    jax.config.update("jax_num_cpu_devices", num_devices)
    if jax.local_device_count("cpu") != num_devices:
        raise RuntimeError(
            f"Expected {num_devices} CPU devices, found {jax.local_device_count()}."
        )


def make_mesh(num_nodes: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with an axis `"nodes"` that the nodes divide evenly.

    Of the devices as many are used as divide the nodes: 8 nodes on 8, 4, 2 or 1 of
    them, 6 nodes on 6 of 8, 7 nodes on 1 of 4. Of several processes each has as many.

    Args:
        num_nodes: how many nodes.
        devices: to choose from; all by default.

    Raises:
        ValueError: several processes, and no number of devices that serves all of them
            divides the nodes.

    >>> make_mesh(3).axis_names
    ('nodes',)
    """
    validate.positive(num_nodes=num_nodes)
    devices = jax.devices() if devices is None else devices
    owners: dict[int, list] = {}
    for device in devices:
        owners.setdefault(device.process_index, []).append(device)
    fewest = min(len(group) for group in owners.values())
    shares = [n for n in range(1, fewest + 1) if num_nodes % (n * len(owners)) == 0]
    validate.require(
        bool(shares), "num_nodes", num_nodes, f"a multiple of {len(owners)} processes"
    )
    used = [device for group in owners.values() for device in group[: shares[-1]]]
    # Explicit axes, the default, refuse the sorts over nodes that robust rules do.
    return Mesh(np.array(used), (AXIS,), axis_types=(AxisType.Auto,))


def sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of values with a leading `[nodes]` axis."""
    return NamedSharding(mesh, P(AXIS))


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Returns one tree with a leading `[nodes]` axis, on the host.

    >>> stack([{"w": np.zeros(2)}, {"w": np.ones(2)}])["w"].shape
    (2, 2)
    """
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree: PyTree, node: int) -> PyTree:
    """Returns the values of one node.

    >>> unstack({"w": np.array([[1.0], [2.0]])}, 1)["w"].tolist()
    [2.0]
    """
    return jax.tree.map(lambda leaf: leaf[node], tree)


def replicate(tree: PyTree, num_nodes: int) -> PyTree:
    """Returns a tree in which every node holds the same values.

    >>> replicate(jnp.array([1.0]), 2).tolist()
    [[1.0], [1.0]]
    """
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_nodes, *jnp.shape(leaf))), tree
    )


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts values with a leading `[nodes]` axis on the devices of their nodes.

    With several processes every one gives all nodes' values, and keeps its own.
    """

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, sharding(mesh), lambda index: leaf[index]
        )

    return jax.tree.map(place, tree)


def broadcast(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts values without a `[nodes]` axis on all devices, the same on each."""

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        everywhere = NamedSharding(mesh, P())
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda _: leaf)

    return jax.tree.map(place, tree)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns all nodes' values on the host, in every process."""
    if jax.process_count() > 1:
        tree = _replicator(mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _replicator(mesh: Mesh):
    """Returns the compiled copy of values to all devices."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def per_node(
    fn: Callable[..., PyTree], mesh: Mesh, *, at_once: int = 1, num_shared: int = 0
) -> Callable[..., PyTree]:
    """Lifts a function of one node's values to all nodes, without communication.

    Args:
        fn: `(...) -> tree` of one node.
        mesh: from `make_mesh`.
        at_once: nodes of a device that are computed together, by `vmap`; the groups
            come one after the other. One at a time needs the least memory and skips
            what `lax.cond` skips; more fill an accelerator.
        num_shared: how many of the first arguments are the same for all nodes, and have
            no `[nodes]` axis; every device gets all of them.

    Returns:
        The same function of trees with a leading `[nodes]` axis, at least one; its
        results lie on their nodes' devices.

    >>> double = per_node(lambda x: 2 * x, make_mesh(3))
    >>> jax.jit(double)(jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    validate.positive(at_once=at_once)

    def local(shared: tuple, args: tuple) -> PyTree:
        count = len(jax.tree.leaves(args)[0])
        one = functools.partial(fn, *shared)
        if at_once >= count > 1:
            return jax.vmap(one)(*args)
        return jax.lax.map(
            lambda node: one(*node), args, batch_size=at_once if at_once > 1 else None
        )

    # check_vma wants the two branches of a cond to vary alike over the mesh, which a
    # function written for one node cannot know; without collectives it guards nothing.
    lifted = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return lambda *args: lifted(args[:num_shared], args[num_shared:])
