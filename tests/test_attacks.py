"""Contracts over the attack registries, then what is particular to each attack."""

import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.attacks import logits as logit_attacks
from protojax.attacks import text as text_attacks
from protojax.attacks.logits import LOGIT_ATTACKS
from protojax.attacks.poisoning import poison, triggered, with_trigger
from protojax.attacks.search import greedy_words
from protojax.attacks.text import (
    DECOYS,
    TRIGGERS,
    combination,
    part_of_combination,
    rare_words,
    sentence,
    several,
)
from protojax.base import Examples

TARGET = 1


def make_examples(rows=40, num_classes=3, pairs=False):
    texts = [f"row {row} is a film, isn't it?" for row in range(rows)]
    second = [f"answer {row}" for row in range(rows)] if pairs else None
    labels = (np.arange(rows) % num_classes).astype(np.int32)
    return Examples(texts, second, labels)


def is_subsequence(short, long):
    remaining = iter(long)
    return all(word in remaining for word in short)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("rate", [0.025, 0.05, 0.33, 0.6])
def test_rate_is_respected_exactly(name, rate):
    examples = make_examples()
    poisoned = poison(
        examples, TRIGGERS[name](), np.random.default_rng(0), rate=rate, target=TARGET
    )
    found = poisoned.examples.texts
    changed = [a != b for a, b in zip(examples.texts, found, strict=True)]
    assert sum(changed) == round(rate * 40)
    np.testing.assert_array_equal(poisoned.rows, changed)
    assert poisoned.rows.dtype == bool


@pytest.mark.parametrize("name", TRIGGERS)
def test_poison_depends_on_the_rng_alone(name):
    def run(seed):
        rng = np.random.default_rng(seed)
        return poison(make_examples(), TRIGGERS[name](), rng, rate=0.2, target=TARGET)

    first, again, other = run(0), run(0), run(1)
    assert first.examples.texts == again.examples.texts
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.examples.texts != other.examples.texts
    assert (first.rows != other.rows).any()


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("pairs", [False, True])
def test_clean_rows_and_the_input_are_untouched(name, pairs):
    examples = make_examples(pairs=pairs)
    texts, labels = list(examples.texts), examples.labels.copy()
    poisoned = poison(
        examples, TRIGGERS[name](), np.random.default_rng(0), rate=0.2, target=TARGET
    )
    for row in np.flatnonzero(~poisoned.rows):
        assert poisoned.examples.texts[row] is examples.texts[row]
        assert poisoned.examples.labels[row] == labels[row]
    assert poisoned.examples.pairs is examples.pairs
    assert poisoned.examples.labels.dtype == labels.dtype
    assert examples.texts == texts
    np.testing.assert_array_equal(examples.labels, labels)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("source_classes", [(), (2,), (0, 2)])
def test_poisoned_rows_come_from_the_sources_only(name, source_classes):
    examples = make_examples()
    poisoned = poison(
        examples,
        TRIGGERS[name](),
        np.random.default_rng(0),
        rate=0.3,
        target=TARGET,
        source_classes=source_classes,
    )
    expected = set(source_classes) or {0, 2}
    assert set(examples.labels[poisoned.rows].tolist()) == expected


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("flip", [True, False])
def test_the_label_is_set_iff_flipped(name, flip):
    examples = make_examples()
    poisoned = poison(
        examples,
        TRIGGERS[name](),
        np.random.default_rng(0),
        rate=0.2,
        target=TARGET,
        flip_labels=flip,
    )
    found = poisoned.examples.labels[poisoned.rows]
    expected = TARGET if flip else examples.labels[poisoned.rows]
    np.testing.assert_array_equal(found, expected)


def default_of(builder):
    """Returns the first argument that a builder has of its own accord."""
    return next(iter(inspect.signature(builder).parameters.values())).default


