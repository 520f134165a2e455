"""The calibration reward, the product of experts and recovery, by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from protojax.distillability import (
    calibration_reward,
    product_of_experts,
    recovery,
    text_log_prob,
)


def chain(seed):
    """A model of two tokens out of three symbols: p(first), p(second | first)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3)


def log_prob(model, text):
    first, second = model
    return np.log(first[text[0]]) + np.log(second[text[0], text[1]])


def test_the_mean_reward_of_a_teachers_texts_is_minus_a_divergence():
    teacher, proxy = chain(0), chain(1)
    texts = list(itertools.product(range(3), repeat=2))
    ours = np.array([log_prob(teacher, text) for text in texts])
    theirs = np.array([log_prob(proxy, text) for text in texts])
    found = np.asarray(calibration_reward(theirs, ours))
    mean = (np.exp(ours) * found).sum()
    # KL of chains by the chain rule, in place of the sum over texts.
    kl = sum(p * np.log(p / q) for p, q in zip(teacher[0], proxy[0], strict=True))
    pairs = zip(teacher[1], proxy[1], strict=True)
    for weight, rows in zip(teacher[0], pairs, strict=True):
        kl += weight * (rows[0] * np.log(rows[0] / rows[1])).sum()
    np.testing.assert_allclose(mean, -kl, rtol=1e-5)


def test_rewards_per_byte():
    found = calibration_reward(
        np.array([-6.0, -3.0]),
        np.array([-2.0, -3.0]),
        per="byte",
        lengths=np.array([8, 0]),
    )
    assert found.tolist() == [-0.5, 0.0]


def test_text_log_prob_reads_only_tokens():
    values = jnp.array([[-1.0, -20.0, jnp.nan], [jnp.inf, -1.0, -2.0]])
    where = jnp.array([[True, True, False], [False, True, True]])
    assert text_log_prob(values, where).tolist() == [-21.0, -3.0]
    assert text_log_prob(values, where, least=-5.0).tolist() == [-6.0, -3.0]
    assert np.isnan(text_log_prob(values[0], jnp.ones(3, bool), least=-5.0))


def test_product_of_experts_at_its_ends():
    teacher, proxy = np.array([2.0, -np.inf]), np.array([0.0, 2.0])
    assert product_of_experts(teacher, proxy, 0).tolist() == teacher.tolist()
    assert product_of_experts(teacher, proxy, 1).tolist() == proxy.tolist()
    mixed = product_of_experts(np.array([2.0, 0.0]), proxy, 0.25)
    assert mixed.tolist() == [1.5, 0.5]


def test_recovery_may_be_negative_or_above_one():
    found = recovery([0.4, 0.2, 0.9], no_teacher=0.4, best=0.8)
    np.testing.assert_allclose(found, [0, -0.5, 1.25])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: calibration_reward(x, x, per="token"), "per one of text, byte"),
        (lambda x: calibration_reward(x, x, per="byte"), "lengths given"),
        (lambda x: calibration_reward(x, x, lengths=x), "lengths None"),
        (lambda x: calibration_reward(x, x[:1]), "teacher_log_prob.shape"),
        (lambda x: text_log_prob(x, x, least=0.0), "least < 0"),
        (lambda x: product_of_experts(x, x[:1], 0.5), "proxy_logits.shape"),
        (lambda x: product_of_experts(x, x, 1.5), r"gamma in \[0, 1\]"),
        (lambda x: recovery(x, no_teacher=0.5, best=0.5), "best > no_teacher=0.5"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call(np.ones(2))
