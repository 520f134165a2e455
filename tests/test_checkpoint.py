"""Checkpoints: bit-equal, never half written, never silently damaged."""

import io
import json
import logging
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from protojax.base import Prototypes, TrainState
from protojax.storage import checkpoint
from protojax.storage.checkpoint import latest_step, restore, save

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(seed=0, prototypes=True, key=None):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jnp.zeros(4)},
        "half": jax.random.normal(keys[1], (2,), jnp.bfloat16),
    }
    grads = jax.tree.map(jnp.ones_like, params)
    opt_state = TX.update(grads, TX.init(params), params)[1]
    held = Prototypes(
        jax.random.normal(keys[2], (2, 4)), jnp.array([0, -1]), jnp.array([5.0, 0.5])
    )
    key = jax.random.PRNGKey(seed) if key is None else key
    return TrainState(
        params, opt_state, held if prototypes else None, jnp.int32(3), key
    )


def words(leaf):
    """Returns an array's bytes, so that NaN and -0.0 compare as what they are."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, leaf), reference in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(expected),
        strict=True,
    ):
        assert leaf.dtype == reference.dtype, path
        assert leaf.shape == reference.shape, path
        assert words(leaf) == words(reference), path


def blank(state):
    """Returns the abstract tree of a state."""
    return jax.eval_shape(lambda: state)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, position=None, bit=0):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("prototypes", [True, False])
@pytest.mark.parametrize(
    "key",
    [
        lambda: jax.random.PRNGKey(7),
        lambda: jax.random.key(7),
        lambda: jax.random.split(jax.random.key(7, impl="rbg"), 2),
    ],
    ids=["raw", "typed", "typed rbg stack"],
)
@pytest.mark.parametrize(
    "like", [blank, lambda state: state], ids=["abstract", "array"]
)
def test_a_node_state_comes_back_bit_for_bit(tmp_path, prototypes, key, like):
    state = make_state(prototypes=prototypes, key=key())
    folder = save(tmp_path, state, 12, extra={"epoch": 2, "names": ["a", None, 0.5]})
    assert folder == tmp_path / "step_00000012"
    found, step, extra = restore(tmp_path, like(state))
    assert_same(found, state)
    assert (step, extra) == (12, {"epoch": 2, "names": ["a", None, 0.5]})


def test_special_values_and_small_dtypes_come_back(tmp_path):
    state = {
        "float": jnp.array([jnp.nan, -jnp.nan, jnp.inf, -0.0, 1e-45], jnp.float32),
        "bool": jnp.array([True, False]),
        "int8": jnp.array([-128, 127], jnp.int8),
        "scalar": jnp.float32(2.5),
        "host": np.array([2**40, -1]),
        "list": [jnp.ones(1), (jnp.ones(2), optax.EmptyState())],
        "a/b.c['d']": jnp.ones(3),
    }
    save(tmp_path, state, 0)
    found, step, extra = restore(tmp_path, state)
    assert_same(found, state)
    assert (step, extra) == (0, {})
    assert type(found["host"]) is np.ndarray


def test_training_goes_on_as_if_never_stopped(tmp_path):
    def step(state, _):
        key, sub = jax.random.split(state.key)
        grads = jax.tree.map(
            lambda x: jax.random.normal(sub, x.shape, x.dtype), state.params
        )
        updates, opt_state = TX.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(
            params, opt_state, state.prototypes, state.step + 1, key
        ), None

    run = jax.jit(lambda state: jax.lax.scan(step, state, length=3)[0])
    halfway = run(make_state())
    save(tmp_path, halfway, 3)
    resumed, _, _ = restore(tmp_path, blank(halfway))
    assert_same(run(resumed), run(halfway))


def test_the_latest_step_is_restored_unless_told_otherwise(tmp_path):
    for step in (1, 10, 9):
        save(tmp_path, {"w": jnp.full(2, float(step))}, step, keep=5)
    # Saving step 9 ends the history there: step 10 belonged to another one.
    assert latest_step(tmp_path) == 9
    like = {"w": jnp.zeros(2)}
    assert restore(tmp_path, like)[0]["w"].tolist() == [9.0, 9.0]
    found, step, _ = restore(str(tmp_path), like, step=1)
    assert (found["w"].tolist(), step) == ([1.0, 1.0], 1)


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (9, [2, 3, 4, 5])])
def test_keep(tmp_path, keep, left):
    for step in range(2, 6):
        save(tmp_path, {"w": jnp.ones(2)}, step, keep=keep)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{n:08d}" for n in left]


def test_an_existing_step_is_replaced(tmp_path):
    save(tmp_path, {"w": jnp.zeros(2)}, 4, extra={"try": 1})
    save(tmp_path, {"w": jnp.ones(2)}, 4, extra={"try": 2})
    found, step, extra = restore(tmp_path, {"w": jnp.zeros(2)})
    assert (found["w"].tolist(), step, extra) == ([1.0, 1.0], 4, {"try": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_nothing_there(tmp_path):
    missing = tmp_path / "missing"
    assert latest_step(missing) is None
    with pytest.raises(FileNotFoundError, match="found step=None"):
        restore(missing, {"w": jnp.zeros(2)})
    save(tmp_path, {"w": jnp.zeros(2)}, 4)
    with pytest.raises(FileNotFoundError, match=r"one of \[4\] in .*, found step=5"):
        restore(tmp_path, {"w": jnp.zeros(2)}, step=5, fallback=True)


def test_other_files_and_folders_are_left_alone(tmp_path):
    foreign = ("step_", "step_1", "step_00000009.backup", "best", ".git")
    for name in (*foreign, "step_1.tmp", "step_00000009.tmp.mine", "step_x.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "step_00000009.tmp").write_text("a file: steps are folders")
    before = set(tmp_path.iterdir())
    save(tmp_path, {"w": jnp.zeros(2)}, 4)
    assert latest_step(tmp_path) == 4
    assert set(tmp_path.iterdir()) == before | {tmp_path / "step_00000004"}


@pytest.mark.parametrize("suffix", ["", ".tmp", ".tmp.orbax-checkpoint-tmp"])
def test_a_half_written_folder_is_never_considered(tmp_path, suffix):
    state = {"w": jnp.arange(4.0)}
    save(tmp_path, state, 1)
    half = tmp_path / f"step_00000002{suffix}"
    half.mkdir()
    (half / "commit_success.txt").write_text("so it looks")
    assert latest_step(tmp_path) == 1
    assert_same(restore(tmp_path, state)[0], state)
    save(tmp_path, {"w": jnp.ones(4)}, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    assert restore(tmp_path, state)[0]["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("step", [1, 2], ids=["the same step", "the next step"])
@pytest.mark.parametrize("death", ["orbax", "manifest", "rename", "removal"])
def test_dying_at_any_moment_loses_nothing(tmp_path, monkeypatch, step, death):
    old, new = {"w": jnp.zeros(4)}, {"w": jnp.ones(4)}
    save(tmp_path, old, 1)

    def die(*_, **__):
        raise KeyboardInterrupt

    def die_before_the_new_step_is_in_place(source, target):
        if str(source).endswith(".new"):
            die()
        return os.replace(source, target)

    with monkeypatch.context() as patch:
        if death == "orbax":
            patch.setattr(checkpoint.ocp, "save", die)
        elif death == "manifest":
            patch.setattr(checkpoint.manifest, "write", die)
        elif death == "rename":
            patch.setattr(os, "rename", die_before_the_new_step_is_in_place)
        else:
            patch.setattr(checkpoint.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, new, step)

    expected = (new, step) if death == "removal" else (old, 1)
    assert latest_step(tmp_path) == expected[1]
    found, found_step, _ = restore(tmp_path, old)
    assert found_step == expected[1]
    assert_same(found, expected[0])
    # And the next save finds its way through what was left behind.
    save(tmp_path, new, 3)
    assert_same(restore(tmp_path, old)[0], new)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


SAVE_FOREVER = """
import itertools, sys
import numpy as np
from protojax.storage.checkpoint import save

