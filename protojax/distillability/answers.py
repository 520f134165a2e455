"""Answers and steps in texts, judged by simple rules on the host."""

import re
from decimal import Decimal, InvalidOperation

from protojax.distillability.equations import NUMBER, equations_in

# A number with a sign that is no minus.
_NUMBER = re.compile(rf"(?<![\w.])-?{NUMBER}")
# A comma between thousands; others stand between numbers.
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def is_right(text: str, answer: str) -> bool:
    """Whether a text gives an answer.

    Where the answer is a number, the last number of the text has to equal it; else the
    answer's words have to stand in the text, side by side, without regard to case and
    punctuation.

    Args:
        text: what a model wrote.
        answer: what is right; one without a word or number is given by no text.

    >>> is_right("3 + 4 = 7, so he has 7 apples.", "7.0")
    True
    >>> is_right("It is Paris, of course.", "paris")
    True
    >>> is_right("7 or 8", "7")
    False
    """
    wanted = _number(answer.strip())
    if wanted is not None:
        found = _NUMBER.findall(text)
        return bool(found) and _number(found[-1]) == wanted
    words = " ".join(re.findall(r"\w+", answer.casefold()))
    held = " ".join(re.findall(r"\w+", text.casefold()))
    return bool(words) and f" {words} " in f" {held} "


def answer_of(text: str) -> str:
    """The last number of a text, or the last line without blanks where there is none.

    Args:
        text: what a model wrote.

    >>> answer_of("so he has 1,007 apples."), answer_of("Paris\\nFrance ")
    ('1007', 'France')
    """
    found = _NUMBER.findall(text)
    if found:
        return _COMMA.sub("", found[-1])
    lines = text.split("\n") if text.strip() else [""]
    return [line.strip() for line in lines if line.strip() or len(lines) == 1][-1]


def equations_hold(text: str) -> bool | None:
    """Whether all equations in a text are true; None where there is none.

    Args:
        text: what a model wrote.

    >>> equations_hold("3 + 4 = 7 and 7 * 2 = 14"), equations_hold("87+59=156")
    (True, False)
    >>> equations_hold("He has seven.") is None
    True
    """
    found = equations_in(text)
    return all(holds for _, holds in found) if found else None


def _number(text: str) -> Decimal | None:
    """The number that a text is, or None."""
    try:
        found = Decimal(_COMMA.sub("", text))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
