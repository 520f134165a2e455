"""Qwen2 (Yang et al., 2024, arXiv:2407.10671) and Qwen3 (2025, arXiv:2505.09388).

Llama with biases on query, key and value, or with norms on each head's queries and
keys. Layers that attend to a window of the last tokens are not computed.
"""

from typing import Any

from protojax.models.language import llama
from protojax.models.language._family import Source
from protojax.models.language.config import LanguageConfig


def _read(source: Source) -> dict[str, Any]:
    """The rotary positions, with every layer attending to all tokens before."""
    kinds = source.values["layer_types"]
    for kind in kinds:
        reason = "'full_attention' in every layer (no use_sliding_window that acts)"
        source.require(kind == "full_attention", "layer_types", kind, reason)
    return llama.read_rope(source)


def _read_qwen2(source: Source) -> dict[str, Any]:
    """The same, with the width of a head, which config.json need not hold."""
    heads, dim = source.values["num_attention_heads"], source.values.get("head_dim")
    source.require(heads > 0, "num_attention_heads", heads, "> 0")
    return {
        "head_dim": source.values["hidden_size"] // heads if dim is None else dim,
        **_read(source),
    }


def _write(config: LanguageConfig) -> dict[str, Any]:
    return {**llama.write_rope(config), "use_sliding_window": False}


def _write_qwen2(config: LanguageConfig) -> dict[str, Any]:
    return {**_write(config), "head_dim": config.head_dim}


QWEN2 = llama.LLAMA._replace(
    architecture="Qwen2ForCausalLM",
    fields={ours: name for ours, name in llama.FIELDS.items() if ours != "head_dim"},
    fixed={
        **llama.FIXED,
        "attention_bias": True,
        "output_bias": False,
        "mlp_bias": False,
    },
    read=_read_qwen2,
    write=_write_qwen2,
)
QWEN3 = llama.LLAMA._replace(
    architecture="Qwen3ForCausalLM",
    fields={
        **llama.FIELDS,
        "attention_bias": "attention_bias",
        "output_bias": "attention_bias",
    },
    fixed={**llama.FIXED, "mlp_bias": False, "query_key_norm": True},
    read=_read,
    write=_write,
)
