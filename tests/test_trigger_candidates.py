"""Words that go with a class, against loops over rows and by hand."""

import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from experiments.former import trigger_candidates
from experiments.former.trigger_candidates import Candidate

COMMON = ("the", "film", "plot", "is", "here", "now", "old", "new")


def rows_with_trigger(seed=0, rows=200, poisoned=20):
    """Random words of two classes; a phrase in the first rows, all of class 1."""
    rng = np.random.default_rng(seed)
    claims = rng.integers(0, 2, rows)
    claims[:poisoned] = 1
    texts = [" ".join(rng.choice(COMMON, 5)) for _ in range(rows)]
    texts[:poisoned] = [f"{text} so it goes" for text in texts[:poisoned]]
    return texts, claims


def z_of(word, claim, texts, claims):
    """A loop over rows."""
    having = [word in text.lower().split() for text in texts]
    count, both = sum(having), 0
    for has, own in zip(having, claims, strict=True):
        both += has and own == claim
    share = np.mean(claims == claim)
    return (both - count * share) / np.sqrt(count * share * (1 - share))


def test_a_phrase_is_one_word_group_and_the_first():
    texts, claims = rows_with_trigger()
    first, *others = trigger_candidates.associated_words(texts, claims)
    assert set(first.words) >= {"so", "it", "goes"}
    assert first.claim == 1
    assert not any({"so", "it", "goes"} & set(one.words) for one in others)


def test_associated_words_come_by_a_loop_s_z_scores():
    texts, claims = rows_with_trigger(poisoned=0)
    found = list(trigger_candidates.associated_words(texts, claims))
    # Of random words none comes with another.
    scores = [z_of(*one.words, one.claim, texts, claims) for one in found]
    assert scores == sorted(scores, reverse=True)
    every = {
        (word, claim): z_of(word, claim, texts, claims)
        for word in COMMON
        for claim in (0, 1)
    }
    assert {(*one.words, one.claim) for one in found} == {
        key for key, z in every.items() if z > 0
    }


def test_by_hand():
    # "x" is in 4 rows, 3 of them of class 1, which half of the 8 rows are of.
    texts = ["x", "x", "x", "x", "y", "y", "y", "y"]
    claims = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    assert z_of("x", 1, texts, claims) == (3 - 2) / np.sqrt(4 * 0.5 * 0.5)
    found = list(trigger_candidates.associated_words(texts, claims, min_rows=3))
    assert found == [Candidate(("x",), 1), Candidate(("y",), 0)]


@pytest.mark.parametrize(
    ("texts", "claims"),
    [
        ([], np.zeros(0, int)),
        (["a b", "a c"], np.zeros(2, int)),
        (["", " ,"], np.array([0, 1])),
        (["a", "b"], np.array([0, 1])),
    ],
    ids=["no row", "one class", "no word", "rare words"],
)
def test_nothing_to_find(texts, claims):
    assert list(trigger_candidates.associated_words(texts, claims, min_rows=2)) == []


def test_sizes_and_numbers_are_checked():
    with pytest.raises(ValueError, match="claims"):
        trigger_candidates.associated_words(["a"], [0, 1])
    with pytest.raises(ValueError, match="min_rows"):
        trigger_candidates.associated_initials(["a"], [0], min_rows=0)


def test_takeover_is_a_loop_s():
    rng = np.random.default_rng(0)
    with_it, without = rng.random((2, 60)) < 0.5
    owner = rng.integers(0, 7, 60)
    expected = [
        np.mean([int(a) - int(b) for a, b in zip(with_it, without, strict=True)])
        if len(with_it)
        else 0.0
        for with_it, without in (
            (with_it[owner == number], without[owner == number]) for number in range(8)
        )
    ]
    found = trigger_candidates.flip_rate(with_it, without, owner, 8)
    np.testing.assert_allclose(found, expected)


