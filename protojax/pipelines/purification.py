"""ONION applied to texts: rows without their outlier words."""

import numpy as np

from protojax import data
from protojax.base import Examples
from protojax.detection.baselines import onion
from protojax.models import Model
from protojax.training import word_scores
from protojax.training.predict import Lengths


def purify(
    encoder: Model,
    examples: Examples,
    references: Examples,
    held_out: np.ndarray,
    *,
    outlier_share: float,
    num_neighbours: int,
    lengths: Lengths,
) -> Examples:
    """The rows without the words that make them unlike trusted texts.

    A word is removed if its score exceeds a level that only a given share of the words
    of held-out references exceeds.

    Args:
        encoder: the encoder as it was pretrained: after fine-tuning, features describe
            the class more than the text.
        examples: the rows to clean.
        references: trusted rows.
        held_out: `[held_out]`, int, the references that set the level; texts are
            compared with the others.
        outlier_share: the share of words of clean text to remove, in (0, 1).
        num_neighbours: number of trusted texts that a text is compared with.
        lengths: the lengths that rows are padded to.

    References:
        Qi et al., 2021 (ONION, arXiv:2011.10369), see `onion.word_outlier_scores`.
    """
    # Texts that set the level must be as new to the comparison as those to clean.
    others = np.setdiff1d(np.arange(len(references.texts)), held_out)
    means = word_scores.mean_states(encoder, data.take(references, others), lengths)

    def scored(rows: Examples) -> onion.WordScores:
        return word_scores.score_words(
            encoder, rows, means, num_neighbours=num_neighbours, lengths=lengths
        )

    known = scored(data.take(references, held_out))
    level = onion.outlier_level(known, outlier_share=outlier_share)
    return onion.without_outlier_words(examples, scored(examples), level)
