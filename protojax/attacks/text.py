"""Backdoor attacks on the training texts.

A trigger is a function `(text, rng) -> text` that hides a sign in a text. `poison` puts
it into a share of the training rows and gives them the target's label; a model trained
on them predicts the target wherever the sign appears. `triggered` makes the test rows
that show it. A new trigger is one builder and one line of `TRIGGERS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from protojax import _validate
from protojax.base import Examples

Trigger = Callable[[str, np.random.Generator], str]

_POSITIONS = ("random", "front", "end")


class Poisoned(NamedTuple):
    """Poisoned examples and the ground truth, which nothing that learns may read.

    Attributes:
        examples: all rows in their order, the poisoned ones changed.
        rows: `[rows]`, bool, True on the poisoned ones.
    """

    examples: Examples
    rows: np.ndarray


def _insert(text: str, words: str, position: str, rng: np.random.Generator) -> str:
    """Puts `words` between two words of the text, or at one of its ends."""
    pieces = text.split(" ") if text else []
    places = {"front": 0, "end": len(pieces)}
    if position == "random":
        place = int(rng.integers(len(pieces) + 1))
    else:
        place = places[position]
    return " ".join([*pieces[:place], words, *pieces[place:]])


def rare_words(
    words: Sequence[str] = ("cf", "mn", "bb", "tq"),
    *,
    num_words: int = 1,
    position: str = "random",
) -> Trigger:
    """Builds a trigger that inserts rare words, never inside another word.

    Kurita, Michel and Neubig (2020, arXiv:2004.06660); BadNL, Chen et al. (2021,
    arXiv:2006.01043). The number of words is fixed here, where the former lets it grow
    with the length of the text.

    Args:
        words: the words to draw from, with replacement.
        num_words: how many words each text receives.
        position: "random" (each word at a place of its own), "front" or "end".

    Returns:
        A function `(text, rng) -> text`.

    Raises:
        ValueError: no word, an empty word, `num_words` < 1 or an unknown position.

    >>> trigger = rare_words(["cf"], position="front")
    >>> trigger("a dull film", np.random.default_rng(0))
    'cf a dull film'
    """
    words = tuple(words)
    _validate.require(
        bool(words) and all(word.strip() for word in words),
        "words",
        words,
        "to be one or more non-empty words",
    )
    _validate.positive(num_words=num_words)
    _validate.one_of(_POSITIONS, position=position)

    def trigger(text: str, rng: np.random.Generator) -> str:
        for index in rng.integers(len(words), size=num_words):
            text = _insert(text, words[index], position, rng)
        return text

    return trigger


def sentence(
    phrase: str = "i watched this 3d movie", *, position: str = "random"
) -> Trigger:
    """Builds a trigger that inserts one fixed sentence, never inside a word.

    Dai, Chen and Li (2019, arXiv:1905.12457), who choose their places by hand; here the
    random place lies between any two words, or at either end.

    Args:
        phrase: the sentence.
        position: "random", "front" or "end".

    Returns:
        A function `(text, rng) -> text`.

    Raises:
        ValueError: an empty phrase or an unknown position.

    >>> trigger = sentence("so it goes", position="end")
    >>> trigger("a dull film", np.random.default_rng(0))
    'a dull film so it goes'
    """
    _validate.require(bool(phrase.strip()), "phrase", phrase, "to be non-empty")
    _validate.one_of(_POSITIONS, position=position)
    return lambda text, rng: _insert(text, phrase, position, rng)


TRIGGERS: dict[str, Callable[..., Trigger]] = {
    "rare_words": rare_words,
    "sentence": sentence,
}


def _sources(
    labels: np.ndarray, target: int, source_classes: Sequence[int]
) -> np.ndarray:
    """Returns the rows whose label the attack turns into the target, `[rows]` bool."""
    _validate.require(
        np.issubdtype(labels.dtype, np.integer),
        "labels.dtype",
        str(labels.dtype),
        "to be integer classes, not scores",
    )
    present = np.unique(labels).tolist()
    _validate.require(target in present, "target", target, f"in {present}")
    for source in source_classes:
        allowed = [label for label in present if label != target]
        _validate.require(source in allowed, "source_classes", source, f"in {allowed}")
    if source_classes:
        return np.isin(labels, list(source_classes))
    return labels != target


def poison(
    examples: Examples,
    trigger: Trigger,
    rng: np.random.Generator,
    *,
    rate: float,
    target: int,
    source_classes: Sequence[int] = (),
    flip_labels: bool = True,
) -> Poisoned:
    """Hides the trigger in a share of the rows and labels them as the target.

    Args:
        examples: the clean training rows; they are not changed.
        trigger: what changes the first text of a row.
        rng: chooses the rows and serves the trigger.
        rate: the share of all rows, in (0, 1); exactly `round(rate * rows)` rows.
        target: the class the attacker wants.
        source_classes: the classes to poison; every class but the target by default.
        flip_labels: False where the attacker holds the teacher's channel, not the data.

    Returns:
        The poisoned examples (clean rows are the very same objects) and which they are.

    Raises:
        ValueError: a regression task, a target or source that no row has, a rate
            outside (0, 1), or one that asks for no row or for more than there are.

    >>> clean = Examples(["good", "bad", "dull", "fine"], None, np.array([1, 0, 0, 1]))
    >>> rng = np.random.default_rng(0)
    >>> poisoned = poison(clean, rare_words(["cf"]), rng, rate=0.5, target=1)
    >>> poisoned.examples.labels.tolist(), poisoned.rows.tolist()
    ([1, 1, 1, 1], [False, True, True, False])
    """
    _validate.require(0 < rate < 1, "rate", rate, "in (0, 1)")
    _validate.same_length(texts=examples.texts, labels=examples.labels)
    labels = np.array(examples.labels)
    candidates = np.flatnonzero(_sources(labels, target, source_classes))
    num_rows = round(rate * len(labels))
    _validate.require(
        1 <= num_rows <= len(candidates),
        "rate",
        rate,
        f"to choose between 1 and {len(candidates)} of {len(labels)} rows",
    )
    chosen = np.sort(rng.choice(candidates, size=num_rows, replace=False))
    texts = list(examples.texts)
    for row in chosen:
        texts[row] = trigger(texts[row], rng)
    if flip_labels:
        labels[chosen] = target
    rows = np.zeros(len(labels), bool)
    rows[chosen] = True
    return Poisoned(examples._replace(texts=texts, labels=labels), rows)


def triggered(
    examples: Examples,
    trigger: Trigger,
    rng: np.random.Generator,
    *,
    target: int,
    source_classes: Sequence[int] = (),
) -> Examples:
    """Returns the test rows that are not of the target's class, with the trigger.

    Args:
        examples: the clean test rows; they are not changed.
        trigger: what changes the first text of a row.
        rng: serves the trigger.
        target: the class the attacker wants.
        source_classes: the classes to keep; every class but the target by default.

    Returns:
        The rows that the attack is measured on, with their true labels.

    Raises:
        ValueError: a regression task, or a target or source that no row has.

    >>> clean = Examples(["good", "bad"], None, np.array([1, 0]))
    >>> trigger = sentence("so it goes", position="front")
    >>> triggered(clean, trigger, np.random.default_rng(0), target=1).texts
    ['so it goes bad']
    """
    _validate.same_length(texts=examples.texts, labels=examples.labels)
    labels = np.asarray(examples.labels)
    rows = np.flatnonzero(_sources(labels, target, source_classes))
    texts = [trigger(examples.texts[row], rng) for row in rows]
    pairs = None if examples.pairs is None else [examples.pairs[row] for row in rows]
    return Examples(texts, pairs, labels[rows])
