"""Nodes as an array axis.

Every value that differs between nodes has a leading `[nodes]` axis, which is sharded
over the mesh axis `"nodes"`. Code for one node never sees it: `per_node` lifts a
function of one node to all nodes. The same program runs on one device, on emulated
devices, on a GPU or TPU slice, and in several processes.
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


def make_mesh(num_nodes: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with an axis `"nodes"` over which the nodes are spread evenly.

    It uses the largest number of devices that divides the number of nodes: 8 nodes use
    8, 4, 2 or 1 devices, 6 nodes use 6 of 8, 7 nodes use 1 of 4. Each of several
    processes contributes the same number.

    Args:
        num_nodes: the number of nodes.
        devices: the devices to choose from; all by default.

    Raises:
        ValueError: the number of nodes is not a multiple of the number of processes.

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
    # Explicit axes, the default, do not allow the sorts over nodes in robust rules.
    return Mesh(np.array(used), (AXIS,), axis_types=(AxisType.Auto,))


def sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of values with a leading `[nodes]` axis."""
    return NamedSharding(mesh, P(AXIS))


def stack(trees: Sequence[PyTree]) -> PyTree:
    """One tree with a leading `[nodes]` axis, on the host.

    >>> stack([{"w": np.zeros(2)}, {"w": np.ones(2)}])["w"].shape
    (2, 2)
    """
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree: PyTree, node: int) -> PyTree:
    """The values of one node.

    >>> unstack({"w": np.array([[1.0], [2.0]])}, 1)["w"].tolist()
    [2.0]
    """
    return jax.tree.map(lambda leaf: leaf[node], tree)


def replicate(tree: PyTree, num_nodes: int) -> PyTree:
    """A tree in which every node holds the same values.

    >>> replicate(jnp.array([1.0]), 2).tolist()
    [[1.0], [1.0]]
    """
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_nodes, *jnp.shape(leaf))), tree
    )


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """The values, with a leading `[nodes]` axis, on the devices of their nodes.

    Each of several processes passes the values of all nodes, and holds its own.
    """

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, sharding(mesh), lambda index: leaf[index]
        )

    return jax.tree.map(place, tree)


def broadcast(tree: PyTree, mesh: Mesh) -> PyTree:
    """The values, without a `[nodes]` axis, replicated on all devices."""

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        everywhere = NamedSharding(mesh, P())
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda _: leaf)

    return jax.tree.map(place, tree)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
    """The values of all nodes on the host, in every process."""
    if jax.process_count() > 1:
        # A process can read only its own shards, so all are replicated first.
        tree = _replicator(mesh)(tree)
    return jax.device_get(tree)


# A new lambda each time would be a new program each time.
@functools.cache
def _replicator(mesh: Mesh):
    """A compiled function that replicates values on all devices."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def per_node(
    fn: Callable[..., PyTree], mesh: Mesh, *, at_once: int = 1, num_shared: int = 0
) -> Callable[..., PyTree]:
    """The function of all nodes that applies `fn` to each node, without communication.

    Args:
        fn: `(...) -> tree` of one node.
        mesh: from `make_mesh`.
        at_once: nodes per device that are computed together by `vmap`; such groups run
            one after the other. With 1 the least memory is needed, and the untaken
            branch of a `lax.cond` is skipped; more nodes use an accelerator better.
        num_shared: the number of leading arguments that are the same for all nodes and
            have no `[nodes]` axis; every device gets all of them.

    Returns:
        The function of trees with a leading `[nodes]` axis, of which there must be at
        least one; its results are on the devices of their nodes.

    >>> double = per_node(lambda x: 2 * x, make_mesh(3))
    >>> jax.jit(double)(jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    validate.positive(at_once=at_once)

    def local(shared: tuple, args: tuple) -> PyTree:
        count = len(jax.tree.leaves(args)[0])
        one = functools.partial(fn, *shared)
        # The whole share at once: `lax.map` would wrap it in a loop of one turn.
        if at_once >= count > 1:
            return jax.vmap(one)(*args)
        # With 1 a loop without vmap, under which a cond computes both branches.
        return jax.lax.map(
            lambda node: one(*node), args, batch_size=at_once if at_once > 1 else None
        )

    # check_vma requires both branches of a cond to vary alike over the mesh, which a
    # function written for one node cannot ensure. Without collectives it is not needed.
    lifted = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return lambda *args: lifted(args[:num_shared], args[num_shared:])
