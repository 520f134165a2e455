"""Encoders as pure functions: a config, a tree of parameters, an `ApplyFn`.

The functions on Hugging Face checkpoints and tokenizers come from hf.py, which is
imported when the first of them is used, because transformers is slow to import.
"""

import importlib
from typing import Any

from protojax.models.config import EncoderConfig, Family
from protojax.models.encoder import (
    MODELS,
    Model,
    apply_fn,
    init_model,
    init_params,
    max_length,
    param_shapes,
    select_layers,
)

_FROM_HF = ("class_names", "load_hf", "load_tokenizer", "save_hf", "wrap_tokenizer")
__all__ = ["MODELS", "EncoderConfig", "Family", "Model", "apply_fn", "init_model"]
__all__ += ["init_params", "max_length", "param_shapes", "select_layers"]


def __getattr__(name: str) -> Any:
    """A function of hf.py."""
    if name not in _FROM_HF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on first use, because transformers is slow to load.
    return getattr(importlib.import_module("protojax.models.hf"), name)
