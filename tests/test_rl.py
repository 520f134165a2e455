"""Advantages and the loss of a policy, against values by hand and exact enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import distillation
from protojax.distillability import calibration_reward
from protojax.rl import advantages, policy
from tests import writers

TASK, CALIBRATION = (1.0, 0.0, 0.0, 1.0), (-3.0, -1.0, -2.0, -6.0)


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (advantages.group_normalize, 0.8658754),
        (functools.partial(advantages.group_normalize, ddof=0), 0.9998000),
        (advantages.centre, 0.5),
        (advantages.leave_one_out, 2 / 3),
    ],
)
def test_advantages_of_a_group(function, size):
    found = function([TASK, (0.1, 0.1, 0.1, 0.1), (5.0, np.nan, np.inf, 7.0)][:2])
    np.testing.assert_allclose(found[0], [size, -size, -size, size], atol=5e-8)
    assert found[1].tolist() == [0, 0, 0, 0]
    # What does not count has no effect, whatever it is.
    masked = function([5.0, np.nan, np.inf, 7.0], where=[True, False, False, True])
    pair = function([5.0, 7.0])
    np.testing.assert_allclose(masked, [pair[0], 0, 0, pair[1]])
    assert function([3.0]).tolist() == [0]
    with pytest.raises(ValueError, match="finite"):
        function([1.0, np.nan])


@pytest.mark.parametrize("function", advantages.ADVANTAGES.values())
def test_groups_do_not_mix(function):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 5))
    found = function(rewards)
    np.testing.assert_allclose(found, [function(group) for group in rewards])
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-12)


def test_the_two_rewards_are_normalised_by_themselves():
    found = advantages.calibrated_advantage(TASK, CALIBRATION, 1.0)
    wanted = [0.8658754, 0.0599018, -0.4029868, -0.5227904]
    np.testing.assert_allclose(found, wanted, atol=5e-8)
    found = advantages.calibrated_advantage(TASK, CALIBRATION, -1.0)
    wanted = [0.8658754, -1.7916527, -1.3287641, 2.2545413]
    np.testing.assert_allclose(found, wanted, atol=5e-8)
    joined = advantages.group_normalize(np.add(TASK, CALIBRATION))
    wanted = [0.2886585, 0.8659754, 0.2886585, -1.4432923]
    np.testing.assert_allclose(joined, wanted, atol=2e-4)


def test_a_wrong_outlier_gains_nothing_where_only_correct_texts_are_calibrated():
    task, outlier = np.ones(8), np.zeros(8)
    task[0], outlier[0] = 0, -50
    exact = functools.partial(advantages.group_normalize, epsilon=0.0)
    given = {"advantage": exact}
    found = advantages.calibrated_advantage(task, outlier, -1.0, **given)
    assert abs(found[0]) < 1e-12
    given["correct_only"] = True
    found = advantages.calibrated_advantage(task, outlier, -1.0, **given)
    assert found[0] == pytest.approx(-2.4748737)


def test_the_gradients_of_kl_estimates_as_losses():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    logits, ids = jnp.log(q), jnp.arange(3)

    def mean(estimate):
        """The mean gradient over draws of q; the draws have no gradient."""

        def loss(logits):
            found = jax.nn.log_softmax(logits)[ids]
            return (q * estimate(found)).sum()

        return jax.jit(jax.grad(loss))(logits)

    reference = jnp.log(p)
    estimates = policy.kl_estimates(jnp.log(q), reference)
    means = [float((q * k).sum()) for k in estimates]
    np.testing.assert_allclose(means, [0.1166225, 0.1394761, 0.1166225], atol=1e-6)
    reverse, forward = [-0.2265473, 0.0266303, 0.1999171], [-0.2, 0.05, 0.15]

    def penalty(found):
        column = functools.partial(jnp.expand_dims, axis=1)
        old, where = jnp.log(q), jnp.ones((3, 1), bool)
        given = column(found), column(old), column(reference)
        return policy.kl_penalty(*given, where)[:, 0]

    found = [
        mean(lambda x, i=i: policy.kl_estimates(x, reference)[i]) for i in range(3)
    ]
    wanted = [[0, 0, 0], reverse, forward, reverse]
    np.testing.assert_allclose([*found, mean(penalty)], wanted, atol=1e-6)


def test_means_of_texts_and_their_gradients():
    where = jnp.array([[True, True, True, False], [True, False, False, False]])
    for bad in (0.0, np.nan, np.inf):
        values = jnp.array([[1.0, 2.0, 3.0, bad], [4.0, bad, bad, bad]])
        for options, wanted, weights in (
            ({}, [2, 4], [1 / 3, 1]),
            ({"normalizer": "constant", "length": 4}, [1.5, 1], [1 / 4, 1 / 4]),
        ):
            mean = functools.partial(policy.text_mean, where=where, **options)
            assert mean(values).tolist() == wanted
            found = jax.grad(lambda x, mean=mean: mean(x).sum())(values)
            wanted = np.where(where, np.array(weights)[:, None], 0)
            np.testing.assert_allclose(found, wanted, atol=1e-7)
    with pytest.raises(ValueError, match="Expected length given"):
        policy.text_mean(values, where, normalizer="constant")


def test_ratios_are_clipped_in_the_direction_of_the_advantage_only():
    log_probs = jnp.log(jnp.array([[1.5], [1.5], [0.5], [0.5], [1.0]]))
    advantage = jnp.array([1.0, -1.0, 1.0, -1.0, 3.0])
    where = jnp.ones((5, 1), bool)

    @jax.jit
    def loss(x):
        return policy.clipped_policy_loss(x, jnp.zeros((5, 1)), advantage, where)

    wanted = [-1.28, 1.5, -0.5, 0.8, -3.0]
    np.testing.assert_allclose(loss(log_probs)[:, 0], wanted, atol=1e-6)
    found = jax.grad(lambda x: loss(x).sum())(log_probs)[:, 0]
    np.testing.assert_allclose(found, [0, 1.5, -0.5, 0, -3], atol=1e-6)


def test_what_is_behind_the_mask_has_no_effect_on_loss_or_gradient():
    where = jnp.array([[True, False]])
    advantage = jnp.array([2.0])

    @jax.jit
    @jax.value_and_grad
    def total(log_probs, other):
        loss = policy.clipped_policy_loss(log_probs, other, advantage, where)
        return (loss + policy.kl_penalty(log_probs, other, other, where)).sum()

    for bad in (0.0, np.nan, np.inf, -1e4):
        given = jnp.array([[-1.0, bad]])
        value, found = total(given, given)
        assert value == -2
        assert found.tolist() == [[-2, 0]]
    # A ratio beyond the range of float32 does not make the gradient NaN.
    far = total(jnp.array([[-1.0, 0.0]]), jnp.array([[-1e4, 0.0]]))[1]
    assert np.isfinite(far).all()


def test_the_mean_reward_is_a_divergence_and_the_loss_has_its_gradient():
    """A model of two tokens out of three, enumerated."""
    rng = np.random.default_rng(0)
    texts = np.array([*itertools.product(range(3), repeat=2)])
    logits = {"first": (3,), "second": (3, 3)}
    teacher = {
        name: jnp.array(rng.normal(size=shape)) for name, shape in logits.items()
    }
    proxy = {name: jnp.array(rng.normal(size=shape)) for name, shape in logits.items()}

    def log_probs(params):
        first = jax.nn.log_softmax(params["first"])[texts[:, 0]]
        second = jax.nn.log_softmax(params["second"])[texts[:, 0], texts[:, 1]]
        return jnp.stack([first, second], axis=1)

    def divergence(params):
        own, other = log_probs(params).sum(1), log_probs(proxy).sum(1)
        return (jnp.exp(own) * (own - other)).sum()

    old = jax.jit(log_probs)(teacher)
    probability = jnp.exp(old.sum(1))
    other = jax.jit(log_probs)(proxy)
    reward = calibration_reward(other.sum(1), old.sum(1))
    value = float((probability * reward).sum())
    wanted, gradient = jax.jit(jax.value_and_grad(divergence))(teacher)
    assert value == pytest.approx(-float(wanted), abs=1e-6)

    def loss(params):
        where = jnp.ones((9, 2), bool)
        found = policy.clipped_policy_loss(log_probs(params), old, reward, where)
        return (probability * found.sum(1)).sum()

    found = jax.jit(jax.grad(loss))(teacher)
    for name in logits:
        np.testing.assert_allclose(found[name], gradient[name], atol=1e-6)


def policy_batch(seed=0):
    sequences = writers.sequence_batch(seed=seed)
    rng = np.random.default_rng(seed)
    shape = sequences.output_ids.shape
    old, reference = (rng.normal(-2, 0.1, shape).astype(np.float32) for _ in range(2))
    rows = len(sequences.input_ids)
    advantages_ = rng.normal(size=rows).astype(np.float32)
    weights = np.full(rows, 0.3, np.float32)
    return policy.PolicyBatch(sequences, advantages_, old, reference, weights)


@pytest.mark.parametrize("normalizer", policy.NORMALIZERS)
def test_the_loss_of_a_batch_is_that_of_its_tokens(normalizer):
    loss_fn = policy.policy_loss(
        writers.writer_apply, writers.writer_head, normalizer=normalizer, chunk=7
    )
    params = distillation.student_params(writers.writer_params())
    batch = policy_batch()
    found, aux = jax.jit(loss_fn)(params, batch, None, 0, None)
    sequences = batch.sequences
    states = writers.writer_apply(params["model"], sequences).states
    logits = np.asarray(writers.writer_head(params["model"], states), np.float64)
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, weights in enumerate(sequences.output_weights):
        total, drift, tokens = 0.0, 0.0, int(weights.sum())
        for t in range(tokens):
            own = shifted[row, t, sequences.output_ids[row, t]]
            ratio = np.exp(own - batch.old_log_probs[row, t])
            near = min(max(ratio, 0.8), 1.28)
            advantage = batch.advantages[row]
            total -= min(ratio * advantage, near * advantage)
            gap = own - batch.reference_log_probs[row, t]
            drift += ratio * (np.exp(-gap) - 1 + gap)
        length = tokens if normalizer == "text" else weights.size
        assert found[row] == pytest.approx((total + 0.3 * drift) / length, rel=1e-4)
        assert aux["kl_loss"][row] == pytest.approx(drift / length, rel=1e-4)


def test_a_row_does_not_depend_on_others():
    loss_fn = jax.jit(policy.policy_loss(writers.writer_apply, writers.writer_head))
    params = distillation.student_params(writers.writer_params())
    one, other = policy_batch(0), policy_batch(1)

    def mixed(own, foreign):
        return np.concatenate([own[:1], foreign[1:]])

    batch = jax.tree.map(mixed, one, other)
    found = [loss_fn(params, given, None, 0, None)[0][0] for given in (one, batch)]
    assert found[0] == found[1]
