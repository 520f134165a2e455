"""Distillation losses between a student's and a teacher's outputs and hidden states.

Every loss returns one value per example; averaging, weighting and `stop_gradient` are
left to the caller. `where` masks the classes or positions that a loss sums over and
must have the stated shape: nothing is broadcast. Sums over classes and dimensions are
float32, and in log space where they are over probabilities. If the logits (divided by
the temperature) or states of both teacher and student are finite, so are the gradients,
even at zero vectors and empty masks; sums of squares (`logit_mse`, "l2",
`attention_transfer`) also need entries below 1e18, whose squares are finite. Inputs
that are not finite give a loss that is not finite, never a small one.

Each is one compiled program where it is called by itself, and part of the caller's
within another; a temperature and other options that are no arrays are constants of it.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import Array
from protojax.prototypes.geometry import METRICS, paired_distance, unit

# The least log probability. Its exponential is 0, and sums of it do not overflow.
_LEAST = -1e30


@functools.partial(jax.jit, static_argnames="temperature", inline=True)
def forward_kl(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    where: Array | None = None,
) -> Array:
    """The distillation loss of Hinton et al.: KL divergence from teacher to student.

    T² · Σ_c p_c (log p_c − log q_c),
    p = softmax(teacher / T), q = softmax(student / T)

    Args:
        student_logits: `[..., classes]`.
        teacher_logits: `[..., classes]`.
        temperature: T > 0; the factor T² keeps the size of the gradient independent
            of it.
        where: of the logits' shape or `[classes]`, the classes that exist; all others
            have probability 0.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the shapes differ, `where` has another, or temperature <= 0.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> round(float(forward_kl(q, p)), 4)
    0.1438

    References:
        Hinton et al., 2015, arXiv:1503.02531.
    """
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature, where)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(
        log_q, log_p, where=where
    )


@functools.partial(jax.jit, static_argnames="temperature", inline=True)
def reverse_kl(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    where: Array | None = None,
) -> Array:
    """The KL divergence from student to teacher, which seeks one mode of the teacher.

    T² · Σ_c q_c (log q_c − log p_c),
    p = softmax(teacher / T), q = softmax(student / T)

    Args:
        student_logits: `[..., classes]`.
        teacher_logits: `[..., classes]`.
        temperature: T > 0.
        where: of the logits' shape or `[classes]`, which classes exist.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the shapes differ, `where` has another, or temperature <= 0.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> round(float(reverse_kl(q, p)), 4)
    0.1308

    References:
        Gu et al., 2023, arXiv:2306.08543, who sample sequences from the student; here
        the sum over classes is exact.
    """
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature, where)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(
        log_p, log_q, where=where
    )


@functools.partial(jax.jit, static_argnames=("beta", "temperature"), inline=True)
def jensen_shannon(
    student_logits: Array,
    teacher_logits: Array,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    where: Array | None = None,
) -> Array:
    """The generalised Jensen-Shannon divergence, which interpolates the two KLs.

    T² · (β KL(p ‖ m) + (1 − β) KL(q ‖ m)),  m = β p + (1 − β) q,
    p = softmax(teacher / T), q = softmax(student / T)

    At β = 0.5 it is symmetric and at most T² log 2.

    Args:
        student_logits: `[..., classes]`.
        teacher_logits: `[..., classes]`.
        beta: the teacher's share in the mixture, in (0, 1).
        temperature: T > 0.
        where: of the logits' shape or `[classes]`, which classes exist.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the shapes differ, `where` has another, or beta or temperature is
            out of its range.

    >>> p, q = jnp.array([50.0, 0.0]), jnp.array([0.0, 50.0])
    >>> round(float(jensen_shannon(q, p)), 4)  # log 2
    0.6931

    References:
        Agarwal et al., 2023, arXiv:2306.13649.
    """
    validate.require(0 < beta < 1, "beta", beta, "in (0, 1)")
    log_q, log_p = _log_softmax(student_logits, teacher_logits, temperature, where)
    # The mixture in log space, where small probabilities do not underflow.
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    kl = optax.losses.kl_divergence_with_log_targets
    teacher_part = kl(log_m, log_p, where=where)
    student_part = kl(log_m, log_q, where=where)
    return temperature**2 * (beta * teacher_part + (1 - beta) * student_part)


@functools.partial(jax.jit, static_argnames="temperature", inline=True)
def logit_mse(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    where: Array | None = None,
) -> Array:
    """The mean squared difference of logits.

    T² · mean_c (student_c / T − teacher_c / T)² = mean_c (student_c − teacher_c)²

    Args:
        student_logits: `[..., classes]`.
        teacher_logits: `[..., classes]`.
        temperature: has no effect, since T² cancels it; accepted so that all
            `DIVERGENCES` have the same signature.
        where: of the logits' shape or `[classes]`, which classes exist.

    Returns:
        `[...]`, float32; 0 where no class exists.

    Raises:
        ValueError: the shapes differ, `where` has another, or temperature <= 0.

    >>> float(logit_mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0

    References:
        Ba and Caruana, 2013, arXiv:1312.6184.
    """
    _check_logits(student_logits, teacher_logits, temperature, where)
    # Widened first: in bfloat16 the difference of near logits would be mostly rounding.
    difference = student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)
    if where is not None:
        where = jnp.broadcast_to(where, difference.shape)
    return _masked_mean(jnp.square(difference), where)


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "logit_mse": logit_mse,
}


@functools.partial(jax.jit, static_argnames="mode", inline=True)
def pool(hidden: Array, attention_mask: Array, *, mode: str = "mean") -> Array:
    """One vector per text, pooled from its hidden states.

    Args:
        hidden: `[batch, length, dim]`.
        attention_mask: `[batch, length]`, 1 on tokens and 0 on padding.
        mode: "mean" over the tokens, or "cls", the first position.

    Returns:
        `[batch, dim]`, float32; zeros for a row without tokens.

    Raises:
        ValueError: the mode is unknown, or the mask has another shape.

    >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> pool(hidden, jnp.array([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    validate.one_of(("mean", "cls"), mode=mode)
    chex.assert_rank(hidden, 3)
    validate.shape(hidden.shape[:2], attention_mask=attention_mask)
    mask = attention_mask.astype(bool)
    if mode == "mean":
        states = jnp.swapaxes(hidden.astype(jnp.float32), 1, 2)
        return _masked_mean(states, jnp.broadcast_to(mask[:, None], states.shape))
    first = hidden[:, 0].astype(jnp.float32)
    # A padding row has no token, and its first state is of padding.
    return jnp.where(jnp.any(mask, axis=1, keepdims=True), first, 0)


@functools.partial(jax.jit, static_argnames="metric", inline=True)
def hidden_state_loss(
    student_hidden: Array,
    teacher_hidden: Array,
    *,
    metric: str = "cosine",
    projection: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The distance of the student's states from the teacher's (hints).

    1 − cos(s W, t)  or  mean_d (s W − t)², averaged over positions where there are any

    Args:
        student_hidden: `[batch, student_dim]` or `[batch, length, student_dim]`.
        teacher_hidden: `[batch, teacher_dim]` or `[batch, length, teacher_dim]`.
        metric: "cosine" or "l2".
        projection: W, `[student_dim, teacher_dim]`, needed where the widths differ.
        where: `[batch, length]`, the positions that count.

    Returns:
        `[batch]`, float32; 0 for a row without positions.

    Raises:
        ValueError: the shapes, including that of `where`, do not fit, or the metric is
            unknown.

    >>> float(hidden_state_loss(jnp.ones((1, 4)), -jnp.ones((1, 4)))[0])
    2.0

    References:
        Romero et al., 2014, arXiv:1412.6550 (FitNets), who take half the *sum* of
        squares over dimensions; with the mean, one weight suits all widths.
    """
    validate.one_of(METRICS, metric=metric)
    if projection is not None:
        student_hidden = jnp.matmul(
            student_hidden.astype(jnp.float32), projection, precision="highest"
        )
    if student_hidden.shape != teacher_hidden.shape:
        raise ValueError(
            "Expected states of the same shape (give a projection where the widths "
            f"differ), found student_hidden.shape={student_hidden.shape}, "
            f"teacher_hidden.shape={teacher_hidden.shape}."
        )
    chex.assert_rank(student_hidden, {2, 3})
    if student_hidden.ndim == 2:
        validate.require(where is None, "where", where, "None for pooled states")
    elif where is not None:
        validate.shape(student_hidden.shape[:2], where=where)
    # On states, the squared error of `logit_mse` is the mean over dimensions.
    if metric == "cosine":
        loss = paired_distance(student_hidden, teacher_hidden)
    else:
        loss = logit_mse(student_hidden, teacher_hidden)
    return _masked_mean(loss, where) if loss.ndim == 2 else loss


@functools.partial(jax.jit, inline=True)
def attention_transfer(
    student_hidden: Array, teacher_hidden: Array, *, where: Array | None = None
) -> Array:
    """The difference between the saliency maps of student and teacher over tokens.

    ‖a_S / ‖a_S‖ − a_T / ‖a_T‖‖²,  a_i = mean_d h_id², the saliency of token i

    The widths may differ without any projection.

    Args:
        student_hidden: `[batch, length, student_dim]`.
        teacher_hidden: `[batch, length, teacher_dim]`.
        where: `[batch, length]`, which positions count.

    Returns:
        `[batch]`, float32, in [0, 2]; 0 for a row without positions.

    Raises:
        ValueError: the numbers of rows or positions differ, also from `where`.

    >>> student = jnp.array([[[1.0], [0.0]]])
    >>> teacher = jnp.array([[[0.0, 0.0], [2.0, 2.0]]])
    >>> float(attention_transfer(student, teacher)[0])
    2.0

    References:
        Zagoruyko and Komodakis, 2016, arXiv:1612.03928, activation-based, p = 2, with
        tokens instead of pixels; the distance is squared, which makes it smooth where
        student and teacher agree.
    """
    chex.assert_rank([student_hidden, teacher_hidden], 3)
    if student_hidden.shape[:2] != teacher_hidden.shape[:2]:
        raise ValueError(
            "Expected the same rows and positions, found "
            f"student_hidden.shape={student_hidden.shape}, "
            f"teacher_hidden.shape={teacher_hidden.shape}."
        )
    if where is not None:
        validate.shape(student_hidden.shape[:2], where=where)

    def saliency(hidden: Array) -> Array:
        activity = jnp.mean(jnp.square(hidden.astype(jnp.float32)), axis=-1)
        # `unit` has a finite gradient at zeros, which all-padding rows have.
        return unit(activity if where is None else jnp.where(where, activity, 0))

    difference = saliency(student_hidden) - saliency(teacher_hidden)
    return jnp.sum(jnp.square(difference), axis=-1)


def _check_logits(
    student: Array, teacher: Array, temperature: float, where: Array | None
) -> None:
    """Raises where logits differ in shape, or a mask fits neither them nor classes."""
    validate.positive(temperature=temperature)
    if student.shape != teacher.shape:
        raise ValueError(
            "Expected logits of the same shape, found "
            f"student_logits.shape={student.shape}, "
            f"teacher_logits.shape={teacher.shape}."
        )
    if where is not None and jnp.ndim(where) != 1:
        validate.shape(student.shape, where=where)
    elif where is not None:
        validate.shape(student.shape[-1:], where=where)


def _log_softmax(
    student: Array, teacher: Array, temperature: float, where: Array | None
) -> tuple[Array, Array]:
    """Log probabilities of student and teacher; 0 at classes that do not exist."""
    _check_logits(student, teacher, temperature, where)

    def log_softmax(logits: Array) -> Array:
        # The difference of two finite logits may overflow, and its gradient be NaN.
        largest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
        gaps = logits - jax.lax.stop_gradient(largest)
        gaps = jnp.where(jnp.isfinite(logits), jnp.maximum(gaps, _LEAST), gaps)
        return jax.nn.log_softmax(gaps)

    def log_probs(logits: Array) -> Array:
        # Widened before the division, so that a high temperature costs no digits.
        logits = logits.astype(jnp.float32) / temperature
        if where is None:
            return log_softmax(logits)
        # Not -inf, with which a row without classes would be NaN; and zeros at the end,
        # because the gradient of a product with -inf is NaN even where it is masked.
        lowest = jnp.finfo(jnp.float32).min
        return jnp.where(where, log_softmax(jnp.where(where, logits, lowest)), 0)

    return log_probs(student), log_probs(teacher)


def _masked_mean(values: Array, where: Array | None) -> Array:
    """The mean over the last axis of the entries in `where`, 0 where there is none."""
    if where is None:
        return jnp.mean(values, axis=-1)
    where = where.astype(bool)
    total = jnp.sum(jnp.where(where, values, 0), axis=-1)
    # At least 1, so that neither value nor gradient is 0 / 0.
    return total / jnp.maximum(jnp.sum(where, axis=-1), 1)
