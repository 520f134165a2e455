"""How well a defence worked: measured on the host, with the ground truth at hand."""

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