for step in itertools.count(1):
    save(sys.argv[1], {"w": np.full(100_000, step)}, step)
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(3):
            last = int(child.stdout.readline())
        child.kill()
    found, step, _ = restore(tmp_path, {"w": np.zeros(100_000, int)})
    assert step >= last
    assert (found["w"] == step).all()


def test_every_file_is_in_the_manifest_which_is_written_last(tmp_path):
    folder = save(tmp_path, make_state(), 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    assert sorted([*manifest["files"], "manifest.json"]) == names
    times = [path.stat().st_mtime_ns for path in files_of(folder)]
    assert max(times) == (folder / "manifest.json").stat().st_mtime_ns


def test_a_flipped_bit_in_any_file_is_named(tmp_path):
    state = make_state()
    folder = save(tmp_path, state, 1)
    like = blank(state)
    for index, path in enumerate(files_of(folder)):
        content = path.read_bytes()
        if not content:
            continue
        for position in (0, len(content) // 2, len(content) - 1):
            flip(path, position, bit=(index + position) % 8)
            with pytest.raises(ValueError, match=path.name):
                restore(tmp_path, like)
            path.write_bytes(content)
        path.unlink()
        if path.name != "manifest.json":
            with pytest.raises(ValueError, match=f"{path.name}, found no such file"):
                restore(tmp_path, like)
        path.write_bytes(content)
    assert_same(restore(tmp_path, like)[0], state)


def test_no_flipped_bit_of_the_manifest_is_believed(tmp_path):
    state = {"w": jnp.arange(4.0)}
    folder = save(tmp_path, state, 1, extra={"note": "a true value", "rate": 0.5})
    path = folder / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        flip(path, position, bit=position % 8)
        with pytest.raises(ValueError, match=r"manifest\.json intact"):
            restore(tmp_path, state)
        path.write_bytes(content)


def test_fallback_takes_the_latest_good_step_and_says_so(tmp_path, caplog):
    like = {"w": jnp.zeros(4)}
    folders = [
        save(tmp_path, {"w": jnp.full(4, float(n))}, n, keep=9) for n in range(1, 5)
    ]
    flip(max(files_of(folders[3]), key=lambda path: path.stat().st_size))
    flip(folders[2] / "manifest.json")
    with pytest.raises(ValueError, match="step_00000004"):
        restore(tmp_path, like)
    assert not caplog.records
    found, step, _ = restore(tmp_path, like, fallback=True)
    assert (found["w"].tolist(), step) == ([2.0] * 4, 2)
    said = [record for record in caplog.records if record.name == "protojax"]
    assert [record.levelno for record in said] == [logging.WARNING] * 2
    assert "Step 4 is passed over" in said[0].getMessage()
    assert restore(tmp_path, like, step=1, fallback=True)[1] == 1


def test_killed_between_two_renames(tmp_path):
    state = {"w": jnp.zeros(4)}
    folder = save(tmp_path, state, 1)
    aside = tmp_path / f".step_00000001.protojax-{'0' * 32}.old"
    folder.rename(aside)
    assert latest_step(tmp_path) == 1
    assert_same(restore(tmp_path, state)[0], state)
    save(tmp_path, state, 2, keep=2)
    assert [latest_step(tmp_path), checkpoint.complete_steps(tmp_path)] == [2, [1, 2]]
    names = ["step_00000001", "step_00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_saving_after_a_fallback_removes_the_damaged_future(tmp_path):
    like = {"w": jnp.zeros(4)}
    for step in (1, 5):
        folder = save(tmp_path, like, step, keep=2)
    flip(folder / "manifest.json")
    assert restore(tmp_path, like, fallback=True)[1] == 1
    save(tmp_path, like, 2, keep=2)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["1", "2"]
    assert restore(tmp_path, like)[1] == 2


def test_fallback_with_nothing_good_left(tmp_path):
    folder = save(tmp_path, {"w": jnp.zeros(4)}, 1)
    flip(folder / "manifest.json")
    with pytest.raises(ValueError, match="an intact step <= 1"):
        restore(tmp_path, {"w": jnp.zeros(4)}, fallback=True)


class Other(NamedTuple):
    w: jax.Array


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": np.zeros(3, np.float32)}, r"\['w'\]: float32\[4\] stored, float32\[3\]"),
        ({"w": np.zeros((4, 1), np.float32)}, r"float32\[4, 1\] asked for"),
        ({"w": np.zeros(4, np.int32)}, r"float32\[4\] stored, int32\[4\] asked for"),
        ({"w": np.zeros(4, np.float16)}, r"float16\[4\] asked for"),
        ({}, "num_leaves > 0"),
        ({"v": np.zeros(4, np.float32)}, r"\['v'\]: nothing stored.*\['w'\]: float32"),
        (Other(np.zeros(4, np.float32)), r"\.w: nothing stored"),
        ({"w": [np.zeros(4, np.float32)]}, r"\['w'\]\[0\]: nothing stored"),
        ({"w": 1.0}, "an array at .*, found <class 'float'>"),
    ],
)
def test_another_state_is_refused_by_name(tmp_path, like, message):
    save(tmp_path, {"w": jnp.zeros(4)}, 1)
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, like, fallback=True)


