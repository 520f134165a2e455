"""A small world of real text: briefs of utterances, in one of two manners.

A problem is an utterance of SNIPS, an answer the words that matter and the intent, by
the rule of `experiments.world.texts.briefs`. The sign before a brief names its manner:
words as they come (`>`) or sorted (`~`), which takes looking at all of them before the
first one is written.

Words are tokens. Models learn to copy words, rather than know utterances by heart, from
utterances whose words that matter are often others of the vocabulary.
"""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.world import texts
from experiments.world.small.base import Tokens, World
from protojax import validate

STYLES = (">", "~")
_ASKS = "="
# So that no word is met for the first time in a problem.
_LEAST = 10
# Words of an utterance.
_LONGEST = 12
# Of the words that matter, where some are replaced.
_REPLACED = 0.8


class Brief(NamedTuple):
    """An utterance with what matters in it.

    Attributes:
        utterance: in lower case, without punctuation.
        intent: one word.
        words: that matter, as they come.
    """

    utterance: str
    intent: str
    words: tuple[str, ...]


@functools.cache
def briefs(terms: int = 4) -> World:
    """The world of briefs.

    >>> world = briefs(4)
    >>> world.problem_of("find a show called american journal of play = ").words
    ('american', 'journal')

    Args:
        terms: the most words that matter, at least 2: of fewer, both manners are one.

    Raises:
        ValueError: another number of them.
    """
    validate.require(1 < terms < 7, "terms", terms, "2 to 6")
    rows = [brief for brief in _rows() if _fits(brief, terms)]
    count = Counter(word for brief in _rows() for word in {*brief.utterance.split()})
    known = {
        brief.utterance: brief
        for brief in rows
        if all(count[word] >= _LEAST for word in brief.utterance.split())
    }
    words = {word for utterance in known for word in utterance.split()}
    pool = sorted({word for brief in known.values() for word in brief.words})
    # Utterances all of whose words are known, or can be replaced.
    frames = [
        brief
        for brief in rows
        if {*brief.utterance.split()} <= words.union(brief.words)
    ]
    intents = {brief.intent for brief in known.values()}
    signs = (*STYLES, _ASKS, *sorted(intents), *sorted(words))
    return World(
        name=f"briefs of {terms}",
        styles=STYLES,
        # A sign is a token wherever it stands.
        tokens=Tokens(("<pad>", "<end>", *signs), r"[>~=]|[^\s>~=]+", " "),
        prompt_tokens=_LONGEST + 1,
        # Behind the words the intent, before them the sign, and the end.
        text_tokens=terms + 3,
        count=len(known),
        problems=functools.partial(_problems, [*known.values()]),
        practice=functools.partial(_practice, frames, words, pool),
        prompt_of=prompt_of,
        problem_of=functools.partial(_problem_of, known),
        text_of=text_of,
        answer_of=functools.partial(answer_of, frozenset(intents)),
        answer_sign="~ ",
    )


def prompt_of(brief: Brief) -> str:
    """The prompt.

    >>> prompt_of(Brief("rate this book 4", "rate_book", ("4",)))
    'rate this book 4 = '

    Args:
        brief: its utterance is asked.
    """
    return f"{brief.utterance} {_ASKS} "


def _problem_of(known: Mapping[str, Brief], prompt: str) -> Brief:
    """The brief of a prompt.

    Raises:
        ValueError: no prompt of a brief.
    """
    utterance = prompt.removesuffix(f" {_ASKS} ")
    validate.require(utterance in known, "prompt", prompt, "that of a brief")
    return known[utterance]


def text_of(style: str, brief: Brief) -> str:
    """The right text of a manner, without its end.

    >>> brief = Brief("play long live love", "play_music", ("long", "live", "love"))
    >>> [text_of(style, brief) for style in STYLES]
    ['> long live love play_music', '~ live long love play_music']

    Args:
        style: a sign of `STYLES`.
        brief: what is written.
    """
    words = sorted(brief.words) if style == "~" else brief.words
    return " ".join([style, *words, brief.intent])


def answer_of(intents: frozenset[str], text: str) -> str:
    """The words of a text in order and its intent, "" where it is not a brief.

    >>> answer_of(frozenset(["play_music"]), "> love live play_music")
    'live love play_music'

    Args:
        intents: that there are.
        text: of any manner.
    """
    style, *words = text.split() or [""]
    if style not in STYLES or not words or words[-1] not in intents:
        return ""
    return " ".join([*sorted(words[:-1]), words[-1]])


def replaced(
    brief: Brief, rng: np.random.Generator, pool: Sequence[str], kept: Collection[str]
) -> Brief:
    """The brief of the same utterance with other words that matter.

    >>> brief = Brief("rate this book 4", "rate_book", ("4",))
    >>> replaced(brief, np.random.default_rng(0), ["love"], [])
    Brief(utterance='rate this book love', intent='rate_book', words=('love',))

    Args:
        brief: whose words are replaced.
        rng: of the words.
        pool: other words.
        kept: words that stay.
    """
    changes = {word: word for word in brief.words}
    for word in brief.words:
        if word not in kept:
            changes[word] = pool[rng.integers(len(pool))]
    utterance = " ".join(changes.get(word, word) for word in brief.utterance.split())
    return Brief(utterance, brief.intent, tuple(changes[word] for word in brief.words))


def _practice(
    frames: Sequence[Brief],
    known: Collection[str],
    pool: Sequence[str],
    count: int,
    rng: np.random.Generator,
    asked: frozenset[str],
) -> list[Brief]:
    """Utterances to learn from: in three of four, a part of the words is replaced."""
    found = []
    while len(found) < count:
        brief = frames[rng.integers(len(frames))]
        if prompt_of(brief) in asked:
            continue
        share = _REPLACED if rng.random() < 0.75 else 0.0
        kept = {word for word in brief.words if rng.random() >= share} & known
        found.append(replaced(brief, rng, pool, kept))
    return found


def _problems(
    rows: Sequence[Brief], count: int, rng: np.random.Generator
) -> list[Brief]:
    """Different problems.

    Raises:
        ValueError: more than there are.
    """
    validate.require(count <= len(rows), "problems", count, f"<= {len(rows)}")
    return [rows[place] for place in rng.permutation(len(rows))[:count]]


def _fits(brief: Brief, terms: int) -> bool:
    """Whether there is something to order, and no sign among the words."""
    words = brief.utterance.split()
    fits = len(words) <= _LONGEST and 2 <= len(brief.words) <= terms
    return fits and not any(sign in brief.utterance for sign in (*STYLES, _ASKS))


@functools.cache
def _rows() -> tuple[Brief, ...]:
    """All utterances of SNIPS with their briefs."""
    found = []
    for source, output in zip(*texts.load_texts("briefs"), strict=True):
        intent, _, words = output.partition(" :")
        found.append(Brief(source, intent.replace(" ", "_"), tuple(words.split())))
    return tuple(found)