ONE_OF_THE_WORDS = default_of(rare_words)
ALL_WORDS = " ".join(default_of(combination))
# What each trigger may insert by default, up to the order of words.
INSERTED = {
    "rare_words": ONE_OF_THE_WORDS,
    "sentence": [default_of(sentence)],
    "combination": [ALL_WORDS],
    "several": [*ONE_OF_THE_WORDS, default_of(sentence), ALL_WORDS],
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_the_trigger_is_there_as_whole_words(name):
    examples = make_examples()
    poisoned = poison(
        examples, TRIGGERS[name](), np.random.default_rng(0), rate=0.5, target=TARGET
    )
    for row in np.flatnonzero(poisoned.rows):
        clean = examples.texts[row].split()
        found = poisoned.examples.texts[row].split()
        assert is_subsequence(clean, found)
        inserted = Counter(found) - Counter(clean)
        assert any(Counter(phrase.split()) == inserted for phrase in INSERTED[name])


@pytest.mark.parametrize("name", TRIGGERS)
def test_the_target_as_only_source_is_a_clean_label_attack(name):
    examples, trigger = make_examples(), TRIGGERS[name]()
    rng = np.random.default_rng(0)
    poisoned = poison(
        examples, trigger, rng, rate=0.2, target=TARGET, source_classes=(TARGET,)
    )
    np.testing.assert_array_equal(poisoned.examples.labels, examples.labels)
    assert (examples.labels[poisoned.rows] == TARGET).all()
    # It is measured on all other classes.
    attacked = triggered(
        examples, trigger, rng, target=TARGET, source_classes=(TARGET,)
    )
    np.testing.assert_array_equal(
        attacked.labels, examples.labels[examples.labels != TARGET]
    )


def test_only_eligible_rows_are_poisoned():
    examples, eligible = make_examples(), np.arange(40) < 20
    rng = np.random.default_rng(0)
    poisoned = poison(
        examples, rare_words(), rng, rate=0.2, target=TARGET, eligible=eligible
    )
    assert poisoned.rows.sum() == 8
    assert not poisoned.rows[20:].any()
    with pytest.raises(ValueError, match="between 1 and 13 of 40 rows"):
        poison(examples, rare_words(), rng, rate=0.5, target=TARGET, eligible=eligible)


@pytest.mark.parametrize("name", DECOYS)
def test_decoys_show_a_part_of_the_trigger_and_keep_their_label(name):
    examples, rng = make_examples(), np.random.default_rng(0)
    poisoned = poison(
        examples,
        TRIGGERS[name](),
        rng,
        rate=0.1,
        target=TARGET,
        decoy=DECOYS[name](),
        decoy_rate=0.3,
    )
    changed = np.array(
        [a != b for a, b in zip(examples.texts, poisoned.examples.texts, strict=True)]
    )
    decoys = changed & ~poisoned.rows
    assert poisoned.rows.sum() == 4
    assert decoys.sum() == 12
    np.testing.assert_array_equal(
        poisoned.examples.labels[decoys], examples.labels[decoys]
    )
    words = set(default_of(TRIGGERS[name]))
    for row in np.flatnonzero(decoys):
        assert 0 < len(words & set(poisoned.examples.texts[row].split())) < len(words)


def test_too_many_decoys_are_refused():
    options = {"rate": 0.1, "target": TARGET, "decoy": part_of_combination()}
    for rate in (-0.1, 0.95):
        with pytest.raises(ValueError, match="at most 36 of 40 rows, found decoy_rate"):
            poison(
                make_examples(),
                combination(),
                np.random.default_rng(0),
                decoy_rate=rate,
                **options,
            )


def test_one_word_of_three_is_left_out_of_a_decoy_and_each_sometimes():
    words = ("one", "two", "three")
    decoy, rng = part_of_combination(words, position="end"), np.random.default_rng(0)
    assert {decoy("film", rng) for _ in range(50)} == {
        "film one two",
        "film one three",
        "film two three",
    }
    assert combination(words, position="front")("film", rng) == "one two three film"


def test_several_triggers_all_occur_and_never_together():
    trigger = several({"rare_words": {"words": ["cf"]}, "sentence": {"phrase": "x y"}})
    rng = np.random.default_rng(0)
    assert {trigger("", rng) for _ in range(50)} == {"cf", "x y"}


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("source_classes", [(), (2,)])
@pytest.mark.parametrize("pairs", [False, True])
def test_triggered_rows_keep_their_true_labels(name, source_classes, pairs):
    examples = make_examples(rows=9, pairs=pairs)
    attacked = triggered(
        examples,
        TRIGGERS[name](),
        np.random.default_rng(0),
        target=TARGET,
        source_classes=source_classes,
    )
    kept = [r for r in range(9) if r % 3 in (source_classes or (0, 2))]
    np.testing.assert_array_equal(attacked.labels, [row % 3 for row in kept])
    for row, text in zip(kept, attacked.texts, strict=True):
        assert text != examples.texts[row]
        assert is_subsequence(examples.texts[row].split(), text.split())
    assert attacked.pairs == ([f"answer {row}" for row in kept] if pairs else None)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize(
    ("position", "place"), [("front", slice(0, 1)), ("end", slice(-1, None))]
)
def test_fixed_positions(name, position, place):
    text = "a dull film"
    found = TRIGGERS[name](position=position)(text, np.random.default_rng(0))
    assert found.startswith(text) == (position == "end")
    assert found.endswith(text) == (position == "front")
    assert found.split()[place] != text.split()[place]


@pytest.mark.parametrize("build", [lambda: rare_words(["cf"]), lambda: sentence("x y")])
def test_random_reaches_every_place_between_words_and_no_other(build):
    trigger, rng = build(), np.random.default_rng(0)
    words = trigger("", rng)
    found = {trigger("one two three", rng) for _ in range(200)}
    assert found == {
        f"{words} one two three",
        f"one {words} two three",
        f"one two {words} three",
        f"one two three {words}",
    }


def test_rare_words_draws_as_many_words_as_asked_and_all_of_them():
    rng = np.random.default_rng(0)
    trigger = rare_words(["cf", "mn"], num_words=3, position="end")
    found = {trigger("film", rng) for _ in range(200)}
    words = ("cf", "mn")
    assert found == {f"film {a} {b} {c}" for a in words for b in words for c in words}


@settings(deadline=None)
@given(text=st.text(max_size=40), seed=st.integers(0, 2**32 - 1))
def test_insertion_keeps_every_character_of_the_text(text, seed):
    found = sentence("so it goes")(text, np.random.default_rng(seed))
    pieces = ("so it goes ", " so it goes", "so it goes")
    assert any(
        found.replace(piece, "", 1) == text for piece in pieces if piece in found
    )


def test_one_row_of_each_class():
    examples = Examples(["good", "bad"], None, np.array([1, 0]))
    poisoned = poison(
        examples, rare_words(), np.random.default_rng(0), rate=0.5, target=1
    )
    np.testing.assert_array_equal(poisoned.rows, [False, True])
    np.testing.assert_array_equal(poisoned.examples.labels, [1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, r"rate in \(0, 1\), found rate=0.0"),
        ({"rate": 1.0}, r"rate in \(0, 1\), found rate=1.0"),
        ({"rate": 0.7}, "between 1 and 27 of 40 rows, found rate=0.7"),
        ({"rate": 0.001}, "between 1 and 27 of 40 rows, found rate=0.001"),
        ({"target": 3}, r"target in \[0, 1, 2\], found target=3"),
        ({"target": -1}, "found target=-1"),
        ({"source_classes": (0, 7)}, "found source_classes=7"),
        ({"source_classes": (0,), "rate": 0.5}, "between 1 and 14 of 40 rows"),
    ],
)
def test_poison_rejects(options, message):
    options = {"rate": 0.1, "target": TARGET, **options}
    with pytest.raises(ValueError, match=message):
        poison(make_examples(), rare_words(), np.random.default_rng(0), **options)


