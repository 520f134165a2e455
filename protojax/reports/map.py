"""A map of rows and prototypes: two principal components, drawn as SVG."""

from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT, _EDGE = 640, 420, 14
# More points than this only cost space; rejected rows are all drawn up to it.
_MOST = 1500


class Points(NamedTuple):
    """Where rows and prototypes are drawn.

    Attributes:
        rows: `[drawn, 2]`, in pixels.
        rejected: `[drawn]`, bool.
        numbers: `[drawn]`, int, which rows they are.
        prototypes: `[prototypes, 2]`, in pixels.
    """

    rows: np.ndarray
    rejected: np.ndarray
    numbers: np.ndarray
    prototypes: np.ndarray


def points(
    features: np.ndarray,
    rejected: np.ndarray,
    prototypes: np.ndarray,
    *,
    unit: bool,
    seed: int = 0,
) -> Points:
    """The places of rows and prototypes on the map.

    Args:
        features: `[rows, dim]`.
        rejected: `[rows]`, bool.
        prototypes: `[prototypes, dim]`.
        unit: whether rows are scaled to unit length, as prototypes of the cosine
            metric are.
        seed: of the choice of rows, where there are too many to draw.

    >>> found = points(np.eye(3), np.array([1, 0, 0], bool), np.eye(3)[:1], unit=True)
    >>> found.rows.shape, found.prototypes.shape
    ((3, 2), (1, 2))
    """
    features = np.asarray(features, np.float64)
    if unit:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = features / np.maximum(norms, 1e-12)
    centre = features.mean(0)
    # Of the covariance, which is small however many rows there are.
    axes = np.linalg.eigh(np.cov(features, rowvar=False, ddof=0))[1][:, :-3:-1].T
    order = np.random.default_rng(seed).permutation(len(features))
    # Rejected rows first, so that they are the last to be left out.
    order = order[np.argsort(~rejected[order], kind="stable")][:_MOST]
    flat = [(part - centre) @ axes.T for part in (features[order], prototypes)]
    every = np.concatenate(flat)
    low, high = every.min(0), every.max(0)
    size = np.array([WIDTH, HEIGHT]) - 2 * _EDGE
    scale = size / np.maximum(high - low, 1e-12)
    rows, centres = (np.round(_EDGE + (part - low) * scale, 1) for part in flat)
    return Points(rows, rejected[order], order, centres)
