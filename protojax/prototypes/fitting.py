"""Fitting of prototypes: a few vectors that represent many embeddings.

They are found without labels (`kmeans`), within each class (`class_prototypes`), or by
gradient descent (`learn_prototypes`). A prototype with `counts == 0` represents
nothing (padding, an empty cluster). The metric is "cosine" or "l2" as in
`protojax.prototypes.geometry`; prototypes made under the cosine metric have unit
length. All arithmetic is float32.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from protojax import validate
from protojax.base import Array, Prototypes
from protojax.prototypes._kmeans import best_of_restarts, member_sums
from protojax.prototypes.assignment import nearest_prototype
from protojax.prototypes.geometry import METRICS, distances, unit


def kmeans(
    key: Array,
    embeddings: Array,
    num_prototypes: int,
    *,
    num_iters: int = 25,
    num_restarts: int = 8,
    metric: str = "cosine",
    where: Array | None = None,
) -> Prototypes:
    """The prototypes that represent the rows best (k-means).

    Under "l2" this is Lloyd's algorithm; under "cosine" it is spherical k-means: rows
    and centres are scaled to unit length, and the centres returned have unit length.
    Seeds are drawn by greedy k-means++. The best of `num_restarts` runs is returned.

    Guarantees, each for any `where`:
        - a row outside `where` has no influence;
        - `counts` are the numbers of rows nearest to the vectors returned, and add up
          to the number of rows that count;
        - a cluster that becomes empty moves to the row farthest from its centre;
        - if there are fewer distinct rows than prototypes, the remaining prototypes
          have `counts == 0`.

    Args:
        key: PRNG key.
        embeddings: `[rows, dim]`.
        num_prototypes: number of prototypes, at most the number of rows.
        num_iters: the most iterations; a run stops when its centres no longer move.
        num_restarts: independent runs, one after the other; the cost of a single run is
            commonly 1 to 2 % above that of the best of many.
        metric: "cosine" or "l2".
        where: `[rows]`, bool, the rows that count.

    Returns:
        Prototypes with labels -1.

    Raises:
        ValueError: more prototypes than rows, an argument out of its range, or rows
            that are not finite or, under "l2", whose squares are not. (Under jit
            nothing can be raised; some vectors are then NaN.)

    >>> rows = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> found = kmeans(jax.random.key(0), rows, 2, metric="l2")
    >>> sorted(found.vectors[:, 0].tolist()), found.counts.tolist()
    ([0.5, 10.5], [2.0, 2.0])

    References:
        Lloyd, 1982, "Least squares quantization in PCM"; Arthur and Vassilvitskii,
        2007, "k-means++"; Dhillon and Modha, 2001 (spherical k-means). Greedy seeding
        takes the best of several candidates per step, as scikit-learn does. Departing
        from it, there are three times as many, 3 (2 + ln K), which saves restarts; they
        are drawn without replacement, and the first centre is also chosen this way.
    """
    chex.assert_rank(embeddings, 2)
    validate.one_of(METRICS, metric=metric)
    validate.positive(
        num_prototypes=num_prototypes, num_iters=num_iters, num_restarts=num_restarts
    )
    validate.require(
        num_prototypes <= len(embeddings),
        "num_prototypes",
        num_prototypes,
        f"<= {len(embeddings)} rows",
    )
    if where is None:
        where = np.ones(len(embeddings), bool)
    where = jnp.asarray(where, bool)
    validate.shape((len(embeddings),), where=where)
    _check_finite(embeddings, where, metric)
    return best_of_restarts(
        key, embeddings, where, num_prototypes, num_iters, num_restarts, metric
    )


def _check_finite(embeddings: Array, where: Array, metric: str) -> None:
    """Raises where rows that count are not finite; does nothing under jit."""
    # Values are unknown under jit, where nothing can be raised.
    if isinstance(embeddings, jax.core.Tracer) or isinstance(where, jax.core.Tracer):
        return
    broken = int(_number_of_broken(embeddings, where, metric))
    validate.require(
        not broken, "number of rows with NaN, infinity or overflow", broken, "= 0"
    )


@functools.partial(jax.jit, static_argnames="metric")
def _number_of_broken(embeddings: Array, where: Array, metric: str) -> Array:
    """The number of rows that count and are not finite, by one program."""
    rows = embeddings.astype(jnp.float32)
    if metric == "l2":
        # Squares that overflow would make every distance infinite or NaN.
        rows = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    return jnp.sum(where & ~jnp.all(jnp.isfinite(rows), axis=-1))


def class_prototypes(
    key: Array,
    embeddings: Array,
    labels: Array,
    num_classes: int,
    *,
    num_prototypes: int,
    metric: str = "cosine",
    num_iters: int = 25,
) -> Prototypes:
    """The prototypes of each class, found by k-means within it.

    The prototypes are distributed evenly: each class with rows gets at least one, none
    gets more than it has rows, and otherwise no two classes differ by more than one.
    The function reads the labels on the host, so it does not run under jit.

    Args:
        key: PRNG key.
        embeddings: `[rows, dim]`.
        labels: `[rows]`, int32, from 0 to `num_classes - 1`.
        num_classes: number of classes.
        num_prototypes: number of prototypes over all classes.
        metric: "cosine" or "l2".
        num_iters: the most iterations.

    Returns:
        Prototypes in order of their classes, which are their labels.

    Raises:
        ValueError: fewer prototypes than classes with rows, more than rows, or a label
            out of range.

    >>> rows = jnp.array([[0.0], [2.0], [5.0]])
    >>> labels = jnp.array([0, 0, 1])
    >>> found = class_prototypes(
    ...     jax.random.key(0), rows, labels, 2, num_prototypes=2, metric="l2"
    ... )
    >>> found.vectors[:, 0].tolist(), found.labels.tolist(), found.counts.tolist()
    ([1.0, 5.0], [0, 1], [2.0, 1.0])
    """
    validate.same_length(embeddings=embeddings, labels=labels)
    labels = np.asarray(labels)
    for label in (labels.min(), labels.max()):
        validate.require(
            0 <= label < num_classes, "labels", int(label), f"in [0, {num_classes})"
        )
    sizes = np.bincount(labels, minlength=num_classes)
    shares = _even_shares(sizes, num_prototypes)
    # Every class is padded to the size of the largest, so that one compilation serves
    # all classes with the same share.
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(sizes) - sizes
    parts = []
    for label in np.flatnonzero(shares):
        filled = np.arange(sizes.max()) < sizes[label]
        taken = np.where(filled, starts[label] + np.arange(sizes.max()), 0)
        part = kmeans(
            # By label: a class has the same draws whatever others are present.
            jax.random.fold_in(key, int(label)),
            embeddings[order[taken]],
            int(shares[label]),
            num_iters=num_iters,
            metric=metric,
            where=jnp.asarray(filled),
        )
        labels = np.full(part.labels.shape, label, part.labels.dtype)
        parts.append(part._replace(labels=labels))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.partial(jax.jit, static_argnames=("optimizer", "num_steps", "metric"))
def learn_prototypes(
    embeddings: Array,
    labels: Array,
    init: Prototypes,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    temperature: float = 0.1,
    metric: str = "cosine",
) -> Prototypes:
    """Labelled prototypes learned by gradient descent on the whole batch.

    The objective is the mean of −log P(y | x), where all prototypes of a class count:
    P(c | x) = Σ_{k of class c} exp(−d(x, pₖ) / T) / Σₖ exp(−d(x, pₖ) / T)

    Args:
        embeddings: `[rows, dim]`.
        labels: `[rows]`, int32. Rows of a class without prototypes have no influence.
        init: initial prototypes, vectors `[num_prototypes, dim]`; those with zero
            counts stay unchanged.
        optimizer: the optax optimiser.
        num_steps: number of gradient steps.
        temperature: T; the higher it is, the more prototypes influence a row.
        metric: "cosine" or "l2".

    Returns:
        Prototypes with the labels of `init`; the count of each is the number of rows of
        its class that are nearest to it.

    >>> rows, labels = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])
    >>> init = Prototypes(jnp.array([[0.0], [1.6]]), labels, jnp.ones(2))
    >>> learned = learn_prototypes(
    ...     rows, labels, init, optimizer=optax.sgd(0.1), num_steps=50, metric="l2"
    ... )
    >>> nearest_prototype(rows, init, metric="l2")[0].tolist()
    [1, 1]
    >>> nearest_prototype(rows, learned, metric="l2")[0].tolist()
    [0, 1]

    References:
        Snell et al., 2017, arXiv:1703.05175, who use one prototype per class, the mean
        of learned embeddings; here the embeddings are fixed and the prototypes are
        learned, as in generalised LVQ (Sato and Yamada, 1995).
    """
    alive = init.counts > 0
    own = alive & (init.labels == labels[:, None])
    scored = jnp.any(own, axis=-1)

    def loss(vectors: Array) -> Array:
        found = distances(embeddings, vectors, metric=metric, where=alive)
        scores = -found / temperature
        every = jax.nn.logsumexp(scores, axis=-1, where=alive)
        # For a row whose class has no prototype, both sums are equal and the loss is 0.
        mine = jax.nn.logsumexp(
            scores, axis=-1, where=jnp.where(scored[:, None], own, alive)
        )
        return jnp.sum(every - mine) / jnp.maximum(jnp.sum(scored), 1)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        vectors, opt_state = state
        updates, opt_state = optimizer.update(
            jax.grad(loss)(vectors), opt_state, vectors
        )
        return (optax.apply_updates(vectors, updates), opt_state), None

    start = (init.vectors, optimizer.init(init.vectors))
    (vectors, _), _ = jax.lax.scan(step, start, length=num_steps)
    if metric == "cosine":
        vectors = unit(vectors)
    # An optimiser with weight decay also moves vectors that have no gradient.
    vectors = jnp.where(alive[:, None], vectors, init.vectors)
    learned = init._replace(vectors=vectors)
    index, _ = nearest_prototype(embeddings, learned, metric=metric, where=own)
    return learned._replace(
        counts=jnp.zeros_like(init.counts).at[index].add(scored.astype(jnp.float32))
    )


def update_prototypes(
    prototypes: Prototypes,
    embeddings: Array,
    *,
    decay: float = 0.99,
    where: Array | None = None,
    metric: str = "cosine",
) -> Prototypes:
    """The prototypes moved towards the mean of the rows nearest to them.

    pₖ ← decay · pₖ + (1 − decay) · mean of its rows

    Args:
        prototypes: vectors `[num_prototypes, dim]`.
        embeddings: `[batch, dim]`.
        decay: the weight of the old vector, in [0, 1].
        where: `[batch]`, bool, the rows that count; rows whose distance is not finite
            never do.
        metric: "cosine" (rows and results are scaled to unit length) or "l2".

    Returns:
        Prototypes with the same labels. Counts grow by the number of rows in this
        batch; a prototype without rows stays unchanged.

    Raises:
        ValueError: decay is out of its range, the widths differ, `where` has another
            shape, or the metric is unknown.

    >>> old = Prototypes(jnp.array([[1.0], [9.0]]), jnp.array([0, 1]), jnp.ones(2))
    >>> new = update_prototypes(old, jnp.array([[2.0], [4.0]]), decay=0.5, metric="l2")
    >>> new.vectors[:, 0].tolist(), new.counts.tolist()
    ([2.0, 9.0], [3.0, 1.0])
    """
    validate.fraction(decay=decay)
    index, distance = nearest_prototype(embeddings, prototypes, metric=metric)
    # One row with NaN would make its prototype NaN in all steps to come.
    weights = jnp.isfinite(distance)
    if where is not None:
        validate.shape(weights.shape, where=where)
        weights = weights & where
    rows = embeddings.astype(jnp.float32) if metric == "l2" else unit(embeddings)
    sums, counts = member_sums(
        jnp.where(weights[:, None], rows, 0), weights, index, len(prototypes.counts)
    )
    means = sums / jnp.maximum(counts, 1)[:, None]
    moved = decay * prototypes.vectors + (1 - decay) * means
    if metric == "cosine":
        moved = unit(moved)
    return prototypes._replace(
        vectors=jnp.where(counts[:, None] > 0, moved, prototypes.vectors),
        counts=prototypes.counts + counts,
    )


def _even_shares(sizes: np.ndarray, total: int) -> np.ndarray:
    """The even shares of `total` among classes, none above the size of its class."""
    num_filled = int(np.count_nonzero(sizes))
    validate.require(
        num_filled <= total <= sizes.sum(),
        "num_prototypes",
        total,
        f"from {num_filled} (classes with rows) to {sizes.sum()} (rows)",
    )
    shares = np.zeros_like(sizes)
    for _ in range(total):
        # The smallest share that may still grow, and the first one among equals.
        shares[np.argmin(np.where(shares < sizes, shares, total))] += 1
    return shares
