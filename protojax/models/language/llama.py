"""Llama (Touvron et al., 2023, arXiv:2302.13971), SmolLM2, TinyLlama.

Rotary positions, RMS norm before each part, a gated perceptron, heads of queries that
share keys and values. Qwen names its tensors and settings the same way.
"""

from typing import Any

from protojax.models.language._family import LanguageFamily, Source, within
from protojax.models.language.config import LanguageConfig, RopeScaling

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "tied": "tie_word_embeddings",
    "dropout": "attention_dropout",
}
FIXED = {"positions": "rotary", "norm": "rms", "pre_norm": True, "gated": True}
_LLAMA3 = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


def modules(gated: bool) -> dict[str, str]:
    """The names of the tensors."""
    layer, layers = "model.layers.{i}", "decoder/layers"
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    attention |= {"output": "o_proj", "query_norm": "q_norm", "key_norm": "k_norm"}
    perceptron = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return {
        "embedding": "model.embed_tokens",
        f"{layers}/attention_norm": f"{layer}.input_layernorm",
        **within(f"{layers}/attention", f"{layer}.self_attn", attention),
        f"{layers}/mlp_norm": f"{layer}.post_attention_layernorm",
        **within(f"{layers}/mlp", f"{layer}.mlp", perceptron),
        "decoder/norm": "model.norm",
        "head": "lm_head",
    }


def read_rope(source: Source) -> dict[str, Any]:
    """The rotary positions."""
    # Before 5.0 transformers wrote rope_theta and rope_scaling.
    name = "rope_parameters" if "rope_parameters" in source.raw else "rope_scaling"
    found = source.values["rope_parameters"]
    kind = found.get("rope_type") if isinstance(found, dict) else found
    allowed = ["default", "llama3"]
    source.require(kind in allowed, f"{name}.rope_type", kind, f"one of {allowed}")
    theta, part = found.get("rope_theta"), found.get("partial_rotary_factor", 1.0)
    _require_number(source, "rope_theta", theta)
    source.require(part == 1.0, "partial_rotary_factor", part, "1.0")
    if kind == "default":
        return {"rope_theta": theta}
    for theirs in _LLAMA3.values():
        _require_number(source, f"{name}.{theirs}", found.get(theirs))
    try:
        scaling = RopeScaling(**{our: found[their] for our, their in _LLAMA3.items()})
    except ValueError as error:
        raise ValueError(f"{source.path}, {name}: {error}") from error
    return {"rope_theta": theta, "rope_scaling": scaling}


def write_rope(config: LanguageConfig) -> dict[str, Any]:
    """The rotary positions, in the form that every release of transformers reads."""
    scaling = config.rope_scaling
    values = {} if scaling is None else {"rope_type": "llama3"}
    if scaling is not None:
        values |= {their: getattr(scaling, our) for our, their in _LLAMA3.items()}
    return {"rope_theta": config.rope_theta, "rope_scaling": values or None}


def _require_number(source: Source, name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    source.require(number and 0 < value < 1e30, name, value, "a finite number > 0")


LLAMA = LanguageFamily(
    architecture="LlamaForCausalLM",
    prefix="model.",
    modules=modules,
    fields={
        **FIELDS,
        "attention_bias": "attention_bias",
        "output_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
    },
    fixed=FIXED,
    demanded={},
    read=read_rope,
    write=write_rope,
    # Buffers of the first releases.
    ignored=("layers.*.self_attn.rotary_emb.inv_freq",),
)
