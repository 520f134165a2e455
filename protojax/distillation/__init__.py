"""Losses of whole models, transforms of losses, and rules for a step's gradient.

A `LossFn` returns one value per row; a transform maps a `LossFn` to a `LossFn`, a
gradient rule maps it to a `GradFn`.
"""

from protojax.distillation.adversarial import adversarial
from protojax.distillation.consistency import consistent_loss, inconsistency
from protojax.distillation.constraint import prototype_constraint
from protojax.distillation.gradients import dp_sgd, mean_gradient, noise_multiplier_of
from protojax.distillation.objectives import (
    attention,
    attention_loss,
    distillation_loss,
    features,
    hard_loss,
    student_params,
    supervised_loss,
)
from protojax.distillation.sequences import sequence_loss

TRANSFORMS = {"adversarial": adversarial, "prototype": prototype_constraint}
GRADIENTS = {"dp_sgd": dp_sgd, "mean": mean_gradient}

__all__ = ["GRADIENTS", "TRANSFORMS", "adversarial", "attention", "attention_loss"]
__all__ += ["consistent_loss", "distillation_loss", "dp_sgd", "features", "hard_loss"]
__all__ += ["inconsistency", "mean_gradient", "noise_multiplier_of"]
__all__ += ["prototype_constraint", "sequence_loss", "student_params"]
__all__ += ["supervised_loss"]