def test_another_kind_of_key_and_missing_prototypes_are_refused(tmp_path):
    state = make_state(key=jax.random.key(0))
    save(tmp_path, state, 1)
    other = state._replace(key=jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match=r"\.key: key<fry>\[\] stored, key<rbg>\[\]"):
        restore(tmp_path, other)
    with pytest.raises(ValueError, match=r"\.key: key<fry>\[\] stored, uint32\[2\]"):
        restore(tmp_path, state._replace(key=jax.random.PRNGKey(0)))
    with pytest.raises(ValueError, match=r"\.prototypes\.counts: float32\[2\] stored"):
        restore(tmp_path, state._replace(prototypes=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"w": jnp.ones(1)}, -1), "step >= 0, found step=-1"),
        (({}, 1), "num_leaves > 0"),
        (({"w": 1.0}, 1), "an array at .*, found <class 'float'>"),
        (({"w": jnp.ones((0, 3))}, 1), r"elements at .*, found shape \(0, 3\)"),
    ],
)
def test_save_rejects(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path, *arguments)
    with pytest.raises(ValueError, match="keep > 0, found keep=0"):
        save(tmp_path, {"w": jnp.ones(1)}, 1, keep=0)
    with pytest.raises(TypeError, match="JSON"):
        save(tmp_path, {"w": jnp.ones(1)}, 1, extra={"array": np.ones(1)})
    with pytest.raises(ValueError, match="a local path"):
        save("gs://bucket/run", {"w": jnp.ones(1)}, 1)
    assert not list(tmp_path.iterdir())


