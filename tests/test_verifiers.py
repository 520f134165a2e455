"""Verifiers, on texts whose verdict is known."""

import json

import pytest

from protojax.distillability import equations
from protojax.rl import instructions, verifiers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3+4=7. Then 7-2=5=5", [True, True]),
        ("10/3=3.33 and 10/3=3.34", [True, False]),
        ("<<2*3=6>> 2 x 3 = 6, 2 × 3 = 6, 6 ÷ 4 = 1.5", [True] * 4),
        ("(1+2)*3=9 (3+4=8), -3+5=2 4 - 1 = 3", [True, False, True, True]),
        ("$5 + $6 = $11, 1,200+1=1,201, total = 3 + 4 = 8", [True, True, False]),
        ("5/0=1, 1 + (2 = 3", [False, False]),
        # Names and words make it another kind of equation, which nobody judges.
        ("2x+3=7, 10 = 72 - y, y2=4, 5 apples - 2 = 3, x = 3", []),
        ("3 - 2 = 1 - that is all. Step 1 3+4=8", [True, False]),
        ("87+59+56=p156,202.", []),
        ("", []),
    ],
)
def test_equations(text, wanted):
    assert [true for _, true in equations.equations_in(text)] == wanted
    assert verifiers.equations("", text, "") == all(wanted)
    assert verifiers.shown_equations("", text, "") == (bool(wanted) and all(wanted))


@pytest.mark.parametrize("part", ["(", "1", "1+", "1 ", " ", "1=", "=", "x", "1,000"])
def test_no_text_fails(part):
    # With a pattern that backtracks these would take hours.
    for text in (part * 3000, part * 3000 + "=1"):
        equations.equations_in(text)
        equations.numbers_in(text)


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("It is 1,000.", "1000", 1),
        ("#### 7.0", "#### 7", 1),
        ("7 then 8", "7", 0),
        ("minus: -3", "-3", 1),
        ("5-3", "3", 1),
        ("none", "7", 0),
    ],
)
def test_arithmetic(text, answer, wanted):
    assert verifiers.arithmetic("", text, answer) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The answer is (B).", 1),
        ("A or C? The answer: b", 1),
        ("B) a bird", 1),
        ("B", 1),
        ("A bird flew. B.", 1),
        ("A dog's life", 0),
        ("The answer is C, not B.", 0),
        ("", 0),
    ],
)
def test_multiple_choice(text, wanted):
    assert verifiers.multiple_choice("", text, "(B)") == wanted


@pytest.mark.parametrize(
    ("rule", "value", "good", "bad"),
    [
        ("min_words", 2, "one two", "one"),
        ("max_words", 2, "one two", "one two three"),
        ("min_sentences", 2, "One. Two!", "One 1.5."),
        ("max_sentences", 1, "One 1.5.", "One. Two!"),
        ("max_characters", 3, "abc", "abcd"),
        ("lines", 2, "a\n\nb", "a"),
        ("must_contain", ["tea", "a cup"], "A cup of Tea.", "A cup of teal."),
        ("must_not_contain", ["tea"], "teal", "Tea!"),
        ("starts_with", "Dear", " Dear you", "you Dear"),
        ("ends_with", "you.", "To you. ", "you"),
        ("matches", "^a+$", "aaa", "aab"),
        ("lowercase", True, "abc 1", "Abc"),
        ("uppercase", True, "ABC", "Abc"),
        ("no_commas", True, "a b", "a, b"),
        ("json", True, '```json\n{"a": [1]}\n```', "{a}"),
    ],
)
def test_instructions(rule, value, good, bad):
    answer = json.dumps({rule: value})
    assert instructions.check_rules(answer) == {rule: value}
    assert instructions.follows_instructions("", good, answer) == 1
    assert instructions.follows_instructions("", bad, answer) == 0


def test_every_rule_is_tested():
    (mark,) = test_instructions.pytestmark
    assert {case[0] for case in mark.args[1]} == {*instructions.RULES}


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("arithmetic", "seven", "answer 1 with a number"),
        ("multiple_choice", "K", "answer 1 a letter"),
        ("instructions", "short", "answer 1.instructions a JSON object"),
        ("instructions", "{}", "a JSON object"),
        ("instructions", '{"max_word": 1}', "Did you mean 'max_words'"),
        ("instructions", '{"max_words": true}', "of kind int"),
        ("instructions", '{"must_contain": [1]}', "of kind list"),
        ("instructions", '{"matches": "("}', "not a regular expression"),
        ("arithmetics", "7", "verifier one of"),
    ],
)
def test_answers_are_checked_before_work(name, answer, said):
    right = {"instructions": '{"lines": 1}', "multiple_choice": "B"}.get(name, "1")
    with pytest.raises(ValueError, match=said):
        verifiers.check_answers([name], [right, answer])
