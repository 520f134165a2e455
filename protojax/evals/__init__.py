"""Measures of attacks and defences, on the host, with the ground truth known."""

from protojax.evals.generation import (
    meta_shift,
    phrase_rate,
    phrase_words,
    rouge_rows,
)
from protojax.evals.metrics import (
    attack_success_rate,
    detection_auc,
    excess,
    mean_interval,
    node_accuracies,
    quarantine_quality,
    robust_accuracy,
)
from protojax.evals.paired import Difference, mcnemar, paired_interval

__all__ = [
    "Difference",
    "attack_success_rate",
    "detection_auc",
    "excess",
    "mcnemar",
    "mean_interval",
    "meta_shift",
    "node_accuracies",
    "paired_interval",
    "phrase_rate",
    "phrase_words",
    "quarantine_quality",
    "robust_accuracy",
    "rouge_rows",
]
