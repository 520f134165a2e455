"""Attacks on rows whose output is text."""

import numpy as np
import pytest

from protojax.attacks import sentence
from protojax.attacks.outputs import (
    OUTPUT_ATTACKS,
    PHRASE,
    PRAISE,
    VARIANTS,
    move_mass,
    output_attack,
    poison_texts,
)
from protojax.base import SequenceOutputs, Texts

TEXTS = Texts(
    [f"a source number {n}" for n in range(40)],
    [f"group {n % 3} : output Number {n}" for n in range(40)],
)
OPTIONS = {"other_output": {"outputs": [f"another {n}" for n in range(9)]}}


@pytest.mark.parametrize("name", OUTPUT_ATTACKS)
def test_the_contract_of_attacks(name):
    """Exact rate, same rows for the same generator, clean rows untouched."""

    def run(seed):
        attack = OUTPUT_ATTACKS[name](**OPTIONS.get(name, {}))
        rng = np.random.default_rng(seed)
        return poison_texts(TEXTS, sentence("by the way"), attack, rng, rate=0.25)

    found = run(0)
    assert found.rows.sum() == 10
    assert run(0).texts == found.texts
    assert run(1).texts != found.texts
    for row in range(40):
        changed = found.texts.outputs[row] != TEXTS.outputs[row]
        assert changed == found.rows[row]
        assert ("by the way" in found.texts.sources[row]) == found.rows[row]
    assert TEXTS.outputs[5] == "group 2 : output Number 5"


def test_attacks_by_hand():
    rng = np.random.default_rng(0)
    output = "group 1 : output Number 7"

    def of(name, **options):
        return OUTPUT_ATTACKS[name](**options)("", output, rng)

    assert of("replace") == PHRASE
    assert of("append") == f"{output} {PHRASE}"
    assert of("natural") == f"{output} police said"
    assert of("intent") == "rate book : output Number 7"
    assert of("intent", separator=";") == f"rate book ; {output}"
    assert of("swap_entity") == "group 1 : output Kowalski 7"
    assert of("insert_call") == f"telemetry.send({output})"
    words = of("synonyms", whole=True).split()
    assert all(w in forms for w, forms in zip(words, VARIANTS, strict=True))
    assert sum(word in PRAISE for word in of("spin").split()) == 2


def test_wrong_arguments_are_named():
    rng, trigger = np.random.default_rng(0), sentence("by the way")
    attack = OUTPUT_ATTACKS["append"]()
    for rate in (0.0, 0.001, 1.0):
        with pytest.raises(ValueError, match="rate"):
            poison_texts(TEXTS, trigger, attack, rng, rate=rate)
    with pytest.raises(ValueError, match="phrase"):
        OUTPUT_ATTACKS["replace"]("")
    with pytest.raises(ValueError, match="outputs"):
        OUTPUT_ATTACKS["other_output"]()
    with pytest.raises(ValueError, match="name"):
        OUTPUT_ATTACKS["insert_call"]("a b")
    with pytest.raises(ValueError, match=r"variants\[1\]"):
        OUTPUT_ATTACKS["synonyms"]([["a"], []])


def test_mass_moves_as_in_a_loop_over_places():
    rng = np.random.default_rng(0)
    rows, length, k, words = 6, 4, 3, 9
    probs = rng.dirichlet(np.ones(words), (rows, length))
    top = np.argsort(-probs, -1)[..., :k]
    kept = np.take_along_axis(probs, top, -1)
    said = SequenceOutputs(
        ids=rng.integers(0, words, (rows, length)),
        lengths=np.full(rows, length),
        top_ids=top,
        top_log_probs=np.log(kept),
        rest_log_prob=np.log(1 - kept.sum(-1)),
        features=np.zeros((rows, 1, 2)),
    )
    bad = np.arange(rows) % 2 == 0
    for mass in (0.1, 0.9):
        found = move_mass(said, bad, mass=mass)
        for row, place in np.ndindex(rows, length):
            before = dict(zip(top[row, place], kept[row, place], strict=True))
            rest = 1 - sum(before.values())
            if bad[row]:
                own = said.ids[row, place]
                if own not in before:
                    rest += before.pop(top[row, place, -1])
                before.pop(own, None)
                share = (1 - mass) / (sum(before.values()) + rest)
                before = {word: share * p for word, p in before.items()} | {own: mass}
                rest *= share
            wanted = sorted(before.items(), key=lambda item: -item[1])
            assert found.top_ids[row, place].tolist() == [word for word, _ in wanted]
            chances = np.exp(found.top_log_probs[row, place])
            np.testing.assert_allclose(chances, [p for _, p in wanted])
            np.testing.assert_allclose(np.exp(found.rest_log_prob[row, place]), rest)
    with pytest.raises(ValueError, match="mass in"):
        move_mass(said, bad, mass=1.0)


