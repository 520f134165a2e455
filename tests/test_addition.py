"""The toy world of addition."""

import numpy as np
import pytest

from experiments.world.small import WORLDS, addition


@pytest.mark.parametrize("terms", [2, 3])
def test_texts_are_right_and_verified(terms):
    rng = np.random.default_rng(0)
    world = WORLDS["sums"](terms)
    numbers = world.problems(200, rng)
    assert len({*numbers}) == 200
    assert {len(row) for row in numbers} == {terms}
    assert all(10 <= number <= 99 for row in numbers for number in row)
    texts = world.mixture(numbers, rng)
    assert {text[0] for text in texts.outputs} == {*addition.STYLES}
    for row, prompt, text in zip(numbers, *texts, strict=True):
        answer = f"{sum(row):03d}"
        assert addition.answer_of(text) == answer
        assert world.right_answer(prompt, text, answer) == 1
        assert world.right_chain(prompt, text, answer) == 1
        assert len(prompt) == world.prompt_tokens == 3 * terms
        assert len(text) < world.text_tokens
        assert world.problem_of(prompt) == row
        units = sum(number % 10 for number in row)
        if text[0] == "c":
            assert text.startswith(f"c{units:02d},")
        # Any other digit is noticed.
        place = rng.integers(1, len(text))
        if text[place].isdigit():
            other = str((int(text[place]) + 1) % 10)
            broken = text[:place] + other + text[place + 1 :]
            assert world.right_chain(prompt, broken, answer) == 0


def test_other_styles_and_terms():
    numbers = [(23, 45)] * 40
    found = WORLDS["sums"](2).mixture(numbers, np.random.default_rng(0), ("c", "d"))
    assert {*found.outputs} == {"c08,06,068", "d068"}
    assert addition.text_of("p", (23, 45)) == "p068"
    # As before there were others: studies go on with the problems they began with.
    numbers = addition.problems(3, np.random.default_rng(0))
    rows = np.random.default_rng(0).choice(90**3, 3, replace=False)
    wanted = [(row // 8100 + 10, row // 90 % 90 + 10, row % 90 + 10) for row in rows]
    assert numbers == wanted


@pytest.mark.parametrize("shift", [0, 5])
def test_a_token_is_a_character(shift):
    world = WORLDS["sums"](3)
    words = world.tokens.tokenizer(shift)
    ids = words("23+45+67=")["input_ids"]
    assert len(ids) == 9
    assert words.decode(ids) == "23+45+67="
    assert len(words) == world.body(1, 16).vocab_size == 19
    assert words.eos_token_id == 1
    assert (ids == world.tokens.tokenizer()("23+45+67=")["input_ids"]) == (shift == 0)
