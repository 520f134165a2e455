"""Texts with the words of a suspect marked."""

import numpy as np

from protojax.base import Examples
from protojax.detection.evidence import Suspect
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
    alone = Examples([text], None, np.zeros(1))
    spans = sorted(
        span
        for phrase in phrases_of(alone, [suspect._replace(strong=True)])
        for span in places(text, phrase)
    )
    parts, end = [], 0
    for start, stop in spans:
        # Parts of a conjunction may overlap.
        start = max(start, end)
        if start < stop:
            parts += [(text[end:start], False), (text[start:stop], True)]
            end = stop
    parts.append((text[end:], False))
    return [part for part in parts if part[0]]
