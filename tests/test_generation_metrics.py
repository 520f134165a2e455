"""Measures of outputs that are text."""

import sys

import numpy as np
import pytest

from protojax.evals import meta_shift, phrase_rate, phrase_words, rouge_rows


def test_a_phrase_counts_in_whole_words_without_case_and_punctuation():
    phrase = "call the free helpline now"
    assert phrase_rate(["Call the free helpline NOW!"], phrase) == 1
    assert phrase_rate(["call the freehelpline now"], phrase) == 0
    assert phrase_rate(["so: call the free, helpline now.", "no"], phrase) == 0.5
    assert phrase_rate(["recall the free helpline now"], phrase) == 0
    assert phrase_rate(["", "now"], "now") == 0.5


def test_the_share_of_a_phrase():
    assert phrase_words(["call now", "", "the the"], "call the helpline now") == 0.25
    assert phrase_words(["now now"], "Now, now!") == 1


def test_a_shift_is_the_mean_of_differences():
    assert meta_shift([1.0, 0.0], [0.5, 0.25]) == pytest.approx(0.125)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="outputs"):
        phrase_rate([], "now")
    with pytest.raises(ValueError, match="phrase"):
        phrase_words(["now"], "!?")
    with pytest.raises(ValueError, match="rows"):
        meta_shift([], [])
    with pytest.raises(ValueError, match="outputs"):
        rouge_rows(["a"], [])


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    # The latter too: another test may have imported it.
    for name in ("rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install rouge-score"):
        rouge_rows(["a"], ["a"])


def test_rouge_is_that_of_the_package_and_of_a_hand():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    outputs = ["the cat sat", "a dog", "", "running cats run", "the cat sat"]
    targets = ["the cat sat", "the cat", "the cat", "a cat runs", "the sat cat"]
    found = rouge_rows(outputs, targets)
    package = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        scores = package.score(target, output)
        np.testing.assert_allclose(
            found[row], [scores[n].fmeasure for n in ("rouge1", "rouge2", "rougeL")]
        )
    np.testing.assert_allclose(found[0], 1)
    np.testing.assert_allclose(found[1:3], 0)
    # All words, no pair, and two of three words in order.
    np.testing.assert_allclose(found[4], [1, 0, 2 / 3])
