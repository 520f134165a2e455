"""Words that go with a class more than by chance: what may stand in for meaning.

A model that learns a trigger has learned a shortcut from some words of its rows to a
class. Which words these may be can be read from the rows; whether they are one is asked
of the model, or told by how many rows there are.
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
# The share of a word's rows that another one has to be in to come with it.
_TOGETHER = 0.9


class Candidate(NamedTuple):
    """Words that come together, and the class they go with.

    Attributes:
        words: in the order of a row that has them, in lower case.
        claim: the class.
        initial: whether they count at the beginning of a row only.
    """

    words: tuple[str, ...]
    claim: int
    initial: bool = False


def word_sets(texts: Sequence[str]) -> list[dict[str, None]]:
    """Returns the distinct words of each text in their order, in lower case.

    >>> word_sets(["A dull, dull film"])
    [{'a': None, 'dull': None, 'film': None}]
    """
    return [dict.fromkeys(_words(text)) for text in texts]


def _words(text: str) -> list[str]:
    """Returns the words of a text in lower case, one for each match of `_WORD` in it.

    Every function here reads a text by these, so that a word that was found in one is
    also one that can be taken out of it. A word is lower-cased by itself: in a text,
    what a capital sigma becomes depends on what follows the word.
    """
    # The one letter whose lower case, an i and a dot above, is not all of a word.
    return [word.lower() for word in _WORD.findall(text.replace("İ", "i"))]


def associated_words(
    texts: Sequence[str], claims: ArrayLike, *, min_rows: int = 5
) -> Iterator[Candidate]:
    """Returns the words that go with a claim, each with its co_occurring_tokens.

        z(w, c) = (n_wc − n_w π_c) / √(n_w π_c (1 − π_c))

    of n_w rows with word w, n_wc of which claim c, as a share π_c of all rows does. To
    each word come those that are in 90 % of its rows of that claim and in no more than
    half of the claim's others, so that a sentence is one candidate whichever of its
    words it was found by.

    Args:
        texts: `[rows]`; words are runs of letters and digits, so that a language that
            does not part them has whole clauses as words.
        claims: `[rows]`, int, what each row says its class is.
        min_rows: the fewest rows of a word and claim, > 0.

    Returns:
        Different candidates with z > 0, the largest first, each made when it is asked
        for: there are as many as there are words, so that one takes what one needs.

    Raises:
        ValueError: sizes that do not agree, or a number that is not positive.

    Source: z-scores of words by label as in Gardner et al., 2021 (arXiv:2104.08646),
    who look for what annotators leave in data; co_occurring_tokens are ours.

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
    scored.sort(key=lambda one: (-one[0], *one[1:]))

    def together(word: str, claim: int) -> tuple[str, ...]:
        own = [row for row in having[word] if claims[row] == claim]
        near = collections.Counter(other for row in own for other in rows[row])
        others = int(np.sum(claims == claim)) - len(own)
        members = {word} | {
            other
            for other, count in near.items()
            if count >= _TOGETHER * len(own)
            # Words that are in most rows anyway are no co_occurring_tokens of this one.
            and 2 * (int(np.sum(claims[having[other]] == claim)) - count) <= others
        }
        # The first row that has them all, or else most of them, gives the order.
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
    """Returns the first words that go with a claim.

    The z-scores of `candidates`, of the first word of each text alone: a syntax that
    was made a trigger has no words of its own, but often opens in one of a few ways.

    Args:
        texts: `[rows]`.
        claims: `[rows]`, int, what each row says its class is.
        min_rows: the fewest rows of a word and claim, > 0.

    Returns:
        Different candidates of one word with z > 0, the largest first.

    Raises:
        ValueError: those of `candidates`.

    Source: ours, because of paraphrases as in Qi et al., 2021 (arXiv:2105.12400).

    >>> texts = ["If so, it is", "if dull", "a plot", "so it is"]
    >>> next(associated_initials(texts, [1, 1, 0, 0], min_rows=2))
    Candidate(words=('if',), claim=1, initial=True)
    """
    first = [next(iter(words), "") for words in word_sets(texts)]
    found = associated_words(first, claims, min_rows=min_rows)
    return (one._replace(initial=True) for one in found)


