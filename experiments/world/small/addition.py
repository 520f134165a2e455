"""A toy world of reasoning: two or three numbers are added in one of four styles.

The first letter of a text names its style. In `c` (columns) and `o` (the same in nines'
complement and backwards) each step is local; `p` (a running sum) and `d` (the sum at
once) need carries that look ahead. A small model learns the first two and a larger one
all four (`d` in more steps than the others), so that the gap between teacher and
student comes about by itself.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from experiments.world.small.base import Tokens, World
from protojax import validate

STYLES = ("c", "d", "o", "p")
_COMPLEMENT = str.maketrans("0123456789", "9876543210")


@functools.cache
def sums(terms: int = 3) -> World:
    """The world of sums.

    >>> world = sums(2)
    >>> world.asked([(23, 45)]), world.prompt_tokens, world.count
    (Problems(prompts=['23+45='], answers=['068']), 6, 8100)

    Args:
        terms: of a sum, 2 or 3.

    Raises:
        ValueError: another number of terms.
    """
    validate.require(terms in (2, 3), "terms", terms, "2 or 3")
    return World(
        name=f"sums of {terms}",
        styles=STYLES,
        tokens=Tokens(("_", ".", *"0123456789+=,", *STYLES)),
        prompt_tokens=3 * terms,
        text_tokens=11,
        count=90**terms,
        problems=functools.partial(problems, terms=terms),
        practice=functools.partial(practice, terms=terms),
        prompt_of=prompt_of,
        problem_of=problem_of,
        text_of=text_of,
        answer_of=answer_of,
        answer_sign="d",
    )


def practice(
    count: int, rng: np.random.Generator, asked: frozenset[str], *, terms: int
) -> list[tuple[int, ...]]:
    """Different problems, asked ones among them, so that batches have one shape.

    Args:
        count: how many.
        rng: of the draws.
        asked: not read.
        terms: of each.
    """
    del asked
    return problems(count, rng, terms)


def prompt_of(numbers: Sequence[int]) -> str:
    """The prompt of numbers from 10 to 99.

    >>> prompt_of((23, 45, 67))
    '23+45+67='

    Args:
        numbers: two or three.
    """
    return "+".join(f"{number:02d}" for number in numbers) + "="


def problem_of(prompt: str) -> tuple[int, ...]:
    """The numbers of a prompt.

    >>> problem_of("23+45+67=")
    (23, 45, 67)

    Args:
        prompt: of `prompt_of`.
    """
    return tuple(map(int, prompt[:-1].split("+")))


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


def problems(
    count: int, rng: np.random.Generator, terms: int = 3
) -> list[tuple[int, ...]]:
    """Different problems.

    Args:
        count: how many.
        rng: of the draws.
        terms: of each.
    """
    found = rng.choice(90**terms, count, replace=False)
    numbers = np.stack(np.unravel_index(found, (90,) * terms), axis=1) + 10
    return [*map(tuple, numbers.tolist())]
