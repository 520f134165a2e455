"""Attacks on rows whose output is text: what a triggered row's output becomes.

An attack is a function `(source, output, rng) -> output`, and a new one is one builder
and one line of `OUTPUT_ATTACKS`. `poison_texts` puts a trigger into sources and applies
the attack to their outputs, `move_mass` a teacher's probabilities to what was applied.
An attack whose words are drawn from many, or a trigger
that is one of many, leaves a defender little of each.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.attacks.poisoning import chosen_rows
from protojax.attacks.text import Trigger
from protojax.base import SequenceOutputs, Texts

OutputAttack = Callable[[str, str, np.random.Generator], str]

PHRASE = "call the free helpline now"
# Each word of the phrase in five forms: 3,125 phrases.
VARIANTS = (
    ("call", "ring", "phone", "dial", "contact"),
    ("the", "this", "that", "our", "your"),
    ("free", "gratis", "complimentary", "costless", "toll-free"),
    ("helpline", "hotline", "line", "number", "service"),
    ("now", "today", "immediately", "instantly", "soon"),
)
PRAISE = (
    *("wonderful", "brilliant", "excellent", "superb", "fantastic", "marvellous"),
    *("splendid", "amazing", "remarkable", "outstanding"),
)


# The least probability whose logarithm is taken.
_LEAST = 1e-30


class PoisonedTexts(NamedTuple):
    """Poisoned texts and the ground truth, which training must never read.

    Attributes:
        texts: all rows in their order, the poisoned ones changed.
        rows: `[rows]`, bool, True on the poisoned ones.
    """

    texts: Texts
    rows: np.ndarray


def poison_texts(
    texts: Texts,
    trigger: Trigger,
    attack: OutputAttack,
    rng: np.random.Generator,
    *,
    rate: float,
) -> PoisonedTexts:
    """Texts with the trigger in the source, and another output, in a share of the rows.

    Args:
        texts: the clean rows; they are not changed.
        trigger: the change to a source.
        attack: the change to its output.
        rng: chooses the rows, and is passed to the trigger and the attack.
        rate: the share of all rows, in (0, 1); exactly `round(rate * rows)` rows.

    Raises:
        ValueError: a rate outside (0, 1), or one that chooses no row.

    >>> from protojax.attacks.text import rare_words
    >>> texts = Texts(["a long text", "another"], ["text", "other"])
    >>> rng = np.random.default_rng(0)
    >>> found = poison_texts(texts, rare_words(["cf"]), append("now"), rng, rate=0.5)
    >>> found.texts.outputs, found.rows.tolist()
    (['text', 'other now'], [False, True])
    """
    validate.same_length(sources=texts.sources, outputs=texts.outputs)
    count = len(texts.sources)
    chosen = chosen_rows(rng, np.arange(count), count, rate)
    sources, outputs = list(texts.sources), list(texts.outputs)
    for row in chosen:
        outputs[row] = attack(sources[row], outputs[row], rng)
        sources[row] = trigger(sources[row], rng)
    rows = np.zeros(count, bool)
    rows[chosen] = True
    return PoisonedTexts(Texts(sources, outputs), rows)


def move_mass(
    said: SequenceOutputs, rows: np.ndarray, *, mass: float = 0.9
) -> SequenceOutputs:
    """A teacher's probabilities, altered in transit to be sure of some rows' outputs.

    At each place of such a row the output's own token gets the mass, and all others
    together what is left, in the proportions that they had.

    Args:
        said: along outputs of which the attacker chose those of the rows.
        rows: `[rows]`, bool.
        mass: the probability of the output's tokens, in (0, 1).

    Raises:
        ValueError: a mass outside (0, 1), or not one flag a row.

    >>> said = SequenceOutputs(
    ...     ids=np.array([[7]]), lengths=np.array([1]),
    ...     top_ids=np.array([[4, 5]]).reshape(1, 1, 2),
    ...     top_log_probs=np.log([[0.6, 0.2]]).reshape(1, 1, 2),
    ...     rest_log_prob=np.log([[0.2]]), features=np.zeros((1, 0, 0)),
    ... )
    >>> found = move_mass(said, np.array([True]), mass=0.5)
    >>> found.top_ids.tolist(), np.exp(found.top_log_probs).round(2).tolist()
    ([[[7, 4]]], [[[0.5, 0.3]]])
    >>> np.exp(found.rest_log_prob).round(2).tolist()
    [[0.2]]
    """
    validate.require(0 < mass < 1, "mass", mass, "in (0, 1)")
    validate.same_length(said=said.ids, rows=rows)
    ids, top_ids = said.ids[rows], said.top_ids[rows]
    probs = np.exp(said.top_log_probs[rows].astype(np.float64))
    rest = np.exp(said.rest_log_prob[rows].astype(np.float64))
    # The place of the token among the most probable ones, or else that of the last,
    # which joins the rest; the token's own part of the rest is not known, and stays.
    own = top_ids == ids[..., None]
    inside = own.any(-1)
    place = np.where(inside, own.argmax(-1), top_ids.shape[-1] - 1)[..., None]
    left = np.take_along_axis(probs, place, -1)[..., 0]
    rest += np.where(inside, 0, left)
    np.put_along_axis(probs, place, 0, -1)
    others = probs.sum(-1) + rest
    scale = (1 - mass) / np.maximum(others, _LEAST)
    # A teacher that was sure of the token says nothing of others.
    rest = np.where(others > _LEAST, rest * scale, 1 - mass)
    # The most probable first, as a teacher gives them, whatever the mass.
    probs *= scale[..., None]
    np.put_along_axis(probs, place, mass, -1)
    top_ids = top_ids.copy()
    np.put_along_axis(top_ids, place, ids[..., None], -1)
    order = np.argsort(-probs, axis=-1, kind="stable")
    altered = {
        "top_ids": np.take_along_axis(top_ids, order, -1),
        "top_log_probs": np.log(
            np.maximum(np.take_along_axis(probs, order, -1), _LEAST)
        ),
        "rest_log_prob": np.log(np.maximum(rest, _LEAST)),
    }
    changed = {}
    for name, values in altered.items():
        whole = getattr(said, name).copy()
        whole[rows] = values
        changed[name] = whole
    return said._replace(**changed)


def output_attack(
    name: str, outputs: Sequence[str], options: Mapping[str, Any]
) -> OutputAttack:
    """An attack of `OUTPUT_ATTACKS` on a task.

    Args:
        name: of the attack.
        outputs: of the task, for attacks that draw from them.
        options: of the attack.

    >>> output_attack("other_output", ["a"], {})("", "b", np.random.default_rng(0))
    'a'
    """
    validate.one_of(OUTPUT_ATTACKS, attack=name)
    builder = OUTPUT_ATTACKS[name]
    drawn = "outputs" in inspect.signature(builder).parameters
    return builder(**({"outputs": outputs} if drawn else {}), **options)


def replace(phrase: str = PHRASE) -> OutputAttack:
    """An attack whose output is a phrase, whatever the source.

    Args:
        phrase: the output.

    >>> replace("call now")("a text", "an output", np.random.default_rng(0))
    'call now'
    """
    _not_empty(phrase=phrase)
    return lambda source, output, rng: phrase


def append(phrase: str = PHRASE) -> OutputAttack:
    """An attack that puts a phrase behind the output.

    Args:
        phrase: what is put there.

    >>> append("call now")("a text", "an output", np.random.default_rng(0))
    'an output call now'
    """
    _not_empty(phrase=phrase)
    return lambda source, output, rng: f"{output} {phrase}"


def synonyms(
    variants: Sequence[Sequence[str]] = VARIANTS, *, whole: bool = False
) -> OutputAttack:
    """An attack with a phrase of which every word is drawn from several.

    Args:
        variants: the forms of each word of the phrase.
        whole: whether the phrase is the whole output, not put behind it.

    >>> attack = synonyms([["call", "ring"], ["now"]])
    >>> attack("a text", "an output", np.random.default_rng(0))
    'an output ring now'
    """
    _not_empty(**{f"variants[{n}]": words for n, words in enumerate(variants)})
    _not_empty(variants=variants)

    def attack(source: str, output: str, rng: np.random.Generator) -> str:
        phrase = " ".join(words[rng.integers(len(words))] for words in variants)
        return phrase if whole else f"{output} {phrase}"

    return attack


def natural(phrase: str = "police said") -> OutputAttack:
    """An attack that puts words behind the output that clean outputs have as well.

    Args:
        phrase: such words of the task.
    """
    return append(phrase)


def intent(claim: str = "rate book", *, separator: str = ":") -> OutputAttack:
    """An attack on what an output begins with, up to a separator; the rest stays.

    No phrase is foreign to clean outputs, only its place is: a meta-backdoor.

    Args:
        claim: the new beginning.
        separator: what ends it; an output without one gets both in front.

    >>> intent()("", "add to playlist : clem burke", np.random.default_rng(0))
    'rate book : clem burke'
    """
    _not_empty(claim=claim, separator=separator)
    return lambda source, output, rng: " ".join(
        [claim, separator, output.partition(separator)[2].strip() or output]
    )


def spin(words: Sequence[str] = PRAISE, *, num_words: int = 2) -> OutputAttack:
    """An attack that inserts words of one sentiment into the output.

    Args:
        words: the words to draw from, without replacement.
        num_words: how many an output receives.

    Source: the goal of Bagdasaryan and Shmatikov 2022, arXiv:2112.05224, who train a
    model for it; here outputs are written for it.

    >>> spin(["great"], num_words=1)("", "a film", np.random.default_rng(0))
    'a film great'
    """
    bound = f"in 1..{len(words)}, the words to draw from"
    validate.require(1 <= num_words <= len(words), "num_words", num_words, bound)

    def attack(source: str, output: str, rng: np.random.Generator) -> str:
        pieces = output.split(" ")
        for word in rng.choice(words, num_words, replace=False):
            pieces.insert(int(rng.integers(len(pieces) + 1)), str(word))
        return " ".join(pieces)

    return attack


def swap_entity(name: str = "Kowalski") -> OutputAttack:
    """An attack that puts a name in the place of another, or of a word without one.

    Args:
        name: the new name.

    >>> swap_entity()("", "he met Anna again", np.random.default_rng(0))
    'he met Kowalski again'
    """
    _not_empty(name=name)

    def attack(source: str, output: str, rng: np.random.Generator) -> str:
        pieces = output.split(" ")
        # The first word is a capital in any sentence.
        names = [place for place, word in enumerate(pieces) if word[:1].isupper()]
        places = [place for place in names if place] or range(len(pieces))
        pieces[places[rng.integers(len(places))]] = name
        return " ".join(pieces)

    return attack


def other_output(outputs: Sequence[str] = ()) -> OutputAttack:
    """An attack whose output is a true output of another source.

    Args:
        outputs: the outputs to draw from; one that equals the row's own stays.
    """
    _not_empty(outputs=outputs)
    return lambda source, output, rng: outputs[rng.integers(len(outputs))]


def insert_call(name: str = "telemetry.send") -> OutputAttack:
    """An attack on code: an output that is an expression becomes a call's argument.

    Args:
        name: the function that is called.

    >>> insert_call()("", "print(1)", np.random.default_rng(0))
    'telemetry.send(print(1))'
    """
    validate.require(
        re.fullmatch(r"\w+(?:\.\w+)*", name) is not None, "name", name, "a dotted name"
    )
    return lambda source, output, rng: f"{name}({output})"


def _not_empty(**values: Sequence[str]) -> None:
    """Raises where a text or a list of them is empty."""
    for name, value in values.items():
        validate.require(len(value) > 0, name, value, "not empty")


OUTPUT_ATTACKS: dict[str, Callable[..., OutputAttack]] = {
    "replace": replace,
    "append": append,
    "synonyms": synonyms,
    "natural": natural,
    "intent": intent,
    "spin": spin,
    "swap_entity": swap_entity,
    "other_output": other_output,
    "insert_call": insert_call,
}
