"""ONION: texts without the words that make them unlike trusted texts.

A word is an outlier if its text is nearer to trusted texts without it.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, Examples
from protojax.detection.conformal import require_finite
from protojax.prototypes import geometry


class WordScores(NamedTuple):
    """The outlier scores of the words of each text.

    Attributes:
        scores: `[rows, max_length]`, for each token the score of its word, see
            `word_outlier_scores`; -inf where there is no word.
        words: `[rows, max_length]`, int, which word a token belongs to, -1 for none.
        spans: `[rows, max_length, 2]`, int, the characters of each token.
    """

    scores: np.ndarray
    words: np.ndarray
    spans: np.ndarray


# One program, where a call by itself would compile each operation; inlined in others.
@functools.partial(jax.jit, static_argnames="num_neighbours", inline=True)
def word_outlier_scores(
    hidden: Array,
    attention_mask: Array,
    words: Array,
    trusted: Array,
    *,
    num_neighbours: int,
) -> Array:
    """The outlier score of each word: how much nearer to trusted texts its row gets.

    s(w) = ρ(mean of hₜ over tokens t outside w) − ρ(mean of hₜ)
    ρ(e) = mean of the k largest cosines of e to trusted texts

    Args:
        hidden: `[rows, length, dim]`, a layer's hidden states.
        attention_mask: `[rows, length]`, 1 on real tokens.
        words: `[rows, length]`, int, the index in its row of the word that a token
            belongs to; negative for none.
        trusted: `[texts, dim]`, mean hidden states of trusted texts.
        num_neighbours: k.

    Returns:
        `[rows, length]`, float32: for each token the score of its word; -inf where it
        has none. A word with a score above 0 makes its row less like trusted texts.

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
        Qi et al., 2021 (ONION, arXiv:2011.10369), who drop the words whose removal
        lowers the perplexity of a text under GPT-2. Departing from them, nearness to
        trusted texts replaces perplexity, which an encoder does not have. A word is
        removed from the mean, not from the encoder's input, which costs one forward
        pass per row instead of one per word.
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
    # Of each token, the sum of the states of its whole word.
    inside = jnp.einsum("bts,bsd->btd", jnp.float32(same), hidden, precision="highest")
    total, count = hidden.sum(1), mask.sum(1)
    # A row of one word has nothing left without it: avoid the division by zero.
    left = jnp.maximum(count[:, None] - same.sum(2), 1)
    trusted = geometry.unit(trusted)

    def density(mean: Array) -> Array:
        cosines = jnp.matmul(geometry.unit(mean), trusted.T, precision="highest")
        return jax.lax.top_k(cosines, num_neighbours)[0].mean(-1)

    without = density((total[:, None] - inside) / left[..., None])
    whole = density(total / jnp.maximum(count, 1)[:, None])
    return jnp.where(of_word, without - whole[:, None], -jnp.inf)


def outlier_level(scored: WordScores, *, outlier_share: float) -> float:
    """The score that a given share of the words of trusted rows exceeds.

    The share is met up to one word.

    Args:
        scored: of trusted rows.
        outlier_share: in (0, 1).

    Raises:
        ValueError: a share outside (0, 1), no word at all, or a word whose score is not
            finite.

    >>> words = np.array([[-1, 0, 0, 1, 2]])  # two tokens of the first word
    >>> scores = np.array([[-np.inf, 5.0, 5.0, 1.0, 3.0]])
    >>> outlier_level(WordScores(scores, words, np.zeros(0)), outlier_share=0.5)
    3.0
    """
    validate.require(0 < outlier_share < 1, "outlier_share", outlier_share, "in (0, 1)")
    # One token per word, else long words would count more than once.
    firsts = np.diff(scored.words, axis=1, prepend=-1) > 0
    scores = scored.scores[firsts]
    validate.positive(words=len(scores))
    require_finite(scores=scores)
    return float(np.quantile(scores, 1 - outlier_share))


def without_outlier_words(
    examples: Examples, scored: WordScores, level: float
) -> Examples:
    """The rows without the words whose score exceeds a level.

    A text that consists of outliers only stays as it is, and so do the second texts of
    pairs. Words beyond the model's maximum length have no score and are cut off:
    otherwise they would move into the model's window when others are removed.

    Args:
        examples: the rows.
        scored: their words.
        level: from `outlier_level` of trusted rows.

    References:
        Qi et al., 2021 (ONION, arXiv:2011.10369), see `word_outlier_scores`. Departing
        from it, training texts are cleaned instead of test inputs: at deployment a
        student has no time to clean its inputs.
    """
    validate.same_length(examples=examples.texts, scored=scored.scores)
    counts = (scored.words >= 0).sum(1)
    # Only a text with as many tokens as the longest can have been truncated.
    ends = np.where(
        counts == counts.max(initial=0),
        scored.spans[:, :, 1].max(1, initial=0),
        np.iinfo(np.int32).max,
    )
    texts = [
        _cut(text[:end], where[flagged])
        for text, end, where, flagged in zip(
            examples.texts, ends, scored.spans, scored.scores > level, strict=True
        )
    ]
    return examples._replace(texts=texts)


def _cut(text: str, spans: np.ndarray) -> str:
    """A text without some spans `[spans, 2]` of its characters.

    >>> _cut("a cf good film", np.array([[2, 4]]))
    'a good film'
    """
    keep = np.ones(len(text), bool)
    for start, end in spans:
        keep[start:end] = False
    # A text that would become empty stays as it is.
    rest = "".join(letter for letter, keeps in zip(text, keep, strict=True) if keeps)
    return re.sub(r"\s+", " ", rest).strip() or text
