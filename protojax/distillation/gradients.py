"""Gradient rules: from the losses of a batch to the gradient of one step."""

import contextlib
import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import Array, GradFn, LossFn, PyTree


def mean_gradient(loss_fn: LossFn) -> GradFn:
    """The gradient of the mean loss over the batch's real rows.

    g = ∇ Σ_i where_i · loss_i / Σ_i where_i

    Args:
        loss_fn: one loss per row.

    Returns:
        A `GradFn` whose metrics are the mean `loss` and the mean of each aux entry
        named `*_loss`. A batch without a real row gives zero gradients.

    >>> import chex
    >>> from protojax.base import Batch
    >>> rows = jnp.array([1.0, 3.0, 100.0])
    >>> batch = Batch(None, None, None, rows, jnp.array([True, True, False]))
    >>> grad_fn = mean_gradient(lambda w, batch, *_: (w * batch.labels, {}))
    >>> grads, metrics = grad_fn(jnp.array(2.0), batch, None, 0, None)
    >>> float(grads), float(metrics["loss"])
    (2.0, 4.0)
    """

    def grad_fn(params, batch, prototypes, step, key):
        mean = functools.partial(_mean_of_rows, where=batch.where)

        def objective(params):
            loss, aux = loss_fn(params, batch, prototypes, step, key)
            parts = {name: mean(aux[name]) for name in aux if name.endswith("_loss")}
            return mean(loss), parts

        (loss, parts), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, {"loss": loss, **parts}

    return grad_fn


def _mean_of_rows(values: Array, *, where: Array) -> Array:
    """The mean over the real rows, 0 where there is none."""
    # `where`, not a product: 0 times an infinite loss of a padding row is NaN.
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def dp_sgd(
    loss_fn: LossFn,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_rows: float,
    microbatch: int | None = None,
    frozen: Sequence[str] = (),
) -> GradFn:
    """The noisy mean of clipped gradients of single rows (DP-SGD).

    g = (Σ_i clip_C(∇ loss_i) + σ C N(0, I)) / B, where clip_C(v) = v · min(1, C / ‖v‖)

    Needs the extra `[dp]` (jax-privacy clips, dp-accounting accounts).

    Args:
        loss_fn: one loss per row.
        clip_norm: C, the largest norm of a row's gradient, > 0.
        noise_multiplier: σ >= 0, from `noise_multiplier_of`.
        expected_rows: B, the expected number of rows of a Poisson batch, whatever its
            real number.
        microbatch: rows whose gradients are in memory at once, a divisor of the batch;
            None means all of them.
        frozen: names of parameters, or of the modules they are in, that get no gradient
            and no noise (weight decay still shrinks them), such as `("embeddings",)`.
            Embeddings are two thirds of a small encoder, and a row uses only a few
            hundredths of a percent of them.

    Returns:
        A `GradFn` whose metrics are those of `mean_gradient`; metrics are not private.

    Formal guarantees:
        * Before the noise, adding or removing one row changes the sum by at most C;
          padding rows do not change it.
        * Entries of a row's gradient that are not finite count as zero.
        * With Poisson batches (`batches.plan_poisson`) and the σ of
          `noise_multiplier_of`, all steps together are (ε, δ)-differentially private in
          the rows of the transfer set. The adversary sees the student, but neither the
          metrics nor the randomness of batches and noise: take both from the system's
          entropy (`init_state(seed=None)`), not from a seed that is published or can
          be guessed. The teacher's own training set is not protected. A step whose
          batch is empty adds no noise: δ grows by the probability of such a step, at
          most steps · exp(−B), which is negligible for B of 32 or more.
        * This holds as far as the noise is Gaussian: it is drawn in float32, by a
          generator with a key of 64 bits that is not cryptographically secure.

    Raises:
        ImportError: the extra is not installed.
        ValueError: a clip norm or expected rows that are not positive, or noise below
            0; when the gradient is computed, a name that no parameter has, or no
            parameter that is not frozen.

    References:
        Abadi et al., 2016, arXiv:1607.00133; Ponomareva et al., 2023, arXiv:2303.00654.
    """
    validate.positive(clip_norm=clip_norm, expected_rows=expected_rows)
    validate.non_negative(noise_multiplier=noise_multiplier)
    # A string is a sequence of letters, none of which names a parameter.
    is_names = not isinstance(frozen, str)
    validate.require(is_names, "frozen", frozen, "a sequence of names")
    clipping = validate.extra("jax_privacy.clipping", "dp")

    def row_loss(moving, row, still, prototypes, step, key):
        # `row` is a batch of one. Padding rows have loss 0, hence no gradient.
        params = _joined(moving, still)
        loss, aux = loss_fn(params, row, prototypes, step, key)
        parts = {name: aux[name][0] for name in aux if name.endswith("_loss")}
        return jnp.where(row.where[0], loss[0], 0.0), parts

    clipped = clipping.clipped_grad(
        row_loss,
        has_aux=True,
        l2_clip_norm=clip_norm,
        batch_argnums=1,
        return_values=True,
        # A key of its own for each row, or all would share one dropout mask.
        prng_argnum=5,
        microbatch_size=microbatch,
    )

    def grad_fn(params, batch, prototypes, step, key):
        # Noise must be independent of the draws that the losses depend on.
        key, noise_key = jax.random.split(key)
        moving, still = _split(params, frozen)
        # Frozen parameters are split off: noise on them would only harm the model.
        total, rows = clipped(moving, batch, still, prototypes, step, key)
        # Noise is scaled to the sum, of which one row moves at most the clip norm.
        noise = optax.tree.random_like(noise_key, total)
        scale = noise_multiplier * clip_norm
        # By the expected number: the real one of a Poisson batch depends on the rows,
        # and would have to be protected itself.
        grads = jax.tree.map(lambda g, n: (g + scale * n) / expected_rows, total, noise)
        mean = functools.partial(_mean_of_rows, where=batch.where)
        parts = {name: mean(values) for name, values in rows.aux.items()}
        # Zeros in place of frozen leaves keep the tree that the optimiser expects.
        grads = _joined(grads, jax.tree.map(jnp.zeros_like, still))
        return grads, {"loss": mean(rows.values), **parts}

    return grad_fn


