"""Defences (`LossFn -> LossFn`) and gradient rules (`LossFn -> GradFn`)."""

from protojax.defenses.gradients import mean_gradient
from protojax.defenses.prototype import prototype_constraint

DEFENSES = {"prototype": prototype_constraint}
GRADIENTS = {"mean": mean_gradient}
