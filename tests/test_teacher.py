"""The cache of teacher outputs: right or computed again, whatever lies on the disk."""

import logging
import os
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from protojax.distillation.teacher import TeacherOutputs, cache_key, cached_outputs

rng = np.random.default_rng(0)
OUTPUTS = TeacherOutputs(
    rng.normal(size=(3, 2)).astype(np.float32),
    rng.normal(size=(3, 1, 2)).astype(np.float32),
)


def assert_same(found, expected=OUTPUTS):
    for array, reference in zip(found, expected, strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, reference)


def test_two_calls_compute_once(tmp_path, caplog):
    path, compute = (
        tmp_path / "deep" / "er" / "teacher.safetensors",
        Mock(return_value=OUTPUTS),
    )
    assert_same(cached_outputs(path, "key", compute))
    assert_same(cached_outputs(str(path), "key", compute))
    assert compute.call_count == 1
    assert not caplog.records
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_jax_arrays_and_other_dtypes_are_stored_as_float32(tmp_path):
    outputs = TeacherOutputs(jnp.ones((3, 2), jnp.bfloat16), np.ones((3, 1, 4)).T.T)
    compute = Mock(return_value=outputs)
    for _ in range(2):
        found = cached_outputs(tmp_path / "t", "key", compute)
        assert_same(found, [np.ones((3, 2)), np.ones((3, 1, 4))])
    assert compute.call_count == 1


def test_a_transposed_array_and_nan_come_back_as_they_were(tmp_path):
    logits = np.arange(6, dtype=np.float32).reshape(2, 3).T
    logits[0, 0] = np.nan
    outputs = OUTPUTS._replace(logits=logits)
    compute = Mock(return_value=outputs)
    for _ in range(2):
        assert_same(cached_outputs(tmp_path / "t", "key", compute), outputs)
    assert compute.call_count == 1


def test_another_key_computes_again_and_replaces(tmp_path, caplog):
    path = tmp_path / "t"
    cached_outputs(path, "old", lambda: OUTPUTS._replace(logits=OUTPUTS.logits + 1))
    compute = Mock(return_value=OUTPUTS)
    assert_same(cached_outputs(path, "new", compute))
    assert_same(cached_outputs(path, "new", compute))
    assert compute.call_count == 1
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("protojax", logging.WARNING)
    assert "made from other inputs" in record.getMessage()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_computed_again(tmp_path, caplog, share):
    path = tmp_path / "t"
    cached_outputs(path, "key", Mock(return_value=OUTPUTS))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    compute = Mock(return_value=OUTPUTS)
    assert_same(cached_outputs(path, "key", compute))
    assert_same(cached_outputs(path, "key", compute))
    assert compute.call_count == 1
    assert len(caplog.records) == 1


def test_no_flipped_bit_is_ever_believed(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    path = tmp_path / "t"
    cached_outputs(path, "key", Mock(return_value=OUTPUTS))
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        compute = Mock(return_value=OUTPUTS)
        assert_same(cached_outputs(path, "key", compute))
        assert compute.call_count == 1, position


def test_a_foreign_file_is_computed_again(tmp_path, caplog):
    path = tmp_path / "t"
    save_file({"weight": np.ones(3, np.float32)}, path)
    assert_same(cached_outputs(path, "key", Mock(return_value=OUTPUTS)))
    save_file({"weight": np.ones(3, np.float32)}, path, {"key": "key"})
    assert_same(cached_outputs(path, "key", Mock(return_value=OUTPUTS)))
    assert len(caplog.records) == 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t"
    cached_outputs(path, "old", Mock(return_value=OUTPUTS))
    content = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        cached_outputs(path, "new", Mock(return_value=OUTPUTS))
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "shapes",
    [((3,), (3, 1, 2)), ((3, 2), (3, 2)), ((3, 2), (4, 1, 2))],
    ids=["logits' rank", "features' rank", "rows"],
)
def test_wrong_shapes_are_rejected_and_not_stored(tmp_path, shapes):
    outputs = TeacherOutputs(*map(np.zeros, shapes))
    message = rf"\({shapes[0][0]},.*\) and \({shapes[1][0]},.*\)"
    with pytest.raises(ValueError, match=message):
        cached_outputs(tmp_path / "t", "key", lambda: outputs)
    assert not list(tmp_path.iterdir())


PARAMS = {"a": np.arange(6, dtype=np.float32), "b": {"c": np.ones((2, 2), np.int32)}}


@pytest.mark.parametrize(
    "params",
    [
        {**PARAMS, "a": PARAMS["a"].astype(np.float64)},
        {**PARAMS, "a": PARAMS["a"].reshape(2, 3)},
        {**PARAMS, "a": PARAMS["a"][::-1]},
        {**PARAMS, "a": np.nextafter(PARAMS["a"], 10)},
        {**PARAMS, "b": {"d": PARAMS["b"]["c"]}},
        {**PARAMS, "b": [PARAMS["b"]["c"]]},
        {"a": PARAMS["a"]},
        {},
    ],
    ids=["dtype", "shape", "order", "one ulp", "name", "container", "missing", "none"],
)
def test_the_key_depends_on_all_of_the_parameters(params):
    assert cache_key(params, "data") != cache_key(PARAMS, "data")


def test_the_key_depends_on_every_part_and_on_where_it_ends():
    keys = {
        cache_key(PARAMS, *parts)
        for parts in [(), ("",), ("ab",), ("a", "b"), ("b", "a"), ("a", "b", "")]
    }
    assert len(keys) == 6


def test_the_key_is_the_same_on_device_on_the_host_and_in_any_layout():
    expected = cache_key(PARAMS, "data")
    assert len(expected) == 64
    device = {"b": {"c": jnp.ones((2, 2), jnp.int32)}, "a": jnp.arange(6.0)}
    assert cache_key(device, "data") == expected
    strided = {**PARAMS, "a": np.repeat(PARAMS["a"], 2)[::2]}
    assert cache_key(strided, "data") == expected


def test_the_key_takes_scalars_bfloat16_and_empty_arrays():
    trees = [jnp.float32(1), jnp.ones(2, jnp.bfloat16), np.zeros((0, 3)), np.bool_(1)]
    assert len({cache_key(tree) for tree in trees}) == len(trees)


def test_the_key_does_not_change_between_versions():
    # Changing how keys are computed throws away every cache: know that you do.
    key = cache_key({"weight": np.ones(2, np.float32)}, "data")
    assert key.startswith("24bf4d61b4bea7f2")
