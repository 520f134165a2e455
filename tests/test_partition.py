"""Partitions: nothing twice, nothing lost, and the skew that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protojax.data import partition


def make_keys(name, num_rows, rng):
    if name == "source":
        return np.array([f"site{i}" for i in rng.integers(0, 20, num_rows)])
    return rng.integers(0, 4, num_rows)


@pytest.mark.parametrize("name", partition.PARTITIONS)
@pytest.mark.parametrize("num_nodes", [1, 3, 8])
def test_every_row_is_in_one_node(name, num_nodes):
    keys = make_keys(name, 500, np.random.default_rng(0))
    parts = partition.PARTITIONS[name](
        keys, num_nodes, rng=np.random.default_rng(num_nodes)
    )
    assert len(parts) == num_nodes
    assert all(len(rows) for rows in parts)
    assert all((np.diff(rows) > 0).all() for rows in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_the_seed_decides(name):
    keys = make_keys(name, 100, np.random.default_rng(0))
    deal = partition.PARTITIONS[name]
    first, again, other = (
        np.concatenate(deal(keys, 4, rng=np.random.default_rng(seed)))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_iid_nodes_are_alike():
    labels = np.repeat([0, 1], 2000)
    parts = partition.iid(labels, 4, rng=np.random.default_rng(0))
    shares = partition.class_shares(labels, parts, 2)
    assert {len(rows) for rows in parts} == {1000}
    np.testing.assert_allclose(shares, 0.5, atol=0.05)


def test_smaller_alphas_skew_more():
    labels = np.repeat(np.arange(4), 500)

    def skew(alpha):
        parts = partition.dirichlet(
            labels, 8, rng=np.random.default_rng(0), alpha=alpha
        )
        return partition.class_shares(labels, parts, 4).std(axis=0).mean()

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(0.1) > 0.2 > 0.05 > skew(100.0)


@given(seed=st.integers(0, 99), rows=st.integers(12, 40))
def test_no_node_is_left_empty(seed, rows):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    parts = partition.dirichlet(labels, 4, rng=rng, alpha=0.01, min_rows=3)
    assert min(len(part) for part in parts) >= 3
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


def test_sources_stay_whole():
    sources = make_keys("source", 300, np.random.default_rng(0))
    parts = partition.by_source(sources, 4)
    owners = [set(sources[rows]) for rows in parts]
    assert sum(map(len, owners)) == 20
    sizes = [len(rows) for rows in parts]
    assert max(sizes) - min(sizes) <= 20


def test_class_shares_by_hand():
    labels = np.array([0, 1, 1, 2])
    parts = [np.array([0, 1, 2]), np.array([3])]
    np.testing.assert_allclose(
        partition.class_shares(labels, parts, 3), [[1 / 3, 2 / 3, 0], [0, 0, 1]]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: partition.iid(np.zeros(2), 3, rng=rng), "rows >= 3"),
        (lambda rng: partition.iid(np.zeros(2), 0, rng=rng), "num_nodes > 0"),
        (
            lambda rng: partition.dirichlet(np.zeros(5, int), 3, rng=rng, min_rows=2),
            "rows >= 6",
        ),
        (
            lambda rng: partition.dirichlet(np.zeros(5, int), 2, rng=rng, alpha=0.0),
            "alpha > 0",
        ),
        (lambda rng: partition.dirichlet(np.zeros(5), 2, rng=rng), "labels classes"),
        (lambda rng: partition.by_source(["a", "a"], 2), "num_nodes <= 1 sources"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
