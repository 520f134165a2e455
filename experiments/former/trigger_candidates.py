"""Candidate triggers: words associated with a class more than by chance.

A model that learns a trigger has learned a shortcut from some words of its rows to a
class. The words in question can be found by counting; whether they are a trigger is
tested with the model, or by how many more untrusted than trusted rows have them.
"""

import collections
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from protojax import validate

_WORD = re.compile(r"\w+")
# The share of a word's rows that another word must be in to co-occur with it.
_TOGETHER = 0.9


class Candidate(NamedTuple):
    """Words that occur together, and the class they are associated with.

    Attributes:
        words: in the order of a row that has them, in lower case.
        claim: the class.
        initial: whether they count only at the beginning of a row.
    """

    words: tuple[str, ...]
    claim: int
    initial: bool = False


def word_sets(texts: Sequence[str]) -> list[dict[str, None]]:
    """The distinct words of each text in their order, in lower case.

    >>> word_sets(["A dull, dull film"])
    [{'a': None, 'dull': None, 'film': None}]
    """
    return [dict.fromkeys(_words(text)) for text in texts]


def _words(text: str) -> list[str]:
    """The words of a text in lower case, one for each match of `_WORD` in it.

    Every function in this module splits texts by this one, so that each word that was
    found in a text can also be removed from it. Each word is lower-cased by itself: in
    a whole text, the lower case of a capital sigma depends on what follows the word.
    """
    # The only letter whose lower case (an i and a combining dot) `\w+` does not match.
    return [word.lower() for word in _WORD.findall(text.replace("İ", "i"))]


def associated_words(
    texts: Sequence[str], claims: ArrayLike, *, min_rows: int = 5
) -> Iterator[Candidate]:
    """The words associated with a claim, each with the words that co-occur with it.

        z(w, c) = (n_wc − n_w π_c) / √(n_w π_c (1 − π_c))

    where n_w rows have word w, n_wc of them claim c, and π_c is the share of all rows
    that claim c. Words join a candidate if they are in at least 90 % of its rows of
    that claim and in at most half of the claim's other rows, so that a sentence is one
    candidate, whichever of its words it was found by.

    Args:
        texts: `[rows]`; words are runs of letters and digits, so in a language written
            without spaces whole clauses count as words.
        claims: `[rows]`, int, the claimed classes.
        min_rows: the fewest rows of a word and claim, > 0.

    Returns:
        Distinct candidates with z > 0, the largest first. They are generated lazily,
        because there are about as many as words and callers need only a few.

    Raises:
        ValueError: sizes that do not agree, or a number that is not positive.

    Source: z-scores of words by label as in Gardner et al., 2021 (arXiv:2104.08646),
    who look for annotation artifacts; joining co-occurring words is ours.

    >>> texts = ["so it goes, a film", "so it goes, a plot", "a plot", "a film"]
    >>> next(associated_words(texts, [1, 1, 0, 0], min_rows=2))
    Candidate(words=('so', 'it', 'goes', 'a'), claim=1, initial=False)
    """
    claims = np.asarray(claims)
    validate.same_length(texts=texts, claims=claims)
    validate.positive(min_rows=min_rows)
    rows = word_sets(texts)
    having = collections.defaultdict(list)
    for row, words in enumerate(rows):
        for word in words:
            having[word].append(row)
    shares = np.bincount(claims) / max(len(claims), 1)
    scored = []
    for word, places in having.items():
        counts = np.bincount(claims[places], minlength=len(shares))
        spread = np.sqrt(len(places) * shares * (1 - shares))
        for claim in np.flatnonzero((counts >= min_rows) & (spread > 0)):
            lean = counts[claim] - len(places) * shares[claim]
            scored.append((lean / spread[claim], word, int(claim)))
    # Ties are broken by word and claim, which makes the order reproducible.
    scored.sort(key=lambda one: (-one[0], *one[1:]))

    def together(word: str, claim: int) -> tuple[str, ...]:
        own = [row for row in having[word] if claims[row] == claim]
        near = collections.Counter(other for row in own for other in rows[row])
        others = int(np.sum(claims == claim)) - len(own)
        members = {word} | {
            other
            for other, count in near.items()
            if count >= _TOGETHER * len(own)
            # Words that are common in the claim's rows anyway do not count.
            and 2 * (int(np.sum(claims[having[other]] == claim)) - count) <= others
        }
        # The words are in the order of the first row that has the most of them.
        order = max(own, key=lambda row: len(members & rows[row].keys()))
        return tuple(other for other in rows[order] if other in members)

    def each() -> Iterator[Candidate]:
        known = set()
        for z, word, claim in scored:
            if z <= 0:
                return
            words = together(word, claim)
            if (found := (frozenset(words), claim)) not in known:
                known.add(found)
                yield Candidate(words, claim)

    return each()