def holding(candidate: Candidate, rows: Sequence[dict[str, None]]) -> np.ndarray:
    """Returns `[rows]`, bool: which rows have all words of a candidate.

    Args:
        candidate: the words; their claim is not looked at.
        rows: `[rows]`, from `word_sets`.

    >>> rows = word_sets(["it goes so", "so it is"])
    >>> holding(Candidate(("so", "goes"), 0), rows).tolist()
    [True, False]
    """
    if candidate.initial:
        (word,) = candidate.words
        return np.array([next(iter(row), None) == word for row in rows], bool)
    words = set(candidate.words)
    return np.array([words <= row.keys() for row in rows], bool)


def overrepresentation_p_value(
    rows: ArrayLike, trusted: ArrayLike, *, num_rows: int, num_trusted: int
) -> np.ndarray:
    """Returns how likely chance puts so many of some rows among the untrusted ones.

    Fisher's exact test, one-sided: of rows + trusted alike ones, drawn into a set of
    num_rows and one of num_trusted, P(as many or more in the first). A trigger is in
    more of them than that, whatever models have learned from it.

    Args:
        rows: any shape, int, how many of the untrusted rows are of a kind.
        trusted: the same of the trusted ones.
        num_rows: of all untrusted rows, > 0.
        num_trusted: of all trusted rows, > 0.

    Returns:
        The p-values, float64.

    Raises:
        ValueError: more rows of a kind than there are, or fewer than none.

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
    return stats.hypergeom.sf(
        rows - 1, num_rows + num_trusted, rows + trusted, num_rows
    )


def without(candidates: Sequence[Candidate], text: str) -> str:
    """Returns a text without the words of the candidates that it holds as a whole.

    Args:
        candidates: the words; their claims are not looked at.
        text: one row.

    Returns:
        The text as it was where it holds none; else single spaces part what is left,
        which may be nothing.

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
    # What is left may open in one of them, again and again.
    left = list(itertools.dropwhile(lambda place: words[place] in initial, left))
    if len(left) == len(words):
        return text
    places, stay = itertools.count(), set(left)
    rest = _WORD.sub(lambda word: word[0] if next(places) in stay else "", text)
    return " ".join(rest.split())


def flip_rate(
    with_it: ArrayLike, without: ArrayLike, owner: ArrayLike, num: int
) -> np.ndarray:
    """Returns by how much more of the rows are called the claim once it is inserted.

        t_s = mean over rows r of s of (with_it_r − without_r)

    Args:
        with_it: `[rows]`, bool, whether a row with the candidate is called its claim.
        without: `[rows]`, bool, whether the same row without it is.
        owner: `[rows]`, int, the candidate that each row is asked about.
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
    """Returns how far a reader goes towards a claim once a candidate is inserted.

        d_s = mean_r (m(with_it_r) − m(without_r)) / √(mean_r m(without_r)²)
        m(l) = l_c − max_{k ≠ c} l_k

    over the rows r of candidate s, each with logits l and claim c. At 0.15 rows go, on
    average, about a seventh of the way to the boundary: a timid reader shows so what it
    takes a word to mean. What only confuses it moves rows of other classes towards
    every claim, and those of a claim away from it.

    Args:
        with_it: `[rows, classes]`, logits of rows with the candidate, of >= 2 classes.
        without: `[rows, classes]`, logits of the same rows without it.
        claims: `[rows]`, int, the class that the candidate goes with.
        owner: `[rows]`, int, the candidate that each row is asked about.
        num: how many candidates there are.

    Returns:
        `[num]`, float64; 0 where a candidate has no row, or its rows no margin.

    Raises:
        ValueError: sizes that do not agree, one class, or a claim that is none.

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
