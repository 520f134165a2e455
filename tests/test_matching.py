"""Prototypes of many nodes: order, partners, liars."""

import functools
import itertools

import jax
import numpy as np
import pytest

from protojax.attacks.prototypes import PROTOTYPE_ATTACKS, inflate_counts
from protojax.base import Prototypes
from protojax.federated import aggregation, nodes
from protojax.prototypes import matching

METRICS = ("cosine", "l2")
# One number of nodes and of prototypes in most tests: a merge takes long to compile.
NODES = 8


def make_prototypes(seed, *, labels=(0, 0, 1, 1, 1), dim=4, jitter=0.0):
    """Prototypes around fixed places, each class's in an order of its own."""
    places = np.random.default_rng(99).normal(size=(len(labels), dim))
    rng = np.random.default_rng(seed)
    vectors = places + jitter * rng.normal(size=places.shape)
    counts = rng.integers(1, 20, len(labels))
    return Prototypes(np.float32(vectors), np.int32(labels), np.float32(counts))


def shuffle(prototypes, seed):
    order = np.random.default_rng(seed).permutation(len(prototypes.counts))
    return jax.tree.map(lambda leaf: leaf[order], prototypes)


def cheapest(prototypes, reference, metric):
    """The best order within classes, by trying all."""

    def distance(x, y):
        if metric == "l2":
            return np.linalg.norm(x - y)
        return 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    def cost(order):
        return sum(
            distance(np.asarray(prototypes.vectors[i]), np.asarray(vector))
            for i, vector in zip(order, reference.vectors, strict=True)
        )

    orders = [
        order
        for order in itertools.permutations(range(len(reference.counts)))
        if (prototypes.labels[np.array(order)] == reference.labels).all()
    ]
    return np.array(min(orders, key=cost))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_matching_is_the_cheapest_assignment(metric, seed):
    reference = make_prototypes(seed, jitter=1.0)
    mixed = shuffle(make_prototypes(seed + 10, jitter=1.0), seed)
    found = matching.match_prototypes(mixed, reference, metric=metric)
    order = cheapest(mixed, reference, metric)
    np.testing.assert_array_equal(found.vectors, mixed.vectors[order])
    np.testing.assert_array_equal(found.counts, mixed.counts[order])
    np.testing.assert_array_equal(found.labels, reference.labels)


def test_what_has_no_partner_has_no_counts():
    reference = make_prototypes(0, labels=(0, 0, 0, 1, 1))
    held = make_prototypes(1, labels=(0, 0, 1, 1, 1))
    found = jax.device_get(matching.match_prototypes(held, reference))
    assert sorted((found.counts > 0).tolist()) == [False, *[True] * 4]
    agree = found.labels == reference.labels
    np.testing.assert_array_equal(found.counts > 0, agree)


def test_broken_prototypes_match_nothing():
    reference = make_prototypes(0)
    broken = jax.tree.map(np.copy, reference)
    broken.vectors[1], broken.counts[3] = np.nan, 0
    found = matching.match_prototypes(broken, reference)
    assert (found.counts > 0).tolist() == [True, False, True, False, True]
    assert np.isfinite(found.vectors).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="Expected prototypes of shape"):
        matching.match_prototypes(make_prototypes(0, dim=3), make_prototypes(0))


@pytest.mark.parametrize("metric", METRICS)
def test_merging_averages_partners_by_their_counts(metric):
    sets = [make_prototypes(seed, jitter=0.05) for seed in range(NODES)]
    stacked = nodes.stack([shuffle(s, i) for i, s in enumerate(sets)])
    found = matching.merge_prototypes(stacked, aggregation.mean, metric=metric)
    vectors = np.stack([s.vectors for s in sets]).astype(np.float64)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    counts = np.stack([s.counts for s in sets])
    expected = (vectors * counts[..., None]).sum(0) / counts.sum(0)[:, None]
    if metric == "cosine":
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    order = np.lexsort(np.asarray(found.vectors).T)
    np.testing.assert_allclose(
        np.asarray(found.vectors)[order],
        expected[np.lexsort(expected.T)],
        rtol=1e-5,
        atol=1e-6,
    )
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 1]
    np.testing.assert_allclose(
        np.sort(found.counts), np.sort(counts.mean(0)), rtol=1e-6
    )


