"""GPT-2 (Radford et al., 2019) and DistilGPT-2.

Learned positions, layer norm before each part, biases throughout. Checkpoints hold
linear layers as `[in, out]`, and query, key and value as one.
"""

from typing import Any

from protojax.models.language._family import LanguageFamily, Source
from protojax.models.language.config import LanguageConfig


def modules(gated: bool) -> dict[str, str]:
    """The names of the tensors."""
    layer, layers = "transformer.h.{i}", "decoder/layers"
    return {
        "embedding": "transformer.wte",
        "decoder/positions": "transformer.wpe",
        f"{layers}/attention_norm": f"{layer}.ln_1",
        f"{layers}/attention/query": f"{layer}.attn.c_attn",
        f"{layers}/attention/key": f"{layer}.attn.c_attn",
        f"{layers}/attention/value": f"{layer}.attn.c_attn",
        f"{layers}/attention/output": f"{layer}.attn.c_proj",
        f"{layers}/mlp_norm": f"{layer}.ln_2",
        f"{layers}/mlp/up": f"{layer}.mlp.c_fc",
        f"{layers}/mlp/down": f"{layer}.mlp.c_proj",
        "decoder/norm": "transformer.ln_f",
        "head": "lm_head",
    }


def _read(source: Source) -> dict[str, Any]:
    """The widths of heads and perceptron."""
    width, heads, inner = (source.values[n] for n in ("n_embd", "n_head", "n_inner"))
    divides = heads > 0 and width % heads == 0
    source.require(divides, "n_head", heads, f"a divisor of n_embd={width}")
    return {
        "head_dim": width // heads,
        "intermediate_size": 4 * width if inner is None else inner,
    }


def _write(config: LanguageConfig) -> dict[str, Any]:
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout)
    return {"n_inner": config.intermediate_size, **rates}


GPT2 = LanguageFamily(
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    modules=modules,
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "num_kv_heads": "n_head",
        "max_positions": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "activation": "activation_function",
        "scale_attention": "scale_attn_weights",
        "tied": "tie_word_embeddings",
        "dropout": "resid_pdrop",
    },
    fixed={
        "positions": "learned",
        "norm": "layer",
        "pre_norm": True,
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    demanded={"add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False},
    read=_read,
    write=_write,
    # Masks, which are buffers.
    ignored=("h.*.attn.bias", "h.*.attn.masked_bias"),
    transposed=False,
)
