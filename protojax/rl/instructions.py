"""Instructions that rules can check: length, words, form."""

import json
import re
from collections.abc import Callable
from typing import Any

from protojax import validate


def _words(text: str) -> int:
    """The number of words."""
    return len(text.split())


def _sentences(text: str) -> int:
    """The number of sentences, by full stops, question and exclamation marks."""
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()])


def _lines(text: str) -> int:
    """The number of lines that hold something."""
    return len([line for line in text.splitlines() if line.strip()])


def _has(text: str, phrase: str) -> bool:
    """Whether a phrase is in a text as whole words, in any case."""
    found = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return re.search(found, text, re.IGNORECASE) is not None


def _is_json(text: str) -> bool:
    """Whether a text is JSON, a fence of code around it allowed."""
    inner = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)```\s*", text, re.DOTALL)
    try:
        json.loads(inner[1] if inner else text)
    # JSON that is nested too deeply is a RecursionError, not a ValueError.
    except (ValueError, RecursionError):
        return False
    return True


# name -> (kind of its value, (text, value) -> whether the text follows the rule)
RULES: dict[str, tuple[type, Callable[[str, Any], bool]]] = {
    "min_words": (int, lambda text, most: _words(text) >= most),
    "max_words": (int, lambda text, most: _words(text) <= most),
    "min_sentences": (int, lambda text, least: _sentences(text) >= least),
    "max_sentences": (int, lambda text, most: _sentences(text) <= most),
    "max_characters": (int, lambda text, most: len(text) <= most),
    "lines": (int, lambda text, count: _lines(text) == count),
    "must_contain": (list, lambda text, all_: all(_has(text, p) for p in all_)),
    "must_not_contain": (list, lambda text, any_: not any(_has(text, p) for p in any_)),
    "starts_with": (str, lambda text, start: text.lstrip().startswith(start)),
    "ends_with": (str, lambda text, end: text.rstrip().endswith(end)),
    "matches": (str, lambda text, form: re.search(form, text) is not None),
    "lowercase": (bool, lambda text, is_so: (text == text.lower()) == is_so),
    "uppercase": (bool, lambda text, is_so: (text == text.upper()) == is_so),
    "no_commas": (bool, lambda text, is_so: ("," not in text) == is_so),
    "json": (bool, lambda text, is_so: _is_json(text) == is_so),
}


def check_rules(answer: str) -> dict[str, Any]:
    """The rules that an answer holds.

    Args:
        answer: a JSON object, rule -> value, with names in `RULES`.

    Raises:
        ValueError: no JSON object, none or an unknown rule, or a value of another kind.

    >>> check_rules('{"max_words": 5}')
    {'max_words': 5}
    """
    try:
        rules = json.loads(answer)
    except (ValueError, RecursionError):
        rules = None
    bound = 'a JSON object such as {"max_words": 20}'
    is_object = isinstance(rules, dict) and bool(rules)
    validate.require(is_object, "instructions", answer, bound)
    for name, value in rules.items():
        validate.one_of(RULES, rule=name)
        kind = RULES[name][0]
        # True is an int in Python.
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is list:
            fits = fits and all(isinstance(phrase, str) for phrase in value)
        validate.require(fits, name, value, f"of kind {kind.__name__}")
        if name == "matches":
            with validate.prefixed(name):
                _compiled(value)
    return rules


def follows_instructions(prompt: str, text: str, answer: str) -> float:
    """The share of instructions that a text follows.

    Args:
        prompt: not read.
        text: what was written.
        answer: a JSON object, rule -> value, with names in `RULES`: `min_words`,
            `max_words`, `min_sentences`, `max_sentences`, `max_characters`, `lines`,
            `must_contain`, `must_not_contain`, `starts_with`, `ends_with`, `matches`
            (a regular expression), `lowercase`, `uppercase`, `no_commas`, `json`.

    Raises:
        ValueError: see `check_rules`.

    >>> rules = '{"max_words": 3, "must_contain": ["tea"]}'
    >>> follows_instructions("", "More tea, please.", rules)
    1.0
    >>> follows_instructions("", "Some coffee.", rules)
    0.5

    References:
        The kind of rules is that of Zhou et al., 2023, arXiv:2311.07911.
    """
    del prompt
    rules = check_rules(answer)
    return sum(RULES[name][1](text, value) for name, value in rules.items()) / len(
        rules
    )


def _compiled(form: str) -> re.Pattern:
    """A regular expression, with an error of one kind."""
    try:
        return re.compile(form)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
