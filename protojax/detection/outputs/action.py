"""The treatment of rejected rows: a shorter output, token weights, or removal."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Texts
from protojax.detection.groups import spans_of
from protojax.detection.outputs.denial import Spans
from protojax.detection.outputs.detect import OutputFindings


class Kept(NamedTuple):
    """The rows that are left of a set of texts.

    Attributes:
        texts: the rows that are left, some with a shorter output.
        rows: `[left]`, int, their places in the set.
        cut: `[left]`, bool, whether their output is shorter.
        masked: `[left]`, the spans of their words that shall not teach.
    """

    texts: Texts
    rows: np.ndarray
    cut: np.ndarray
    masked: tuple[Spans, ...]


def quarantine_outputs(
    texts: Texts, findings: OutputFindings, *, action: str = "cut", least: int = 3
) -> Kept:
    """The rows that are not rejected, and rejected ones without what was denied.

    A row is cut where an end of its output is denied, a suffix or a prefix, and where
    the denied words did not replace others. Any other rejected row is dropped: from
    outputs without such words a student would learn to leave out what they replaced.

    Args:
        texts: the rows that were tested.
        findings: of `detect_outputs`.
        action: "cut"; "drop" for all rejected rows; or "mask", which leaves rows with
            denied words as they are, for `token_weights` to take the words out.
        least: the fewest words of an output that was cut.

    Raises:
        ValueError: on another action, or findings of another number of rows.
    """
    validate.one_of(("cut", "drop", "mask"), action=action)
    validate.same_length(texts=texts.sources, rejected=findings.rejected)
    outputs, rows, cut, masked = [], [], [], []
    for row, output in enumerate(texts.outputs):
        left, spans = None if findings.rejected[row] else output, ()
        if left is None and action == "mask" and findings.denied[row]:
            left, spans = output, findings.denied[row]
        if left is None and action == "cut" and not findings.replaced[row]:
            left = without_end(output, findings.denied[row], least=least)
        if left is not None:
            outputs.append(left)
            rows.append(row)
            cut.append(left != output)
            masked.append(spans)
    left = Texts([texts.sources[row] for row in rows], outputs)
    return Kept(left, np.array(rows, int), np.array(cut, bool), tuple(masked))


def without_end(output: str, denied: Spans, *, least: int = 3) -> str | None:
    """An output without a denied suffix or prefix, None where it cannot be cut so.

    A word between two denied ones goes with them, such as the article of a phrase, as
    long as most words that go are denied.

    Args:
        output: the output.
        denied: the beginnings and ends of its denied words.
        least: the fewest words that are left.

    >>> text = "a fire broke out call the helpline"
    >>> without_end(text, ((17, 21), (26, 34)))
    'a fire broke out'
    >>> without_end(text, ((2, 6),)) is None
    True
    >>> without_end("Call now. A fire broke out.", ((0, 4), (5, 8)))
    'A fire broke out.'
    """
    words, marked = spans_of(output), {*denied}
    flags = np.array([span in marked for span in words], bool)
    marks = np.array([not re.search(r"\w", output[a:b]) for a, b in words], bool)
    if not flags.any():
        return None
    first, last = np.flatnonzero(flags)[[0, -1]]
    # Punctuation behind denied words goes with them.
    if marks[last + 1 :].all():
        left, text = ~marks[:first], output[: words[first][0]].rstrip()
    elif marks[:first].all():
        rest = last + 1 + int(np.argmin(marks[last + 1 :]))
        left, text = ~marks[rest:], output[words[rest][0] :]
    else:
        return None
    mostly = flags[first : last + 1].mean() > 0.5
    return text if mostly and left.sum() >= least else None


def token_weights(
    offsets: Sequence[Sequence[tuple[int, int]]], denied: Sequence[Spans]
) -> np.ndarray:
    """The weights of output tokens, `[rows, tokens]`, 0 where a token has denied words.

    Every piece of a denied word has the weight 0, and so has one that is shared with
    the next word. Special tokens and padding, whose offsets are (0, 0), have 1.

    Args:
        offsets: `[rows, tokens, 2]`, where each token begins and ends in its output.
        denied: `[rows]`, the spans of denied words.

    Raises:
        ValueError: on different numbers of rows.

    >>> token_weights([[(0, 4), (4, 6), (6, 9), (0, 0)]], [((0, 6),)]).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    validate.same_length(offsets=offsets, denied=denied)
    offsets = np.asarray(offsets, int).reshape(len(denied), -1, 2)
    weights = np.ones(offsets.shape[:2], np.float32)
    for row, spans in enumerate(denied):
        for start, stop in spans:
            # Half-open intervals overlap; an empty one overlaps nothing.
            first, last = np.maximum(offsets[row, :, 0], start), offsets[row, :, 1]
            weights[row, first < np.minimum(last, stop)] = 0
    return weights
