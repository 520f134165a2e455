"""Nodes as an array axis, on emulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from protojax.federated import nodes


@pytest.mark.parametrize(
    ("num_nodes", "num_devices", "used"),
    [(8, 8, 8), (8, 6, 4), (6, 8, 6), (7, 4, 1), (10, 8, 5), (1, 8, 1), (3, 1, 1)],
)
def test_the_mesh_divides_the_nodes(num_nodes, num_devices, used):
    mesh = nodes.make_mesh(num_nodes, jax.devices()[:num_devices])
    assert mesh.shape == {"nodes": used}


def test_every_process_takes_part():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    devices = [Device(0), Device(0), Device(0), Device(1), Device(1)]
    with pytest.raises(ValueError, match="num_nodes a multiple of 2 processes"):
        nodes.make_mesh(5, devices)


def test_no_node_is_no_mesh():
    with pytest.raises(ValueError, match="num_nodes > 0"):
        nodes.make_mesh(0)


def test_stacking_and_unstacking_are_inverse():
    trees = [{"a": np.full((2, 3), i), "b": None} for i in range(4)]
    stacked = nodes.stack(trees)
    assert stacked["a"].shape == (4, 2, 3)
    for i, tree in enumerate(trees):
        np.testing.assert_array_equal(nodes.unstack(stacked, i)["a"], tree["a"])


def test_values_live_with_their_nodes():
    mesh = nodes.make_mesh(8)
    values = {"w": np.arange(16.0, dtype=np.float32).reshape(8, 2)}
    placed = nodes.shard(values, mesh)
    assert placed["w"].sharding == NamedSharding(mesh, P("nodes"))
    assert {s.data.shape for s in placed["w"].addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(nodes.gather(placed, mesh)["w"], values["w"])


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_lifted_functions_equal_a_loop(num_devices, at_once):
    mesh = nodes.make_mesh(8, jax.devices()[:num_devices])

    def fn(offset, x, y):
        return {"sum": jnp.sum(x) * y + offset, "x": jnp.cumsum(x)}

    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    y = np.arange(8, dtype=np.float32)
    lifted = jax.jit(nodes.per_node(fn, mesh, at_once=at_once, num_shared=1))
    found = lifted(jnp.float32(3.0), *nodes.shard((x, y), mesh))
    for i in range(8):
        expected = fn(3.0, x[i], y[i])
        np.testing.assert_allclose(found["sum"][i], expected["sum"], rtol=1e-5)
        np.testing.assert_allclose(found["x"][i], expected["x"], rtol=1e-5)
    assert found["x"].sharding.is_equivalent_to(nodes.sharding(mesh), 2)


def test_a_lifted_function_does_not_talk():
    mesh = nodes.make_mesh(8)
    lifted = jax.jit(nodes.per_node(lambda x: x @ x.T, mesh))
    x = nodes.shard(np.ones((8, 4, 4), np.float32), mesh)
    text = lifted.lower(x).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_gradients_of_a_node_are_its_own():
    # With replicated parameters shard_map may add up gradients over the mesh.
    mesh = nodes.make_mesh(4, jax.devices()[:4])
    gradient = nodes.per_node(
        lambda w, x: jax.grad(lambda w: jnp.sum(w * x))(w), mesh, num_shared=1
    )
    x = np.array([1.0, 2.0, 3.0, 1000.0], np.float32)
    found = jax.jit(gradient)(jnp.float32(1.0), nodes.shard(x, mesh))
    np.testing.assert_array_equal(found, x)
