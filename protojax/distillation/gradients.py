"""Gradient rules: how the losses of a batch become one step's gradient."""

import functools
import importlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import Array, GradFn, LossFn, PyTree


def mean_gradient(loss_fn: LossFn) -> GradFn:
    """Returns the gradient of the mean loss over the batch's real rows.

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
    """Returns the mean over the real rows, 0 where there is none."""
    # where, not a product: an infinite loss of a padding row would survive it.
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
    """Returns the sum of clipped gradients of single rows, with Gaussian noise.

    g = (Σ_i clip_C(∇ loss_i) + σ C N(0, I)) / B, where clip_C(v) = v · min(1, C / ‖v‖)

    Needs the extra `[dp]` (jax-privacy clips, dp-accounting accounts).

    Args:
        loss_fn: one loss per row.
        clip_norm: C, the largest norm of a row's gradient, > 0.
        noise_multiplier: σ >= 0, from `noise_multiplier_of`.
        expected_rows: B, the expected rows of a Poisson batch, whatever came.
        microbatch: rows whose gradients are in memory at once, a divisor of the batch;
            None is all of them.
        frozen: names of parameters, or of the modules they are in, that have no
            gradient and no noise (a weight decay still shrinks them), such as
            `("embeddings",)`: two thirds of a small encoder, of which a row uses a few
            hundredths of a percent.

    Returns:
        A `GradFn` whose metrics are those of `mean_gradient`; metrics are not private.

    Formal guarantees:
        * Before the noise, one row more or less moves the sum by at most C; rows that
          only fill the shape move it by nothing.
        * Entries of a row's gradient that are not finite count as zero.
        * With Poisson batches (`batches.plan_poisson`) and the σ of
          `noise_multiplier_of`, all steps together are (ε, δ)-differentially private
          in the rows of the transfer set, towards those who see the student and neither
          metrics nor what the coins and the key were drawn from: take both from the
          system's entropy (`init_state(seed=None)`), not from a seed that is published
          or guessed. The teacher's own training set is not protected. A step whose
          batch is empty adds no noise: δ grows by the chance of one, at most
          steps · exp(−B), which is nothing for B of 32 or more.
        * As far as the noise is Gaussian: it is drawn in float32, by a generator with
          64 bits of key that is not made for cryptography.

    Raises:
        ImportError: the extra is not installed.
        ValueError: a clip norm or expected rows that are not positive, noise below 0;
            a name that no parameter has, or nothing left that is not frozen (these two
            when called).

    References:
        Abadi et al., 2016, arXiv:1607.00133; Ponomareva et al., 2023, arXiv:2303.00654.
    """
    validate.positive(clip_norm=clip_norm, expected_rows=expected_rows)
    validate.non_negative(noise_multiplier=noise_multiplier)
    is_names = not isinstance(frozen, str)
    validate.require(is_names, "frozen", frozen, "a sequence of names")
    clipping = _extra("jax_privacy.clipping")

    def row_loss(moving, row, still, prototypes, step, key):
        # `row` is a batch of one.
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
        prng_argnum=5,
        microbatch_size=microbatch,
    )

    def grad_fn(params, batch, prototypes, step, key):
        key, noise_key = jax.random.split(key)
        moving, still = _split(params, frozen)
        total, rows = clipped(moving, batch, still, prototypes, step, key)
        noise = optax.tree.random_like(noise_key, total)
        scale = noise_multiplier * clip_norm
        grads = jax.tree.map(lambda g, n: (g + scale * n) / expected_rows, total, noise)
        mean = functools.partial(_mean_of_rows, where=batch.where)
        parts = {name: mean(values) for name, values in rows.aux.items()}
        grads = _joined(grads, jax.tree.map(jnp.zeros_like, still))
        return grads, {"loss": mean(rows.values), **parts}

    return grad_fn


def _split(params: PyTree, names: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Returns two trees, None in the place of the other's leaves.

    The second holds what is under one of the names.
    """

    def keys_of(path) -> set[str]:
        return {str(getattr(entry, "key", "")) for entry in path}

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
    """Returns the tree that `_split` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a,
        first,
        second,
        is_leaf=lambda leaf: leaf is None,
    )


@functools.cache
def noise_multiplier_of(
    *, epsilon: float, delta: float, sampling_rate: float, num_steps: int
) -> float:
    """Returns the least noise, to 1e-3, with which `dp_sgd` is (ε, δ)-private.

    Needs the extra `[dp]`; takes seconds.

    Args:
        epsilon: ε > 0.
        delta: δ in (0, 1), below 1 / rows to mean anything.
        sampling_rate: probability of a row to be in a batch, in (0, 1].
        num_steps: steps of the whole run.

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
    accounting = _extra("dp_accounting")
    pld, rdp = _extra("dp_accounting.pld"), _extra("dp_accounting.rdp")

    def event(noise_multiplier: float):
        step = accounting.GaussianDpEvent(noise_multiplier)
        if sampling_rate < 1:
            step = accounting.PoissonSampledDpEvent(sampling_rate, step)
        return accounting.SelfComposedDpEvent(step, num_steps)

    def least(accountant, bracket, tolerance: float) -> float:
        return accounting.calibrate_dp_mechanism(
            accountant, event, epsilon, delta, bracket, tol=tolerance
        )

    # Rényi's bound is quick and loose: it says where the slow and tight one may look.
    loose = least(rdp.RdpAccountant, accounting.LowerEndpointAndGuess(0.05, 1.0), 1e-4)
    tight = accounting.ExplicitBracketInterval(0.6 * loose, 1.01 * loose)
    return least(pld.PLDAccountant, tight, 1e-3)


def _extra(module: str):
    """Returns a module of the extra `[dp]`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is not installed: pip install 'protojax[dp]'"
        ) from error
