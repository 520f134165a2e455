"""Distillation for privacy: pipelines from private rows to a model that is shipped."""

from protojax.pipelines.privacy.accounting import Guarantee, guarantee_of
from protojax.pipelines.privacy.config import Privatise
from protojax.pipelines.privacy.privatise import Privatised, privatise
from protojax.pipelines.privacy.recipe import Outcome, run_family
from protojax.pipelines.privacy.recipes import RECIPES, named
from protojax.pipelines.privacy.setting import Rows, Setting, setting_of
from protojax.pipelines.privacy.settings import Noise, Recipe
from protojax.pipelines.privacy.shadows import Shadowed, shadow_logits

__all__ = ["RECIPES", "Guarantee", "Noise", "Outcome", "Privatise"]
__all__ += ["Privatised", "Recipe", "Rows", "Setting", "Shadowed", "guarantee_of"]
__all__ += ["named", "privatise", "run_family", "setting_of", "shadow_logits"]
