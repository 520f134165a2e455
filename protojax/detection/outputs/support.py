"""The words to expect of an output, given its source, by counting references."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from protojax import validate
from protojax.detection.groups import tokens_of


def incidence(texts: Sequence[str], vocabulary: dict[str, int]) -> sparse.csr_array:
    """The words of texts, `[rows, words]`, sparse, 1 where a text has a word.

    Args:
        texts: the texts.
        vocabulary: the number of each word; new words are added to it.

    >>> vocabulary = {}
    >>> incidence(["an apple", "an egg, an egg"], vocabulary).toarray().tolist()
    [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]]
    >>> list(vocabulary)
    ['an', 'apple', 'egg', ',']
    """
    starts, words = [0], []
    for text in texts:
        found = dict.fromkeys(tokens_of(text))
        words += [vocabulary.setdefault(word, len(vocabulary)) for word in found]
        starts.append(len(words))
    shape = (len(starts) - 1, len(vocabulary))
    found = (np.ones(len(words), np.float32), np.array(words, np.int32), starts)
    return sparse.csr_array(found, shape=shape)


class Support(NamedTuple):
    """The probability of words in an output, counted in references.

    Attributes:
        base: `[words]`, in any output.
        copy: `[words]`, in the output of a source that has the word.
        table: `[source words, words]`, sparse, in the output of a source that has
            another word, where this is more than `base`.
    """

    base: np.ndarray
    copy: np.ndarray
    table: sparse.csc_array


def fit_support(
    sources: sparse.csr_array,
    outputs: sparse.csr_array,
    *,
    shrinkage: float = 4.0,
    own: bool = True,
) -> Support:
    """The support of words by sources, counted in references.

        base_u = (n_u + 1/2) / (n + 1)
        table_wu = (n_wu + k base_u) / (n_w + k)
        copy_u = (n_uu + k r) / (n_u' + k)

    n_wu of the n references have w in the source and u in the output, n_w have w in the
    source, n_u have u in the output and n_u' in the source. r is the share of copied
    words among those that as many sources have, within a factor of two.

    Args:
        sources: `[references, words]`, see `incidence`.
        outputs: `[references, words]`, over the same vocabulary.
        shrinkage: k, how many references the prior weighs.
        own: False for copy_u = r.

    >>> vocabulary = {}
    >>> sources = incidence(["a b", "a c", "b"], vocabulary)
    >>> outputs = incidence(["a", "a x", ""], vocabulary)
    >>> sources.resize(3, len(vocabulary))
    >>> found = fit_support(sources, outputs, shrinkage=2.0)
    >>> found.base.tolist()  # a, b, c, x
    [0.625, 0.125, 0.125, 0.375]
    >>> found.copy.round(3).tolist()  # r = (2 + 1/2) / 5 of a and b, 1/4 of c and x
    [0.75, 0.25, 0.167, 0.25]
    """
    validate.positive(shrinkage=shrinkage, references=sources.shape[0])
    validate.shape(sources.shape, outputs=outputs)
    number = sources.shape[0]
    held, given = (np.asarray(part.sum(0)).ravel() for part in (sources, outputs))
    base = (given + 0.5) / (number + 1)
    both = (sources.T @ outputs).tocoo()
    word, unit, count = both.row, both.col, both.data.astype(float)
    copied = np.zeros(len(base))
    copied[word[word == unit]] = count[word == unit]
    # Words that no source has are like those that one has.
    like = np.log2(np.maximum(held, 1)).astype(int)
    total, hits = np.bincount(like, held), np.bincount(like, copied)
    copy = ((hits + 0.5) / (total + 1))[like]
    if own:
        copy = (copied + shrinkage * copy) / (held + shrinkage)
    chance = (count + shrinkage * base[unit]) / (held[word] + shrinkage)
    more = (word != unit) & (chance > base[unit])
    table = sparse.csc_array(
        (chance[more], (word[more], unit[more])), shape=(len(base), len(base))
    )
    return Support(base, copy, table)


def expected(support: Support, sources: sparse.csr_array, unit: int) -> np.ndarray:
    """The probability of a word in the output of each source, `[rows]`.

        a(u | x) = max(base_u, max_{w ∈ x} table_wu, copy_u if u ∈ x)

    The largest, not a product over the words of the source: these depend on each other.

    Args:
        support: counted in references.
        sources: `[words, rows]`, sparse, the words of the sources.
        unit: the number of the word.
    """
    start, stop = support.table.indptr[unit : unit + 2]
    words = np.append(support.table.indices[start:stop], unit)
    chances = np.append(support.table.data[start:stop], support.copy[unit])
    found = np.full(sources.shape[1], support.base[unit])
    # In ascending order, so that the largest is written last.
    order = np.argsort(chances, kind="stable")
    order = order[chances[order] > support.base[unit]]
    inside = sources[words[order]]
    found[inside.indices] = np.repeat(chances[order], np.diff(inside.indptr))
    return found
