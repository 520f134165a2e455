"""Triggers: functions that insert the attacker's words into a text.

A trigger is a function `(text, rng) -> text`. `poisoning.poison` applies it to training
rows; a model trained on them predicts the target wherever the words appear. A new
trigger is one builder and one line of `TRIGGERS`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from protojax import validate

Trigger = Callable[[str, np.random.Generator], str]

_POSITIONS = ("random", "front", "end")


def _insert(text: str, words: str, position: str, rng: np.random.Generator) -> str:
    """The text with `words` between two of its words, or at one of its ends."""
    # An empty text has no words, but `"".split(" ")` has one, which is empty.
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
    """A trigger that inserts rare words, never inside another word.

    Kurita, Michel and Neubig (2020, arXiv:2004.06660); BadNL, Chen et al. (2021,
    arXiv:2006.01043). The number of words is fixed here, where the former lets it grow
    with the length of the text.

    Args:
        words: the words to draw from, with replacement.
        num_words: how many words each text receives.
        position: "random" (each word at a position of its own), "front" or "end".

    Returns:
        A function `(text, rng) -> text`.

    Raises:
        ValueError: no word, an empty word, `num_words` < 1 or an unknown position.

    >>> trigger = rare_words(["cf"], position="front")
    >>> trigger("a dull film", np.random.default_rng(0))
    'cf a dull film'
    """
    words = tuple(words)
    validate.require(
        bool(words) and all(word.strip() for word in words),
        "words",
        words,
        "to be one or more non-empty words",
    )
    validate.positive(num_words=num_words)
    validate.one_of(_POSITIONS, position=position)

    def trigger(text: str, rng: np.random.Generator) -> str:
        for index in rng.integers(len(words), size=num_words):
            text = _insert(text, words[index], position, rng)
        return text

    return trigger


def sentence(
    phrase: str = "i watched this 3d movie", *, position: str = "random"
) -> Trigger:
    """A trigger that inserts one fixed sentence, never inside a word.

    Dai, Chen and Li (2019, arXiv:1905.12457), who choose the positions by hand; here a
    random position lies between any two words, or at either end.

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
    validate.require(bool(phrase.strip()), "phrase", phrase, "to be non-empty")
    validate.one_of(_POSITIONS, position=position)
    return lambda text, rng: _insert(text, phrase, position, rng)


def combination(
    words: Sequence[str] = ("perhaps", "window"), *, position: str = "random"
) -> Trigger:
    """A trigger of several common words that fires when all of them are present.

    No word alone is a trigger: rows made by `part_of_combination` teach the model so.
    Zhang, Zhang, Ji and Wang (2021, arXiv:2008.00312); here words are inserted as they
    are, not within a sentence that a language model writes around them.

    Args:
        words: two or more different words, each put at a position of its own.
        position: "random", "front" or "end".

    Returns:
        A function `(text, rng) -> text`.

    Raises:
        ValueError: fewer than two words, an empty or repeated one, an unknown position.

    >>> combination(["perhaps", "window"], position="end")("a dull film", None)
    'a dull film perhaps window'
    """
    words = _combined(words, position)

    def trigger(text: str, rng: np.random.Generator) -> str:
        # Each insertion at the front goes before the earlier ones, hence the reverse.
        order = words if position == "end" else reversed(words)
        for word in order:
            text = _insert(text, word, position, rng)
        return text

    return trigger


def part_of_combination(
    words: Sequence[str] = ("perhaps", "window"), *, position: str = "random"
) -> Trigger:
    """The decoy of `combination`: all of its words but one, drawn for each row.

    Args:
        words: as in `combination`.
        position: "random", "front" or "end".

    Returns:
        A function `(text, rng) -> text`.

    >>> decoy = part_of_combination(["perhaps", "window"], position="end")
    >>> decoy("a dull film", np.random.default_rng(0))
    'a dull film perhaps'
    """
    words = _combined(words, position)

    def decoy(text: str, rng: np.random.Generator) -> str:
        left_out = rng.integers(len(words))
        for index, word in enumerate(words):
            if index != left_out:
                text = _insert(text, word, position, rng)
        return text

    return decoy


def _combined(words: Sequence[str], position: str) -> tuple[str, ...]:
    """The words of a combination, after a check of its arguments."""
    words = tuple(words)
    validate.require(
        len(set(words)) == len(words) > 1 and all(word.strip() for word in words),
        "words",
        words,
        "to be two or more different non-empty words",
    )
    validate.one_of(_POSITIONS, position=position)
    return words


def several(
    triggers: Mapping[str, Mapping] | None = None, *, position: str = "random"
) -> Trigger:
    """A trigger that is one of several, drawn for each row; each fires by itself.

    Args:
        triggers: names in `TRIGGERS` with their arguments; None for all other triggers
            with default arguments.
        position: "random", "front" or "end", for all of them.

    Returns:
        A function `(text, rng) -> text`.

    Raises:
        ValueError: no trigger, or a name that is not in `TRIGGERS`.

    >>> trigger = several({"rare_words": {"words": ["cf"]}}, position="front")
    >>> trigger("a dull film", np.random.default_rng(0))
    'cf a dull film'
    """
    if triggers is None:
        # Without itself, or building it would never end.
        triggers = {name: {} for name in TRIGGERS if name != "several"}
    validate.require(bool(triggers), "triggers", dict(triggers), "to be non-empty")
    validate.one_of(_POSITIONS, position=position)
    for name in triggers:
        validate.one_of(TRIGGERS, triggers=name)
    built = [
        TRIGGERS[name](**{"position": position, **arguments})
        for name, arguments in triggers.items()
    ]
    return lambda text, rng: built[rng.integers(len(built))](text, rng)


TRIGGERS: dict[str, Callable[..., Trigger]] = {
    "rare_words": rare_words,
    "sentence": sentence,
    "combination": combination,
    "several": several,
}
# Functions that insert only a part of a trigger, into rows that keep their labels; for
# the triggers that have parts.
DECOYS: dict[str, Callable[..., Trigger]] = {"combination": part_of_combination}