def test_one_node_keeps_its_prototypes():
    held = make_prototypes(0)
    found = matching.merge_prototypes(
        jax.tree.map(lambda leaf: leaf[None], held), aggregation.mean, metric="l2"
    )
    jax.tree.map(np.testing.assert_allclose, found, held)


RULES = {
    "median": aggregation.coordinate_median,
    "trimmed_mean": functools.partial(aggregation.trimmed_mean, num_byzantine=2),
    "multi_krum": functools.partial(aggregation.multi_krum, num_byzantine=2),
    "mixed_median": functools.partial(
        aggregation.AGGREGATORS["mixed_median"], num_byzantine=2
    ),
}


@functools.cache
def lie_of(kind):
    return jax.jit(PROTOTYPE_ATTACKS[kind], static_argnums=2)


@pytest.mark.parametrize("kind", PROTOTYPE_ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_liars_do_not_move_merged_prototypes_beyond_the_honest_spread(kind, rule):
    honest = [make_prototypes(seed, jitter=0.05) for seed in range(6)]
    liars = [
        jax.device_get(
            lie_of(kind)(make_prototypes(seed, jitter=0.05), jax.random.key(seed), 1)
        )
        for seed in (6, 7)
    ]
    # The liars come first: where the order is theirs, all would be lost.
    sets = [shuffle(s, i) for i, s in enumerate(liars + honest)]
    stacked = nodes.stack(sets)
    found = matching.merge_prototypes(stacked, RULES[rule], metric="l2")
    places = np.stack([h.vectors for h in honest])  # [honest, prototypes, dim]
    spread = np.linalg.norm(places - places.mean(0), axis=-1).max(0)
    for place, radius, label in zip(
        places.mean(0), spread, honest[0].labels, strict=True
    ):
        nearest = np.linalg.norm(np.asarray(found.vectors) - place, axis=1)
        assert nearest.min() <= radius
        assert found.labels[nearest.argmin()] == label
    assert (np.asarray(found.counts) < 21).all()


def lacking(prototypes, *classes):
    """A node that holds nothing of some classes."""
    gone = np.isin(prototypes.labels, classes)
    return prototypes._replace(
        vectors=np.where(gone[:, None], np.float32(0), prototypes.vectors),
        counts=np.where(gone, np.float32(0), prototypes.counts),
    )


def claiming(far, *, labels):
    """A liar that claims all classes, all in one place."""
    held = make_prototypes(0, labels=labels)
    vectors = np.full_like(held.vectors, far)
    return held._replace(vectors=vectors, counts=np.full_like(held.counts, 5))


# One rule of each kind: by coordinates, by distances to a point, of whole nodes. What
# others make of the nodes that take part is in test_aggregation.py.
SKEWED_RULES = {
    "median": aggregation.coordinate_median,
    "geometric_median": lambda updates, weights=None, where=None: (
        aggregation.geometric_median(updates, where=where)
    ),
    "multi_krum": functools.partial(aggregation.multi_krum, num_byzantine=1),
}


@pytest.mark.parametrize("far", [2.0, 1e3, 1e6, 1e30])
@pytest.mark.parametrize(
    ("metric", "rule"),
    [*(("l2", rule) for rule in SKEWED_RULES), ("cosine", "median")],
)
def test_liars_do_not_own_the_classes_that_honest_nodes_lack(metric, rule, far):
    labels = (0, 0, 1, 1, 2, 2, 3, 3)
    # Who lacks what: class 0 is held by all, 1 and 2 by four, 3 by one of five.
    gaps = [(3,), (3,), (3,), (1,), (2, 3)]
    honest = [
        lacking(make_prototypes(seed, labels=labels, jitter=0.05), *classes)
        for seed, classes in enumerate(gaps)
    ]
    liar = claiming(far, labels=labels)
    sets = [shuffle(s, i) for i, s in enumerate([liar, *honest])]
    stacked = nodes.stack(sets)
    found = matching.merge_prototypes(
        stacked, SKEWED_RULES[rule], num_byzantine=1, metric=metric
    )
    np.testing.assert_array_equal(found.labels, labels)
    # One honest node and one liar hold class 3, and nobody knows who is who.
    np.testing.assert_array_equal(found.counts > 0, np.array(labels) < 3)
    np.testing.assert_array_equal(found.vectors[6:], 0)
    merged = np.asarray(found.vectors)
    for slot, label in enumerate(labels[:6]):
        places = np.stack([h.vectors[slot] for h in honest if h.counts[slot] > 0])
        if metric == "cosine":
            places /= np.linalg.norm(places, axis=-1, keepdims=True)
        spread = np.linalg.norm(places[:, None] - places, axis=-1).max()
        gap = np.linalg.norm(
            merged[None, 2 * label : 2 * label + 2] - places[:1], axis=-1
        )
        assert gap.min() <= spread * (1 + 1e-5)


@pytest.mark.parametrize("num_byzantine", [0, 1, None])
@pytest.mark.parametrize("holders", range(1, 8))
def test_more_than_twice_the_liars_hold_a_prototype(num_byzantine, holders):
    honest = [make_prototypes(seed, jitter=0.05) for seed in range(8)]
    sets = [h if i < holders else lacking(h, 1) for i, h in enumerate(honest)]
    stacked = nodes.stack(sets)
    found = matching.merge_prototypes(
        stacked,
        aggregation.coordinate_median,
        num_byzantine=num_byzantine,
        metric="l2",
    )
    f = 8 // 4 if num_byzantine is None else num_byzantine
    counts = np.asarray(found.counts)
    assert (counts[:2] > 0).all()
    assert ((counts[2:] > 0) == (holders > 2 * f)).all()


def test_a_negative_number_of_liars_is_refused():
    stacked = jax.tree.map(lambda leaf: leaf[None], make_prototypes(0))
    with pytest.raises(ValueError, match="num_byzantine >= 0"):
        matching.merge_prototypes(stacked, aggregation.mean, num_byzantine=-1)


def test_a_mean_is_moved_by_a_liar():
    honest = [make_prototypes(seed, jitter=0.05) for seed in range(NODES - 1)]
    liar = jax.device_get(inflate_counts(honest[0], None, 1))
    stacked = nodes.stack([*honest, liar])
    found = matching.merge_prototypes(stacked, aggregation.mean, metric="l2")
    lies = -np.asarray(honest[0].vectors)
    gaps = np.linalg.norm(np.asarray(found.vectors)[:, None] - lies, axis=-1)
    assert gaps.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_who_claims_all_for_one_class_is_not_what_others_are_matched_to(metric):
    rng = np.random.default_rng(5)
    centres = 3 * rng.normal(size=(5, 4))
    labels = np.array([0, 0, 1, 1, 1], np.int32)
    sets = [
        Prototypes(
            np.float32(centres + 0.1 * rng.normal(size=centres.shape)),
            np.ones_like(labels) if node < 2 else labels,
            np.ones(5, np.float32),
        )
        for node in range(NODES)
    ]
    stacked = nodes.stack(sets)
    found = matching.merge_prototypes(stacked, aggregation.mean, metric=metric)
    expected = centres
    if metric == "cosine":
        expected = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.labels, labels)
    for label in (0, 1):
        merged = np.asarray(found.vectors)[labels == label]
        gaps = np.linalg.norm(merged[:, None] - expected[labels == label], axis=-1)
        assert (gaps.min(0) < 0.3).all()
