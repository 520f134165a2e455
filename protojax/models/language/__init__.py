"""Language models that write, as pure functions: one body for all families."""

from protojax.models.language.body import apply_fn, head_fn, param_shapes
from protojax.models.language.config import LanguageConfig, RopeScaling
from protojax.models.language.model import LanguageModel, init_model, select_layers

__all__ = ["LanguageConfig", "LanguageModel", "RopeScaling", "apply_fn", "head_fn"]
__all__ += ["init_model", "param_shapes", "select_layers"]
