"""Measures of what stands between a teacher and a student that writes.

Three traps hold back students that copy a teacher's probabilities of tokens:

- tail noise: much of the gradient comes from tokens that the teacher hardly writes;
- off-policy drift: the student is taught where the teacher goes, and is wrong where it
  goes itself, from where not even the teacher may find back;
- the gap: the teacher writes in a manner that the student cannot carry out.

A fourth figure guards the teacher: whether right answers come with right steps. The
first functions are of logits, token by token; the others of arrays on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.base import Array
from protojax.distillation import losses
from protojax.distillation.token_losses import token_log_probs, top_k_targets

# The divergences whose slope at the student's logits is known in closed form.
SLOPES = ("forward_kl", "reverse_kl")


class Readings(NamedTuple):
    """The readings of tokens by two models.

    Attributes:
        teacher_log_prob: `[...]`, float32, of the token.
        student_log_prob: `[...]`, float32.
        forward_kl: `[...]`, float32, KL(teacher ‖ student) at the token, nats.
        reverse_kl: `[...]`, float32, KL(student ‖ teacher).
        overlap: `[...]`, float32, see `overlap`.
        tail_mass: `[...]`, float32, see `tail_mass`.
        tail_share: `[...]`, float32, see `tail_gradient_share`.
    """

    teacher_log_prob: Array
    student_log_prob: Array
    forward_kl: Array
    reverse_kl: Array
    overlap: Array
    tail_mass: Array
    tail_share: Array


def token_readings(
    student_logits: Array, teacher_logits: Array, ids: Array, *, k: int
) -> Readings:
    """All figures of tokens, for `token_losses.over_tokens`, which bounds the memory.

    Args:
        student_logits: `[..., vocabulary]`.
        teacher_logits: `[..., vocabulary]`.
        ids: `[...]`, int32, the tokens that were written.
        k: the tokens of the teacher that are no tail.

    Raises:
        ValueError: the shapes differ, or k is out of its bounds.

    >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> found = token_readings(jnp.zeros(3), logits, jnp.int32(0), k=1)
    >>> round(float(found.tail_mass), 4), round(float(found.overlap), 4)
    (0.3, 0.6333)
    """
    return Readings(
        token_log_probs(teacher_logits, ids),
        token_log_probs(student_logits, ids),
        losses.forward_kl(student_logits, teacher_logits),
        losses.reverse_kl(student_logits, teacher_logits),
        overlap(student_logits, teacher_logits),
        tail_mass(teacher_logits, k),
        tail_gradient_share(student_logits, teacher_logits, k),
    )


def tail_mass(logits: Array, k: int) -> Array:
    """The probability outside the k most probable tokens.

    Args:
        logits: `[..., vocabulary]`.
        k: in 1..vocabulary.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: k is out of its bounds.

    >>> round(float(tail_mass(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), 2)), 4)
    0.2
    """
    return jnp.exp(top_k_targets(logits, k)[2])


def tail_gradient_share(
    student_logits: Array,
    teacher_logits: Array,
    k: int,
    *,
    divergence: str = "forward_kl",
) -> Array:
    """The share of a loss's squared slope that comes from the teacher's tail.

    Σ_{v outside top k} g_v² / Σ_v g_v², with the slope g at the student's logits
    g = q − p of the forward, and g = q (log q/p − KL(q‖p)) of the reverse divergence

    Shares of the top k and of the tail add to 1. The top k are those of the teacher.

    Args:
        student_logits: `[..., vocabulary]`.
        teacher_logits: `[..., vocabulary]`.
        k: in 1..vocabulary.
        divergence: "forward_kl" or "reverse_kl".

    Returns:
        `[...]`, float32, in [0, 1]; 0 where both models agree.

    Raises:
        ValueError: the shapes differ, k or the divergence is out of its bounds.

    >>> p, q = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.5, 0.25, 0.25])
    >>> share = tail_gradient_share(jnp.log(q), jnp.log(p), 2)  # of (-.2, .05, .15)
    >>> round(float(share), 4)
    0.3462
    """
    validate.one_of(SLOPES, divergence=divergence)
    validate.shape(jnp.shape(teacher_logits), student_logits=student_logits)
    bound = f"in 1..{teacher_logits.shape[-1]}, the vocabulary"
    validate.require(1 <= k <= teacher_logits.shape[-1], "k", k, bound)
    log_q = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    log_p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32))
    q = jnp.exp(log_q)
    if divergence == "forward_kl":
        slope = q - jnp.exp(log_p)
    else:
        # Where q is 0, its product with a log ratio that is not finite is 0.
        terms = jnp.where(q > 0, q * (log_q - log_p), 0)
        slope = terms - q * terms.sum(-1, keepdims=True)
    squares = jnp.square(slope)
    ids = jax.lax.top_k(log_p, k)[1]
    tail = jnp.put_along_axis(squares, ids, 0, axis=-1, inplace=False).sum(-1)
    total = squares.sum(-1)
    return jnp.where(total > 0, tail / jnp.where(total > 0, total, 1), 0)


def overlap(student_logits: Array, teacher_logits: Array) -> Array:
    """The probability that two models share: 1 minus their total variation.

    Σ_v min(p_v, q_v) = 1 − ½ Σ_v |p_v − q_v|

    Args:
        student_logits: `[..., vocabulary]`.
        teacher_logits: `[..., vocabulary]`.

    Returns:
        `[...]`, float32, in [0, 1].

    Raises:
        ValueError: the shapes differ.

    >>> p, q = jnp.log(jnp.array([0.7, 0.3])), jnp.log(jnp.array([0.2, 0.8]))
    >>> round(float(overlap(q, p)), 4)
    0.5

    References:
        arXiv:2604.13016 find on-policy distillation to need models that share most of
        their probability at the student's own prefixes.
    """
    validate.shape(jnp.shape(teacher_logits), student_logits=student_logits)
    p, q = (
        jax.nn.softmax(logits.astype(jnp.float32))
        for logits in (teacher_logits, student_logits)
    )
    return jnp.minimum(p, q).sum(-1)


def sampled_overlap(
    writer_log_prob: ArrayLike, reader_log_prob: ArrayLike
) -> np.ndarray:
    """The probability that two models share, from outcomes that one of them drew.

    min(1, q/p), whose mean over outcomes drawn from p is Σ min(p, q) = 1 − TV

    For models whose tokens differ: outcomes are then the tokens between two common
    cuts. Where q is of one tokenisation of several, it is a little too low.

    Args:
        writer_log_prob: `[outcomes]`, log p of what the writer drew.
        reader_log_prob: `[outcomes]`, log q.

    Returns:
        `[outcomes]`, in [0, 1].

    Raises:
        ValueError: different numbers of outcomes.

    >>> sampled_overlap(np.log([0.5, 0.2]), np.log([0.25, 0.4])).tolist()
    [0.5, 1.0]
    """
    writer, reader = np.asarray(writer_log_prob), np.asarray(reader_log_prob)
    validate.same_length(writer_log_prob=writer, reader_log_prob=reader)
    return np.exp(np.minimum(reader - writer, 0))


def text_gap(
    teacher_log_prob: ArrayLike, student_log_prob: ArrayLike
) -> tuple[float, float]:
    """KL(teacher ‖ student) in nats a text, from texts that the teacher drew.

    mean of log π_teacher(text) − log π_student(text): minus the mean calibration reward
    with the student as proxy. The two may have different tokenizers. For KL(student ‖
    teacher), give texts of the student with the arguments exchanged.

    Args:
        teacher_log_prob: `[texts]`, nats a text, drawn at temperature 1.
        student_log_prob: `[texts]`.

    Returns:
        The estimate, and its standard error, NaN for a single text.

    Raises:
        ValueError: no text, or different numbers of them.

    >>> text_gap([-1.0, -3.0], [-4.0, -8.0])
    (4.0, 1.0)
    """
    teacher, student = np.asarray(teacher_log_prob), np.asarray(student_log_prob)
    validate.same_length(teacher_log_prob=teacher, student_log_prob=student)
    return mean_and_error(teacher - student)


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """The mean of independent values and its standard error.

    Args:
        values: `[values]`.

    Raises:
        ValueError: there is none.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    values = np.asarray(values, float)
    validate.positive(values=len(values))
    error = np.nan
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(error)


