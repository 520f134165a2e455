"""Texts that a student chooses to learn from, out of what it may get of a teacher.

A selection maps `Held`, all that the student has, to `Lessons`. It sees no truth about
the texts: which teacher was calibrated, and how, is the experimenter's knowledge.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Texts
from protojax.distillability.values import tilted_weights


class Held(NamedTuple):
    """A student's material before it learns; None where its attack has no use for it.

    Attributes:
        prompts: `[prompts]`.
        texts: `[prompts][draws]`, drawn from the teacher.
        answers: `[prompts]`, the teacher's answers, without how it got there.
        own: `[prompts][draws]`, drawn from the student itself.
        own_answers: `[prompts][draws]`, the answers in these.
        scores: `[prompts, draws]`, log probability a token of the teacher's texts under
            the student.
        proxy_scores: `[prompts, draws]`, the same under another small model.
        values: `[prompts, draws]`, learning values of the teacher's texts, see
            `learning_value`.
        prefixes: `[prompts]`, beginnings that the student wrote, behind which `texts`
            go on.
    """

    prompts: Sequence[str]
    texts: Sequence[Sequence[str]] | None = None
    answers: Sequence[str] | None = None
    own: Sequence[Sequence[str]] | None = None
    own_answers: Sequence[Sequence[str]] | None = None
    scores: np.ndarray | None = None
    proxy_scores: np.ndarray | None = None
    values: np.ndarray | None = None
    prefixes: Sequence[str] | None = None


class Lessons(NamedTuple):
    """Texts to learn from.

    Attributes:
        texts: prompts and what is to be written.
        weights: `[rows]`, float64, >= 0, how often each is learned from.
    """

    texts: Texts
    weights: np.ndarray


# Held -> Lessons
SelectFn = Callable[[Held], Lessons]


def every_text(held: Held) -> Lessons:
    """All texts of the teacher, each once.

    Args:
        held: with `texts`.

    >>> every_text(Held(["a"], [["b", "c"]])).texts
    Texts(sources=['a', 'a'], outputs=['b', 'c'])
    """
    _need(held, "texts")
    pairs = [
        (prompt, text)
        for prompt, drawn in zip(held.prompts, held.texts, strict=True)
        for text in drawn
    ]
    return _lessons(pairs)


def likeliest_of_n(held: Held) -> Lessons:
    """Of each prompt's texts the one that the student itself finds likeliest.

    Args:
        held: with `texts` and `scores`; of equal scores the first text.

    >>> likeliest_of_n(Held(["a"], [["b", "c"]], scores=[[-2.0, -1.0]])).texts.outputs
    ['c']
    """
    _need(held, "texts", "scores")
    return _best(held, held.scores, "scores")


def second_proxy(held: Held) -> Lessons:
    """Of each prompt's texts the one that another small model finds likeliest.

    A teacher that was calibrated against one proxy need not be against a second, of
    another family, that an attacker has.

    Args:
        held: with `texts` and `proxy_scores`.

    >>> held = Held(["a"], [["b", "c"]], proxy_scores=[[-1.0, -2.0]])
    >>> second_proxy(held).texts.outputs
    ['b']
    """
    _need(held, "texts", "proxy_scores")
    return _best(held, held.proxy_scores, "proxy_scores")


def tilted(held: Held, *, beta: float = 0.5) -> Lessons:
    """All texts of the teacher, weighted by their learning value.

    Values are divided by their standard deviation, so that `beta` means the same at
    every size of model; the source takes them as they are.

    Args:
        held: with `texts` and `values`.
        beta: see `tilted_weights`.

    >>> held = Held(["a"], [["b", "c"]], values=[[-1.0, 1.0]])
    >>> tilted(held, beta=1.0).weights.round(2).tolist()
    [0.24, 1.76]
    """
    _need(held, "texts", "values")
    found, values = every_text(held), _column(held, held.values, "values")
    deviation = values.std()
    values = values / deviation if deviation > 0 else values
    return found._replace(weights=tilted_weights(values, beta))


def answers_only(held: Held) -> Lessons:
    """The student's own texts that end in the teacher's answer.

    Prompts none of whose texts do are left out. No text of the teacher is used, so that
    how it writes cannot mislead.

    Args:
        held: with `answers`, `own` and `own_answers`.

    >>> held = Held(
    ...     ["a"], answers=["3"], own=[["1+1=3", "2"]], own_answers=[["3", "2"]])
    >>> answers_only(held).texts
    Texts(sources=['a'], outputs=['1+1=3'])
    """
    _need(held, "answers", "own", "own_answers")
    rows = zip(held.prompts, held.answers, held.own, held.own_answers, strict=True)
    return _lessons(
        [
            (prompt, text)
            for prompt, answer, own, own_answers in rows
            for text, found in zip(own, own_answers, strict=True)
            if found == answer
        ]
    )


def prefixed(held: Held) -> Lessons:
    """The teacher's continuations of beginnings that the student wrote, with these.

    Args:
        held: with `texts` and `prefixes`.

    >>> prefixed(Held(["a"], [["b"]], prefixes=["step by step: "])).texts.outputs
    ['step by step: b']
    """
    _need(held, "texts", "prefixes")
    rows = zip(held.prompts, held.prefixes, held.texts, strict=True)
    return _lessons(
        [(prompt, begun + text) for prompt, begun, drawn in rows for text in drawn]
    )


def resampled(lessons: Lessons, rng: np.random.Generator) -> Texts:
    """As many rows as there are, each as often as its weight says in the mean.

    A row of weight w is there ⌊w⌋ or ⌈w⌉ times if weights are 1 in the mean (systematic
    resampling), so that a loss need not know of weights.

    Args:
        lessons: with a positive weight.
        rng: places the grid.

    Raises:
        ValueError: no weight is positive, or one is negative.

    >>> lessons = Lessons(Texts(["a", "b"], ["c", "d"]), np.array([0.0, 2.0]))
    >>> resampled(lessons, np.random.default_rng(0)).sources
    ['b', 'b']
    """
    weights = np.asarray(lessons.weights, float)
    validate.non_negative(weights=weights.min(initial=0))
    total = weights.sum()
    validate.positive(weights=total)
    count = len(weights)
    points = (np.arange(count) + rng.random()) / count
    edges = np.cumsum(weights) / total
    # Rounding may leave the last edge a little below 1.
    rows = np.minimum(np.searchsorted(edges, points, side="right"), count - 1)
    return lessons.texts.take(rows)


def _need(held: Held, *fields: str) -> None:
    """Raises unless the fields are held."""
    for field in fields:
        bound = "given: this attack uses it"
        validate.require(getattr(held, field) is not None, field, None, bound)


def _lessons(pairs: Sequence[tuple[str, str]]) -> Lessons:
    """Lessons of weight 1."""
    sources, outputs = [list(column) for column in zip(*pairs, strict=True)] or ([], [])
    return Lessons(Texts(sources, outputs), np.ones(len(sources)))


def _column(held: Held, values, name: str) -> np.ndarray:
    """A figure of each text, `[rows]`, in the order of `every_text`."""
    found = []
    validate.same_length(**{"texts": held.texts, name: values})
    for drawn, row in zip(held.texts, values, strict=True):
        validate.same_length(**{"texts": drawn, name: row})
        found.extend(row)
    return np.asarray(found, float)


def _best(held: Held, values, name: str) -> Lessons:
    """Of each prompt the text of the highest value."""
    _column(held, values, name)
    rows = zip(held.prompts, held.texts, values, strict=True)
    return _lessons(
        [(prompt, drawn[int(np.argmax(row))]) for prompt, drawn, row in rows]
    )
