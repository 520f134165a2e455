"""The exact nearest neighbours of each row among the rows of its own group.

Groups are searched one after the other, a block of queries at a time, so that nothing
larger than `[block_rows, largest group]` is ever in memory. All blocks of all groups
share one compiled shape: smaller groups are padded to the largest. The products run at
full float32 precision; the default of GPUs and TPUs would change the neighbours.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array
from protojax.prototypes.geometry import METRICS, unit

_TILE = 32  # values per tile of the two-stage top-k: the fastest from 50,000 rows on


def neighbours(
    queries: Array | np.ndarray,
    pool: Array | np.ndarray,
    query_groups: Array | np.ndarray,
    pool_groups: Array | np.ndarray,
    *,
    k: int,
    metric: str = "cosine",
    query_rows: Array | np.ndarray | None = None,
    block_rows: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest pool rows of each query within its own group.

        cosine: largest ⟨q, p⟩ / (‖q‖ ‖p‖), where a zero vector has similarity 0 to all
        l2:     smallest ‖q − p‖

    Exact up to float32 rounding: rows at equal distance may come in any order.

    Args:
        queries: `[queries, dim]`.
        pool: `[rows, dim]`.
        query_groups: `[queries]`, the group of each query, for instance its class.
        pool_groups: `[rows]`, the group of each pool row.
        k: number of neighbours per query.
        metric: "cosine" or "l2".
        query_rows: `[queries]`, the index of each query in the pool, so that no query
            finds itself; -1 for none. None if no query is in the pool.
        block_rows: queries that are compared at once; memory grows with it.

    Returns:
        indices `[queries, k]`, int32, nearest first, and valid `[queries, k]`, bool,
        False (index 0) where the group has fewer than k other rows.

    Raises:
        ValueError: on an unknown metric, k or block_rows below 1, an empty pool, shapes
            that do not fit, or features that are not finite.

    >>> import numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0]])
    >>> groups = np.array([0, 0, 0, 1])
    >>> indices, valid = neighbours(
    ...     rows, rows, groups, groups, k=1, query_rows=np.arange(4)
    ... )
    >>> indices[:, 0].tolist(), valid[:, 0].tolist()
    ([1, 0, 1, 0], [True, True, True, False])
    """
    validate.positive(k=k, block_rows=block_rows, pool_rows=len(pool))
    validate.one_of(METRICS, metric=metric)
    validate.same_length(queries=queries, query_groups=query_groups)
    validate.same_length(pool=pool, pool_groups=pool_groups)
    if np.ndim(queries) != 2 or np.shape(queries)[1:] != np.shape(pool)[1:]:
        raise ValueError(
            "Expected queries and pool [rows, dim] of one dim, "
            f"found {np.shape(queries)} and {np.shape(pool)}."
        )
    indices = np.zeros((len(queries), k), np.int32)
    valid = np.zeros((len(queries), k), bool)
    if query_rows is None:
        query_rows = np.full(len(queries), -1)
    validate.same_length(queries=queries, query_rows=query_rows)
    query_groups, pool_groups = np.asarray(query_groups), np.asarray(pool_groups)
    # One width for all groups, so that a single program is compiled.
    width = _round_up(_largest_group(pool_groups))
    block = min(block_rows, _round_up(_largest_group(query_groups)))
    embedded = _embed(queries, pool, metric=metric)
    # After the embedding, because a square may overflow where the entries are finite.
    if not all(bool(jnp.isfinite(array).all()) for array in embedded):
        raise ValueError("Expected finite features, found NaN, infinity or overflow.")
    queries, pool, offsets = embedded
    pending = []  # the device works through the blocks while the host queues them
    for group in np.intersect1d(query_groups, pool_groups):
        members = _pad(np.flatnonzero(pool_groups == group), width)
        group_pool, group_offsets = _take(pool, offsets, members)
        asking = np.flatnonzero(query_groups == group)
        for start in range(0, len(asking), block):
            asked = asking[start : start + block]
            own = _pad(np.asarray(query_rows, np.int32)[asked], block)
            rows = queries[_pad(asked, block)]
            found = _block_top_k(rows, group_pool, group_offsets, members, own, k=k)
            pending.append((asked, found))
    for asked, (rows, exists) in pending:
        found = rows.shape[1]  # less than k where the whole group is smaller than k
        indices[asked, :found] = rows[: len(asked)]
        valid[asked, :found] = exists[: len(asked)]
    return indices, valid


@functools.partial(jax.jit, static_argnames="metric")
def _embed(queries: Array, pool: Array, *, metric: str) -> tuple[Array, Array, Array]:
    """The q, p and o [rows] such that the nearest p has the largest q·p - o."""
    queries, pool = jnp.asarray(queries, jnp.float32), jnp.asarray(pool, jnp.float32)
    if metric == "cosine":
        return unit(queries), unit(pool), jnp.zeros(len(pool))
    # -‖q - p‖²/2 = q·p - ‖p‖²/2 + a term of q alone. Distances do not depend on the
    # origin, but rounding does: it is smallest when the rows are centred.
    centre = jnp.mean(pool, axis=0)
    queries, pool = queries - centre, pool - centre
    return queries, pool, jnp.sum(pool**2, axis=-1) / 2


@jax.jit
def _take(pool: Array, offsets: Array, members: Array) -> tuple[Array, Array]:
    """The rows and offsets of one group; padding has an infinite offset."""
    return pool[members], jnp.where(members < 0, jnp.inf, offsets[members])


@functools.partial(jax.jit, static_argnames="k")
def _block_top_k(
    queries: Array,
    pool: Array,
    offsets: Array,
    members: Array,
    own: Array,
    *,
    k: int,
) -> tuple[Array, Array]:
    """The pool rows [block, k] nearest to each query, and a mask of existing ones."""
    products = jnp.matmul(queries, pool.T, precision=jax.lax.Precision.HIGHEST)
    # Padding is not found either: its offset is infinite.
    nearness = jnp.where(members == own[:, None], -jnp.inf, products - offsets)
    values, columns = _top_k(nearness, min(k, len(members)))
    exists = values > -jnp.inf
    return jnp.where(exists, members[columns], 0), exists


def _top_k(values: Array, k: int) -> tuple[Array, Array]:
    """The result of `jax.lax.top_k(values, k)` up to ties, faster for wide rows.

    The k largest values all lie in the k tiles with the largest maxima: for a tile that
    is left out, each of these has a value at least as large as its own maximum.
    """
    rows, width = values.shape
    if width <= k * _TILE:
        return jax.lax.top_k(values, k)
    tiles = values.reshape(rows, width // _TILE, _TILE)
    _, best = jax.lax.top_k(jnp.max(tiles, axis=-1), k)
    candidates = jnp.take_along_axis(tiles, best[..., None], axis=1)
    top, position = jax.lax.top_k(candidates.reshape(rows, k * _TILE), k)
    tile = jnp.take_along_axis(best, position // _TILE, axis=1)
    return top, tile * _TILE + position % _TILE


def _largest_group(groups: np.ndarray) -> int:
    """The number of rows of the largest group."""
    return int(np.unique(groups, return_counts=True)[1].max(initial=1))


def _round_up(size: int) -> int:
    """The next multiple of the tile size."""
    return -(-size // _TILE) * _TILE


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, padded to a size with -1."""
    return np.pad(rows, (0, size - len(rows)), constant_values=-1).astype(np.int32)
