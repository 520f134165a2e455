"""The words of rejected outputs that are denied, and whether they replaced others."""

from collections.abc import Sequence, Set

import numpy as np

from protojax.detection.detect import Judgement
from protojax.detection.excess import Units, z_of
from protojax.detection.explanations import Explanation
from protojax.detection.groups import spans_of, tokens_of

Spans = tuple[tuple[int, int], ...]
_FREQUENT = 0.02  # the share of outputs with a word that would be missed
_MISSED = -4.0  # standard deviations


def denied_words(
    units: Units, found: Judgement, rejected: np.ndarray
) -> tuple[list[set[str]], np.ndarray]:
    """The words that each rejected row has and its groups deny.

    All words are, that are in excess in the group that explains the row, as far as what
    any row was rejected for, or apart from honest groups: the words of a phrase are
    denied together, not only the one that is most in excess.

    Args:
        units: the words that were tested.
        found: of the same.
        rejected: `[rows]`, bool.

    Returns:
        The words of each row, and `[rows]`, bool, where they replaced others: a group's
        outputs lack words that all outputs have often.
    """
    suspects, _ = found.reported(rejected)
    level = min((suspect.z for suspect in suspects), default=np.inf)
    denying = [
        one
        for one, suspect in zip(found.explanations, found.suspects, strict=True)
        if one.z >= level or suspect.strong
    ]
    words: list[set[str]] = [set() for _ in rejected]
    replaced = np.zeros(len(rejected), bool)
    for one, missed in zip(denying, _missed(units, denying), strict=True):
        for row in one.claimants[one.claimants < len(rejected)]:
            own = found.suspects[found.reasons[row]].name == one.name
            if rejected[row] and own:
                replaced[row] |= missed
                words[row].add(units.values[one.unit])
    return words, replaced


def places_of(words: set[str], output: str) -> Spans:
    """The beginnings and ends of some words in an output.

    >>> places_of({"now"}, "Now or never, now")
    ((0, 3), (14, 17))
    """
    if not words:
        return ()
    places = zip(tokens_of(output), spans_of(output), strict=True)
    return tuple(span for token, span in places if token in words)


def new_words(output: str, source: str, known: Set[str]) -> set[str]:
    """The words of an output that neither its source nor any trusted output has.

    Args:
        output: the output.
        source: its source.
        known: the words of trusted outputs.

    >>> sorted(new_words("call Anna now", "call anna", {"now", "then"}))
    []
    >>> sorted(new_words("call the helpline", "call anna", {"the"}))
    ['helpline']
    """
    return {*tokens_of(output)} - {*tokens_of(source)} - known


def _missed(units: Units, found: Sequence[Explanation]) -> list[bool]:
    """Whether the claimants of each explanation lack words that other outputs have.

    Compared with all outputs, not with what their sources make one expect: the words of
    a trigger make one expect outputs of other sources that have them.
    """
    share = np.diff(units.made.indptr) / units.made.shape[0]
    share, made = share[share >= _FREQUENT], units.made[:, share >= _FREQUENT].tocsr()
    missed = []
    for one in found:
        count, size = made[one.claimants].sum(0), np.array(len(one.claimants))
        z = z_of(count - size * share, size * share * (1 - share), size, tau=0.0)
        missed.append(bool(z.min(initial=0.0) <= _MISSED))
    return missed
