"""The claims of outputs: all of their words, and to say what their source says."""

import functools

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from protojax import validate
from protojax.base import Texts
from protojax.detection.excess import Units
from protojax.detection.outputs.support import expected, fit_support, incidence

# The claim to have a word that neither the source nor any trusted output has. A target
# that is spread over many words has each of them too rarely.
NEW = "a new word"
# Shares of references: as far as the cosine of that share, an output is foreign.
_SHARES = (0.02, 0.1, 0.3)


def words_claimed(
    pool: Texts, trusted: Texts, *, shrinkage: float, own: bool, min_rows: int = 1
) -> Units:
    """The words of outputs as claims, expected as trusted rows make one expect.

    Args:
        pool: the rows.
        trusted: rows that are counted, none of the pool among them.
        shrinkage: see `support.fit_support`.
        own: see `support.fit_support`.
        min_rows: the fewest rows of the pool that have a word which is tested.

    Returns:
        Units of the claim "word", the last of which is `NEW`.
    """
    vocabulary: dict[str, int] = {}
    columns = (*trusted, *pool)
    found = [incidence(texts, vocabulary) for texts in columns]
    for part in found:
        part.resize(part.shape[0], len(vocabulary))
    support = fit_support(*found[:2], shrinkage=shrinkage, own=own)
    sources, made = found[2].T.tocsr(), found[3].tocsc()
    words = np.flatnonzero(np.diff(made.indptr) >= min_rows)
    count = np.asarray(found[1].sum(0)).ravel()
    new = _any(*found[2:], count == 0)
    # A word that one trusted output alone has is new to all others.
    rate = (_any(*found[:2], count == 1).sum() + 0.5) / (len(trusted.outputs) + 1)

    @functools.lru_cache(maxsize=64)
    def chance(unit: int) -> np.ndarray:
        if unit == len(words):
            return np.full(len(new), rate)
        return expected(support, sources, words[unit])

    made = sparse.hstack([made[:, words], new[:, None].astype(np.float32)], "csc")
    values = np.append(np.array(list(vocabulary), object)[words], NEW)
    return Units(np.full(len(values), "word"), values, made, chance)


def _any(
    sources: sparse.csr_array, outputs: sparse.csr_array, words: np.ndarray
) -> np.ndarray:
    """Whether outputs have any of some words that their sources lack, `[rows]`."""
    own = outputs - outputs.multiply(sources)
    return own @ words.astype(np.float32) > 0


def foreign(cosines: ArrayLike, trusted: ArrayLike) -> Units:
    """That outputs fit their sources as badly as few trusted ones do, as claims.

    An output claims to be among the worst 2, 10 or 30 % where its cosine is at most
    that of as many trusted ones. Of honest rows this share claims it.

    Args:
        cosines: `[rows]`, of source and output.
        trusted: `[trusted]`, of other rows.

    Returns:
        Units of the claim "meaning".

    >>> foreign([0.0, 0.5], np.linspace(0, 1, 99)).made.toarray().tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    cosines, trusted = np.asarray(cosines, float), np.sort(np.asarray(trusted, float))
    validate.positive(trusted=len(trusted))
    places = (np.array(_SHARES) * len(trusted)).astype(int)
    made = cosines[:, None] <= trusted[places]
    # The rank of a new row among n trusted ones is uniform over n + 1 places.
    share = (places + 1) / (len(trusted) + 1)
    values = np.array([f"worst {share:.0%}" for share in _SHARES], object)
    return Units(
        np.full(len(values), "meaning"),
        values,
        sparse.csc_array(made.astype(np.float32)),
        lambda unit: np.full(len(cosines), share[unit]),
    )