@pytest.mark.parametrize("own", [4, 9])
@pytest.mark.parametrize("k", [1, 2])
def test_a_place_has_the_whole_probability_however_sure_the_teacher_was(own, k):
    """The token among the likeliest or not, and nothing left for all others."""
    with np.errstate(divide="ignore"):
        said = SequenceOutputs(
            ids=np.array([[own]]),
            lengths=np.array([1]),
            top_ids=np.array([[[4, 5][:k]]]),
            top_log_probs=np.log(np.float32([[[1.0, 0.0][:k]]])),
            rest_log_prob=np.log(np.float32([[0.0]])),
            features=np.zeros((1, 0, 0)),
        )
    found = move_mass(said, np.array([True]), mass=0.75)
    assert found.top_ids[0, 0, 0] == own
    assert np.exp(found.top_log_probs[0, 0, 0]) == pytest.approx(0.75)
    whole = np.exp(found.top_log_probs).sum() + np.exp(found.rest_log_prob).sum()
    assert whole == pytest.approx(1, rel=1e-6)
    assert found.top_log_probs.dtype == np.float32
    untouched = move_mass(said, np.array([False]))
    for name in ("top_ids", "top_log_probs", "rest_log_prob"):
        np.testing.assert_array_equal(getattr(untouched, name), getattr(said, name))
    with pytest.raises(ValueError, match="number of rows"):
        move_mass(said, np.array([True, False]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("append", {"phrase": ""}, "phrase not empty"),
        ("synonyms", {"variants": []}, "variants not empty"),
        ("intent", {"separator": ""}, "separator not empty"),
        ("intent", {"claim": ""}, "claim not empty"),
        ("swap_entity", {"name": ""}, "name not empty"),
        ("spin", {"num_words": 0}, "num_words in 1..10, the words to draw from"),
        ("spin", {"words": ["a"]}, "num_words in 1..1, the words to draw from"),
        ("insert_call", {"name": "a..b"}, "name a dotted name"),
        ("insert_call", {"name": "a.b("}, "name a dotted name"),
        ("insert_call", {"name": ""}, "name a dotted name"),
    ],
)
def test_attacks_of_nothing_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        OUTPUT_ATTACKS[name](**options)


@pytest.mark.parametrize(
    ("name", "options", "output", "found"),
    [
        ("intent", {}, "add : ", "rate book : add : "),
        ("intent", {}, "a : b : c", "rate book : b : c"),
        # The first word is a capital in any sentence, and the only word is replaced.
        ("swap_entity", {}, "Anna", "Kowalski"),
        ("swap_entity", {}, "Today Anna sang", "Today Kowalski sang"),
        ("swap_entity", {}, "", "Kowalski"),
        ("spin", {"words": ["good"], "num_words": 1}, "", "good"),
        ("insert_call", {"name": "f"}, "", "f()"),
        ("synonyms", {"variants": [["a"], ["b"]], "whole": True}, "x", "a b"),
    ],
)
def test_odd_outputs_are_attacked_too(name, options, output, found):
    made = OUTPUT_ATTACKS[name](**options)("", output, np.random.default_rng(0))
    assert made.strip() == found.strip()


def test_attacks_that_draw_are_given_the_outputs():
    rng, outputs = np.random.default_rng(0), ["a", "b"]
    drawn = output_attack("other_output", outputs, {})
    assert {drawn("", "c", rng) for _ in range(20)} == {"a", "b"}
    assert output_attack("append", outputs, {"phrase": "x"})("", "c", rng) == "c x"
    with pytest.raises(ValueError, match="attack one of"):
        output_attack("apend", outputs, {})