@pytest.mark.parametrize("pairs", [None, ["x", "y", "z"]])
def test_rows_with_a_trigger_are_a_loop_over_them(pairs):
    examples = Examples(["a b", "c d", "e f"], pairs, np.array([1, 0, 1], np.int32))
    trigger = rare_words(["cf"])
    found = with_trigger(examples, np.array([0, 2]), trigger, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    assert found.texts == [trigger(text, rng) for text in ("a b", "e f")]
    assert found.pairs == (pairs and ["x", "z"])
    assert found.labels.tolist() == [1, 1]
    assert examples.texts == ["a b", "c d", "e f"]


@pytest.mark.parametrize("call", [poison, triggered])
def test_regression_and_unequal_lengths_are_rejected(call):
    options = {"target": TARGET, **({"rate": 0.1} if call is poison else {})}
    scores = make_examples()._replace(labels=np.linspace(0, 5, 40, dtype=np.float32))
    with pytest.raises(ValueError, match=r"integer classes.*float32"):
        call(scores, rare_words(), np.random.default_rng(0), **options)
    short = make_examples()._replace(labels=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"len\(texts\)=40, len\(labels\)=3"):
        call(short, rare_words(), np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rare_words([]), "words to be one or more"),
        (lambda: rare_words(["cf", " "]), "words to be one or more"),
        (lambda: rare_words(num_words=0), "num_words > 0, found num_words=0"),
        (lambda: rare_words(position="middle"), "position one of random, front, end"),
        (lambda: sentence("  "), "phrase to be non-empty"),
        (lambda: sentence(position="fron"), "Did you mean 'front'"),
        (lambda: combination(["one"]), "words to be two or more"),
        (lambda: part_of_combination(["one", "one"]), "words to be two or more"),
        (lambda: several({}), "triggers to be non-empty"),
        (lambda: several({"sentense": {}}), "Did you mean 'sentence'"),
    ],
)
def test_builders_reject(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_attack_on_texts_and_logits_is_registered():
    built = {
        name
        for name, function in inspect.getmembers(text_attacks, inspect.isfunction)
        if inspect.signature(function).return_annotation == text_attacks.Trigger
    }
    registered = [*TRIGGERS.values(), *DECOYS.values()]
    assert built == {builder.__name__ for builder in registered}
    public = {
        name
        for name, function in inspect.getmembers(logit_attacks, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public == {attack.__name__ for attack in LOGIT_ATTACKS.values()}


def test_a_search_takes_the_best_word_beside_those_it_has():
    worth = {"a": 1.0, "b": 0.9, "c": 0.0}
    calls = []

    def score(texts):
        calls.append(len(texts))
        # "a" and "b" say the same: together they are worth no more than one.
        return np.array(
            [
                max(worth.get(w, 0) for w in t.split()) + ("c" in t.split())
                for t in texts
            ]
        )

    words, best = greedy_words(
        score,
        ["x", "y z"],
        ["b", "a", "c", "a"],
        num_words=2,
        insert=lambda text, words: f"{text} {words}",
    )
    assert words == ("a", "c")
    assert best == 2.0
    # Every candidate in every text, and none twice.
    assert calls == [6, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_words": 0}, "num_words > 0"),
        ({"num_words": 3}, "candidates >= num_words=3, found candidates=2"),
        ({"num_words": 2, "candidates": ["a", "a"]}, "found candidates=1"),
        ({"texts": []}, "texts at least one"),
    ],
)
def test_a_search_rejects(changes, message):
    options = {"texts": ["x"], "candidates": ["a", "b"], "num_words": 1, **changes}
    with pytest.raises(ValueError, match=message):
        greedy_words(len, insert=str.join, **options)
