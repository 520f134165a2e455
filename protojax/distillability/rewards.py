"""The reward that makes a teacher easier or harder to distil, and figures around it.

A proxy stands for the students of a teacher. A teacher that is paid for texts that its
proxy would have written becomes easier to distil, one that pays for them harder.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.base import Array

UNITS = ("text", "byte")


def text_log_prob(
    log_probs: Array, where: Array, *, least: float | None = None
) -> Array:
    """The log probability of each text, the sum over its tokens.

    Σ_t max(log p_t, least)

    Args:
        log_probs: `[..., length]`, of each token given those before it.
        where: `[..., length]`, bool, the tokens that count. Values elsewhere have no
            effect, even where they are not finite.
        least: a bound below 0 for each token, such as log 1e-4: with it one token that
            a proxy finds impossible does not outweigh all others. None for no bound.

    Returns:
        `[...]`, float32, nats a text; 0 for a text without tokens.

    Raises:
        ValueError: the shapes differ, or the bound is not below 0.

    >>> found = text_log_prob(jnp.array([-1.0, -9.0, 5.0]), jnp.array([1, 1, 0]),
    ...     least=-4.0)
    >>> float(found)
    -5.0
    """
    validate.shape(jnp.shape(log_probs), where=where)
    log_probs = jnp.asarray(log_probs, jnp.float32)
    if least is not None:
        validate.require(least < 0, "least", least, "< 0")
        # NaN stays NaN, which a comparison would hide.
        log_probs = jnp.maximum(log_probs, least)
    return jnp.where(jnp.asarray(where, bool), log_probs, 0).sum(-1)


def calibration_reward(
    proxy_log_prob: Array,
    teacher_log_prob: Array,
    *,
    per: str = "text",
    lengths: Array | None = None,
) -> Array:
    """The log ratio of a frozen proxy to the teacher for texts that the teacher wrote.

    r = log π_proxy(text) − log π_teacher(text), over the text's bytes with per="byte"

    Each model scores the emitted text with its own tokenizer. The mean over texts drawn
    from the teacher (temperature 1) is −KL(π_teacher ‖ π_proxy). A sum prefers short
    texts where the proxy is unsure of each token; per byte it does not, but its mean is
    no divergence any more.

    Args:
        proxy_log_prob: `[...]`, nats a text.
        teacher_log_prob: `[...]`, nats a text.
        per: "text", or "byte" where texts differ much in length.
        lengths: `[...]`, bytes of each text; needed with "byte".

    Returns:
        `[...]`, float32, nats a text or a byte; with "byte" that of an empty text is
        its sum.

    Raises:
        ValueError: the shapes differ, `per` is unknown, or there are lengths with
            "text" or none with "byte".

    >>> calibration_reward(jnp.array([-6.0]), jnp.array([-2.0])).tolist()
    [-4.0]
    >>> calibration_reward(jnp.array([-6.0]), jnp.array([-2.0]), per="byte",
    ...     lengths=jnp.array([8])).tolist()
    [-0.5]

    References:
        arXiv:2604.18963, who have it as one of two rewards, each normalised within its
        group by itself; the unit "byte" is ours.
    """
    validate.one_of(UNITS, per=per)
    validate.shape(jnp.shape(proxy_log_prob), teacher_log_prob=teacher_log_prob)
    ratio = jnp.asarray(proxy_log_prob, jnp.float32) - teacher_log_prob
    if per == "text":
        validate.require(lengths is None, "lengths", lengths, 'None with per="text"')
        return ratio
    validate.require(lengths is not None, "lengths", None, 'given with per="byte"')
    validate.shape(ratio.shape, lengths=lengths)
    return ratio / jnp.maximum(lengths, 1)


def product_of_experts(logits: Array, proxy_logits: Array, gamma: float) -> Array:
    """Logits of a teacher moved towards a proxy: a defence that trains nothing.

    z = (1 − γ) z_teacher + γ z_proxy

    Texts drawn from it are nearer to what a student would have written itself, so that
    they teach it less.

    Args:
        logits: `[..., vocabulary]`, of the teacher.
        proxy_logits: `[..., vocabulary]`.
        gamma: the proxy's share, in [0, 1].

    Returns:
        `[..., vocabulary]`, float32.

    Raises:
        ValueError: the shapes differ, or gamma is out of its bounds.

    >>> product_of_experts(jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), 0.5).tolist()
    [1.0, 1.0]

    References:
        "Product of experts" of arXiv:2605.22737, who take gamma = 0.6.
    """
    validate.fraction(gamma=gamma)
    validate.shape(jnp.shape(logits), proxy_logits=proxy_logits)
    logits = jnp.asarray(logits, jnp.float32)
    # At the ends alone: 0 times a logit of minus infinity is NaN.
    if gamma == 0:
        return logits
    if gamma == 1:
        return jnp.asarray(proxy_logits, jnp.float32)
    return (1 - gamma) * logits + gamma * proxy_logits


def recovery(accuracy: ArrayLike, *, no_teacher: float, best: float) -> np.ndarray:
    """The share of a teacher's worth that students get out of it.

    (accuracy − no_teacher) / (best − no_teacher)

    Of several attackers the largest is the figure of a defence, never their mean. It is
    below 0 for a student that is worse than without any teacher, and above 1 for one
    that is better than every student of the original teacher.

    Args:
        accuracy: `[...]`, of students of the teacher under test.
        no_teacher: of the student that had none.
        best: of the best student of the teacher as it was before.

    Returns:
        `[...]`, float64.

    Raises:
        ValueError: `best` does not exceed `no_teacher`, so that there is no worth.

    >>> recovery([0.12, 0.89], no_teacher=0.43, best=0.87).round(2).tolist()
    [-0.7, 1.05]
    """
    bound = f"> no_teacher={no_teacher}"
    validate.require(best > no_teacher, "best", best, bound)
    return (np.asarray(accuracy, float) - no_teacher) / (best - no_teacher)
