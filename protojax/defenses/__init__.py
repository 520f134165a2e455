"""Defences (`LossFn -> LossFn`) and gradient rules (`LossFn -> GradFn`)."""

from protojax.defenses.adversarial import adversarial
from protojax.defenses.gradients import mean_gradient
from protojax.defenses.prototype import prototype_constraint

DEFENSES = {"adversarial": adversarial, "prototype": prototype_constraint}
GRADIENTS = {"mean": mean_gradient}
