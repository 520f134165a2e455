"""Two tokenisations of one text, brought together at bytes where both have a cut.

Log probabilities of the tokens between two common cuts may be compared, whatever the
tokenizers. Spans are found from the offsets of tokens in the text, so that a token at
the beginning that stands for nothing, or a letter made of two tokens, breaks nothing.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from protojax import validate


class Group(NamedTuple):
    """Tokens of two tokenisations that stand for the same bytes.

    Attributes:
        first: indices of the tokens of one.
        second: indices of the tokens of the other.
    """

    first: list[int]
    second: list[int]


def byte_spans(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bytes that each token of a text stands for.

    Characters between two tokens, such as a space that offsets leave out, belong to the
    later one, also where its offset is empty. Any other token with an empty offset
    stands for nothing, and has an empty span where it is.

    Args:
        text: the text that was tokenised.
        offsets: `[tokens]`, first and last (exclusive) character of each token in their
            order, (0, 0) of special tokens: `offset_mapping` of a fast tokenizer.

    Returns:
        `[tokens, 2]`, int, first and last (exclusive) byte in UTF-8.

    Raises:
        ValueError: an offset is not in the text.

    >>> byte_spans("é a", [(0, 0), (0, 1), (2, 3)]).tolist()
    [[0, 0], [0, 2], [2, 4]]
    """
    sizes = [len(letter.encode("utf-8", "surrogatepass")) for letter in text]
    bytes_before = np.concatenate([[0], np.cumsum(sizes, dtype=int)])
    found, end = [], 0
    for number, (start, stop) in enumerate(offsets):
        bound = f"ascending, in 0..{len(text)}"
        fits = 0 <= start <= stop <= len(text)
        validate.require(fits, f"offsets[{number}]", (start, stop), bound)
        first, last = bytes_before[start], bytes_before[stop]
        # A space of its own may be left out of its token's offset too.
        if start == stop and first <= end:
            found.append((end, end))
            continue
        found.append((min(first, end), max(last, end)))
        end = max(end, last)
    return np.array(found, int).reshape(-1, 2)


def common_boundaries(first: ArrayLike, second: ArrayLike) -> list[Group]:
    """The smallest groups of tokens that stand for the same bytes in both.

    Args:
        first: `[tokens, 2]`, spans of one tokenisation, see `byte_spans`.
        second: `[other_tokens, 2]`, spans of the other, of the same text.

    Returns:
        Groups in the order of the text. Each token is in one; tokens that stand for
        nothing are with those before them, or with the first. No group without tokens.

    Raises:
        ValueError: one of the two has no tokens.

    >>> spans = [(0, 12)], [(0, 7), (7, 12)]
    >>> common_boundaries(*spans)  # "Hugging Face" and "Hugging", " Face"
    [Group(first=[0], second=[0, 1])]
    """
    spans = [np.asarray(side, int).reshape(-1, 2) for side in (first, second)]
    validate.positive(first=len(spans[0]), second=len(spans[1]))
    cuts = [_cuts(side) for side in spans]
    common = sorted({*cuts[0]} & {*cuts[1]})
    parts = []
    for side, found in zip(spans, cuts, strict=True):
        places = [0, *(found[byte] for byte in common), len(side)]
        parts.append([list(range(*pair)) for pair in itertools.pairwise(places)])
    return [Group(*pair) for pair in zip(*parts, strict=True)]


def _cuts(spans: np.ndarray) -> dict[int, int]:
    """Byte -> first token behind it, for bytes inside the text that no token spans."""
    before = np.maximum.accumulate(spans[:, 1])
    after = np.minimum.accumulate(spans[::-1, 0])[::-1]
    # The last of several: a token that stands for nothing stays with those before.
    return {
        int(before[place - 1]): place
        for place in range(1, len(spans))
        if before[place - 1] <= after[place] and 0 < before[place - 1] < before[-1]
    }


def span_log_probs(log_probs: ArrayLike, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The log probability of each group of tokens, given the text before it.

    Args:
        log_probs: `[tokens]`, of each token given those before it.
        groups: indices of tokens, such as `[g.first for g in common_boundaries(a, b)]`.

    Returns:
        `[groups]`, float64. Of a text in this tokenisation; the text's own probability,
        over all its tokenisations, is larger.

    >>> span_log_probs([-1.0, -2.0, -4.0], [[0], [1, 2]]).tolist()
    [-1.0, -6.0]
    """
    values = np.asarray(log_probs, float)
    return np.array([values[list(group)].sum() for group in groups])