def test_arrays_come_back_where_like_says(tmp_path):
    num_nodes = jax.device_count()
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((num_nodes,), ("nodes",), axis_types=auto)
    nodes = NamedSharding(mesh, PartitionSpec("nodes"))
    one = SingleDeviceSharding(jax.devices()[-1])
    state = {
        "key": jax.device_put(jax.random.split(jax.random.key(0), num_nodes), nodes),
        "sharded": jax.device_put(jnp.arange(float(num_nodes)), nodes),
        "placed": jnp.ones(2),
        "free": jnp.ones(2),
        "host": jnp.ones(2),
    }
    save(tmp_path, state, 1)
    like = {
        "key": jax.ShapeDtypeStruct((num_nodes,), state["key"].dtype, sharding=nodes),
        "sharded": jax.ShapeDtypeStruct((num_nodes,), jnp.float32, sharding=nodes),
        "placed": jax.device_put(jnp.zeros(2), one),
        "free": jnp.zeros(2),
        "host": np.zeros(2, np.float32),
    }
    found, _, _ = restore(tmp_path, like)
    assert_same(found, state)
    for keys in (found["key"], restore(tmp_path, state)[0]["key"]):
        assert keys.sharding.is_equivalent_to(nodes, 1)
    assert found["sharded"].sharding == nodes
    assert found["placed"].sharding == one
    assert found["placed"].committed
    assert not found["free"].committed
    assert type(found["host"]) is np.ndarray


def test_the_first_process_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="Expected process 0, the one that saves"):
        save(tmp_path, {"w": jnp.ones(2)}, 1)
    assert not [*tmp_path.iterdir()]


def test_orbax_does_not_fill_the_log_nor_stay_quiet(tmp_path):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root, absl = logging.getLogger(), logging.getLogger("absl")
    levels = root.level, absl.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    absl.setLevel(logging.INFO)
    try:
        save(tmp_path, {"w": jnp.ones(2)}, 1)
        restore(tmp_path, {"w": jnp.ones(2)})
        assert stream.getvalue() == ""
        absl.info("heard again")
        assert "heard again" in stream.getvalue()
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        absl.setLevel(levels[1])
