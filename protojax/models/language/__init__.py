"""Language models that write, as pure functions: one body for all families."""

from protojax.models.language.body import apply_fn, head_fn, param_shapes
from protojax.models.language.cache import (
    Cache,
    split_layers,
    start_fn,
    step_fn,
    take_rows,
)
from protojax.models.language.config import LanguageConfig, RopeScaling
from protojax.models.language.model import LanguageModel, init_model, select_layers

__all__ = ["Cache", "LanguageConfig", "LanguageModel", "RopeScaling", "apply_fn"]
__all__ += ["head_fn", "init_model", "param_shapes", "select_layers", "split_layers"]
__all__ += ["start_fn", "step_fn", "take_rows"]
