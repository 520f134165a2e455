"""DP-SGD against loops over rows, and its accountant against closed forms."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from protojax import distillation
from protojax.distillation import GRADIENTS, gradients
from protojax.distillation.gradients import noise_multiplier_of
from protojax.models import apply_fn
from tests.test_defenses import ENCODER, PRIVATE, batch


@functools.cache
def private(loss_fn, **options):
    options = {**PRIVATE, "noise_multiplier": 0.0, **options}
    return jax.jit(GRADIENTS["dp_sgd"](loss_fn, **options))


def norm_of(tree):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return float(np.linalg.norm(np.concatenate(leaves)))


def distance(a, b):
    return norm_of(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))


def bag_of_words(params, rows, prototypes, step, key):
    """The loss of a model so small that compiling it costs nothing."""
    # A product: the gradient of a gather is a loop, which takes longer to compile.
    words = jax.nn.one_hot(rows.input_ids, 30) @ params["embeddings"]["table"]
    means = words.mean(1)
    logits = jnp.tanh(means) @ params["head"]["kernel"] + params["head"]["bias"]
    own = jnp.take_along_axis(logits, rows.labels[:, None], 1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - own
    return loss, {"own_loss": 2 * loss}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BAG = {
    "embeddings": {"table": draw(30, 4)},
    "head": {"kernel": draw(4, 3, seed=1), "bias": draw(3, seed=2)},
}


@functools.cache
def one_row_of(loss_fn):
    """The loss of a batch of one row and its gradient, compiled once."""
    return jax.jit(
        jax.value_and_grad(
            lambda params, one: loss_fn(params, one, None, 0, None)[0][0]
        )
    )


def by_row(loss_fn, params, rows, clip_norm, *, frozen=()):
    """The sum of clipped gradients, and the losses, one row after the other."""
    total, losses_of = jax.tree.map(np.zeros_like, params), []
    for row in np.flatnonzero(rows.where):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], rows)
        loss, grads = jax.device_get(one_row_of(loss_fn)(params, one))
        for path in (("embeddings", "table"), ("head", "bias")):
            if set(path) & set(frozen):
                grads[path[0]][path[1]] = 0 * grads[path[0]][path[1]]
        scale = min(1.0, clip_norm / norm_of(grads))
        total = jax.tree.map(lambda t, g, scale=scale: t + scale * g, total, grads)
        losses_of.append(float(loss))
    return total, losses_of


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


ROWS = batch(rows=4)._replace(where=np.array([True, True, False, True]))


# Each frozen part with each microbatch, and each of the latter with each norm.
@pytest.mark.parametrize(
    ("frozen", "microbatch", "clip_norm"),
    [
        ((), None, 0.1),
        ((), 2, 100.0),
        (("embeddings",), None, 100.0),
        (("embeddings",), 2, 0.5),
        (("bias", "table"), None, 0.5),
        (("bias", "table"), 2, 0.1),
    ],
)
def test_clipped_gradients_equal_a_loop_over_rows(clip_norm, microbatch, frozen):
    options = {"clip_norm": clip_norm, "microbatch": microbatch, "frozen": frozen}
    found, metrics = private(bag_of_words, **options)(
        BAG, ROWS, None, 0, jax.random.key(0)
    )
    total, losses_of = by_row(bag_of_words, BAG, ROWS, clip_norm, frozen=frozen)
    assert_close(found, jax.tree.map(lambda leaf: leaf / 4.0, total))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses_of), rtol=1e-5)
    np.testing.assert_allclose(metrics["own_loss"], 2 * np.mean(losses_of), rtol=1e-5)


def test_the_gradients_of_an_encoder_are_clipped_too():
    params = distillation.student_params(ENCODER.params)
    # It has no dropout, so that each row's key is of no matter.
    loss_fn = distillation.distillation_loss(apply_fn(ENCODER.config))
    found, _ = private(loss_fn, clip_norm=0.5)(params, ROWS, None, 0, jax.random.key(0))
    total, _ = by_row(loss_fn, params, ROWS, 0.5)
    assert_close(found, jax.tree.map(lambda leaf: leaf / 4.0, total))


def test_one_row_moves_the_sum_by_the_clip_norm_at_most():
    rows, key = batch(), jax.random.key(0)
    grad_fn = private(bag_of_words, clip_norm=0.05)
    whole, _ = grad_fn(BAG, rows, None, 0, key)
    for row in range(5):
        without = rows._replace(where=np.arange(5) != row)
        less, _ = grad_fn(BAG, without, None, 0, key)
        # Of the sum: the gradient is the sum over the expected rows.
        assert 4.0 * distance(whole, less) <= 0.05 * (1 + 1e-4)
        assert distance(whole, less) > 0


def test_a_gradient_that_is_not_finite_counts_as_zero():
    def broken(params, rows, *rest):
        loss, aux = bag_of_words(params, rows, *rest)
        return jnp.where(rows.labels == 2, jnp.nan * loss, loss), aux

    rows = batch(rows=4)._replace(labels=np.array([0, 2, 1, 0], np.int32))
    key = jax.random.key(0)
    grad_fn = private(broken)
    found, _ = grad_fn(BAG, rows, None, 0, key)
    without = rows._replace(where=rows.labels != 2)
    expected, _ = grad_fn(BAG, without, None, 0, key)
    assert distance(found, expected) < 1e-6


def test_one_entry_that_is_not_finite_counts_as_zero():
    def broken(params, rows, *rest):
        loss, aux = bag_of_words(params, rows, *rest)
        # The square root's slope at 0 is infinite, and of one bias only.
        bias = params["head"]["bias"][0]
        return loss + jnp.where(rows.labels == 2, jnp.sqrt(bias - bias), 0.0), aux

    rows = batch(rows=4)._replace(labels=np.array([0, 2, 1, 0], np.int32))
    key = jax.random.key(0)
    found, _ = private(broken, clip_norm=100.0)(BAG, rows, None, 0, key)
    expected, _ = private(bag_of_words, clip_norm=100.0)(BAG, rows, None, 0, key)
    assert abs(found["head"]["bias"][0] - expected["head"]["bias"][0]) > 1e-3
    found = jax.device_get(found)
    rest = found["head"]["bias"].copy()
    rest[0] = expected["head"]["bias"][0]
    found["head"]["bias"] = rest
    assert distance(found, expected) < 1e-6


def test_frozen_parameters_have_no_noise():
    key = jax.random.key(0)
    options = {"noise_multiplier": 1.0, "frozen": ("embeddings",)}
    found, _ = private(bag_of_words, **options)(BAG, ROWS, None, 0, key)
    assert jax.tree.structure(found) == jax.tree.structure(BAG)
    assert norm_of(found["embeddings"]) == 0
    quiet, _ = private(bag_of_words, frozen=("embeddings",))(BAG, ROWS, None, 0, key)
    assert distance(found, quiet) > 0.01


@pytest.mark.parametrize("frozen", [("embeddings", "head"), ("embedding",)])
def test_something_has_to_move_and_names_have_to_exist(frozen):
    grad_fn = private(bag_of_words, frozen=frozen)
    with pytest.raises(ValueError, match="frozen"):
        grad_fn(BAG, batch(), None, 0, jax.random.key(0))


def test_noise_has_the_stated_deviation_and_a_new_draw_each_key():
    params = {**BAG, "unused": np.zeros(2000, np.float32)}

    def grads_of(seed, sigma):
        grad_fn = private(bag_of_words, noise_multiplier=sigma, clip_norm=0.5)
        found, _ = grad_fn(params, batch(), None, 0, jax.random.key(seed))
        return jax.device_get(found)

    quiet, noisy = grads_of(0, 0.0), grads_of(0, 3.0)
    gaps = jax.tree.map(lambda a, b: np.ravel(a - b), noisy, quiet)
    gaps = np.concatenate(jax.tree.leaves(gaps))
    # sigma C / B
    assert gaps.std() == pytest.approx(3.0 * 0.5 / 4.0, rel=0.05)
    assert abs(gaps.mean()) < 4 * gaps.std() / np.sqrt(len(gaps))
    assert distance(noisy, grads_of(1, 3.0)) > 1


def test_the_noise_is_what_the_accountant_says():
    # Figures of the literature's own settings: n = 16,837, batch 32, 1,578 steps.
    settings = {"delta": 1e-5, "sampling_rate": 32 / 16837, "num_steps": 1578}
    sigma = noise_multiplier_of(epsilon=8.0, **settings)
    assert 0.42 < sigma < 0.47
    # One step without sampling is the Gaussian mechanism, whose curve is closed:
    # delta = Phi(1/2s - es) - exp(e) Phi(-1/2s - es).
    sigma = noise_multiplier_of(epsilon=1.0, delta=1e-5, sampling_rate=1.0, num_steps=1)
    normal = scipy.stats.norm.cdf
    delta = normal(0.5 / sigma - sigma) - np.e * normal(-0.5 / sigma - sigma)
    assert delta == pytest.approx(1e-5, rel=0.02)
    assert delta <= 1e-5


def test_a_vacuous_epsilon_has_noise_as_well():
    given = {"delta": 1e-4, "sampling_rate": 0.1, "num_steps": 100}
    sigma = noise_multiplier_of(epsilon=2000.0, **given)
    assert 0.05 < sigma < 0.2
    with gradients._without_warnings():
        assert gradients.epsilon_of(noise=sigma, **given) <= 2000
    with pytest.raises(ValueError, match=r"epsilon < .* 0\.05 gives: give a noise"):
        noise_multiplier_of(epsilon=1e5, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: private(bag_of_words, clip_norm=0.0), "clip_norm > 0"),
        (lambda: private(bag_of_words, noise_multiplier=-1.0), "noise_multiplier >= 0"),
        (lambda: private(bag_of_words, frozen="head"), "a sequence of names"),
        (lambda: private(bag_of_words, expected_rows=0.0), "expected_rows > 0"),
        (
            lambda: noise_multiplier_of(
                epsilon=8.0, delta=1.0, sampling_rate=0.1, num_steps=1
            ),
            r"delta in \(0, 1\)",
        ),
        (
            lambda: noise_multiplier_of(
                epsilon=8.0, delta=1e-5, sampling_rate=0.0, num_steps=1
            ),
            r"sampling_rate in \(0, 1\]",
        ),
    ],
)
def test_private_gradients_reject(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy.clipping", None)
    with pytest.raises(ImportError, match=r"pip install 'protojax\[dp\]'"):
        private(bag_of_words)
