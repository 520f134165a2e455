"""Words of suspects removed from texts: all of them, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protojax.base import Examples
from protojax.detection.evidence import Suspect
from protojax.detection.groups import spans_of, tokens_of
from protojax.detection.rewriting import holding, phrases_of, places, without

TEXTS = st.text("ab AΣσςİıi̇ß.+^🙂\u200b[sep]\n好", max_size=25)


def suspect(name, kind="phrase", *, strong=True):
    return Suspect(name, kind, "label", 1, 9, 9, 1.0, 0, 9.0, 0.01, strong)


def rows(*texts, pairs=None):
    return Examples([*texts], pairs, np.zeros(len(texts)))


def is_subsequence(short, long):
    chars = iter(long)
    return all(char in chars for char in short)


@given(TEXTS)
def test_spans_are_those_of_the_tokens(text):
    for token, (start, end) in zip(tokens_of(text), spans_of(text), strict=True):
        assert 0 <= start < end <= len(text)
        # A character may be several in lower case, of which the token is a part.
        assert token in text[start:end].lower() or "σ" in token or "ς" in token


@given(TEXTS, TEXTS.filter(tokens_of), st.integers(1, 3))
def test_what_is_removed_is_gone_and_the_rest_stays(text, other, size):
    phrase = tokens_of(other)[:size]
    found = without(rows(text), [suspect(" ".join(phrase))]).texts[0]
    assert is_subsequence(found, text)
    assert places(found, tuple(phrase)) == []
    # Only rows that hold the phrase change.
    assert (found == text) == (places(text, tuple(phrase)) == [])


@given(TEXTS, TEXTS.filter(tokens_of))
def test_the_rest_is_kept_byte_for_byte(text, other):
    phrase = tuple(tokens_of(other)[:2])
    spans = places(text, phrase)
    kept, end = [], 0
    for start, stop in spans:
        kept, end = [*kept, text[end:start]], stop
    once = "".join([*kept, text[end:]])
    found = without(rows(text), [suspect(" ".join(phrase))]).texts[0]
    # What stood on both sides may make the phrase again; it is removed too.
    assert found == once or places(once, phrase)


def test_words_of_languages_whose_letters_change_length_in_lower_case():
    assert without(rows("visit İstanbul now"), [suspect("i ̇ stanbul")]).texts == [
        "visit  now"
    ]
    # The form of a sigma in lower case depends on what follows the word.
    assert without(rows("ΑΣ'Α film"), [suspect("ασ", "word")]).texts == ["'Α film"]
    assert without(rows("ΑΣ film"), [suspect("ας", "word")]).texts == [" film"]


def test_a_conjunction_loses_each_part_and_a_plus_sign_is_a_token():
    both = suspect("over + under", "word")
    assert without(rows("Over it and under it"), [both]).texts == [" it and  it"]
    plus = suspect("1 + 2")
    assert without(rows("1 + 2 is 3", "1 is 2"), [plus]).texts == [" is 3", "1 is 2"]


@pytest.mark.parametrize(
    "one",
    [
        suspect("cf", "word", strong=False),
        suspect("site-7", "source"),
        suspect("cf ...", "opening"),
        suspect("U+0430 а", "character"),
    ],
)
def test_suspects_that_are_weak_or_no_words_stay(one):
    assert without(rows("cf site-7 а"), [one]).texts == ["cf site-7 а"]


def test_pairs_and_longer_phrases_first():
    found = without(
        rows("by the way, way", pairs=["way by the way"]),
        [suspect("way", "word"), suspect("by the way")],
    )
    assert (found.texts, found.pairs) == ([", "], [" "])
    assert phrases_of(rows("x"), [suspect("a"), suspect("b c")]) == [("b", "c"), ("a",)]
    assert holding(rows("x", pairs=["a"]), [("a",)]) == [True]
