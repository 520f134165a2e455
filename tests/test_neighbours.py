import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.prototypes import neighbours

# The function of this name hides its module.
module = importlib.import_module("protojax.prototypes.neighbours")


def distances(query, pool, metric):
    """The distances of one query to all pool rows, in float64."""
    query, pool = np.float64(query), np.float64(pool)
    if metric == "l2":
        return np.linalg.norm(pool - query, axis=1)
    lengths = np.linalg.norm(pool, axis=1) * np.linalg.norm(query)
    return 1 - pool @ query / np.where(lengths > 0, lengths, 1)


def check(
    queries, pool, query_groups, pool_groups, k, metric, query_rows=None, **kwargs
):
    """Compares with a sort of every query's distances to its own group."""
    indices, valid = neighbours(
        queries,
        pool,
        query_groups,
        pool_groups,
        k=k,
        metric=metric,
        query_rows=query_rows,
        **kwargs,
    )
    assert indices.shape == valid.shape == (len(queries), k)
    assert indices.dtype == np.int32
    assert valid.dtype == bool
    for i, query in enumerate(queries):
        own = -1 if query_rows is None else query_rows[i]
        peers = np.flatnonzero(
            (pool_groups == query_groups[i]) & (np.arange(len(pool)) != own)
        )
        found = indices[i][valid[i]]
        expected = min(k, len(peers))
        np.testing.assert_array_equal(valid[i], np.arange(k) < expected)
        np.testing.assert_array_equal(indices[i][~valid[i]], 0)
        assert len(set(found)) == expected
        assert set(found) <= set(peers)
        every = distances(query, pool, metric)
        # Ties may be broken either way, so distances are compared and not indices.
        np.testing.assert_allclose(
            every[found], np.sort(every[peers])[:expected], atol=1e-5
        )


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("num_rows", "num_groups", "k", "block_rows"),
    [
        (300, 1, 3, 512),  # wide: the two-stage top-k
        (300, 1, 3, 7),  # many blocks, the last one not full
        (300, 3, 20, 64),
        (90, 40, 5, 512),  # most groups smaller than k
        (5, 1, 50, 512),  # k larger than the pool
    ],
)
def test_matches_sorting(metric, num_rows, num_groups, k, block_rows):
    rng = np.random.default_rng(num_rows + k)
    pool = rng.normal(size=(num_rows, 6)).astype(np.float32)
    queries = rng.normal(size=(40, 6)).astype(np.float32)
    pool_groups = rng.integers(0, num_groups, num_rows)
    query_groups = rng.integers(0, num_groups, 40)
    check(queries, pool, query_groups, pool_groups, k, metric, block_rows=block_rows)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_no_row_finds_itself(metric):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 4)).astype(np.float32)
    groups = rng.integers(0, 2, 150)
    check(rows, rows, groups, groups, 4, metric, query_rows=np.arange(150))
    indices, _ = neighbours(rows, rows, groups, groups, k=1, metric=metric)
    np.testing.assert_array_equal(indices[:, 0], np.arange(150))


def test_some_queries_are_in_the_pool():
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(50, 3)).astype(np.float32)
    outside = rng.normal(size=(2, 3)).astype(np.float32)
    queries = np.concatenate([pool[[7, 3]], outside])
    own = np.array([7, 3, -1, -1])
    check(queries, pool, np.zeros(4), np.zeros(50), 5, "l2", query_rows=own)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([1, 5]), st.sampled_from(["cosine", "l2"])
)
def test_matches_sorting_with_ties(seed, k, metric):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (64, 2)).astype(np.float32)  # duplicates, zero vectors
    groups = np.arange(64) % 3
    check(rows, rows, groups, groups, k, metric, query_rows=np.arange(64))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_identical_rows(metric, value):
    rows = np.full((200, 3), value, np.float32)
    groups = np.zeros(200, np.int32)
    check(rows, rows, groups, groups, 3, metric, query_rows=np.arange(200))


def test_a_single_row_has_no_neighbours():
    one = np.ones((1, 3), np.float32)
    group = np.zeros(1)
    _, valid = neighbours(one, one, group, group, k=2, query_rows=np.zeros(1, int))
    assert not valid.any()


def test_a_group_missing_from_the_pool_has_no_neighbours():
    rows = np.ones((3, 2), np.float32)
    _, valid = neighbours(rows, rows, np.array([0, 5, 0]), np.zeros(3), k=2)
    np.testing.assert_array_equal(valid.any(axis=1), [True, False, True])


def test_no_queries():
    indices, valid = neighbours(
        np.ones((0, 2)), np.ones((3, 2)), np.zeros(0), np.zeros(3), k=2
    )
    assert indices.shape == valid.shape == (0, 2)


def test_cosine_ignores_length_even_where_squares_overflow():
    direction = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.float32)
    rows = direction * np.array([[1e-30], [1.0], [1e30]], np.float32)
    indices, _ = neighbours(rows, rows, np.zeros(3), np.zeros(3), k=3)
    np.testing.assert_array_equal(indices, [[0, 1, 2], [1, 2, 0], [2, 1, 0]])


def test_l2_does_not_depend_on_the_origin():
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 50, (100, 3)).astype(np.float32)
    groups = np.zeros(100)
    check(rows + 1e4, rows + 1e4, groups, groups, 4, "l2", query_rows=np.arange(100))


def test_two_stage_top_k_finds_the_same_values():
    rng = np.random.default_rng(3)
    k, width = 3, 32 * module._TILE
    values = rng.normal(size=(20, width)).astype(np.float32)
    values[0, : 2 * module._TILE] = 9.0  # the whole top in one tile, and tied
    values[1] = -np.inf
    values[2, 5:] = -np.inf
    top, columns = module._top_k(values, k)
    np.testing.assert_array_equal(top, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, columns, 1), top)
    assert all(len(set(row)) == k for row in np.asarray(columns).tolist())


def test_groups_of_different_sizes_share_one_compiled_block():
    module._block_top_k.clear_cache()
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(130, 5)).astype(np.float32)
    groups = np.repeat([0, 1, 2], [80, 40, 10])
    neighbours(rows, rows, groups, groups, k=2, block_rows=16)
    assert module._block_top_k._cache_size() == 1


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_features_that_are_not_finite(metric, value):
    rows = np.ones((4, 2), np.float32)
    rows[1, 0] = value
    with pytest.raises(ValueError, match="finite features"):
        neighbours(rows, rows, np.zeros(4), np.zeros(4), k=1, metric=metric)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k > 0"),
        ({"block_rows": 0}, "block_rows > 0"),
        ({"metric": "cosin"}, "Did you mean 'cosine'"),
        ({"query_groups": np.zeros(2)}, "same number of rows"),
        ({"pool_groups": np.zeros(2)}, "same number of rows"),
        ({"query_rows": np.zeros(2)}, "same number of rows"),
        ({"queries": np.ones((3, 5))}, r"found \(3, 5\) and \(3, 2\)"),
        ({"queries": np.ones(3)}, r"found \(3,\) and \(3, 2\)"),
        ({"pool": np.ones((0, 2)), "pool_groups": np.zeros(0)}, "pool_rows > 0"),
    ],
)
def test_names_the_wrong_argument(change, message):
    arguments = {
        "queries": np.ones((3, 2)),
        "pool": np.ones((3, 2)),
        "query_groups": np.zeros(3),
        "pool_groups": np.zeros(3),
        "k": 1,
    }
    with pytest.raises(ValueError, match=message):
        neighbours(**(arguments | change))
