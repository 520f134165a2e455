"""BART (Lewis et al., 2019, arXiv:1910.13461) and DistilBART.

Learned positions, two rows of which are never read, layer norm after each part and
after the embeddings, biases throughout, one of them on the logits.
"""

import math
from typing import Any

from protojax.models import _config_json
from protojax.models.language._family import LanguageFamily, Source, within
from protojax.models.language.config import LanguageConfig

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_ATTENTION |= {"output": "out_proj"}
_BOTH = {"num_heads": "attention_heads", "intermediate_size": "ffn_dim"}


def modules(gated: bool) -> dict[str, str]:
    """The names of the tensors."""
    names = {"embedding": "model.shared", "head": "lm_head"}
    names["head/bias"] = "final_logits_bias"
    for stack in ("encoder", "decoder"):
        layer, layers = f"model.{stack}.layers.{{i}}", f"{stack}/layers"
        names |= {
            f"{stack}/positions": f"model.{stack}.embed_positions",
            f"{stack}/embedding_norm": f"model.{stack}.layernorm_embedding",
            f"{layers}/attention_norm": f"{layer}.self_attn_layer_norm",
            **within(f"{layers}/attention", f"{layer}.self_attn", _ATTENTION),
            f"{layers}/mlp_norm": f"{layer}.final_layer_norm",
            **within(f"{layers}/mlp", layer, {"up": "fc1", "down": "fc2"}),
        }
    layer = "model.decoder.layers.{i}"
    return names | {
        "decoder/layers/cross_norm": f"{layer}.encoder_attn_layer_norm",
        **within("decoder/layers/cross", f"{layer}.encoder_attn", _ATTENTION),
    }


def _read(source: Source) -> dict[str, Any]:
    """Sizes of which config.json has one for each stack, and the embedding's scale."""
    values, width = source.values, source.values["d_model"]
    for name in _BOTH.values():
        own, other = values[f"decoder_{name}"], values[f"encoder_{name}"]
        equal = f"equal to encoder_{name}={other}"
        source.require(own == other, f"decoder_{name}", own, equal)
    heads, scale = values["decoder_attention_heads"], values["scale_embedding"]
    divides = heads > 0 and width % heads == 0
    bound = f"a divisor of d_model={width}"
    source.require(divides, "decoder_attention_heads", heads, bound)
    flag = isinstance(scale, bool)
    source.require(flag, "scale_embedding", scale, _config_json.FLAG)
    return {
        "head_dim": width // heads,
        "num_kv_heads": heads,
        "embedding_scale": math.sqrt(width) if scale else 1.0,
    }


def _write(config: LanguageConfig) -> dict[str, Any]:
    both = {f"encoder_{theirs}": getattr(config, our) for our, theirs in _BOTH.items()}
    scaled = config.embedding_scale != 1.0
    return {**both, "attention_dropout": config.dropout, "scale_embedding": scaled}


BART = LanguageFamily(
    architecture="BartForConditionalGeneration",
    prefix="model.",
    modules=modules,
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_layers": "decoder_layers",
        "encoder_layers": "encoder_layers",
        "num_heads": "decoder_attention_heads",
        "intermediate_size": "decoder_ffn_dim",
        "max_positions": "max_position_embeddings",
        "activation": "activation_function",
        "dropout": "dropout",
    },
    fixed={
        "positions": "learned",
        "position_offset": 2,
        "norm": "layer",
        "norm_eps": 1e-5,
        "pre_norm": False,
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "embedding_norm": True,
        "head_bias": True,
        # Others have a word embedding for each stack.
        "tied": True,
    },
    demanded={
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "is_decoder": False,
        # Of the first releases, which computed these variants too.
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "static_position_embeddings": False,
    },
    read=_read,
    write=_write,
    twins=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ignored=("encoder.version", "decoder.version"),
)
