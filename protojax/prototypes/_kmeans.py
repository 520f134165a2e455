"""The core of k-means: greedy k-means++ seeding and Lloyd's iterations, on device.

Rows are processed in blocks, so that no `[rows, num_prototypes]` matrix is ever in
memory. The public function is `protojax.prototypes.kmeans`.
"""

import functools
import math

import jax
import jax.numpy as jnp

from protojax.base import Array, Prototypes
from protojax.prototypes.geometry import TINY, squared_distances, unit

# Rows of one block: with 1,000 prototypes its distances take 16 MB.
BLOCK_ROWS = 4096


def member_sums(
    rows: Array, weights: Array, index: Array, num_prototypes: int
) -> tuple[Array, Array]:
    """The sums `[num_prototypes, dim]` and counts of the rows assigned to an index."""
    # A product with the one-hot matrix: unlike a scatter, it is fast on accelerators
    # and always adds in the same order.
    members = jax.nn.one_hot(index, num_prototypes) * weights[:, None]
    sums = jnp.matmul(members.T, rows, precision="highest")
    return sums, jnp.sum(members, axis=0)


@functools.partial(
    jax.jit, static_argnames=("num_prototypes", "num_iters", "num_restarts", "metric")
)
def best_of_restarts(
    key: Array,
    embeddings: Array,
    where: Array,
    num_prototypes: int,
    num_iters: int,
    num_restarts: int,
    metric: str,
) -> Prototypes:
    """The prototypes of the best of several runs, on normalised or centred rows."""
    rows = jnp.where(where[:, None], embeddings.astype(jnp.float32), 0)
    if metric == "cosine":
        # For unit vectors ‖x − c‖² = 2 (1 − cos): the same algorithm serves both.
        rows, origin = unit(rows), 0.0
    else:
        # In centred rows, the expanded square loses fewer digits.
        origin = jnp.sum(rows, axis=0) / jnp.maximum(jnp.sum(where), 1)
        rows = jnp.where(where[:, None], rows - origin, 0)
    num_rows = len(rows)
    # Equal blocks for one scan: the padding, fewer rows than blocks, has weight 0.
    num_blocks = -(-num_rows // BLOCK_ROWS)
    padding = -num_rows % num_blocks
    rows = jnp.pad(rows, ((0, padding), (0, 0)))
    weights = jnp.pad(where.astype(jnp.float32), (0, padding))

    def run(key: Array) -> tuple[Array, Array, Array]:
        seeds = _seed(key, rows, weights, num_prototypes)
        return _lloyd(rows, weights, seeds, num_blocks, num_iters, metric)

    # One run after the other: `vmap` would multiply the memory by the restarts.
    costs, centres, counts = jax.lax.map(run, jax.random.split(key, num_restarts))
    # A NaN cost would be the least of all; rows are checked before, outside jit.
    best = jnp.argmin(costs)
    labels = jnp.full(num_prototypes, -1, jnp.int32)
    return Prototypes(centres[best] + origin, labels, counts[best])


def _seed(key: Array, rows: Array, weights: Array, num_prototypes: int) -> Array:
    """The seeds of greedy k-means++: each the best of a few rows drawn by distance²."""
    num_candidates = min(3 * (2 + int(math.log(num_prototypes))), len(rows))

    def step(closest: Array, key: Array) -> tuple[Array, Array]:
        # Rows that coincide with a centre may still be drawn, so there always is one.
        logits = jnp.where(weights > 0, jnp.log(jnp.maximum(closest, TINY)), -jnp.inf)
        # Gumbel noise and top-k draw without replacement in proportion to exp(logits).
        noise = jax.random.gumbel(key, logits.shape)
        drawn, candidates = jax.lax.top_k(logits + noise, num_candidates)
        squares = jnp.minimum(
            closest[:, None], squared_distances(rows, rows[candidates])
        )
        costs = jnp.sum(squares * weights[:, None], axis=0)
        # Masked rows are drawn only if there are too few others; they are never best.
        best = jnp.argmin(jnp.where(jnp.isfinite(drawn), costs, jnp.inf))
        return squares[:, best], candidates[best]

    # Finite, so that its logarithm is; equal for all, so the first draw is uniform.
    nothing_close = jnp.full(len(rows), jnp.finfo(jnp.float32).max)
    _, chosen = jax.lax.scan(step, nothing_close, jax.random.split(key, num_prototypes))
    return rows[chosen]


def _lloyd(
    rows: Array,
    weights: Array,
    seeds: Array,
    num_blocks: int,
    num_iters: int,
    metric: str,
) -> tuple[Array, Array, Array]:
    """The cost, centres and counts after Lloyd's iterations until convergence."""
    num_prototypes = len(seeds)
    blocks = jax.tree.map(
        lambda leaf: leaf.reshape(num_blocks, -1, *leaf.shape[1:]), (rows, weights)
    )

    def assign(centres: Array) -> tuple[Array, Array, Array]:
        def add_block(totals: tuple, block: tuple) -> tuple[tuple, Array]:
            squares = squared_distances(block[0], centres)
            sums = member_sums(*block, jnp.argmin(squares, axis=-1), num_prototypes)
            return jax.tree.map(jnp.add, totals, sums), squares.min(axis=-1) * block[1]

        empty = (jnp.zeros_like(centres), jnp.zeros(num_prototypes))
        (sums, counts), squares = jax.lax.scan(add_block, empty, blocks)
        return sums, counts, squares.reshape(-1)

    def step(state: tuple) -> tuple:
        iteration, centres, _ = state
        sums, counts, squares = assign(centres)
        # The first empty cluster moves to the farthest row, the second to the next.
        farthest_squares, farthest = jax.lax.top_k(squares, num_prototypes)
        rank = jnp.cumsum(counts == 0) - 1
        # Not a row at distance 0, which is a centre already: two would coincide.
        reseeded = ((counts == 0) & (farthest_squares[rank] > 0))[:, None]
        moved = jnp.where(
            counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres
        )
        moved = jnp.where(reseeded, rows[farthest[rank]], moved)
        moved = unit(moved) if metric == "cosine" else moved
        return iteration + 1, moved, jnp.any(moved != centres)

    # Not a scan: no gradient is taken, and a run that has converged stops.
    _, centres, _ = jax.lax.while_loop(
        lambda state: (state[0] < num_iters) & state[2], step, (0, seeds, True)
    )
    # Once more, because the counts in the loop are those of the centres before.
    _, counts, squares = assign(centres)
    return jnp.sum(squares), centres, counts
