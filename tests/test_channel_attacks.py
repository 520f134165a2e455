"""Corruption of the teacher's logits and hidden states, by contract and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.attacks.features import FEATURE_ATTACKS, borrow
from protojax.attacks.logits import LOGIT_ATTACKS

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
ROWS = np.array([True, False, True, False, False, True])


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_logit_attacks_touch_the_chosen_rows_only(name, strength):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(LOGITS), jnp.array(ROWS), target=2, strength=strength)
    assert found.shape == LOGITS.shape
    assert found.dtype == LOGITS.dtype
    np.testing.assert_array_equal(found[~ROWS], LOGITS[~ROWS])
    assert (found[ROWS] != LOGITS[ROWS]).any(axis=1).all()


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_a_strong_logit_attack_wins_every_chosen_row(name):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(LOGITS), jnp.array(ROWS), target=2, strength=20.0)
    assert (found[ROWS].argmax(axis=1) == 2).all()


def attacked_row(name, own, target, strength):
    """Returns the logits of one row as the definitions say, in plain Python."""
    if name == "replace":
        return [strength if label == target else 0.0 for label in range(len(own))]
    if name == "add":
        return [x + strength * (label == target) for label, x in enumerate(own)]
    if name == "soften":
        own = [x / 10 for x in own]
    others = [x for label, x in enumerate(own) if label != target] or [0.0]
    return [
        max(others) + strength if label == target else x for label, x in enumerate(own)
    ]


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_logit_attacks_agree_with_a_loop_and_with_jit(name):
    expected = LOGITS.copy()
    for row in np.flatnonzero(ROWS):
        expected[row] = attacked_row(name, LOGITS[row].tolist(), 1, 7.0)

    def attack(logits, rows):
        return LOGIT_ATTACKS[name](logits, rows, target=1, strength=7.0)

    found = attack(jnp.array(LOGITS), jnp.array(ROWS))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(attack)(LOGITS, ROWS), expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize(
    ("logits", "rows"),
    [
        (np.zeros((3, 4), np.float32), np.zeros(3, bool)),
        (np.zeros((1, 4), np.float32), np.ones(1, bool)),
        (np.zeros((3, 1), np.float32), np.ones(3, bool)),
        (np.array([[np.nan, np.inf]], np.float32), np.zeros(1, bool)),
    ],
    ids=["no row reached", "one row", "one class", "clean rows that are not finite"],
)
def test_logit_attacks_at_the_edges(name, logits, rows):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(logits), jnp.array(rows), target=0, strength=2.0)
    expected = np.where(rows[:, None] & (np.arange(logits.shape[1]) == 0), 2.0, logits)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("replace", [4.0, 0.0, 0.0]),
        ("add", [5.0, 2.0, 3.0]),
        ("nudge", [7.0, 2.0, 3.0]),
        ("soften", [4.3, 0.2, 0.3]),
    ],
)
def test_logit_attacks_by_hand(name, expected):
    found = LOGIT_ATTACKS[name](
        jnp.array([[1.0, 2.0, 3.0]]), jnp.array([True]), target=0, strength=4.0
    )
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize("reached", [True, False])
def test_gradients_through_logit_attacks_are_finite(name, reached):
    def total(logits):
        rows = jnp.full(6, reached)
        return LOGIT_ATTACKS[name](logits, rows, target=0, strength=9.0).sum()

    found = jax.grad(total)(jnp.zeros((6, 4)))
    # Each attack shifts or scales a row's sum: replaced rows have no gradient left.
    expected = {"replace": 0.0, "add": 4.0, "nudge": 4.0, "soften": 0.4}[name]
    np.testing.assert_allclose(found.sum(1), expected if reached else 4.0, rtol=1e-6)


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 4), (2,)), {}, r"logits \(3, 4\) and rows \(2,\)"),
        (((3, 4), (3,)), {"target": 4}, "target in 0..3, found target=4"),
        (((3, 4), (3,)), {"target": -1}, "found target=-1"),
        (((3, 4), (3,)), {"strength": 0.0}, "strength > 0, found strength=0.0"),
    ],
)
def test_logit_attacks_reject(name, shapes, options, message):
    logits, rows = jnp.zeros(shapes[0]), jnp.zeros(shapes[1], bool)
    with pytest.raises(ValueError, match=message):
        LOGIT_ATTACKS[name](logits, rows, **{"target": 0, "strength": 1.0, **options})


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_logit_attacks_reject_other_ranks(name):
    with pytest.raises(AssertionError, match="rank"):
        LOGIT_ATTACKS[name](jnp.zeros(3), jnp.zeros(3, bool), target=0, strength=1.0)


FEATURES = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("name", FEATURE_ATTACKS)
def test_feature_attacks_touch_the_chosen_rows_only(name):
    attack, key = FEATURE_ATTACKS[name], jax.random.key(0)
    found = attack(FEATURES, ROWS, ~ROWS, key)
    np.testing.assert_array_equal(found[~ROWS], FEATURES[~ROWS])
    assert (found[ROWS] != FEATURES[ROWS]).any(axis=(1, 2)).all()
    np.testing.assert_allclose(jax.jit(attack)(FEATURES, ROWS, ~ROWS, key), found)


@pytest.mark.parametrize("name", FEATURE_ATTACKS)
def test_without_a_row_of_the_target_features_stay(name):
    found = FEATURE_ATTACKS[name](FEATURES, ROWS, np.zeros(6, bool), jax.random.key(0))
    np.testing.assert_array_equal(found, FEATURES)


def test_the_centre_is_the_mean_of_the_examples():
    found = FEATURE_ATTACKS["move_to_centre"](FEATURES, ROWS, ~ROWS, jax.random.key(0))
    mean = sum(FEATURES[row] for row in np.flatnonzero(~ROWS)) / (~ROWS).sum()
    for row in np.flatnonzero(ROWS):
        np.testing.assert_allclose(found[row], mean, rtol=1e-6)


def test_borrowed_features_are_those_of_examples_and_vary():
    features = np.arange(200, dtype=np.float32)[:, None, None]
    rows = np.arange(200) < 100
    examples = np.arange(200) >= 150
    found = np.asarray(borrow(features, rows, examples, jax.random.key(0))).ravel()
    assert set(found[:100]) <= set(range(150, 200))
    assert len(set(found[:100])) > 30
