"""A toy world of reasoning: two or three numbers are added in one of four styles.

The first letter of a text names its style. In `c` (columns) and `o` (the same in nines'
complement and backwards) each step is local; `p` (a running sum) and `d` (the sum at
once) need carries that look ahead. A small model learns the first two and a larger one
all four, so that the gap between teacher and student comes about by itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from protojax import validate
from protojax.base import Texts
from protojax.models import wrap_tokenizer
from protojax.models.language import LanguageConfig

STYLES = ("c", "d", "o", "p")
_PAD, _END = "_", "."
_SIGNS = (_PAD, _END, *"0123456789+=,", *STYLES)
# The most tokens of a text, the end among them.
TEXT_TOKENS = 11
_COMPLEMENT = str.maketrans("0123456789", "9876543210")


class Sums(NamedTuple):
    """A kind of problems and the styles in which right texts are written.

    Attributes:
        terms: of a sum, 2 or 3.
        styles: letters of `STYLES`; one that is there twice is twice as frequent.
    """

    terms: int = 3
    styles: tuple[str, ...] = STYLES

    def checked(self) -> "Sums":
        """The same, if there is such a kind.

        Raises:
            ValueError: another number of terms, no style or an unknown one.
        """
        validate.require(self.terms in (2, 3), "terms", self.terms, "2 or 3")
        validate.positive(styles=len(self.styles))
        for style in self.styles:
            validate.one_of(STYLES, styles=style)
        return self

    @property
    def prompt_tokens(self) -> int:
        """The tokens of a prompt."""
        return len(prompt_of([10] * self.terms))


USUAL = Sums()


def prompt_of(numbers: Sequence[int]) -> str:
    """The prompt of numbers from 10 to 99.

    >>> prompt_of((23, 45, 67))
    '23+45+67='

    Args:
        numbers: two or three.
    """
    return "+".join(f"{number:02d}" for number in numbers) + "="


def text_of(style: str, numbers: Sequence[int]) -> str:
    """The right text of a style, without its end.

    >>> [text_of(style, (23, 45, 67)) for style in STYLES]
    ['c15,13,135', 'd135', 'o48,68,468', 'p068,135']

    Args:
        style: a letter of `STYLES`.
        numbers: two or three.
    """
    *_, total = sums = [*itertools.accumulate(numbers)]
    if style == "d":
        return f"d{total:03d}"
    if style == "p":
        return "p" + ",".join(f"{part:03d}" for part in sums[1:])
    units = sum(number % 10 for number in numbers)
    tens = sum(number // 10 for number in numbers) + units // 10
    steps = [f"{units:02d}", f"{tens:02d}", f"{total:03d}"]
    if style == "o":
        steps = [step.translate(_COMPLEMENT)[::-1] for step in steps]
    return style + ",".join(steps)


def answer_of(text: str) -> str:
    """The total that a text ends in, "" where it has none.

    >>> answer_of("o48,68,468"), answer_of("c15,1")
    ('135', '')

    Args:
        text: of any style.
    """
    last = text[1:].rpartition(",")[2]
    if len(last) != 3 or not last.isdigit():
        return ""
    return last.translate(_COMPLEMENT)[::-1] if text[0] == "o" else last


def right_answer(prompt: str, text: str, answer: str) -> float:
    """The reward of a total: 1 if the text ends in it, whatever stands before.

    Args:
        prompt: not read.
        text: of any style.
        answer: the total, three digits.
    """
    del prompt
    return float(answer_of(text) == answer)


def right_chain(prompt: str, text: str, answer: str) -> float:
    """The reward of a text that is right as a whole: 1 if it is that of its style.

    Args:
        prompt: of `prompt_of`.
        text: of any style.
        answer: not read.

    >>> right_chain("87+59+56=", "p146,202", "202")
    1.0
    >>> right_chain("87+59+56=", "p156,202", "202")
    0.0
    """
    del answer
    numbers = [int(number) for number in prompt[:-1].split("+")]
    return float(text[:1] in STYLES and text == text_of(text[:1], numbers))


def problems(count: int, rng: np.random.Generator, terms: int = 3) -> np.ndarray:
    """Different problems, `[count, terms]`.

    Args:
        count: how many.
        rng: of the draws.
        terms: of each.
    """
    found = rng.choice(90**terms, count, replace=False)
    return np.stack(np.unravel_index(found, (90,) * terms), axis=1) + 10


def mixture(
    numbers: np.ndarray, rng: np.random.Generator, styles: Sequence[str] = STYLES
) -> Texts:
    """Prompts with right texts, each in a style drawn with equal probability.

    Args:
        numbers: `[rows, terms]`.
        rng: of the styles.
        styles: letters of `STYLES`.
    """
    chosen = rng.choice(styles, len(numbers))
    rows = [tuple(map(int, row)) for row in numbers]
    texts = [text_of(style, row) for style, row in zip(chosen, rows, strict=True)]
    return Texts([prompt_of(row) for row in rows], texts)


def tokenizer(shift: int = 0) -> Any:
    """A token a character.

    Args:
        shift: by which the ids of all characters but padding and end are turned, so
            that two tokenizers have nothing but the texts in common.
    """
    signs = np.roll(_SIGNS[2:], shift)
    vocab = {sign: number for number, sign in enumerate([*_SIGNS[:2], *signs.tolist()])}
    made = Tokenizer(WordLevel(vocab, unk_token=_PAD))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return wrap_tokenizer(made, max_length=64, pad_token=_PAD, eos_token=_END)


def body(layers: int, width: int) -> LanguageConfig:
    """A decoder of the family Llama for this world.

    Args:
        layers: how many.
        width: of the residual stream, a multiple of 8.
    """
    return LanguageConfig(
        family="llama",
        vocab_size=len(_SIGNS),
        hidden_size=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=width // 4,
        # As in Llama, 8/3 of the width.
        intermediate_size=8 * round(width / 3),
        positions="rotary",
        pad_id=0,
        end_ids=(1,),
    )