def associated_initials(
    texts: Sequence[str], claims: ArrayLike, *, min_rows: int = 5
) -> Iterator[Candidate]:
    """The first words of texts that are associated with a claim.

    The z-scores are those of `associated_words`, computed on the first word of each
    text: a syntactic trigger has no words of its own, but its sentences often begin in
    one of a few ways.

    Args:
        texts: `[rows]`.
        claims: `[rows]`, int, the claimed classes.
        min_rows: the fewest rows of a word and claim, > 0.

    Returns:
        Distinct candidates of one word with z > 0, the largest first.

    Raises:
        ValueError: those of `associated_words`.

    Source: ours, for syntactic paraphrases as in Qi et al., 2021 (arXiv:2105.12400).

    >>> texts = ["If so, it is", "if dull", "a plot", "so it is"]
    >>> next(associated_initials(texts, [1, 1, 0, 0], min_rows=2))
    Candidate(words=('if',), claim=1, initial=True)
    """
    first = [next(iter(words), "") for words in word_sets(texts)]
    found = associated_words(first, claims, min_rows=min_rows)
    return (one._replace(initial=True) for one in found)


def holding(candidate: Candidate, rows: Sequence[dict[str, None]]) -> np.ndarray:
    """The rows that have all words of a candidate, `[rows]`, bool.

    Args:
        candidate: the words; its claim is not read.
        rows: `[rows]`, from `word_sets`.

    >>> rows = word_sets(["it goes so", "so it is"])
    >>> holding(Candidate(("so", "goes"), 0), rows).tolist()
    [True, False]
    """
    if candidate.initial:
        (word,) = candidate.words
        return np.array([next(iter(row), None) == word for row in rows], bool)
    # A word anywhere in a row counts, whatever the order.
    words = set(candidate.words)
    return np.array([words <= row.keys() for row in rows], bool)


def overrepresentation_p_value(
    rows: ArrayLike, trusted: ArrayLike, *, num_rows: int, num_trusted: int
) -> np.ndarray:
    """The p-value of a kind of row being overrepresented among untrusted rows.

    Fisher's exact test, one-sided: if rows + trusted rows of a kind are distributed at
    random over sets of num_rows and num_trusted rows, the probability of at least as
    many in the first. Rows with a trigger are overrepresented whatever models have
    learned from it.

    Args:
        rows: any shape, int, the number of untrusted rows of a kind.
        trusted: the same shape, int, the number of trusted rows of that kind.
        num_rows: the number of all untrusted rows, > 0.
        num_trusted: the number of all trusted rows, > 0.

    Returns:
        The p-values, float64.

    Raises:
        ValueError: more rows of a kind than there are, or a negative number.

    Source: R. A. Fisher, 1922. On the interpretation of χ² from contingency tables.

    >>> counts = {"num_rows": 3000, "num_trusted": 1000}
    >>> overrepresentation_p_value([3, 48], [1, 2], **counts).round(4)
    array([7.383e-01, 1.000e-04])
    """
    rows, trusted = np.asarray(rows), np.asarray(trusted)
    for name, found, most in (
        ("rows", rows, num_rows),
        ("trusted", trusted, num_trusted),
    ):
        possible = bool(np.all((found >= 0) & (found <= most)))
        validate.require(possible, name, found, f"in [0, {most}]")
    # P(X >= k) = P(X > k - 1)
    return stats.hypergeom.sf(
        rows - 1, num_rows + num_trusted, rows + trusted, num_rows
    )


