"""Partitions of rows over the nodes of a federation.

A partition is a list with the row numbers of each node, ascending. Every row is on
exactly one node and every node has at least one row, so a federation trains on the same
rows as a single machine would. Everything runs on the host in NumPy and is a pure
function of its seed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from protojax import validate


def iid(
    labels: np.ndarray, num_nodes: int, *, rng: np.random.Generator
) -> list[np.ndarray]:
    """A random partition into parts of equal size, up to one row.

    Args:
        labels: `[rows]`; only their number matters.
        num_nodes: how many nodes.
        rng: the source of randomness.

    Returns:
        The rows of each node.

    Raises:
        ValueError: fewer rows than nodes.

    >>> parts = iid(np.zeros(5), 2, rng=np.random.default_rng(0))
    >>> [len(rows) for rows in parts]
    [3, 2]
    """
    _require_rows(labels, num_nodes)
    order = rng.permutation(len(labels))
    # Strides, not blocks: sizes then differ by one row at most.
    return [np.sort(order[node::num_nodes]) for node in range(num_nodes)]


def dirichlet(
    labels: np.ndarray,
    num_nodes: int,
    *,
    rng: np.random.Generator,
    alpha: float = 0.3,
    min_rows: int = 1,
) -> list[np.ndarray]:
    """A partition with label skew: class shares are drawn from Dirichlet(alpha).

    With a smaller alpha each node has fewer classes; at 100 the nodes are nearly alike.
    Their sizes differ too. A node with fewer than `min_rows` rows receives random rows
    of the largest node until it has that many.

    Args:
        labels: `[rows]`, int32 classes.
        num_nodes: how many nodes.
        rng: the source of randomness.
        alpha: concentration, > 0.
        min_rows: the fewest rows of a node.

    Returns:
        The rows of each node.

    Raises:
        ValueError: labels that are scores, alpha not above 0, or too few rows.

    >>> labels = np.repeat([0, 1], 50)
    >>> parts = dirichlet(labels, 2, rng=np.random.default_rng(2), alpha=0.1)
    >>> [np.bincount(labels[rows], minlength=2).tolist() for rows in parts]
    [[45, 0], [5, 50]]

    References:
        Hsu et al., 2019, arXiv:1909.06335, which draws class shares for each node;
        here node shares are drawn for each class, as in Yurochkin et al., 2019,
        arXiv:1905.12022, so that every row is used.
    """
    labels = np.asarray(labels)
    validate.positive(alpha=alpha, min_rows=min_rows)
    validate.require(
        not np.issubdtype(labels.dtype, np.floating), "labels", labels.dtype, "classes"
    )
    _require_rows(labels, num_nodes * min_rows)
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_nodes, alpha))
        # Cuts are rounded, not sizes, which would not add up to the rows.
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for node, part in enumerate(np.split(rows, cuts)):
            owner[part] = node
    # A small alpha can leave a node empty, which could not train.
    while (sizes := np.bincount(owner, minlength=num_nodes)).min() < min_rows:
        given = rng.choice(np.flatnonzero(owner == sizes.argmax()))
        owner[given] = sizes.argmin()
    return [np.flatnonzero(owner == node) for node in range(num_nodes)]


def by_source(
    sources: Sequence[str] | np.ndarray,
    num_nodes: int,
    *,
    rng: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """A partition that gives each node whole sources (sites, newspapers, users).

    The largest sources are placed first, each on the node with the fewest rows, so that
    sizes stay close.

    Args:
        sources: `[rows]`, the source of each row.
        num_nodes: how many nodes.
        rng: not used.

    Returns:
        The rows of each node.

    Raises:
        ValueError: fewer sources than nodes.

    >>> [rows.tolist() for rows in by_source(["a", "b", "a", "c"], 2)]
    [[0, 2], [1, 3]]
    """
    validate.positive(num_nodes=num_nodes)
    names, index, counts = np.unique(
        np.asarray(sources), return_inverse=True, return_counts=True
    )
    validate.require(
        num_nodes <= len(names), "num_nodes", num_nodes, f"<= {len(names)} sources"
    )
    owner, sizes = np.empty(len(names), np.int64), np.zeros(num_nodes, np.int64)
    # Largest first, the greedy rule that balances sums best; stable, so that ties do
    # not depend on the sort.
    for source in np.argsort(-counts, kind="stable"):
        owner[source] = sizes.argmin()
        sizes[owner[source]] += counts[source]
    return [np.flatnonzero(owner[index] == node) for node in range(num_nodes)]


# (labels or sources [rows], num_nodes, *, rng, ...) -> rows of each node.
PARTITIONS: dict[str, Callable[..., list[np.ndarray]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "source": by_source,
}


def class_shares(
    labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """The class mix of each node, `[nodes, num_classes]`; each row sums to 1.

    >>> class_shares(np.array([0, 0, 1]), [np.array([0, 1]), np.array([2])], 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    counts = [np.bincount(labels[rows], minlength=num_classes) for rows in parts]
    return np.array(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)


def _require_rows(labels: np.ndarray, least: int) -> None:
    """Raises where there are fewer rows than the nodes need."""
    validate.positive(num_nodes=least)
    validate.require(len(labels) >= least, "rows", len(labels), f">= {least}")
