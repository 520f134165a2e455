"""Checkpoints of many nodes: whole, intact, on other devices, or an error."""

import functools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import training
from protojax.base import Prototypes
from protojax.federated import federation, node_checkpoint, nodes
from protojax.storage import checkpoint

NODES = 4
OPTIMIZER = training.adamw(learning_rate=0.1)


def make_federation(*, server=True, num_devices=4, seed=0):
    rng = np.random.default_rng(seed)
    mesh = nodes.make_mesh(NODES, jax.devices()[:num_devices])

    def params():
        return {
            "w": jnp.float32(rng.normal(size=(3, 2))),
            "b": jnp.float32(rng.normal()),
        }

    shared = params()
    states = [
        training.init_state(
            shared if server else params(),
            OPTIMIZER,
            num_steps=10 + node,
            seed=node,
            prototypes=Prototypes(
                jnp.float32(rng.normal(size=(5, 2))), jnp.zeros(5, int), jnp.ones(5)
            ),
        )
        for node in range(NODES)
    ]
    return federation.init_federation(states, mesh, server=server)


@functools.partial(jax.jit, donate_argnums=0)
def corrupt(fed):
    return jax.tree.map(lambda leaf: leaf * 0 + 7, fed)


def save(folder, *steps, server=True):
    feds = {}
    with node_checkpoint.NodeWriter(folder) as writer:
        for step in steps:
            fed = make_federation(server=server, seed=step)
            feds[step] = jax.device_get(fed)
            writer.save(fed, step, {"seconds": step})
    return feds


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_what_is_saved_comes_back_on_other_devices(tmp_path, server, num_devices):
    saved = save(tmp_path, 3, server=server)[3]
    like = make_federation(server=server, num_devices=num_devices, seed=9)
    found, step, extra = node_checkpoint.restore_nodes(tmp_path, like)
    assert (step, extra) == (3, {"seconds": 3})
    equal(found, saved)
    for leaf, asked in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == asked.sharding
        assert leaf.dtype == asked.dtype


def test_every_node_and_the_server_have_a_folder(tmp_path):
    save(tmp_path, 1, 2, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["node_000", "node_001", "node_002", "node_003", "server"]
    for name in names:
        assert checkpoint.complete_steps(tmp_path / name) == [2, 3]


def test_what_is_donated_meanwhile_does_not_reach_the_disk(tmp_path):
    fed = make_federation()
    before = jax.device_get(fed)
    before = jax.tree.map(np.copy, before)
    with node_checkpoint.NodeWriter(tmp_path) as writer:
        writer.save(fed, 1)
        corrupt(fed)
    found, _, _ = node_checkpoint.restore_nodes(tmp_path, make_federation(seed=5))
    equal(found, before)


def flip_a_byte(folder):
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    ]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("name", ["node_002", "server"])
def test_a_flipped_byte_is_named_or_passed_over(tmp_path, caplog, name):
    saved = save(tmp_path, 1, 2)
    path = flip_a_byte(tmp_path / name / "step_00000002")
    like = make_federation(seed=9)
    with pytest.raises(ValueError, match=path.name):
        node_checkpoint.restore_nodes(tmp_path, like)
    with caplog.at_level(logging.WARNING, logger="protojax"):
        found, step, _ = node_checkpoint.restore_nodes(tmp_path, like, fallback=True)
    assert step == 1
    assert path.name in caplog.text
    equal(found, saved[1])
    flip_a_byte(tmp_path / "node_000" / "step_00000001")
    with pytest.raises(ValueError, match="intact step"):
        node_checkpoint.restore_nodes(tmp_path, like, fallback=True)


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("server", [True, False])
def test_folders_of_nodes_cannot_be_swapped(tmp_path, server):
    saved = save(tmp_path, 1, 2, server=server)
    like = make_federation(server=server, seed=9)
    step = "step_00000002"
    swap(tmp_path / "node_000" / step, tmp_path / "node_001" / step)
    with pytest.raises(ValueError, match=r"'/node_000 of 4', found .*'/node_001 of 4'"):
        node_checkpoint.restore_nodes(tmp_path, like)
    found, number, _ = node_checkpoint.restore_nodes(tmp_path, like, fallback=True)
    assert number == 1
    equal(found, saved[1])
    swap(tmp_path / "node_002", tmp_path / "node_003")
    with pytest.raises(ValueError, match="an intact step"):
        node_checkpoint.restore_nodes(tmp_path, like, fallback=True)


