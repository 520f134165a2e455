"""Losses of tokens against values by hand and sums over the vocabulary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.distillation import losses
from protojax.distillation.token_losses import (
    masked_mean,
    over_tokens,
    sparse_divergence,
    token_log_probs,
    top_k_targets,
)

TEACHER = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)
STUDENT = np.log([0.4, 0.3, 0.2, 0.1]).astype(np.float32)
GONE = np.log([0.01, 0.01, 0.49, 0.49]).astype(np.float32)


def test_masked_mean_counts_rows_alike():
    values = np.array([[1, 3, 9], [4, 5, 6], [2, 2, 2]], np.float32)
    weights = np.array([[1, 1, 0], [0, 0, 0], [0, 0.5, 0]])
    # The last: a weight below 1 in all makes a row count less, not the same.
    mean = jax.jit(masked_mean)
    np.testing.assert_allclose(mean(values, weights), [2, 0, 1])
    np.testing.assert_array_equal(mean(values[::-1], weights[::-1]), [1, 0, 2])
    slope = jax.jit(jax.grad(lambda v: masked_mean(v, weights).sum()))(values)
    np.testing.assert_array_equal(slope[1], 0)


def test_a_constant_length_learns_how_probable_texts_of_all_lengths_are():
    # Two texts, each half of all: one token and its end, or four and their end. What
    # minimises the mean loss of the first token is their share in its weights.
    first = np.array([[0], [1]])
    weights = (np.arange(5) < np.array([[2], [5]])).astype(np.float32)

    def total(logits, length):
        tokens = token_log_probs(jnp.broadcast_to(logits, (2, 1, 2)), first)
        losses = jnp.pad(-tokens, ((0, 0), (0, 4)))
        return masked_mean(losses, weights, length=length).sum()

    slope = jax.jit(jax.grad(total), static_argnames="length")
    own = jnp.log(jnp.array([5 / 7, 2 / 7]))  # 1/2 against 1/5
    np.testing.assert_allclose(slope(own, length=None), 0, atol=1e-6)
    np.testing.assert_allclose(slope(jnp.zeros(2), length=5), 0, atol=1e-6)
    with pytest.raises(ValueError, match="length"):
        masked_mean(weights, weights, length=0)


def test_what_has_no_weight_has_no_effect_even_if_not_finite():
    values = jnp.array([[1.0, jnp.nan, jnp.inf, 3.0]])
    weights = jnp.array([[1, 0, 0, 1]])
    value, slope = jax.value_and_grad(lambda v: masked_mean(v, weights)[0])(values)
    assert value == 2.0
    np.testing.assert_array_equal(slope, [[0.5, 0, 0, 0.5]])
    assert np.isnan(masked_mean(values, jnp.ones((1, 4))))[0]


def test_token_log_probs_are_those_of_a_softmax():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32) * 50
    ids = rng.integers(0, 5, (2, 3))
    exact = logits.astype(np.float64)
    expected = exact - np.log(np.exp(exact - exact.max()).sum(-1, keepdims=True))
    expected = np.take_along_axis(expected - exact.max(), ids[..., None], -1)[..., 0]
    found = jax.jit(token_log_probs)(logits, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    half = logits.astype(jnp.bfloat16)
    assert jax.eval_shape(token_log_probs, half, ids).dtype == jnp.float32


@functools.partial(jax.jit, static_argnames=("k", "divergence", "temperature"))
def compared(student, teacher, k, divergence="forward_kl", temperature=1.0):
    """The loss and its slope, of the k tokens or (k = 0) of all, in one program."""
    options = {"divergence": divergence, "temperature": temperature}

    def loss(student):
        if k:
            found = sparse_divergence(student, *top_k_targets(teacher, k), **options)
        else:
            dense = losses.DIVERGENCES[divergence]
            found = dense(student, teacher, temperature=temperature)
        return found.sum(), found

    slope, found = jax.grad(loss, has_aux=True)(student)
    return found, slope


@pytest.mark.parametrize(
    ("student", "divergence", "value"),
    [
        (STUDENT, "forward_kl", 0.0304787540),
        (STUDENT, "reverse_kl", 0.0323821119),
        # Without the rest this student, far from both tokens, would have -0.073.
        (GONE, "reverse_kl", 1.4843183),
    ],
)
def test_two_tokens_and_the_rest(student, divergence, value):
    found, _ = compared(student, TEACHER, 2, divergence)
    np.testing.assert_allclose(found, value, rtol=2e-6)


def random_logits(seed, size=9):
    rng = np.random.default_rng(seed)
    return (4 * rng.normal(size=(2, 20, size))).astype(np.float32)


@pytest.mark.parametrize(
    ("divergence", "temperature"),
    [("forward_kl", 2.5), ("reverse_kl", 1.0), ("jensen_shannon", 2.5)],
)
def test_more_tokens_give_more_of_the_dense_divergence(divergence, temperature):
    student, teacher = random_logits(0)
    options = {"divergence": divergence, "temperature": temperature}
    dense, slope = compared(student, teacher, 0, **options)
    # Softened sums do not grow with k, and programs take the time of this test.
    numbers = (1, 3, 8, 9) if temperature == 1 else (9,)
    by_k = [compared(student, teacher, k, **options) for k in numbers]
    for part, reference in zip(by_k[-1], (dense, slope), strict=True):
        np.testing.assert_allclose(part, reference, rtol=1e-5, atol=1e-6)
    if temperature == 1:
        # With one token left out, the rest is that token.
        np.testing.assert_allclose(by_k[-2][0], dense, rtol=1e-5, atol=1e-6)
        assert (by_k[0][0] > -1e-6).all()
        assert all((b[0] > a[0] - 1e-5).all() for a, b in itertools.pairwise(by_k))


def test_a_tiny_rest_keeps_its_digits():
    logits = np.array([40.0, 10.0, 9.0, 8.0], np.float32)
    split = jax.jit(top_k_targets, static_argnums=1)
    _, _, rest = split(logits, 1)
    exact = np.log(np.exp([-30.0, -31.0, -32.0]).sum())
    np.testing.assert_allclose(rest, exact, rtol=1e-6)
    ids, log_probs, rest = split(logits, 4)
    assert ids.tolist() == [0, 1, 2, 3]
    assert np.isfinite(rest)
    assert np.exp(rest) == 0
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_gradients_are_finite_at_extremes(k):
    teacher = np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], np.float32)
    student = np.array([[-1e4, 1e4, 0.0], [1e4, -1e4, -1e4]], np.float32)
    assert all(np.isfinite(part).all() for part in compared(student, teacher, k))


@pytest.mark.parametrize("place", range(4))
def test_a_nan_of_the_student_reaches_the_loss(place):
    student = STUDENT.copy()
    student[place] = np.nan
    assert np.isnan(compared(student, TEACHER, 2)[0])


@pytest.mark.parametrize("chunk", [1, 4, 99])
def test_chunks_change_nothing(chunk):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3, 5, 2)).astype(np.float32)
    second = rng.normal(size=(3, 5)).astype(np.float32)
    found = over_tokens(
        lambda a, b: (a * b[:, None], b + 1), first, second, chunk=chunk
    )
    np.testing.assert_allclose(found[0], first * second[..., None], rtol=1e-6)
    np.testing.assert_allclose(found[1], second + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: masked_mean(jnp.ones((2, 3)), jnp.ones(3)), "weights.shape"),
        (lambda: token_log_probs(jnp.ones((2, 3)), jnp.ones(3, int)), "ids.shape"),
        (lambda: top_k_targets(TEACHER, 5), r"k in 1..4, .*, found k=5"),
        (lambda: top_k_targets(TEACHER, 0), "k in 1..4"),
        (lambda: over_tokens(jnp.sin, jnp.ones((1, 2)), chunk=0), "chunk > 0"),
        (
            lambda: sparse_divergence(
                STUDENT, *top_k_targets(TEACHER, 2), divergence="logit_mse"
            ),
            "divergence one of forward_kl",
        ),
        (
            lambda: sparse_divergence(STUDENT[None], *top_k_targets(TEACHER, 2)),
            "top_ids.shape",
        ),
        (
            lambda: sparse_divergence(
                STUDENT, *top_k_targets(TEACHER, 2), temperature=0
            ),
            "temperature > 0",
        ),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()
