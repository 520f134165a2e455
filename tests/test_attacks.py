"""Contracts over the attack registries, then what is particular to each attack."""

import inspect
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.attacks import logits as logit_attacks
from protojax.attacks import text as text_attacks
from protojax.attacks.logits import LOGIT_ATTACKS, add_logits, replace_logits
from protojax.attacks.text import TRIGGERS, poison, rare_words, sentence, triggered
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


@pytest.mark.parametrize("name", TRIGGERS)
def test_the_trigger_is_there_as_whole_words(name):
    examples = make_examples()
    poisoned = poison(
        examples, TRIGGERS[name](), np.random.default_rng(0), rate=0.5, target=TARGET
    )
    defaults = inspect.signature(TRIGGERS[name]).parameters.values()
    allowed = np.atleast_1d(next(iter(defaults)).default)
    for row in np.flatnonzero(poisoned.rows):
        clean = examples.texts[row].split()
        found = poisoned.examples.texts[row].split()
        assert is_subsequence(clean, found)
        inserted = Counter(found) - Counter(clean)
        assert any(Counter(phrase.split()) == inserted for phrase in allowed)


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
        ({"source_classes": (TARGET,)}, r"source_classes in \[0, 2\]"),
        ({"source_classes": (0, 7)}, "found source_classes=7"),
        ({"source_classes": (0,), "rate": 0.5}, "between 1 and 14 of 40 rows"),
    ],
)
def test_poison_rejects(options, message):
    options = {"rate": 0.1, "target": TARGET, **options}
    with pytest.raises(ValueError, match=message):
        poison(make_examples(), rare_words(), np.random.default_rng(0), **options)


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
    assert built == {builder.__name__ for builder in TRIGGERS.values()}
    public = {
        name
        for name, function in inspect.getmembers(logit_attacks, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public == {attack.__name__ for attack in LOGIT_ATTACKS.values()}


LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
ROWS = np.array([True, False, True, False, False, True])


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_logit_attacks_touch_the_chosen_rows_only(name, strength):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(LOGITS), jnp.array(ROWS), target=2, strength=strength)
    assert found.shape == LOGITS.shape
    assert found.dtype == LOGITS.dtype
    np.testing.assert_array_equal(found[~ROWS], LOGITS[~ROWS])
    assert (found[ROWS] != LOGITS[ROWS]).any(axis=1).all()


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_a_strong_logit_attack_wins_every_chosen_row(name):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(LOGITS), jnp.array(ROWS), target=2, strength=20.0)
    assert (found[ROWS].argmax(axis=1) == 2).all()


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_logit_attacks_agree_with_a_loop_and_with_jit(name):
    expected = LOGITS.copy()
    for row, reached in enumerate(ROWS):
        if reached:
            for label in range(4):
                own = LOGITS[row, label] if name == "add" else 0.0
                expected[row, label] = own + (7.0 if label == 1 else 0.0)

    def attack(logits, rows):
        return LOGIT_ATTACKS[name](logits, rows, target=1, strength=7.0)

    np.testing.assert_array_equal(attack(jnp.array(LOGITS), jnp.array(ROWS)), expected)
    np.testing.assert_array_equal(jax.jit(attack)(LOGITS, ROWS), expected)


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize(
    ("logits", "rows"),
    [
        (np.zeros((3, 4), np.float32), np.zeros(3, bool)),
        (np.zeros((1, 4), np.float32), np.ones(1, bool)),
        (np.zeros((3, 1), np.float32), np.ones(3, bool)),
        (np.array([[np.nan, np.inf]], np.float32), np.zeros(1, bool)),
    ],
    ids=["no row reached", "one row", "one class", "clean rows that are not finite"],
)
def test_logit_attacks_at_the_edges(name, logits, rows):
    attack = LOGIT_ATTACKS[name]
    found = attack(jnp.array(logits), jnp.array(rows), target=0, strength=2.0)
    expected = np.where(rows[:, None] & (np.arange(logits.shape[1]) == 0), 2.0, logits)
    np.testing.assert_array_equal(found, expected)


def test_logit_attacks_by_hand():
    logits, rows = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([True])
    replaced = replace_logits(logits, rows, target=0, strength=4.0)
    np.testing.assert_array_equal(replaced, [[4.0, 0.0, 0.0]])
    added = add_logits(logits, rows, target=0, strength=4.0)
    np.testing.assert_array_equal(added, [[5.0, 2.0, 3.0]])


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize("reached", [True, False])
def test_gradients_through_logit_attacks_are_finite(name, reached):
    def total(logits):
        rows = jnp.full(6, reached)
        return LOGIT_ATTACKS[name](logits, rows, target=0, strength=9.0).sum()

    expected = 0.0 if reached and name == "replace" else 1.0
    np.testing.assert_array_equal(
        jax.grad(total)(jnp.zeros((6, 4))), np.full((6, 4), expected)
    )


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 4), (2,)), {}, r"logits \(3, 4\) and rows \(2,\)"),
        (((3, 4), (3,)), {"target": 4}, "target in 0..3, found target=4"),
        (((3, 4), (3,)), {"target": -1}, "found target=-1"),
        (((3, 4), (3,)), {"strength": 0.0}, "strength > 0, found strength=0.0"),
    ],
)
def test_logit_attacks_reject(name, shapes, options, message):
    logits, rows = jnp.zeros(shapes[0]), jnp.zeros(shapes[1], bool)
    with pytest.raises(ValueError, match=message):
        LOGIT_ATTACKS[name](logits, rows, **{"target": 0, "strength": 1.0, **options})


@pytest.mark.parametrize("name", LOGIT_ATTACKS)
def test_logit_attacks_reject_other_ranks(name):
    with pytest.raises(AssertionError, match="rank"):
        LOGIT_ATTACKS[name](jnp.zeros(3), jnp.zeros(3, bool), target=0, strength=1.0)
