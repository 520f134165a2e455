"""Defences (`LossFn -> LossFn`) and gradient rules (`LossFn -> GradFn`)."""

from protojax.defenses.adversarial import adversarial
from protojax.defenses.gradients import dp_sgd, mean_gradient, noise_multiplier_of
from protojax.defenses.prototype import prototype_constraint

DEFENSES = {"adversarial": adversarial, "prototype": prototype_constraint}
__all__ = [
    "DEFENSES",
    "GRADIENTS",
    "adversarial",
    "dp_sgd",
    "mean_gradient",
    "noise_multiplier_of",
    "prototype_constraint",
]

GRADIENTS = {"dp_sgd": dp_sgd, "mean": mean_gradient}
