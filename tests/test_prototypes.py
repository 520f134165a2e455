import functools
import os
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import prototypes
from protojax.base import Prototypes
from protojax.prototypes import _kmeans, fitting, geometry

SNIPS = pathlib.Path(__file__).parents[1] / "experiments/data/snips/train.tsv"

few = hypothesis.settings(max_examples=10, deadline=None)
both_metrics = pytest.mark.parametrize("metric", geometry.METRICS)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def some_prototypes(num=5, dim=3):
    labels = np.arange(num, dtype=np.int32) % 2
    return Prototypes(random(num, dim, seed=1), labels, np.ones(num, np.float32))


def unit_of(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def distance_reference(x, p, metric):
    x, p = np.asarray(x, np.float64), np.asarray(p, np.float64)
    if metric == "l2":
        return np.sqrt(np.sum((x - p) ** 2))
    norms = np.linalg.norm(x) * np.linalg.norm(p)
    return 1 - x @ p / norms if norms else 1.0


def distances_reference(rows, vectors, metric):
    return np.array([[distance_reference(x, p, metric) for p in vectors] for x in rows])


@functools.cache
def jitted(function, **options):
    return jax.jit(functools.partial(function, **options))


# --- distances and the nearest -----------------------------------------------------


@both_metrics
def test_distances_match_numpy_loop_and_eager(metric):
    rows, vectors = random(6, 3), random(5, 3, seed=1)
    rows[0] = 0
    found = jitted(prototypes.distances, metric=metric)(rows, vectors)
    np.testing.assert_allclose(
        found, distances_reference(rows, vectors, metric), atol=1e-6
    )
    np.testing.assert_allclose(
        prototypes.distances(rows, vectors, metric=metric), found, atol=1e-6
    )
    paired = jitted(geometry.paired_distance, metric=metric)(rows[:5], vectors)
    np.testing.assert_allclose(paired, np.diagonal(found[:5]), atol=1e-6)


@both_metrics
def test_distances_stay_in_their_range_and_have_finite_gradients(metric):
    rows = 1000 * random(4, 8)
    vectors = np.concatenate([rows, -rows, np.zeros((1, 8), np.float32)])
    points = np.concatenate([rows, np.zeros((2, 8), np.float32)])

    @jax.jit
    def all_of(rows, vectors, points):
        gradients = [
            jax.grad(lambda x, pairwise=p: pairwise(x, points, metric=metric).sum())
            for p in (prototypes.distances, geometry.paired_distance)
        ]
        return (
            prototypes.distances(rows, vectors, metric=metric),
            geometry.paired_distance(points, points, metric=metric),
            [gradient(points) for gradient in gradients],
        )

    found, paired, gradients = jax.device_get(all_of(rows, vectors, points))
    assert (found >= 0).all()
    assert metric == "l2" or (found <= 2).all()
    assert np.isfinite(gradients).all()
    np.testing.assert_allclose(paired[:4], 0, atol=1e-6)
    np.testing.assert_allclose(paired[4:], float(metric == "cosine"), atol=1e-6)


def test_unit_by_hand():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-5]], np.float32)

    @jax.jit
    def both(x):
        return geometry.unit(x), jax.grad(lambda x: geometry.unit(x).sum())(x)

    found, gradient = both(vectors)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)