def test_a_node_may_not_bring_another_step(tmp_path):
    saved = save(tmp_path, 1, 2)
    folder = tmp_path / "node_001"
    checkpoint._remove(folder / "step_00000002")
    shutil.copytree(folder / "step_00000001", folder / "step_00000002")
    like = make_federation(seed=9)
    with pytest.raises(ValueError, match="with step=2, found step=1"):
        node_checkpoint.restore_nodes(tmp_path, like)
    equal(node_checkpoint.restore_nodes(tmp_path, like, fallback=True)[0], saved[1])


def test_checkpoints_of_another_run_are_refused(tmp_path):
    fed = make_federation()
    with node_checkpoint.NodeWriter(tmp_path, identity="a") as writer:
        writer.save(fed, 1)
    with pytest.raises(ValueError, match=r"identity='b/node_000 of 4', found"):
        node_checkpoint.restore_nodes(tmp_path, fed, identity="b")
    found, _, _ = node_checkpoint.restore_nodes(tmp_path, fed, identity="a")
    equal(found, jax.device_get(fed))


def test_some_of_the_nodes_are_no_federation(tmp_path):
    save(tmp_path, 1)
    fewer = jax.tree.map(lambda leaf: leaf[:2], make_federation().nodes)
    like = make_federation()._replace(nodes=fewer)
    with pytest.raises(ValueError, match=r"'/node_000 of 2', found .*of 4"):
        node_checkpoint.restore_nodes(tmp_path, like)


@pytest.mark.parametrize("text", [None, "[]", "null", "7"])
def test_a_broken_form_at_one_node_gives_way(tmp_path, text):
    saved = save(tmp_path, 1, 2)
    path = tmp_path / "node_001" / "step_00000002" / "manifest.json"
    path.unlink()
    path.mkdir() if text is None else path.write_text(text)
    like = make_federation(seed=9)
    with pytest.raises(ValueError, match=r"manifest\.json intact"):
        node_checkpoint.restore_nodes(tmp_path, like)
    equal(node_checkpoint.restore_nodes(tmp_path, like, fallback=True)[0], saved[1])


def test_a_step_counts_once_all_have_it(tmp_path):
    saved = save(tmp_path, 1, 2)
    checkpoint._remove(tmp_path / "server" / "step_00000002")
    assert node_checkpoint.latest_step(tmp_path, NODES) == 1
    found, step, _ = node_checkpoint.restore_nodes(tmp_path, make_federation(seed=9))
    assert step == 1
    equal(found, saved[1])


def test_nothing_saved_is_said(tmp_path):
    assert node_checkpoint.latest_step(tmp_path, NODES) is None
    with pytest.raises(FileNotFoundError, match="4 nodes and the server"):
        node_checkpoint.restore_nodes(tmp_path, make_federation())


def test_what_goes_wrong_in_the_background_is_raised(tmp_path):
    (tmp_path / "node_001").write_text("in the way")
    writer = node_checkpoint.NodeWriter(tmp_path)
    writer.save(make_federation(), 1)
    with pytest.raises(OSError, match="node_001"):
        writer.save(make_federation(), 2)


def test_one_step_is_too_few_to_keep(tmp_path):
    with pytest.raises(ValueError, match="keep >= 2"):
        node_checkpoint.NodeWriter(tmp_path, keep=1)