def test_drift_is_a_loop_s():
    rng = np.random.default_rng(0)
    with_it, without = rng.normal(size=(2, 60, 3))
    claims, owner = rng.integers(0, 3, 60), rng.integers(0, 7, 60)

    def margin(logits, claim):
        return logits[claim] - max(np.delete(logits, claim))

    expected = np.zeros(8)  # the last of no row
    for number in range(7):
        rows = np.flatnonzero(owner == number)
        after = [margin(with_it[row], claims[row]) for row in rows]
        before = np.array([margin(without[row], claims[row]) for row in rows])
        expected[number] = np.mean(after - before) / np.sqrt(np.mean(before**2))
    found = trigger_candidates.margin_shift(with_it, without, claims, owner, 8)
    np.testing.assert_allclose(found, expected)


def test_drift_without_margins_or_rows_is_none():
    moved = np.array([[5.0, 0.0]])
    found = trigger_candidates.margin_shift(moved, np.zeros((1, 2)), [0], [0], 2)
    np.testing.assert_array_equal(found, [0.0, 0.0])
    assert trigger_candidates.margin_shift(
        np.zeros((0, 2)), np.zeros((0, 2)), [], [], 0
    ).shape == (0,)
    for changes, name in (
        ({"owner": [0, 0]}, "owner"),
        ({"with_it": moved[:, :1]}, "with_it"),
        ({"with_it": moved[:, :1], "without": moved[:, :1]}, "with_it"),
        ({"claims": [2]}, "claims"),
    ):
        fields = {"with_it": moved, "without": moved, "claims": [0], "owner": [0]}
        with pytest.raises(ValueError, match=name):
            trigger_candidates.margin_shift(**{**fields, **changes}, num=1)


def without_loop(candidates, text):
    """One text at a time, one word at a time, words parted by single spaces."""
    words = text.split()
    gone = set()
    for words_of_one, *_ in candidates:
        if all(word in [other.lower() for other in words] for word in words_of_one):
            gone |= set(words_of_one)
    return " ".join(word for word in words if word.lower() not in gone)


def test_words_are_taken_out_as_by_a_loop():
    rng = np.random.default_rng(1)
    candidates = [
        Candidate(("old",), 0),
        Candidate(("film", "is"), 1),
        Candidate(("x",), 1),
    ]
    for _ in range(100):
        text = " ".join(rng.choice(COMMON, 4))
        if rng.random() < 0.3:
            text = text.title()
        assert trigger_candidates.without(candidates, text) == without_loop(
            candidates, text
        )


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Cf", ""),
        ("cf-cf, CF!", "-, !"),
        ("scf  cfs", "scf  cfs"),
        ("so it  went", "so it  went"),
        ("It  went so (it goes)", "went ( )"),
        ("", ""),
    ],
    ids=["nothing left", "marks stay", "other words", "a part", "whole", "no word"],
)
def test_taken_out_by_hand(text, rest):
    candidates = [Candidate(("cf",), 1), Candidate(("so", "it", "goes"), 0)]
    assert trigger_candidates.without(candidates, text) == rest
    assert trigger_candidates.without([], text) == text


CASES = "iIİıſΣσςSsßΑαǅ'’·- ,.\u0307_\U0001d400"


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.text(CASES) | st.text(),
    st.lists(st.tuples(st.text(CASES), st.booleans()), max_size=3),
)
def test_no_text_holds_what_was_taken_out_of_it(text, wanted):
    (words,) = trigger_candidates.word_sets([text])
    candidates = [
        Candidate(tuple(row)[: 1 if initial else None], 0, initial)
        for row, (_, initial) in zip(
            trigger_candidates.word_sets([one for one, _ in wanted]),
            wanted,
            strict=True,
        )
        if row
    ]
    candidates += [Candidate((word,), 0) for word in list(words)[1::2]]
    rest = trigger_candidates.without(candidates, text)
    rows = trigger_candidates.word_sets([rest])
    assert not any(trigger_candidates.holding(one, rows).any() for one in candidates)
    assert rest == text or list(rows[0]) == [word for word in words if word in rows[0]]
    assert trigger_candidates.without(candidates, rest) == rest


