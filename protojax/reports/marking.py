"""Texts with the words of a suspect marked."""

import numpy as np

from protojax.base import Examples
from protojax.detection.evidence import Suspect
from protojax.detection.groups import spans_of, tokens_of
from protojax.detection.rewriting import phrases_of, places


def marked(text: str, suspect: Suspect) -> list[tuple[str, bool]]:
    """The parts of a text, and whether each is what a suspect stands for.

    Args:
        text: of a row.
        suspect: from `detect`.

    Returns:
        Parts that make up the text.

    >>> one = Suspect("cf", "word", "label", 1, 9, 9, 1.0, 0, 9.0, 0.01, True)
    >>> marked("a Cf b", one)
    [('a ', False), ('Cf', True), (' b', False)]
    """
    parts, end = [], 0
    for start, stop in sorted(_spans(text, suspect)):
        # Parts of a conjunction may overlap.
        start = max(start, end)
        if start < stop:
            parts += [(text[end:start], False), (text[start:stop], True)]
            end = stop
    parts.append((text[end:], False))
    return [part for part in parts if part[0]]


def _spans(text: str, suspect: Suspect) -> list[tuple[int, int]]:
    """The beginnings and ends of what a suspect stands for."""
    if suspect.kind == "opening":
        words = suspect.name.removesuffix(" ...").split(" ")
        opens = tokens_of(text)[: len(words)] == words
        spans = spans_of(text)
        return [(spans[0][0], spans[len(words) - 1][1])] if opens else []
    if suspect.kind == "character":
        char = suspect.name[-1]
        return [(place, place + 1) for place, c in enumerate(text) if c == char]
    alone = Examples([text], None, np.zeros(1))
    phrases = phrases_of(alone, [suspect._replace(strong=True)])
    return [span for phrase in phrases for span in places(text, phrase)]