def _split(params: PyTree, names: Sequence[str]) -> tuple[PyTree, PyTree]:
    """The parameters as two trees, each with None where the other has a leaf.

    The second holds the leaves under one of the names.
    """

    def keys_of(path) -> set[str]:
        return {str(getattr(entry, "key", "")) for entry in path}

    # A misspelt name would freeze nothing without notice.
    paths = [keys_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    for name in names:
        validate.one_of(sorted(set().union(*paths)), frozen=name)
    left = any(keys.isdisjoint(names) for keys in paths)
    validate.require(left, "frozen", names, "to leave some parameter")
    pick = jax.tree_util.tree_map_with_path
    return (
        pick(lambda p, leaf: leaf if keys_of(p).isdisjoint(names) else None, params),
        pick(lambda p, leaf: None if keys_of(p).isdisjoint(names) else leaf, params),
    )


def _joined(first: PyTree, second: PyTree) -> PyTree:
    """The tree whose two parts `_split` returned."""
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        first,
        second,
        is_leaf=lambda leaf: leaf is None,
    )


# The least noise that is searched for, and the ε above which its loose bound will do:
# the tight one takes minutes there.
_LEAST, _VACUOUS = 0.05, 100.0


# The search takes seconds, and each seed of a study asks the same.
@functools.cache
def noise_multiplier_of(
    *, epsilon: float, delta: float, sampling_rate: float, num_steps: int
) -> float:
    """The smallest noise, to 1e-3, with which `dp_sgd` is (ε, δ)-private.

    Needs the extra `[dp]`; takes seconds. Above an ε of 100, which promises nothing,
    the noise may be larger than it has to be, never smaller.

    Args:
        epsilon: ε > 0.
        delta: δ in (0, 1); it should be below 1 / rows to be meaningful.
        sampling_rate: the probability that a row is in a batch, in (0, 1].
        num_steps: number of steps of the whole run.

    Returns:
        σ, in units of the clip norm, for adding or removing one row.

    Raises:
        ImportError: the extra is not installed.
        ValueError: an argument out of its bounds.

    References:
        Koskela, Jälkö and Honkela, 2020, arXiv:1906.03049 (privacy loss distributions).
    """
    validate.positive(epsilon=epsilon, num_steps=num_steps)
    validate.require(0 < delta < 1, "delta", delta, "in (0, 1)")
    bound = "in (0, 1]"
    validate.require(0 < sampling_rate <= 1, "sampling_rate", sampling_rate, bound)
    accounting = validate.extra("dp_accounting", "dp")
    pld, rdp = (
        validate.extra("dp_accounting.pld", "dp"),
        validate.extra("dp_accounting.rdp", "dp"),
    )
    event = functools.partial(_event, sampling_rate=sampling_rate, num_steps=num_steps)

    def least(accountant, bracket, tolerance: float) -> float:
        return accounting.calibrate_dp_mechanism(
            accountant, event, epsilon, delta, bracket, tol=tolerance
        )

    # The Rényi bound is fast and loose; it gives the bracket for the slow, tight one.
    with _without_warnings():
        most = rdp.RdpAccountant().compose(event(_LEAST)).get_epsilon(delta)
        bound = f"< {most:.4g}, which a noise of {_LEAST} gives: give a noise instead"
        validate.require(epsilon < most, "epsilon", epsilon, bound)
        guess = accounting.LowerEndpointAndGuess(_LEAST, 1.0)
        loose = least(rdp.RdpAccountant, guess, 1e-4)
    if epsilon > _VACUOUS:
        return loose
    tight = accounting.ExplicitBracketInterval(0.6 * loose, 1.01 * loose)
    # Of losses on a coarse grid, ten times as fast: ε is never understated.
    coarse = functools.partial(pld.PLDAccountant, value_discretization_interval=1e-3)
    found = least(coarse, tight, 2e-4)
    fine = pld.PLDAccountant().compose(event(found - 1e-3)).get_epsilon(delta)
    return found if fine > epsilon else least(pld.PLDAccountant, tight, 1e-3)


