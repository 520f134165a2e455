"""Words that do not belong: without them a text is nearer to texts that are trusted."""

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array
from protojax.prototypes import geometry


def word_outlier_scores(
    hidden: Array,
    attention_mask: Array,
    words: Array,
    trusted: Array,
    *,
    num_neighbours: int,
) -> Array:
    """Scores each word by how much nearer to trusted texts its row is without it.

    s(w) = ρ(mean of hₜ over tokens t outside w) − ρ(mean of hₜ)
    ρ(e) = mean of the k largest cosines of e to trusted texts

    Args:
        hidden: `[rows, length, dim]`, a layer's hidden states.
        attention_mask: `[rows, length]`, 1 on real tokens.
        words: `[rows, length]`, int, which word of its row a token belongs to; below 0
            where it is of none.
        trusted: `[texts, dim]`, mean hidden states of trusted texts.
        num_neighbours: k.

    Returns:
        `[rows, length]`, float32: of each token the score of its word; -inf where it
        has none. A word above 0 makes its row less like trusted texts.

    Raises:
        ValueError: `num_neighbours` not in 1..texts.

    >>> hidden = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> mask, words = jnp.ones((1, 3)), jnp.array([[-1, 0, 1]])
    >>> trusted = jnp.array([[1.0, 0.0]])
    >>> word_outlier_scores(
    ...     hidden, mask, words, trusted, num_neighbours=1
    ... ).round(2).tolist()
    [[-inf, -0.18..., 0.10...]]

    References:
        Qi et al., 2021 (ONION, arXiv:2011.10369), who drop the words without which
        GPT-2 finds a text less perplexing. Departing from them, an encoder has no
        perplexity: nearness to trusted texts stands in its place. A word is taken out
        of the mean, not of the encoder's input, which costs one forward pass a row
        instead of one a word.
    """
    validate.require(
        1 <= num_neighbours <= len(trusted),
        "num_neighbours",
        num_neighbours,
        f"in 1..{len(trusted)}",
    )
    mask = jnp.asarray(attention_mask, bool)
    hidden = jnp.where(mask[..., None], hidden.astype(jnp.float32), 0.0)
    of_word = mask & (words >= 0)
    same = (words[:, :, None] == words[:, None, :]) & of_word[:, None, :]
    inside = jnp.einsum("bts,bsd->btd", jnp.float32(same), hidden, precision="highest")
    total, count = hidden.sum(1), mask.sum(1)
    left = jnp.maximum(count[:, None] - same.sum(2), 1)
    trusted = geometry.unit(trusted)

    def density(mean: Array) -> Array:
        cosines = jnp.matmul(geometry.unit(mean), trusted.T, precision="highest")
        return jax.lax.top_k(cosines, num_neighbours)[0].mean(-1)

    without = density((total[:, None] - inside) / left[..., None])
    whole = density(total / jnp.maximum(count, 1)[:, None])
    return jnp.where(of_word, without - whole[:, None], -jnp.inf)
