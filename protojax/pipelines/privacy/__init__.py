"""Distillation for privacy: pipelines from private rows to a model that is shipped."""

from protojax.pipelines.privacy.accounting import Guarantee, audit_of, guarantee_of
from protojax.pipelines.privacy.privatise import Privatised, privatise
from protojax.pipelines.privacy.recipes import RECIPES, named
from protojax.pipelines.privacy.run_settings import Privatise
from protojax.pipelines.privacy.settings import Noise, Recipe
from protojax.pipelines.privacy.shadows import Shadowed, shadow_logits
from protojax.pipelines.privacy.shared import Rows, Shared, shared_of
from protojax.pipelines.privacy.training import Outcome, run_family

__all__ = ["RECIPES", "Guarantee", "Noise", "Outcome", "Privatise"]
__all__ += ["Privatised", "Recipe", "Rows", "Shadowed", "Shared", "audit_of"]
__all__ += ["guarantee_of", "named", "privatise", "run_family", "shadow_logits"]
__all__ += ["shared_of"]
