"""Groups of rows that share something a trigger may be, chosen without their claims.

A kind of group is a function `(Examples, min_rows) -> Groups` in `GROUPS`. A group is
named by what its rows share, so a group that is rejected is a suspected trigger.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from protojax import validate
from protojax.base import Examples

# A literal special token, an ideograph, a word, or one symbol: emoji and zero-width
# characters are symbols. Ideographs are written without spaces, so each is a token and
# n-grams are their words.
_TOKEN = re.compile(
    r"\[[a-z]+\]|</?[a-z]+/?>|[\u3040-\u30ff\u3400-\u9fff]"
    r"|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]"
)


def tokens_of(text: str) -> list[str]:
    """The words and symbols of a text in lower case.

    >>> tokens_of("Don't [SEP] 好的 \U0001f642")
    ['don', "'", 't', '[sep]', '好', '的', '🙂']
    """
    return _TOKEN.findall(text.lower())


def spans_of(text: str) -> list[tuple[int, int]]:
    """The beginning and end in the text of each of `tokens_of`.

    A character that is several in lower case may belong to several tokens.

    >>> spans_of("It IS"), len("İ".lower()), spans_of("İs")
    ([(0, 2), (3, 5)], 2, [(0, 1), (0, 1), (1, 2)])
    """
    # Characters are lowered one by one too: only the form of a sigma depends on others.
    owner = [place for place, char in enumerate(text) for _ in char.lower()]
    found = (match.span() for match in _TOKEN.finditer(text.lower()))
    return [(owner[start], owner[end - 1] + 1) for start, end in found]


class Groups(NamedTuple):
    """Groups of rows by what these share.

    Attributes:
        names: `[groups]`, what the rows share.
        kinds: `[groups]`, the kinds of the groups.
        members: `[groups, rows]`, sparse, 1 where a row belongs to a group.
    """

    names: np.ndarray
    kinds: np.ndarray
    members: sparse.csr_array

    def take(self, groups: np.ndarray) -> "Groups":
        """Some of the groups.

        Args:
            groups: `[taken]`, indices or a mask.
        """
        return Groups(self.names[groups], self.kinds[groups], self.members[groups])

    def rows(self, group: int) -> np.ndarray:
        """The rows of one group, `[members]`."""
        start, stop = self.members.indptr[group : group + 2]
        return self.members.indices[start:stop]


def concatenate(groups: Sequence[Groups]) -> Groups:
    """Groups of several kinds of the same rows as one."""
    names, kinds, members = zip(*groups, strict=True)
    return Groups(
        np.concatenate(names),
        np.concatenate(kinds),
        sparse.vstack(members, format="csr"),
    )


def ngrams(examples: Examples, min_rows: int = 5, *, longest: int = 16) -> Groups:
    """The rows that share a word, a symbol or a sequence of them.

    Where all rows of a sequence share a longer one, only the longer one is a group: the
    rows are the same, and it tells more. No sequence crosses from a text to its pair.

    Args:
        examples: the rows.
        min_rows: the fewest rows of a group.
        longest: the most tokens of a sequence.

    Returns:
        The groups, of kinds "word" and "phrase".

    Source: an order is built from the frequent sequences of the order before, Agrawal
    and Srikant, Fast Algorithms for Mining Association Rules, 1994.

    >>> texts = ["by the way it is", "so by the way", "way by the way"]
    >>> found = ngrams(Examples(texts, None, np.zeros(3)), min_rows=3)
    >>> found.names.tolist(), found.kinds.tolist()
    (['by the way'], ['phrase'])
    """
    validate.positive(min_rows=min_rows, longest=longest)
    vocabulary: dict[str, int] = {}
    words, texts, rows = [], [], []
    for number, (row, text) in enumerate(_texts(examples)):
        found = [
            vocabulary.setdefault(word, len(vocabulary)) for word in tokens_of(text)
        ]
        words += found
        texts += [number] * len(found)
        rows += [row] * len(found)
    spelled = list(vocabulary)
    words, texts, rows = (np.array(part, np.int64) for part in (words, texts, rows))
    parts, keys, starts = [], words, np.arange(len(words))
    for order in range(1, longest + 1):
        # `starts` are the positions of the sequences, `keys` what identifies each.
        _, first, gram = np.unique(keys, return_index=True, return_inverse=True)
        pairs = np.unique(gram * len(examples.texts) + rows[starts])
        group, row = np.divmod(pairs, max(len(examples.texts), 1))
        sizes = np.bincount(group, minlength=len(first))
        frequent = sizes >= min_rows
        place = np.full(len(words) + 1, -1)  # the last is behind all texts
        place[starts] = np.where(frequent[gram], gram, -1)
        parts.append(_Order(order, starts[first], sizes, frequent, group, row))
        if order == longest:
            break
        # A longer sequence is two frequent ones that overlap in all but their ends.
        begins = starts[(place[starts] >= 0) & (place[starts + 1] >= 0)]
        begins = begins[begins + order < len(words)]
        starts = begins[texts[begins] == texts[begins + order]]
        if not len(starts):
            break
        before, after = place[starts], place[starts + 1]
        keys = before * len(first) + after
        _absorb(parts[-1], keys, before, after, rows[starts], min_rows)
    return _as_groups(parts, words, spelled, len(examples.texts))


class _Order(NamedTuple):
    """The sequences of one length: first position, size and rows of each."""

    order: int
    positions: np.ndarray
    sizes: np.ndarray
    kept: np.ndarray
    group: np.ndarray
    row: np.ndarray


def _absorb(part: _Order, keys, before, after, rows, min_rows: int) -> None:
    """Drops the sequences whose rows all share one longer sequence."""
    _, first, longer = np.unique(keys, return_index=True, return_inverse=True)
    span = rows.max() + 1
    sizes = np.bincount(np.unique(longer * span + rows) // span, minlength=len(first))
    for shorter in (before[first], after[first]):
        same = (sizes == part.sizes[shorter]) & (sizes >= min_rows)
        part.kept[shorter[same]] = False


def _as_groups(parts: Sequence[_Order], words, spelled, num_rows: int) -> Groups:
    """The groups of the kept sequences of all lengths."""
    found = []
    for part in parts:
        kept = np.flatnonzero(part.kept)
        number = np.full(len(part.kept), -1)
        number[kept] = np.arange(len(kept))
        inside = part.kept[part.group]
        names = [
            " ".join(spelled[word] for word in words[start : start + part.order])
            for start in part.positions[kept]
        ]
        kind = "word" if part.order == 1 else "phrase"
        found.append(
            _build(names, kind, number[part.group[inside]], part.row[inside], num_rows)
        )
    return concatenate(found)


def characters(examples: Examples, min_rows: int = 5) -> Groups:
    """The rows that share a character outside ASCII, such as a homoglyph.

    Args:
        examples: the rows.
        min_rows: the fewest rows of a group.

    >>> found = characters(Examples(["\u0430b", "c\u0430"], None, np.zeros(2)), 2)
    >>> found.names.tolist()
    ['U+0430 а']
    """

    def keys(text: str) -> set[str]:
        # Nearly all texts are ASCII, which a string knows of itself.
        odd = set() if text.isascii() else {c for c in text if not c.isascii()}
        return {f"U+{ord(c):04X} {c}" for c in odd}

    return _of_keys(examples, keys, "character", min_rows)


def openings(examples: Examples, min_rows: int = 5) -> Groups:
    """The rows whose text, or pair, begins with the same word or two words.

    Args:
        examples: the rows.
        min_rows: the fewest rows of a group.

    >>> texts = ["as it is", "as it was", "it was"]
    >>> openings(Examples(texts, None, np.zeros(3)), 2).names.tolist()
    ['as ...', 'as it ...']
    """

    def keys(text: str) -> list[str]:
        first = tokens_of(text)[:2]
        return [" ".join(first[:count]) + " ..." for count in range(1, len(first) + 1)]

    return _of_keys(examples, keys, "opening", min_rows)


def sources(examples: Examples, min_rows: int = 5) -> Groups:
    """The rows of one source; none where rows have no sources.

    Args:
        examples: the rows.
        min_rows: the fewest rows of a group.
    """
    shared = enumerate(map(str, examples.sources or ()))
    return _shared(shared, "source", min_rows, len(examples.texts))


def everything(examples: Examples, min_rows: int = 5) -> Groups:
    """All rows, for claims that nothing in a text calls forth.

    Args:
        examples: the rows.
        min_rows: the fewest rows of a group.
    """
    shared = ((row, "all rows") for row in range(len(examples.texts)))
    return _shared(shared, "everything", min_rows, len(examples.texts))


GROUPS: dict[str, Callable[[Examples, int], Groups]] = {
    "ngrams": ngrams,
    "characters": characters,
    "openings": openings,
    "sources": sources,
    "everything": everything,
}


def _texts(examples: Examples) -> Iterable[tuple[int, str]]:
    """All texts with the numbers of their rows, pairs included."""
    yield from enumerate(examples.texts)
    yield from enumerate(examples.pairs or ())


def _of_keys(
    examples: Examples,
    keys: Callable[[str], Iterable[str]],
    kind: str,
    min_rows: int,
) -> Groups:
    """The groups of rows whose text, or pair, has a key."""
    shared = ((row, key) for row, text in _texts(examples) for key in keys(text))
    return _shared(shared, kind, min_rows, len(examples.texts))


def _shared(
    shared: Iterable[tuple[int, str]], kind: str, min_rows: int, num_rows: int
) -> Groups:
    """The groups of rows that share a key."""
    found: dict[str, set[int]] = {}
    for row, key in shared:
        found.setdefault(key, set()).add(row)
    found = {key: rows for key, rows in found.items() if len(rows) >= min_rows}
    sizes = [len(rows) for rows in found.values()]
    group = np.repeat(np.arange(len(found)), sizes)
    rows = np.array([row for rows in found.values() for row in sorted(rows)], np.int64)
    return _build(list(found), kind, group, rows, num_rows)


def _build(names, kind: str, group, row, num_rows: int) -> Groups:
    """Groups from the numbers of a group and of a row in it."""
    members = sparse.csr_array(
        (np.ones(len(row), np.float32), (group, row)), shape=(len(names), num_rows)
    )
    members.sum_duplicates()
    # A neighbour named twice is one member.
    members.data[:] = 1
    return Groups(np.array(names, object), np.full(len(names), kind, object), members)
