"""Equations that a text writes, and whether they are true, in exact arithmetic."""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
# The minus of a difference is no sign.
_SIGNED = re.compile(rf"(?:(?<![\d)])[-−])?{NUMBER}")
_TOKEN = re.compile(rf"{NUMBER}|[-−+*/×÷()=]|[^\W\d]+|\S")
_OPERATORS = {"+": "+", "-": "-", "−": "-", "*": "*", "×": "*", "x": "*"}
_OPERATORS |= {"/": "/", "÷": "/"}
# More tokens than any honest equation: a text must cost no more than a model.
_LONGEST = 100


class _Token(NamedTuple):
    """A part of an equation: a number, an operator, a bracket or "="."""

    text: str
    start: int
    end: int


def numbers_in(text: str) -> list[Fraction]:
    """The numbers in a text, in their order, exactly.

    Commas between groups of three digits are read as such.

    Args:
        text: any text.

    >>> [str(number) for number in numbers_in("From 1,200 take 0.5: -3, 7-2.")]
    ['1200', '1/2', '-3', '7', '2']
    """
    return [_number(match[0]) for match in _SIGNED.finditer(text)]


def equations_in(text: str) -> list[tuple[str, bool]]:
    """The written equations of a text, each with whether it is true.

    An equation is two or more sides of numbers, + - * / × ÷ x and brackets; dollar
    signs are skipped. A result with decimals is true if it is rounded correctly. A side
    that divides by 0 or whose brackets lack partners makes its equation false. What
    has letters in it, such as 2x + 3 = 7, is none.

    Args:
        text: any text.

    >>> equations_in("First 2 x 3 = 6, then 6 + 1 = 8.")
    [('2 x 3 = 6', True), ('6 + 1 = 8', False)]
    """
    found = []
    for preceding, run, following in _runs(text):
        sides = _sides(preceding, run, following)
        if sides is not None:
            said = text[sides[0][0].start : sides[-1][-1].end]
            found.append((said, _holds(sides)))
    return found


def _runs(text: str) -> Iterator[tuple[str, list[_Token], str]]:
    """Longest sequences of parts of equations, between the tokens around each."""
    # A blank keeps the places of all other characters.
    tokens = [
        _Token(match[0], *match.span())
        for match in _TOKEN.finditer(text.replace("$", " "))
    ]
    run: list[_Token] = []
    preceding = ""
    for place, token in enumerate(tokens):
        before, after = (
            tokens[i].text if 0 <= i < len(tokens) else ""
            for i in (place - 1, place + 1)
        )
        operator = token.text in _OPERATORS
        if token.text == "x":
            # A product only between numbers; else a name.
            operator = _ends(before) and _begins(after)
        named = before.isalpha() and tokens[place - 1].end == token.start
        number = token.text[0].isdigit() and not (named and before != "x")
        if operator or number or token.text in ("(", ")", "="):
            # Two numbers side by side are no product: "step 2 3 + 4 = 7".
            if run and _ends(run[-1].text) and _begins(token.text):
                yield preceding, run, token.text
                run, preceding = [], ""
            run.append(token)
            continue
        yield preceding, run, token.text
        run, preceding = [], token.text
    yield preceding, run, ""


def _ends(token: str) -> bool:
    """Whether a factor may end with a token."""
    return token[:1].isdigit() or token == ")"


def _begins(token: str) -> bool:
    """Whether a factor may begin with a token."""
    return token[:1].isdigit() or token == "("


def _sides(
    preceding: str, run: list[_Token], following: str
) -> list[list[_Token]] | None:
    """The sides of a run's equation, None where it has none."""
    sides: list[list[_Token]] = [[]]
    for token in run:
        if token.text == "=":
            sides.append([])
        else:
            sides[-1].append(token)
    # As in "x = 3 + 4 = 7", where x is none.
    if not sides[0]:
        sides, preceding = sides[1:], ""
    sides = sides[:-1] if sides and not sides[-1] else sides
    if len(sides) < 2 or not all(sides) or len(run) > _LONGEST:
        return None
    first, last = sides[0], sides[-1]
    # A left side behind an operator is a part of one, as in "5 apples - 2 = 3".
    sign = first[0].text in "-−" and not preceding.isalpha()
    if first[0].text in _OPERATORS and not sign:
        return None
    if last[-1].text in _OPERATORS:
        # A dash may be one of the sentence.
        if last[-1].text not in "-−" or len(following) == 1 or len(last) == 1:
            return None
        last = last[:-1]
    return [*sides[:-1], last]


def _holds(sides: list[list[_Token]]) -> bool:
    """Whether all sides have the same value."""
    texts = [[token.text for token in side] for side in sides]
    # Brackets around the whole equation have their partners in its other end.
    while _excess(texts[0]) > 0 and _excess(texts[-1]) < 0 and texts[0][0] == "(":
        texts[0], texts[-1] = texts[0][1:], texts[-1][:-1]
    values = [_value(side) for side in texts]
    return None not in values and all(
        abs(left - right) <= _rounding(side)
        for left, right, side in zip(values, values[1:], texts[1:], strict=False)
    )


def _excess(side: list[str]) -> int:
    """How many more brackets open than close."""
    return side.count("(") - side.count(")")


def _number(text: str) -> Fraction:
    """A number as it is written."""
    return Fraction(text.replace(",", "").replace("−", "-"))


def _rounding(side: list[str]) -> Fraction:
    """How far a side may be from the exact value: half of its last decimal place."""
    decimals = len(side[-1].partition(".")[2])
    single = len(side) == 1 or (len(side) == 2 and side[0] in "-−")
    return Fraction(1, 2 * 10**decimals) if single and decimals else Fraction(0)


def _value(side: list[str]) -> Fraction | None:
    """The value of one side of an equation, None where it has none."""
    try:
        value, rest = _sum([_OPERATORS.get(part, part) for part in side])
    except (ValueError, ZeroDivisionError, IndexError):
        return None
    return None if rest else value


def _sum(parts: list[str]) -> tuple[Fraction, list[str]]:
    """The value of a sum at the beginning of some parts, and the parts behind it."""
    value, parts = _product(parts)
    while parts and parts[0] in "+-":
        sign = 1 if parts[0] == "+" else -1
        term, parts = _product(parts[1:])
        value += sign * term
    return value, parts


def _product(parts: list[str]) -> tuple[Fraction, list[str]]:
    """As `_sum`, of a product."""
    value, parts = _factor(parts)
    while parts and parts[0] in "*/":
        sign = parts[0]
        factor, parts = _factor(parts[1:])
        value = value * factor if sign == "*" else value / factor
    return value, parts


def _factor(parts: list[str]) -> tuple[Fraction, list[str]]:
    """As `_sum`, of a number or a bracket."""
    if parts[0] == "-":
        value, parts = _factor(parts[1:])
        return -value, parts
    if parts[0] == "(":
        value, parts = _sum(parts[1:])
        if parts[0] != ")":
            raise ValueError
        return value, parts[1:]
    return _number(parts[0]), parts[1:]
