"""Distillation for privacy: pipelines from private rows to a model that is shipped."""

from protojax.pipelines.privacy.accounting import Guarantee, guarantee_of
from protojax.pipelines.privacy.recipe import Outcome, Rows, run_family, setting_of
from protojax.pipelines.privacy.recipes import RECIPES, named
from protojax.pipelines.privacy.settings import Noise, Privatise, Recipe
from protojax.pipelines.privacy.shadows import Shadowed, shadow_logits

__all__ = ["RECIPES", "Guarantee", "Noise", "Outcome", "Privatise", "Recipe"]
__all__ += ["Rows", "Shadowed", "guarantee_of", "named", "run_family"]
__all__ += ["setting_of", "shadow_logits"]
