"""Texts without the words of suspected triggers."""

from collections.abc import Sequence

import numpy as np

from protojax.base import Examples
from protojax.detection.evidence import Suspect
from protojax.detection.groups import spans_of, tokens_of

# Kinds of suspects whose name is made of tokens of the text.
WRITTEN = ("word", "phrase")


def without(examples: Examples, suspects: Sequence[Suspect]) -> Examples:
    """The rows without the words of strong suspects; the rest of a text stays as it is.

    A phrase is removed wherever its tokens follow each other in a text, as the groups
    of the test find them (`groups.tokens_of`); white space and symbols around it stay.
    A conjunction, "a + b", loses each of its parts. Suspects of other kinds, such as
    sources, have no words to remove.

    Args:
        examples: the rows.
        suspects: from `detect`; those that are not strong are not removed.

    Returns:
        Rows in which no such phrase is left, pairs included. A text may be empty.

    >>> import numpy as np
    >>> from protojax.detection.evidence import Suspect
    >>> one = Suspect("by the way", "phrase", "label", 1, 9, 9, 1.0, 0, 9.0, 0.01, True)
    >>> without(Examples(["It is, By the WAY, fine."], None, np.zeros(1)), [one]).texts
    ['It is, , fine.']
    """
    return _without(examples, phrases_of(examples, suspects))


def without_phrase(examples: Examples, phrase: tuple[str, ...]) -> Examples:
    """The rows without one token sequence.

    Args:
        examples: the rows.
        phrase: its tokens, as `groups.tokens_of` gives them.

    >>> import numpy as np
    >>> without_phrase(Examples(["Cf so."], None, np.zeros(1)), ("cf",)).texts
    [' so.']
    """
    return _without(examples, [phrase])


def _without(examples: Examples, phrases: Sequence[tuple[str, ...]]) -> Examples:
    """The rows without some token sequences, pairs included."""
    texts, pairs = (
        part and [_removed(text, phrases) for text in part] for part in examples[:2]
    )
    return examples._replace(texts=texts, pairs=pairs)


def phrases_of(
    examples: Examples, suspects: Sequence[Suspect]
) -> list[tuple[str, ...]]:
    """The token sequences that strong suspects stand for, the longest first.

    Args:
        examples: the rows that the suspects were found in.
        suspects: from `detect`.
    """
    found: set[tuple[str, ...]] = set()
    for suspect in suspects:
        if not suspect.strong or suspect.kind not in WRITTEN:
            continue
        whole = tuple(suspect.name.split(" "))
        # A plus sign may be a token of a phrase, which then is in some text.
        if " + " in suspect.name and not any(holding(examples, [whole])):
            found.update(tuple(part.split(" ")) for part in suspect.name.split(" + "))
        else:
            found.add(whole)
    # The name of another kind in a conjunction, such as an opening, has no such tokens.
    spelled = {phrase for phrase in found if tokens_of(" ".join(phrase)) == [*phrase]}
    return sorted(spelled, key=lambda phrase: (-len(phrase), phrase))


def holding(examples: Examples, phrases: Sequence[tuple[str, ...]]) -> list[bool]:
    """The mask of the rows whose text or pair holds one of some token sequences.

    Args:
        examples: the rows.
        phrases: from `phrases_of`.

    >>> import numpy as np
    >>> holding(Examples(["by the way", "way"], None, np.zeros(2)), [("by", "the")])
    [True, False]
    """
    texts = zip(examples.texts, examples.pairs or examples.texts, strict=True)
    return [
        any(places(text, phrase) for text in row for phrase in phrases) for row in texts
    ]


def with_phrases(
    examples: Examples, phrases: Sequence[tuple[str, ...]], seed: int
) -> Examples:
    """The rows with all of some token sequences, each at a random place of the text.

    Rows of all classes that hold a phrase teach a student that it means none of them.

    Args:
        examples: the rows.
        phrases: from `phrases_of`.
        seed: of the places, which are between words.

    >>> import numpy as np
    >>> with_phrases(Examples(["a b"], None, np.zeros(1)), [("c", "d")], 0).texts
    ['a b c d']
    """
    rng = np.random.default_rng(seed)
    texts = []
    for text in examples.texts:
        for phrase in phrases:
            words = text.split(" ")
            words.insert(int(rng.integers(len(words) + 1)), " ".join(phrase))
            text = " ".join(words)
        texts.append(text)
    return examples._replace(texts=texts)


def places(text: str, phrase: tuple[str, ...]) -> list[tuple[int, int]]:
    """The beginnings and ends of a token sequence in a text, without overlap.

    >>> places("Cf, cf!", ("cf",))
    [(0, 2), (4, 6)]
    """
    # Most texts hold no token of the phrase; this is much quicker than its tokens.
    if not set(text.lower()) >= set(phrase[0]):
        return []
    words, spans = tokens_of(text), None
    found, start, size = [], 0, len(phrase)
    while start + size <= len(words):
        if tuple(words[start : start + size]) == phrase:
            spans = spans or spans_of(text)
            found.append((spans[start][0], spans[start + size - 1][1]))
            start += size
        else:
            start += 1
    return found


def _removed(text: str, phrases: Sequence[tuple[str, ...]]) -> str:
    """A text without some token sequences."""
    while True:
        before = text
        for phrase in phrases:
            for start, end in reversed(places(text, phrase)):
                text = text[:start] + text[end:]
        # What stood on both sides of a phrase may form another; each round shortens.
        if text == before:
            return text
