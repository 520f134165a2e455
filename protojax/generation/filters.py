"""Filters of logits: probable tokens keep theirs, the others get minus infinity.

A filter keeps tokens by a threshold, so tokens of equal probability are kept or dropped
together, and the result does not depend on their order.
"""

import jax
import jax.numpy as jnp

from protojax.base import Array


def keep_top_k(logits: Array, k: int) -> Array:
    """Logits of the k most probable tokens; more than k where the last ones tie.

    Fan et al., 2018, "Hierarchical Neural Story Generation", arXiv:1805.04833.

    >>> keep_top_k(jnp.array([1.0, 3.0, 2.0, 2.0]), 2)
    Array([-inf,   3.,   2.,   2.], dtype=float32)

    Args:
        logits: `[..., vocab]`.
        k: how many tokens to keep, > 0; all where there are no more.
    """
    kept = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0]
    return jnp.where(logits >= kept[..., -1:], logits, -jnp.inf)


def keep_top_p(logits: Array, p: float) -> Array:
    """Logits of the fewest most probable tokens with a total probability of at least p.

    There is always one; tokens as probable as the last one are kept too. transformers
    keeps only some of those, by the order of its sort.

    Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration",
    arXiv:1904.09751.

    >>> keep_top_p(jnp.log(jnp.array([0.5, 0.2, 0.3])), 0.6)
    Array([-0.6931472,       -inf, -1.2039728], dtype=float32)

    Args:
        logits: `[..., vocab]`.
        p: the total probability, in (0, 1].
    """
    probs = jax.nn.softmax(logits)
    falling = jnp.sort(probs, axis=-1, descending=True)
    # A token is needed if those before it do not reach p.
    needed = jnp.cumsum(falling, axis=-1) - falling < p
    least = jnp.where(needed, falling, jnp.inf).min(-1, keepdims=True)
    return jnp.where(probs >= least, logits, -jnp.inf)
