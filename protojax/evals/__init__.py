"""Measures of attacks and defences, on the host, with the ground truth known."""

from protojax.evals.metrics import (
    attack_success_rate,
    detection_auc,
    excess,
    mean_interval,
    node_accuracies,
    quarantine_quality,
    robust_accuracy,
)

__all__ = [
    "attack_success_rate",
    "detection_auc",
    "excess",
    "mean_interval",
    "node_accuracies",
    "quarantine_quality",
    "robust_accuracy",
]