def by_position(values: ArrayLike, where: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The mean of a figure at each position of texts, over those that reach it.

    Args:
        values: `[texts, length]`.
        where: `[texts, length]`, bool, the tokens. Values elsewhere are not read.

    Returns:
        The means, `[length]`, NaN where there is no token, and the numbers of tokens,
        `[length]`.

    Raises:
        ValueError: the shapes differ.

    >>> by_position([[1.0, 2.0], [3.0, 9.0]], [[True, True], [True, False]])
    (array([2., 2.]), array([2, 1]))
    """
    values, where = np.asarray(values, float), np.asarray(where, bool)
    validate.shape(values.shape, where=where)
    counts = where.sum(0)
    sums = np.where(where, values, 0).sum(0)
    means = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means, counts


def continuation_success(right: ArrayLike, reached: ArrayLike) -> np.ndarray:
    """The teacher's accuracy when it continues the student's first tokens.

    It falls where the student has gone wrong and the teacher cannot put it right: there
    no probabilities of the teacher can teach the student to answer.

    Args:
        right: `[texts, starts]`, bool, whether the continued text is right.
        reached: `[texts, starts]`, bool, whether the student's text has that many
            tokens; others are left out.

    Returns:
        `[starts]`, in [0, 1], NaN where no text has that many tokens.

    Raises:
        ValueError: the shapes differ.

    >>> continuation_success([[True, False], [True, True]], [[1, 1], [1, 0]])
    array([1., 0.])
    """
    return by_position(np.asarray(right, bool), reached)[0]


def executability(right: ArrayLike, weights: ArrayLike) -> float:
    """The student's accuracy when it has to begin as the teacher would.

    Σ_m w_m accuracy_m / Σ_m w_m over first tokens m that are forced on the student,
    each with the teacher's probability of it

    A student that is much better by itself has manners of its own, and is led by the
    teacher to others that it cannot carry out.

    Args:
        right: `[texts, tokens]`, bool, whether the text that begins so is right.
        weights: `[texts, tokens]`, >= 0, the teacher's probabilities.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: the shapes differ, or the weights are all 0.

    >>> executability([[True, False]], [[0.75, 0.25]])
    0.75
    """
    right, weights = np.asarray(right, bool), np.asarray(weights, float)
    validate.shape(right.shape, weights=weights)
    validate.non_negative(weights=weights.min(initial=0))
    totals = weights.sum(-1)
    validate.positive(weights=totals.max(initial=0))
    shares = (weights * right).sum(-1)[totals > 0] / totals[totals > 0]
    return float(shares.mean())


def chain_faithfulness(answer_right: ArrayLike, chain_right: ArrayLike) -> float:
    """The share of right answers whose written steps are right too.

    A teacher that is rewarded for answers alone may learn to write wrong steps before a
    right answer, which its accuracy does not show.

    Args:
        answer_right: `[texts]`, bool.
        chain_right: `[texts]`, bool.

    Returns:
        A share in [0, 1], NaN without any right answer.

    Raises:
        ValueError: different numbers of texts.

    >>> chain_faithfulness([True, True, False], [True, False, True])
    0.5
    """
    answers, chains = np.asarray(answer_right, bool), np.asarray(chain_right, bool)
    validate.same_length(answer_right=answers, chain_right=chains)
    return float(chains[answers].mean()) if answers.any() else float("nan")