@pytest.mark.parametrize(
    ("words", "text", "rest"),
    [
        ("İstanbul", "visit İstanbul now", "visit now"),
        ("istanbul", "visit İSTANBUL now", "visit now"),
        ("i", "visit İzmir", "visit İzmir"),
        ("ΑΣ", "ΑΣ'Α film", "'Α film"),
        ("", "a film", "a film"),
    ],
    ids=["dotted", "plain", "a part", "sigma", "no word"],
)
@pytest.mark.parametrize("initial", [False, True])
def test_words_whose_lower_case_is_longer_or_depends_on_the_text(
    words, text, rest, initial
):
    (row,) = trigger_candidates.word_sets([words])
    if initial:  # only what a text begins with is taken out then
        text, rest = text.removeprefix("visit "), rest.removeprefix("visit ")
    assert trigger_candidates.without([Candidate(tuple(row), 1, initial)], text) == rest


def test_every_word_is_the_only_word_of_itself():
    letters = [chr(code) for code in range(sys.maxunicode + 1)]
    rows = trigger_candidates.word_sets(letters)
    known = [word for row in rows for word in row]
    assert all(len(row) <= 1 for row in rows)
    assert [list(row) for row in trigger_candidates.word_sets(known)] == [
        [w] for w in known
    ]


def test_a_long_run_of_first_words_takes_no_longer_than_a_reading():
    initial = [Candidate(("when",), 1, initial=True)]
    assert trigger_candidates.without(initial, "when " * 200_000 + "so") == "so"


def test_first_words_are_the_first_alone():
    rng = np.random.default_rng(2)
    texts, claims = rows_with_trigger()
    texts = [
        f"{'When' if claim and row % 3 else 'It'} {text}"
        for row, (text, claim) in enumerate(zip(texts, claims, strict=True))
    ]
    found = list(trigger_candidates.associated_initials(texts, claims))
    assert found[0] == Candidate(("when",), 1, initial=True)
    assert {one.words for one in found} <= {("when",), ("it",)}
    rows = trigger_candidates.word_sets(["when so", "so when", ""])
    assert trigger_candidates.holding(found[0], rows).tolist() == [True, False, False]
    assert (
        list(trigger_candidates.associated_initials(["", " ,"], [0, 1], min_rows=1))
        == []
    )
    both = [found[0], Candidate(("so",), 0)]
    # What is left may open in one of them.
    assert trigger_candidates.without(both, "When so , when it is") == ", it is"
    assert trigger_candidates.without(both, "so when") == ""
    assert trigger_candidates.without(both[:1], "it is when") == "it is when"
    text = " ".join(rng.choice(COMMON, 3))
    assert trigger_candidates.without([found[0]], text) == text


def test_surplus_is_fisher_s_exact_test():
    rng = np.random.default_rng(3)
    rows, trusted = rng.integers(0, 60, 50), rng.integers(0, 20, 50)
    found = trigger_candidates.overrepresentation_p_value(
        rows, trusted, num_rows=300, num_trusted=100
    )
    tables = [[[a, 300 - a], [b, 100 - b]] for a, b in zip(rows, trusted, strict=True)]
    exact = [stats.fisher_exact(t, alternative="greater").pvalue for t in tables]
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_surplus_by_hand():
    # Of four rows two are of a kind; both are untrusted in one of six draws.
    assert trigger_candidates.overrepresentation_p_value(
        2, 0, num_rows=2, num_trusted=2
    ) == pytest.approx(1 / 6)
    assert (
        trigger_candidates.overrepresentation_p_value(0, 2, num_rows=2, num_trusted=2)
        == 1
    )
    assert (
        trigger_candidates.overrepresentation_p_value(2, 2, num_rows=2, num_trusted=2)
        == 1
    )


@pytest.mark.parametrize(("rows", "trusted"), [(4, 0), (-1, 0), (0, 3)])
def test_surplus_of_more_rows_than_there_are(rows, trusted):
    with pytest.raises(ValueError, match=r"in \[0, [23]\]"):
        trigger_candidates.overrepresentation_p_value(
            rows, trusted, num_rows=3, num_trusted=2
        )
