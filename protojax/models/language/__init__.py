"""Language models that write, as pure functions: one body for all families.

The functions on Hugging Face checkpoints come from checkpoint.py, which is imported
when the first of them is used, because transformers is slow to import.
"""

import importlib
from typing import Any

from protojax.models.language._writers import (
    WriterSettings,
    build_writer,
    prompts_of,
)
from protojax.models.language.body import apply_fn, head_fn, param_shapes
from protojax.models.language.cache import (
    Cache,
    split_layers,
    start_fn,
    step_fn,
    take_rows,
)
from protojax.models.language.config import LanguageConfig, RopeScaling
from protojax.models.language.families import LANGUAGE_MODELS
from protojax.models.language.model import LanguageModel, init_model, select_layers

_FROM_CHECKPOINT = ("load_language_model", "save_language_model")
__all__ = ["LANGUAGE_MODELS", "Cache", "LanguageConfig", "LanguageModel", "RopeScaling"]
__all__ += ["apply_fn", "head_fn", "init_model", "param_shapes", "select_layers"]
__all__ += ["split_layers", "start_fn", "step_fn", "take_rows"]
__all__ += ["WriterSettings", "build_writer", "prompts_of"]


def __getattr__(name: str) -> Any:
    """A function of checkpoint.py."""
    if name not in _FROM_CHECKPOINT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on first use, because transformers is slow to load.
    module = importlib.import_module("protojax.models.language.checkpoint")
    return getattr(module, name)
