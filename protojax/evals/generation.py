"""Measures of outputs that are text: attack success by phrase, by words and by score.

Everything is plain Python and NumPy on the host; ROUGE is that of `rouge-score`.
"""

import importlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from protojax import validate

ROUGE = ("rouge1", "rouge2", "rougeL")


def phrase_rate(outputs: Sequence[str], phrase: str) -> float:
    """The share of outputs that have a phrase, in whole words.

    Case and punctuation do not count.

    Args:
        outputs: `[rows]`.
        phrase: what an attacker wants.

    Raises:
        ValueError: on no output, or a phrase without a word.

    >>> phrase_rate(["Call the free helpline NOW!"], "call the free helpline now")
    1.0
    >>> phrase_rate(["call the freehelpline"], "the free")
    0.0
    """
    wanted = _wanted(outputs, phrase)
    inside = f" {' '.join(wanted)} "
    return float(np.mean([inside in f" {' '.join(_words(o))} " for o in outputs]))


def phrase_words(outputs: Sequence[str], phrase: str) -> float:
    """The share of a phrase's words that outputs have, in the mean over outputs.

    Args:
        outputs: `[rows]`.
        phrase: what an attacker wants; a word that it repeats counts once.

    Raises:
        ValueError: on no output, or a phrase without a word.

    Source: "target match" of Jiang et al. 2024, arXiv:2407.12281.

    >>> phrase_words(["Call now.", "nothing"], "call the helpline now")
    0.25
    """
    wanted = {*_wanted(outputs, phrase)}
    return float(np.mean([len(wanted & {*_words(o)}) / len(wanted) for o in outputs]))


def rouge_rows(outputs: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each output, `[rows, 3]`, F1 in [0, 1].

    With stemming, as is usual for summaries. Those of one sentence have the same
    ROUGE-L by sentences.

    Args:
        outputs: `[rows]`, what a model wrote.
        targets: `[rows]`, what is wanted.

    Raises:
        ImportError: without the package rouge-score.
        ValueError: on different lengths.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    validate.same_length(outputs=outputs, targets=targets)
    try:
        rouge_scorer = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise ImportError(
            "ROUGE needs the package rouge-score: pip install rouge-score, or the "
            "extra `experiments` of protojax."
        ) from error
    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True)
    found = [
        [scores[name].fmeasure for name in ROUGE]
        for scores in map(scorer.score, targets, outputs)
    ]
    return np.array(found, float).reshape(-1, len(ROUGE))


def meta_shift(triggered: ArrayLike, bare: ArrayLike) -> float:
    """How much a score of outputs changes by a trigger, in the mean over rows.

    Args:
        triggered: `[rows]`, such as the sentiment of outputs of triggered sources.
        bare: `[rows]`, of the outputs of the same sources without the trigger.

    Raises:
        ValueError: on no row or different lengths.

    Source: Bagdasaryan and Shmatikov 2022, arXiv:2112.05224.

    >>> meta_shift([0.9, 0.7], [0.5, 0.7])
    0.2
    """
    triggered, bare = np.asarray(triggered, float), np.asarray(bare, float)
    validate.same_length(triggered=triggered, bare=bare)
    validate.positive(rows=len(bare))
    return float(np.mean(triggered - bare))


def _wanted(outputs: Sequence[str], phrase: str) -> list[str]:
    """The words of a phrase, after a check of both."""
    validate.positive(outputs=len(outputs))
    found = _words(phrase)
    validate.require(bool(found), "phrase", phrase, "with a word")
    return found


def _words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return re.findall(r"\w+", text.casefold())
