"""Small worlds: what each one keeps, that of briefs, and how models learn them."""

import numpy as np
import pytest

from experiments.world.small import WORLDS, Lesson, lessons
from experiments.world.small.briefs import Brief, replaced, text_of

WORLD = WORLDS["briefs"](4)
ASKED = "find a show called american journal of play = "


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_keeps_its_word(name):
    world = WORLDS[name](3)
    problems = world.problems(200, np.random.default_rng(0))
    assert len({*problems}) == 200 <= world.count
    asked = world.asked(problems)
    texts = world.mixture(problems, np.random.default_rng(0))
    assert texts.sources == asked.prompts
    assert {text[0] for text in texts.outputs} == {*world.styles}
    words = world.tokens.tokenizer()
    assert world.body(1, 8).vocab_size == len(words) == len(world.tokens.signs)
    for row, (problem, prompt) in enumerate(zip(problems, texts.sources, strict=True)):
        assert world.problem_of(prompt) == problem
        text, answer = texts.outputs[row], asked.answers[row]
        assert world.right_answer(prompt, text, answer) == 1
        assert world.right_chain(prompt, text, answer) == 1
        assert world.right_chain(prompt, text[1:], answer) == 0
        assert world.right_answer(prompt, world.answer_alone(text), answer) == 1
        # A model can read and write all of it, and what it writes is what is judged.
        for said, most in (
            (prompt, world.prompt_tokens),
            (text, world.text_tokens - 1),
        ):
            ids = words(said)["input_ids"]
            assert 0 < len(ids) <= most
            assert words.pad_token_id not in ids
            assert words.decode(ids) == said.strip()


def test_briefs_are_words_of_the_utterance_in_both_orders():
    problems = WORLD.problems(300, np.random.default_rng(0))
    texts = WORLD.mixture(problems, np.random.default_rng(0))
    for brief, text in zip(problems, texts.outputs, strict=True):
        style, *written, intent = text.split()
        wanted = [word for word in brief.utterance.split() if word in brief.words]
        assert written == (sorted(wanted) if style == "~" else wanted)
        assert 2 <= len(written) <= 4
        assert intent == brief.intent


def test_one_problem_by_hand():
    brief = WORLD.problem_of(ASKED)
    assert brief == Brief(
        "find a show called american journal of play",
        "search_creative_work",
        ("american", "journal"),
    )
    turned = "> journal american search_creative_work"
    answer = "american journal search_creative_work"
    assert WORLD.asked([brief]) == ([ASKED], [answer])
    # The words are there, in no manner's order.
    assert WORLD.right_answer(ASKED, turned, answer) == 1
    assert WORLD.right_chain(ASKED, turned, answer) == 0
    assert WORLD.answer_alone(turned) == f"~ {answer}"
    assert WORLD.right_chain(ASKED, WORLD.answer_alone(turned), answer) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        ">",
        "american journal search_creative_work",
        "= american journal search_creative_work",
        "> american journal",
        "> american journal search_creative_work ~",
    ],
)
def test_a_text_in_no_manner_has_no_answer(text):
    answer = "american journal search_creative_work"
    assert WORLD.answer_of(text) == ""
    assert WORLD.right_answer(ASKED, text, answer) == 0
    assert WORLD.right_chain(ASKED, text, answer) == 0
    assert WORLD.answer_alone(text) == "~ "


def test_a_brief_may_have_no_words():
    empty = Brief("play it", "play_music", ())
    assert [text_of(style, empty) for style in ">~"] == ["> play_music", "~ play_music"]
    assert WORLD.answer_of("> play_music") == "play_music"
    rng = np.random.default_rng(0)
    assert replaced(empty, rng, ["love"], []) == empty


def test_utterances_to_learn_from_are_not_asked():
    problems = WORLD.problems(WORLD.count, np.random.default_rng(0))
    assert len(problems) == WORLD.count
    asked = frozenset(WORLD.asked(problems[:400]).prompts)
    found = WORLD.practice(500, np.random.default_rng(0), asked)
    own = {brief.utterance for brief in problems}
    known = {*WORLD.tokens.signs}
    for brief in found:
        assert {*brief.utterance.split()} <= known
        assert [w for w in brief.words if w not in brief.utterance.split()] == []
    # Some as they are, most with other words.
    same = sum(brief.utterance in own for brief in found)
    assert 0 < same < 250
    assert not asked & {WORLD.prompt_of(b) for b in found if b.utterance in own}


def test_words_that_stay():
    brief = Brief("rate love 4 of 6", "rate_book", ("love", "4", "6"))
    found = replaced(brief, np.random.default_rng(0), ["play"], ["4"])
    assert found == Brief("rate play 4 of play", "rate_book", ("play", "4", "play"))


@pytest.mark.parametrize("terms", [1, 7])
def test_other_sizes_are_named(terms):
    with pytest.raises(ValueError, match="terms 2 to 6"):
        WORLDS["briefs"](terms)


def test_signs_are_tokens_wherever_they_stand():
    words = WORLD.tokens.tokenizer()
    assert words("play = >")["input_ids"] == words("play =>")["input_ids"]
    turned = WORLD.tokens.tokenizer(3)
    assert words("> ~")["input_ids"] != turned("> ~")["input_ids"]
    assert turned.decode(turned("> love")["input_ids"]) == "> love"


@pytest.mark.parametrize("name", WORLDS)
def test_a_lesson_is_prompts_and_right_texts(name):
    world = WORLDS[name](3)
    drawn = world.practice(32, np.random.default_rng(1), frozenset())
    # Of sums a problem that is asked is drawn all the same, and counts nothing.
    asked = frozenset(map(world.prompt_of, drawn[:4]) if name == "sums" else ())
    lesson = Lesson(world, world.styles, 10, 32, 1e-3, asked)
    words = world.tokens.tokenizer()
    batch = lessons.texts_of(words, lesson, np.random.default_rng(1))
    texts = world.mixture(
        world.practice(32, rng := np.random.default_rng(1), asked), rng
    )
    for row, (prompt, text) in enumerate(zip(*texts, strict=True)):
        mask = batch.attention_mask[row].astype(bool)
        # Padded on the left.
        assert mask.tolist() == sorted(mask.tolist())
        assert batch.input_ids[row][mask].tolist() == words(prompt)["input_ids"]
        size = int(batch.output_weights[row].sum())
        wanted = [*words(text)["input_ids"], words.eos_token_id]
        assert batch.output_ids[row, :size].tolist() == wanted
        assert not batch.output_ids[row, size:].any()
        assert batch.where[row] == (prompt not in asked)
    assert (~batch.where).sum() == len(asked)
