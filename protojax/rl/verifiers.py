"""Verifiers: rewards that rules give to a text that a model wrote.

A verifier sees the prompt, the text and what the user's file holds as the answer, and
returns a reward in [0, 1]. An answer alone may be bought with wrong steps: join
`arithmetic` with `equations` where steps are written.
"""

import re
from collections.abc import Callable, Sequence

from protojax import validate
from protojax.distillability.equations import equations_in, numbers_in
from protojax.rl.instructions import check_rules, follows_instructions

# (prompt, text, answer) -> reward in [0, 1]
VerifierFn = Callable[[str, str, str], float]

_SAID = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-J])\b(?!')", re.IGNORECASE
)
_LETTER = re.compile(r"(?<![\w'])\(?([A-J])(?:[).:]|\s*$)")


def arithmetic(prompt: str, text: str, answer: str) -> float:
    """The reward of a number: 1 if the last one in the text is the last in the answer.

    How the text came to it is not looked at, see `equations`.

    Args:
        prompt: not read.
        text: what was written.
        answer: a text with a number, such as "72" or a worked solution.

    >>> arithmetic("", "So 3 + 4 = 7 apples.", "7"), arithmetic("", "seven", "7")
    (1.0, 0.0)
    """
    del prompt
    found, wanted = numbers_in(text), numbers_in(answer)
    return float(bool(found) and bool(wanted) and found[-1] == wanted[-1])


def equations(prompt: str, text: str, answer: str) -> float:
    """The reward of an honest chain: 1 unless the text has a false equation.

    A text without equations has no false one; `shown_equations` asks for one.

    Args:
        prompt: not read.
        text: what was written.
        answer: not read.

    >>> equations("", "87 + 59 = 156, 156 + 56 = 202", "202")
    0.0
    """
    del prompt, answer
    return float(all(true for _, true in equations_in(text)))


def shown_equations(prompt: str, text: str, answer: str) -> float:
    """The reward of a chain that is shown: 1 for equations of which none is false.

    Args:
        prompt: not read.
        text: what was written.
        answer: not read.

    >>> shown_equations("", "It is 7.", "7"), shown_equations("", "3 + 4 = 7", "7")
    (0.0, 1.0)
    """
    del prompt, answer
    found = equations_in(text)
    return float(bool(found) and all(true for _, true in found))


def multiple_choice(prompt: str, text: str, answer: str) -> float:
    """The reward of a letter: 1 if the one that the text chooses is that of the answer.

    The last "answer is X" (or option, choice) counts, else the last letter A to J that
    stands alone before a bracket, a full stop, a colon or the end.

    Args:
        prompt: not read.
        text: what was written.
        answer: a letter, with or without brackets.

    >>> multiple_choice("", "Not A. The answer is (B), a bird.", "B")
    1.0
    """
    del prompt
    return float(_choice(text) is not None and _choice(text) == _choice(answer))


VERIFIERS: dict[str, VerifierFn] = {
    "arithmetic": arithmetic,
    "equations": equations,
    "instructions": follows_instructions,
    "multiple_choice": multiple_choice,
    "shown_equations": shown_equations,
}


def check_answers(names: Sequence[str], answers: Sequence[str]) -> None:
    """Raises on answers that a verifier could never find.

    Args:
        names: of verifiers in `VERIFIERS`.
        answers: `[rows]`, of the user's file.

    Raises:
        ValueError: an unknown verifier, an answer without a number or a letter, or
            instructions that cannot be read; names the row.
    """
    needs = {
        "arithmetic": (lambda answer: bool(numbers_in(answer)), "with a number"),
        "multiple_choice": (
            lambda answer: _choice(answer) is not None,
            "a letter of A to J",
        ),
    }
    for name in names:
        validate.one_of(VERIFIERS, verifier=name)
        for row, answer in enumerate(answers):
            if name == "instructions":
                with validate.prefixed(f"answer {row}"):
                    check_rules(answer)
            elif name in needs:
                fits, bound = needs[name]
                validate.require(fits(answer), f"answer {row}", answer, bound)


def _choice(text: str) -> str | None:
    """The letter that a text chooses."""
    for pattern in (_SAID, _LETTER):
        found = pattern.findall(text.strip())
        if found:
            return found[-1].upper()
    return None