def test_distances_name_bad_arguments():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(5, 4\)"):
        prototypes.distances(np.zeros((2, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="metric='cos'"):
        prototypes.distances(np.zeros((2, 3)), np.zeros((5, 3)), metric="cos")


@both_metrics
def test_nearest_prototype_matches_numpy_loop(metric):
    found = some_prototypes()
    found = found._replace(counts=np.array([1, 0, 2, 1, 1.0]))
    rows = random(20, 3)
    where = random(20, 5, seed=2) < 0
    where[3] = False
    index, distance = jitted(prototypes.nearest_prototype, metric=metric)(
        rows, found, where=where
    )
    allowed = np.asarray(where) & (np.asarray(found.counts) > 0)
    every = np.where(allowed, distances_reference(rows, found.vectors, metric), np.inf)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    np.testing.assert_allclose(distance, every.min(axis=1), atol=1e-6)
    assert index.dtype == jnp.int32


def test_small_euclidean_distances_far_from_the_origin_are_exact():
    vectors = np.array([[1000.0, 1000.0], [0.0, 0.0]])
    found = Prototypes(vectors, np.arange(2), np.ones(2))
    row = vectors[:1] + np.array([0.0, 0.125])
    _, distance = jitted(prototypes.nearest_prototype, metric="l2")(row, found)
    np.testing.assert_allclose(distance, [0.125], atol=1e-6)


@functools.partial(jax.jit, static_argnames="metric")
def nearest_distance(rows, vectors, counts, metric):
    found = Prototypes(vectors, np.zeros(len(counts), int), counts)
    return prototypes.nearest_prototype(rows, found, metric=metric)[1]


@few
@hypothesis.given(
    hnp.arrays(np.float32, (7, 3), elements=st.integers(-9, 9)),
    st.permutations(range(4)),
)
@both_metrics
def test_order_and_padding_leave_the_nearest_distance_unchanged(metric, points, order):
    rows, vectors, counts = points[:3], points[3:], np.array([1.0, 2.0, 0.0, 5.0])
    expected = nearest_distance(rows, vectors, counts, metric)
    order = np.array(order)
    np.testing.assert_allclose(
        nearest_distance(rows, vectors[order], counts[order], metric),
        expected,
        atol=1e-6,
    )
    padded = nearest_distance(
        rows, np.concatenate([vectors, rows]), np.append(counts, [0.0] * 3), metric
    )
    np.testing.assert_allclose(padded, expected, atol=1e-6)


@both_metrics
def test_inertia_matches_numpy_loop(metric):
    rows, found = random(20, 3), some_prototypes()
    where = np.arange(20) % 3 > 0
    nearest = distances_reference(rows, found.vectors, metric).min(axis=1)
    costs = nearest if metric == "cosine" else nearest**2
    inertia = jitted(prototypes.inertia, metric=metric)
    np.testing.assert_allclose(inertia(rows, found), costs.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        inertia(rows, found, where=where), costs[np.asarray(where)].sum(), rtol=1e-6
    )


# --- k-means -----------------------------------------------------------------------


def lloyd_reference(rows, seeds, metric, num_iters):
    """Plain Lloyd's iterations; no cluster may run empty."""
    rows, centres = np.asarray(rows, np.float64), np.asarray(seeds, np.float64)
    for _ in range(num_iters):
        index = distances_reference(rows, centres, metric).argmin(axis=1)
        centres = np.stack([rows[index == k].mean(axis=0) for k in range(len(seeds))])
        if metric == "cosine":
            centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres


run_lloyd = jax.jit(_kmeans._lloyd, static_argnums=(3, 4, 5))


@both_metrics
@pytest.mark.parametrize("num_iters", [1, 3])
def test_lloyd_matches_numpy_loop_over_several_blocks(metric, num_iters):
    rows = random(24, 3)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cost, centres, counts = run_lloyd(rows, np.ones(24), rows[:4], 3, num_iters, metric)
    expected = lloyd_reference(rows, rows[:4], metric, num_iters)
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    every = distances_reference(rows, expected, metric)
    members = np.bincount(every.argmin(axis=1), minlength=4)
    np.testing.assert_array_equal(counts, members)
    nearest = every.min(axis=1)
    # For unit vectors the squared Euclidean distance is twice the cosine distance.
    expected_cost = (2 * nearest if metric == "cosine" else nearest**2).sum()
    np.testing.assert_allclose(cost, expected_cost, rtol=1e-5)


def test_empty_cluster_is_put_on_the_farthest_row():
    rows = np.array([[0.0], [1.0], [2.0], [50.0]])
    # No row is nearest to the second seed; after it has moved, the centres are right.
    seeds = np.array([[1.0], [1000.0]])
    _, centres, counts = run_lloyd(rows, np.ones(4), seeds, 1, 25, "l2")
    np.testing.assert_allclose(centres, [[1.0], [50.0]], atol=1e-6)
    np.testing.assert_array_equal(counts, [3, 1])


# All tests of k-means take 24 rows and 4 prototypes where they can: one compilation.


@both_metrics
def test_kmeans_finds_separate_groups_and_counts_them(metric):
    middles = 10 * np.concatenate([np.eye(3), -np.eye(1, 3)])
    groups = np.repeat(np.arange(4), [3, 5, 7, 9])
    rows = middles[groups] + 0.1 * random(24, 3)
    found = prototypes.kmeans(jax.random.key(0), rows, 4, metric=metric)
    index, _ = jitted(prototypes.nearest_prototype, metric=metric)(middles, found)
    found = jax.device_get(found)
    np.testing.assert_array_equal(found.counts[index], [3, 5, 7, 9])
    np.testing.assert_array_equal(found.labels, -1)
    expected = lloyd_reference(
        unit_of(rows) if metric == "cosine" else rows, middles, metric, 1
    )
    np.testing.assert_allclose(found.vectors[index], expected, atol=5e-6)


@both_metrics
def test_kmeans_counts_belong_to_the_vectors_returned(metric):
    rows = random(24, 3)
    # One iteration: far from converged, so stale counts would show.
    found = prototypes.kmeans(
        jax.random.key(1), rows, 4, metric=metric, num_iters=1, num_restarts=1
    )
    index = distances_reference(rows, found.vectors, metric).argmin(axis=1)
    np.testing.assert_array_equal(found.counts, np.bincount(index, minlength=4))


@both_metrics
def test_rows_outside_where_have_no_influence(metric):
    rows, where = random(24, 3), np.arange(24) < 16
    fit = functools.partial(prototypes.kmeans, jax.random.key(0), metric=metric)
    found = fit(rows, 4, where=where)
    garbage = fit(np.where(where[:, None], rows, np.nan), 4, where=where)
    np.testing.assert_array_equal(found.vectors, garbage.vectors)
    assert found.counts.sum() == 16
    # Converged: one more iteration on the other rows changes nothing.
    kept = rows[:16] if metric == "l2" else unit_of(rows[:16])
    expected = lloyd_reference(kept, found.vectors, metric, 1)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


@both_metrics
def test_left_over_prototypes_stand_for_nothing(metric):
    rows = np.tile(random(2, 3), (12, 1))
    found = prototypes.kmeans(jax.random.key(0), rows, 4, metric=metric)
    assert found.counts.sum() == 24
    assert np.isfinite(found.vectors).all()
    np.testing.assert_allclose(
        jitted(prototypes.inertia, metric=metric)(rows, found), 0, atol=1e-5
    )
    for num_rows, expected in ((3, [0, 1, 1, 1]), (4, [1, 1, 1, 1])):
        masked = prototypes.kmeans(
            jax.random.key(0),
            random(24, 3),
            4,
            metric=metric,
            where=np.arange(24) < num_rows,
        )
        np.testing.assert_array_equal(np.sort(masked.counts), expected)


@both_metrics
def test_kmeans_at_the_edges(metric):
    one = prototypes.kmeans(jax.random.key(0), np.ones((1, 3)), 1, metric=metric)
    np.testing.assert_array_equal(one.counts, [1])
    expected = unit_of(np.ones(3)) if metric == "cosine" else np.ones(3)
    np.testing.assert_allclose(one.vectors[0], expected, atol=1e-6)
    zeros = prototypes.kmeans(jax.random.key(0), np.zeros((24, 3)), 4, metric=metric)
    np.testing.assert_array_equal(zeros.vectors, 0)
    assert zeros.counts.sum() == 24


def test_kmeans_works_over_a_node_axis():
    rows, keys = random(2, 24, 3), jax.random.split(jax.random.key(0), 2)
    fit = jax.jit(jax.vmap(lambda key, x: prototypes.kmeans(key, x, 4)))
    stacked = fit(keys, rows)
    for node in range(2):
        alone = prototypes.kmeans(keys[node], rows[node], 4)
        np.testing.assert_allclose(stacked.vectors[node], alone.vectors, atol=1e-5)


def test_kmeans_names_bad_arguments():
    fit = functools.partial(prototypes.kmeans, jax.random.key(0), np.ones((3, 2)))
    with pytest.raises(ValueError, match="num_prototypes=4"):
        fit(4)
    with pytest.raises(ValueError, match="num_prototypes=0"):
        fit(0)
    with pytest.raises(ValueError, match="num_iters=0"):
        fit(2, num_iters=0)
    with pytest.raises(ValueError, match="num_restarts=0"):
        fit(2, num_restarts=0)
    with pytest.raises(ValueError, match="where"):
        fit(2, where=np.ones(4, bool))
    with pytest.raises(ValueError, match="metric"):
        fit(2, metric="l1")


@both_metrics
def test_kmeans_of_100_000_rows_fits_in_a_gigabyte(metric):
    shapes = (
        jax.ShapeDtypeStruct((100_000, 1024), jnp.float32),
        jax.ShapeDtypeStruct((100_000,), bool),
    )
    lowered = _kmeans.best_of_restarts.lower(
        jax.random.key(0), *shapes, 1000, 25, 8, metric
    )
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 1e9


def features(name):
    """Real embeddings that come with scikit-learn or with this repository."""
    pytest.importorskip("sklearn")
    from sklearn import datasets, decomposition, feature_extraction, preprocessing

    if name == "digits":
        return datasets.load_digits().data
    if name == "breast cancer":
        return preprocessing.scale(datasets.load_breast_cancer().data)
    lines = SNIPS.read_text(encoding="utf-8").splitlines()[1:]
    chosen = np.random.default_rng(0).permutation(len(lines))[:2000]
    texts = [lines[i].split("\t")[0] for i in chosen]
    words = feature_extraction.text.TfidfVectorizer().fit_transform(texts)
    return decomposition.TruncatedSVD(64, random_state=0).fit_transform(words)


@pytest.mark.extra
@pytest.mark.parametrize("num_prototypes", [10, 50])
@pytest.mark.parametrize("name", ["digits", "breast cancer", "snips"])
def test_kmeans_is_as_good_as_ten_restarts_of_scikit_learn(name, num_prototypes):
    rows = features(name)
    from sklearn.cluster import KMeans

    expected = KMeans(num_prototypes, n_init=10, random_state=0).fit(rows).inertia_
    rows = jnp.asarray(rows, jnp.float32)
    found = prototypes.kmeans(jax.random.key(0), rows, num_prototypes, metric="l2")
    assert prototypes.inertia(rows, found, metric="l2") <= 1.01 * expected


# --- prototypes of classes ---------------------------------------------------------


def shares_reference(sizes, total):
    """Gives one more to the class with the fewest, over and over."""
    shares = [0] * len(sizes)
    while sum(shares) < total:
        open_classes = [c for c in range(len(sizes)) if shares[c] < sizes[c]]
        shares[min(open_classes, key=lambda c: shares[c])] += 1
    return shares


@few
@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_shares_are_even(sizes, data):
    hypothesis.assume(sum(sizes) > 0)
    filled = sum(size > 0 for size in sizes)
    total = data.draw(st.integers(filled, sum(sizes)))
    shares = fitting._even_shares(np.array(sizes), total)
    assert shares.sum() == total
    for share, size in zip(shares, sizes, strict=True):
        assert min(size, 1) <= share <= size
        # Short of the largest share only where the class has no more rows.
        assert share >= shares.max() - 1 or share == size
    np.testing.assert_array_equal(shares, shares_reference(sizes, total))


@both_metrics
def test_class_prototypes_stand_for_the_rows_of_their_class(metric):
    labels = np.array([0] * 9 + [2] * 2 + [3] * 12)
    rows = random(23, 3) + 4 * labels[:, None]
    found = prototypes.class_prototypes(
        jax.random.key(0), rows, labels, 4, num_prototypes=6, metric=metric
    )
    found = jax.device_get(found)
    np.testing.assert_array_equal(found.labels, [0, 0, 2, 2, 3, 3])
    for label in (0, 2, 3):
        own = found.labels == label
        members = rows[labels == label]
        assert found.counts[own].sum() == len(members)
        index = distances_reference(members, found.vectors[own], metric).argmin(axis=1)
        np.testing.assert_array_equal(
            found.counts[own], np.bincount(index, minlength=own.sum())
        )
    # Each of the two rows of class 2 is a prototype itself.
    np.testing.assert_allclose(
        jitted(prototypes.inertia, metric=metric)(rows[9:11], found), 0, atol=1e-5
    )


@pytest.mark.parametrize("num_prototypes", [1, 5])
def test_class_prototypes_name_bad_totals(num_prototypes):
    with pytest.raises(ValueError, match=f"num_prototypes={num_prototypes}"):
        prototypes.class_prototypes(
            jax.random.key(0),
            random(4, 3),
            np.array([0, 0, 1, 1]),
            2,
            num_prototypes=num_prototypes,
        )


@pytest.mark.parametrize("label", [-1, 2])
def test_class_prototypes_name_bad_labels(label):
    with pytest.raises(ValueError, match=f"labels={label}"):
        prototypes.class_prototypes(
            jax.random.key(0), random(2, 3), np.array([0, label]), 2, num_prototypes=2
        )


def cross_entropy_reference(rows, labels, found, temperature, metric):
    """Mean of −log P(y | x) by loops, over rows whose class has a prototype."""
    losses = []
    for row, label in zip(rows, labels, strict=True):
        scores = np.exp(
            [-distance_reference(row, p, metric) / temperature for p in found.vectors]
        )
        scores = scores * (np.asarray(found.counts) > 0)
        own = np.asarray(found.labels) == label
        if scores[own].sum() > 0:
            losses.append(-np.log(scores[own].sum() / scores.sum()))
    return np.mean(losses)


@both_metrics
def test_one_learning_step_follows_the_gradient_of_the_cross_entropy(metric):
    rows, labels = random(6, 2), np.array([0, 1, 0, 1, 5, 0])  # class 5 has none
    init = some_prototypes(4, 2)._replace(counts=np.array([1.0, 1.0, 0.0, 1.0]))
    if metric == "cosine":
        init = init._replace(vectors=unit_of(init.vectors))
    rate, width = 0.1, 1e-3
    learned = prototypes.learn_prototypes(
        rows,
        labels,
        init,
        optimizer=optax.sgd(rate),
        num_steps=1,
        temperature=0.5,
        metric=metric,
    )
    expected = np.array(init.vectors, np.float64)
    for at in np.ndindex(4, 2):
        ends = []
        for sign in (1, -1):
            moved = np.array(init.vectors, np.float64)
            moved[at] += sign * width
            ends.append(
                cross_entropy_reference(
                    rows, labels, init._replace(vectors=moved), 0.5, metric
                )
            )
        expected[at] -= rate * (ends[0] - ends[1]) / (2 * width)
    if metric == "cosine":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(learned.vectors, expected, atol=1e-5)
    assert np.abs(expected - init.vectors).max() > 1e-3


@both_metrics
def test_learning_separates_what_means_confuse(metric):
    # Two classes whose means coincide in direction and almost in place.
    spread = np.array([[1.0, 0.0], [0.0, 1.0]])
    labels = np.array([0, 1] * 10)
    rows = spread[labels] + 0.05 * random(20, 2)
    init = Prototypes(np.array([[0.69, 0.72], [0.72, 0.69]]), np.arange(2), np.ones(2))
    learned = prototypes.learn_prototypes(
        rows, labels, init, optimizer=optax.adam(0.05), num_steps=40, metric=metric
    )
    nearest = jitted(prototypes.nearest_prototype, metric=metric)
    # The prototypes are numbered by their classes.
    before, after = nearest(rows, init)[0], nearest(rows, learned)[0]
    assert (before == labels).mean() < 0.1
    np.testing.assert_array_equal(after, labels)
    np.testing.assert_array_equal(learned.counts, [10, 10])
    np.testing.assert_array_equal(learned.labels, init.labels)


@both_metrics
def test_learning_leaves_empty_prototypes_alone_and_stays_finite(metric):
    init = some_prototypes()._replace(counts=np.eye(5)[0])
    rows = np.concatenate([np.zeros((1, 3)), init.vectors[:1]])
    learned = prototypes.learn_prototypes(
        rows,
        np.array([0, 1]),
        init,
        optimizer=optax.sgd(0.1),
        num_steps=3,
        metric=metric,
    )
    np.testing.assert_array_equal(learned.vectors[1:], init.vectors[1:])
    assert np.isfinite(learned.vectors).all()
    np.testing.assert_array_equal(learned.counts, [1, 0, 0, 0, 0])


# --- running update ----------------------------------------------------------------


@both_metrics
def test_update_matches_numpy_loop(metric):
    old = some_prototypes()._replace(counts=np.array([1, 0, 2, 1, 1.0]))
    if metric == "cosine":
        old = old._replace(vectors=unit_of(old.vectors))
    rows, where = random(9, 3), np.arange(9) != 4
    update = jitted(prototypes.update_prototypes, metric=metric, decay=0.8)
    new = update(old, np.where(where[:, None], rows, np.nan), where=where)
    every = distances_reference(rows, old.vectors, metric)
    every[:, 1] = np.inf
    index = every.argmin(axis=1)
    for k in range(5):
        members = np.asarray(rows)[where & (index == k)]
        expected = np.asarray(old.vectors[k])
        if len(members):
            if metric == "cosine":
                members = members / np.linalg.norm(members, axis=1, keepdims=True)
            expected = 0.8 * expected + 0.2 * members.mean(axis=0)
            if metric == "cosine":
                expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(new.vectors[k], expected, atol=1e-6)
        assert new.counts[k] == old.counts[k] + len(members)
    np.testing.assert_array_equal(new.labels, old.labels)


def test_prototypes_without_rows_stay_put():
    old = some_prototypes()
    update = jitted(prototypes.update_prototypes)
    nothing = update(old, random(4, 3), where=np.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, nothing, old)
    with pytest.raises(ValueError, match="decay"):
        prototypes.update_prototypes(old, random(4, 3), decay=1.5)


# --- files -------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), (2,)])
def test_saved_prototypes_come_back_bit_by_bit(tmp_path, layers):
    old = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, layers + leaf.shape), some_prototypes()
    )
    path = tmp_path / "prototypes.safetensors"
    digest = prototypes.save_prototypes(path, old)
    new = prototypes.load_prototypes(str(path), expected_hash=digest)
    jax.tree.map(np.testing.assert_array_equal, new, old)
    assert [leaf.dtype for leaf in new] == [leaf.dtype for leaf in old]
    assert list(tmp_path.iterdir()) == [path]
    assert prototypes.save_prototypes(path, new) == digest  # overwrites
    assert prototypes.num_bytes(old) == (2 if layers else 1) * (5 * 3 + 5 + 5) * 4


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "prototypes.safetensors"
    prototypes.save_prototypes(path, some_prototypes())
    content = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, moment, fail)
            with pytest.raises(OSError, match="disk full"):
                prototypes.save_prototypes(path, some_prototypes(2, 2))
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "prototypes.safetensors"
    prototypes.save_prototypes(path, some_prototypes(2, 2))
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"prototypes\.safetensors"):
            prototypes.load_prototypes(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"prototypes\.safetensors"):
        prototypes.load_prototypes(path)


def test_a_replaced_file_is_found_by_the_expected_hash(tmp_path):
    path = tmp_path / "prototypes.safetensors"
    digest = prototypes.save_prototypes(path, some_prototypes())
    other = some_prototypes()._replace(counts=np.full(5, 2, np.float32))
    prototypes.save_prototypes(path, other)
    assert prototypes.load_prototypes(path).counts[0] == 2
    with pytest.raises(ValueError, match=digest):
        prototypes.load_prototypes(path, expected_hash=digest)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        prototypes.load_prototypes(tmp_path / "nothing")
