"""Attacks on updates: contracts over the registry, and each one's formula."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.attacks import updates as attacks
from protojax.federated import aggregation

NODES = 10
HOSTILE = np.arange(NODES) < 3
ARGS = {"add_noise": {"scale": 0.5}}
ATTACKS = {
    name: functools.partial(attack, **ARGS.get(name, {}))
    for name, attack in attacks.UPDATE_ATTACKS.items()
}


def make_updates(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.float32(rng.normal(size=(NODES, 3, 2)) + 2),
        "bias": jnp.float32(rng.normal(size=NODES) - 1),
    }


def attacked(name, **args):
    return attacks.UPDATE_ATTACKS[name](
        make_updates(), HOSTILE, jax.random.key(0), **args
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_honest_updates_arrive_as_they_were_sent(name):
    updates = make_updates()
    found = ATTACKS[name](updates, HOSTILE, jax.random.key(0))
    for before, after in zip(
        jax.tree.leaves(updates), jax.tree.leaves(found), strict=True
    ):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before[~HOSTILE], after[~HOSTILE])
        assert (np.asarray(before) != np.asarray(after))[HOSTILE].all()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_run_inside_jit(name):
    updates, key = make_updates(), jax.random.key(0)
    jitted = jax.jit(lambda updates, key: ATTACKS[name](updates, HOSTILE, key))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        jitted(updates, key),
        ATTACKS[name](updates, HOSTILE, key),
    )


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"add_noise"}))
def test_nobody_hostile_changes_nothing(name):
    updates = make_updates()
    args = {"deviations": 1.0} if name == "a_little_is_enough" else {}
    found = attacks.UPDATE_ATTACKS[name](
        updates, np.zeros(NODES, bool), jax.random.key(0), **args
    )
    jax.tree.map(np.testing.assert_array_equal, found, updates)


def test_model_replacement_makes_the_mean_its_own():
    # The others stand still, so the boosted mean is the hostile nodes' mean update.
    updates = jax.tree.map(
        lambda leaf: jnp.where(HOSTILE.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0),
        make_updates(),
    )
    found = aggregation.mean(attacks.scale(updates, HOSTILE))
    for leaf, before in zip(
        jax.tree.leaves(found), jax.tree.leaves(updates), strict=True
    ):
        np.testing.assert_allclose(leaf, before[HOSTILE].mean(0), rtol=1e-5)


def test_flipped_updates_are_the_opposite():
    found = attacked("flip_sign", factor=2.0)
    np.testing.assert_allclose(
        found["bias"][HOSTILE], -2 * make_updates()["bias"][HOSTILE]
    )


def test_noise_has_its_scale_and_differs_between_nodes():
    quiet = {"w": jnp.zeros((NODES, 4000))}
    found = attacks.add_noise(quiet, HOSTILE, jax.random.key(1), scale=0.5)["w"]
    np.testing.assert_allclose(np.std(found[:3], axis=1), 0.5, rtol=0.05)
    assert (np.asarray(found[0]) != np.asarray(found[1])).all()


@pytest.mark.parametrize("knowledge", attacks.KNOWLEDGE)
def test_a_little_is_enough_hides_in_the_spread(knowledge):
    known = HOSTILE if knowledge == "own" else ~HOSTILE
    # s = ⌊10 / 2⌋ + 1 − 3 = 3 supporters of 7 honest nodes.
    z = statistics.NormalDist().inv_cdf((7 - 3) / 7)
    found = attacked("a_little_is_enough", knowledge=knowledge)
    for leaf, before in zip(
        jax.tree.leaves(found), jax.tree.leaves(make_updates()), strict=True
    ):
        rows = np.asarray(before, np.float64)[known]
        expected = rows.mean(0) - z * rows.std(0)
        for row in np.asarray(leaf)[HOSTILE]:
            np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("knowledge", attacks.KNOWLEDGE)
def test_inner_products_turn_negative(knowledge):
    known = HOSTILE if knowledge == "own" else ~HOSTILE
    found = attacked("manipulate_inner_product", factor=0.7, knowledge=knowledge)
    rows = np.asarray(make_updates()["kernel"], np.float64)[known]
    np.testing.assert_allclose(
        found["kernel"][0], -0.7 * rows.mean(0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("flip_sign", {"factor": 0.0}, "factor > 0"),
        ("add_noise", {"scale": 0.0}, "scale > 0"),
        ("manipulate_inner_product", {"factor": -1.0}, "factor > 0"),
        ("manipulate_inner_product", {"knowledge": "all"}, "knowledge one of honest"),
        ("a_little_is_enough", {"knowledge": "all"}, "knowledge one of honest"),
    ],
)
def test_bad_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        attacked(name, **args)


@pytest.mark.parametrize("num_hostile", [0, 6])
def test_a_little_is_enough_says_where_no_deviation_follows(num_hostile):
    with pytest.raises(ValueError, match="deviations not 0"):
        attacks.a_little_is_enough(make_updates(), np.arange(NODES) < num_hostile)