@functools.cache
def epsilon_of(
    *, noise: float, delta: float, sampling_rate: float = 1.0, num_steps: int = 1
) -> float:
    """ε of a Gaussian mechanism that is used several times, an upper bound.

    Needs the extra `[dp]`.

    Args:
        noise: its deviation in units of the sensitivity, > 0.
        delta: δ.
        sampling_rate: the probability that a row takes part.
        num_steps: how often it is used.

    Raises:
        ImportError: the extra is not installed.

    References:
        Mironov, 2017, arXiv:1702.07476 (Rényi differential privacy).
    """
    rdp = validate.extra("dp_accounting.rdp", "dp")
    event = _event(noise, sampling_rate=sampling_rate, num_steps=num_steps)
    # Orders near 1 as well, which matter where ε is large.
    orders = [1 + 10**power for power in (-4, -3.5, -3, -2.5, -2, -1.5)]
    orders += [1 + x / 10 for x in range(1, 100)] + [*range(12, 64), 128, 256, 512]
    return float(rdp.RdpAccountant(orders).compose(event).get_epsilon(delta))


def _event(noise: float, *, sampling_rate: float, num_steps: int):
    """The event that accountants count: steps of Gaussian noise on Poisson batches."""
    accounting = validate.extra("dp_accounting", "dp")
    step = accounting.GaussianDpEvent(noise)
    # With all rows in every batch there is no amplification by sampling.
    if sampling_rate < 1:
        step = accounting.PoissonSampledDpEvent(sampling_rate, step)
    return accounting.SelfComposedDpEvent(step, num_steps)


@contextlib.contextmanager
def _without_warnings():
    """A block in which it is not said that orders were left out of a loose bound."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
