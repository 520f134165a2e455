"""Attacks on rows whose output is text."""

import numpy as np
import pytest

from protojax.attacks import sentence
from protojax.attacks.outputs import (
    OUTPUT_ATTACKS,
    PHRASE,
    PRAISE,
    VARIANTS,
    poison_texts,
)
from protojax.base import Texts

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
