"""Buckets of distances between tokens (Raffel et al., 2019, arXiv:1910.10683, T5)."""

import numpy as np


def distance_buckets(
    forward: np.ndarray,
    *,
    bidirectional: bool = True,
    buckets: int = 32,
    max_distance: int = 128,
) -> np.ndarray:
    """The bucket of each distance.

    With both directions, the first half of the buckets is for keys that come before the
    query, the second for those after it; else all are for keys before it, and a key
    after it is in bucket 0. In a direction, half of the buckets hold one distance each,
    the others ever longer ranges of them, and the last all that are longer.

    >>> distance_buckets(np.array([-2, -1, 0, 1, 2])).tolist()
    [2, 1, 0, 17, 18]
    >>> distance_buckets(np.array([-2, 0, 2]), bidirectional=False).tolist()
    [2, 0, 0]

    Args:
        forward: `[...]`, int, the key's place less the query's.
        bidirectional: whether keys after the query have buckets.
        buckets: the number of buckets.
        max_distance: from here on all distances share a bucket.

    Returns:
        `[...]`, int32.
    """
    if bidirectional:
        distance, of_each = np.abs(forward), buckets // 2
    else:
        distance, of_each = np.maximum(-forward, 0), buckets
    exact = of_each // 2
    # In float32 as in PyTorch, so that a distance on a border gets the same bucket.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = (
        growth / np.float32(np.log(max_distance / exact)) * np.float32(of_each - exact)
    )
    wide = np.minimum(exact + growth.astype(np.int32), of_each - 1)
    bucket = np.where(distance < exact, distance, wide)
    if bidirectional:
        bucket = bucket + of_each * (forward > 0)
    return bucket.astype(np.int32)