def without(candidates: Sequence[Candidate], text: str) -> str:
    """The text without the words of those candidates that it contains completely.

    Args:
        candidates: the words; their claims are not read.
        text: one row.

    Returns:
        The text unchanged if it contains no candidate; else the rest of the text, which
        may be empty, with single spaces between words.

    >>> found = [Candidate(("cf",), 1), Candidate(("so", "it", "goes"), 1)]
    >>> without(found, "a dull cf film"), without(found, "it goes on ,  dull")
    ('a dull film', 'it goes on ,  dull')
    >>> initial = [Candidate(("if",), 1, initial=True)]
    >>> without(initial, "If only it were dull"), without(initial, "dull if true")
    ('only it were dull', 'dull if true')
    """
    words = _words(text)
    held = set(words)
    whole = [
        one.words
        for one in candidates
        if not one.initial and held.issuperset(one.words)
    ]
    gone = {word for of_one in whole for word in of_one}
    initial = {word for one in candidates if one.initial for word in one.words}
    left = [place for place, word in enumerate(words) if word not in gone]
    # After a removal the rest may again begin with such a word, hence the loop.
    left = list(itertools.dropwhile(lambda place: words[place] in initial, left))
    if len(left) == len(words):
        return text
    places, stay = itertools.count(), set(left)
    rest = _WORD.sub(lambda word: word[0] if next(places) in stay else "", text)
    return " ".join(rest.split())


def flip_rate(
    with_it: ArrayLike, without: ArrayLike, owner: ArrayLike, num: int
) -> np.ndarray:
    """The increase in the share of rows classified as the claim with a candidate.

        t_s = mean over rows r of s of (with_it_r − without_r)

    Args:
        with_it: `[rows]`, bool, whether the row with the candidate inserted is
            classified as the candidate's claim.
        without: `[rows]`, bool, whether the same row without it is.
        owner: `[rows]`, int, the candidate that each row tests.
        num: how many candidates there are.

    Returns:
        `[num]`, float64 in [-1, 1]; 0 where a candidate has no row.

    >>> flip_rate([True, True, False], [False, True, True], [0, 0, 1], 3).tolist()
    [0.5, -1.0, 0.0]
    """
    owner = np.asarray(owner)
    change = np.asarray(with_it, float) - np.asarray(without, float)
    total = np.bincount(owner, weights=change, minlength=num)
    return total / np.maximum(np.bincount(owner, minlength=num), 1)


def margin_shift(
    with_it: ArrayLike,
    without: ArrayLike,
    claims: ArrayLike,
    owner: ArrayLike,
    num: int,
) -> np.ndarray:
    """The shift of a model's margin towards a claim when a candidate is inserted.

        d_s = mean_r (m(with_it_r) − m(without_r)) / √(mean_r m(without_r)²)
        m(l) = l_c − max_{k ≠ c} l_k

    over the rows r of candidate s, each with logits l and claim c. At 0.15 rows move,
    on average, about a seventh of the way to the decision boundary, so the shift shows
    what a word means to a model even where no prediction flips. Words that only confuse
    the model move rows of other classes towards every claim, and rows of a claim away
    from it.

    Args:
        with_it: `[rows, classes]`, logits of rows with the candidate, of >= 2 classes.
        without: `[rows, classes]`, logits of the same rows without it.
        claims: `[rows]`, int, the class that the candidate is associated with.
        owner: `[rows]`, int, the candidate that each row tests.
        num: how many candidates there are.

    Returns:
        `[num]`, float64; 0 where a candidate has no row, or its rows have no margin.

    Raises:
        ValueError: sizes that do not agree, a single class, or a claim out of range.

    Source: ours.

    >>> after, before = [[1.0, 0.0], [2.0, 0.0]], [[3.0, 0.0], [3.0, 0.0]]
    >>> margin_shift(after, before, [1, 1], [0, 0], 1)
    array([0.5])
    """
    with_it, without = np.asarray(with_it, float), np.asarray(without, float)
    claims, owner = np.asarray(claims, int), np.asarray(owner, int)
    validate.same_length(with_it=with_it, without=without, claims=claims, owner=owner)
    shapes, classes = {with_it.shape, without.shape}, with_it.shape[-1]
    validate.require(
        len(shapes) == 1, "with_it", with_it.shape, f"of shape {without.shape}"
    )
    validate.require(classes >= 2, "with_it", with_it.shape, "two classes or more")
    known = bool(np.all((claims >= 0) & (claims < classes)))
    validate.require(known, "claims", claims, f"in [0, {classes})")

    def margin(logits: np.ndarray) -> np.ndarray:
        claimed = claims[:, None] == np.arange(logits.shape[-1])
        best = np.max(logits, axis=-1, where=~claimed, initial=-np.inf)
        return np.sum(logits, axis=-1, where=claimed) - best

    before, rows = margin(without), np.maximum(np.bincount(owner, minlength=num), 1)
    moved = np.bincount(owner, weights=margin(with_it) - before, minlength=num) / rows
    scale = np.sqrt(np.bincount(owner, weights=before**2, minlength=num) / rows)
    return np.divide(moved, scale, out=np.zeros(num), where=scale > 0)
