"""What hostile nodes send in place of their prototypes, by hand."""

import jax
import numpy as np
import pytest

from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.base import Prototypes

# On the host: what an attack makes of it is an array of JAX.
HELD = Prototypes(
    np.float32([[3, 0], [1, 0], [0, 2], [0, 4]]),
    np.int32([0, 1, 1, 2]),
    np.float32([5, 1, 3, 2]),
)
CHANGED = {
    "random_vectors": {"vectors"},
    "move_to_target": {"vectors"},
    "swap_labels": {"labels"},
    "send_nan_vectors": {"vectors"},
    "inflate_counts": {"vectors", "counts"},
}


def sent(name, held=HELD, target=1, seed=0):
    attack = jax.jit(PROTOTYPE_ATTACKS[name], static_argnums=2)
    return attack(held, jax.random.key(seed), target)


@pytest.mark.parametrize("name", PROTOTYPE_ATTACKS)
def test_an_attack_changes_what_it_says_and_no_shape(name):
    found = sent(name)
    for field, before, after in zip(HELD._fields, HELD, found, strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        same = np.array_equal(after, before)
        assert same == (field not in CHANGED[name])


def test_random_vectors_are_ten_times_as_long_and_drawn_by_the_key():
    held = HELD._replace(vectors=np.full((4, 500), 0.3, np.float32))
    found = sent("random_vectors", held).vectors
    assert np.std(found) == pytest.approx(3, rel=0.05)
    np.testing.assert_array_equal(found, sent("random_vectors", held, 2).vectors)
    assert (found != sent("random_vectors", held, seed=1).vectors).all()
    assert not sent("random_vectors", held._replace(vectors=0 * held.vectors))[0].any()


def test_all_prototypes_lie_at_the_centre_of_the_target():
    found = sent("move_to_target").vectors
    np.testing.assert_allclose(found, [[0.5, 1]] * 4)
    # Of a class that the node lacks there is no centre: zeros, and no NaN.
    assert not sent("move_to_target", target=7).vectors.any()
    # Several nodes, each with a centre of its own.
    nodes = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), HELD)
    nodes.vectors[1] *= 2
    both = sent("move_to_target", nodes).vectors
    np.testing.assert_allclose(both[:, 0], [[0.5, 1], [1, 2]])


def test_labels_counts_and_nan_by_hand():
    assert sent("swap_labels", target=2).labels.tolist() == [2, 2, 2, 2]
    assert np.isnan(sent("send_nan_vectors").vectors).all()
    inflated = sent("inflate_counts")
    np.testing.assert_array_equal(inflated.vectors, -HELD.vectors)
    assert (inflated.counts == np.float32(1e30)).all()
