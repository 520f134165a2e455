"""T5 (Raffel et al., 2020, arXiv:1910.10683), Flan-T5, mT5 and ByT5.

Relative positions as a bias that all layers of a stack share, RMS norm before each
part, no biases, scores that are not scaled. T5 1.0 has a relu perceptron and ties the
head to the word embedding, after a division by √dim; T5 1.1 and its descendants have a
gated one and a head of their own.

Releases of transformers disagree on `tie_word_embeddings`: since 5.0 it says nothing of
the head, which is tied where the file has none or an equal one, and false in a T5's
config.json means that the head's input is not scaled. What both agree on is read; a
file that they read differently is refused.
"""

from typing import Any

from protojax.models import _config_json, _tensors
from protojax.models.language._family import LanguageFamily, Source, within
from protojax.models.language.config import LanguageConfig

_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_WORDS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def modules(gated: bool) -> dict[str, str]:
    """The names of the tensors."""
    names = {"embedding": "shared", "head": "lm_head"}
    first = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    perceptron = {**first, "down": "wo"}
    for stack, last in {"encoder": 1, "decoder": 2}.items():
        layer, layers = f"{stack}.block.{{i}}.layer", f"{stack}/layers"
        bias = "layer.0.SelfAttention.relative_attention_bias"
        names |= {
            f"{stack}/relative": f"{stack}.block.0.{bias}",
            f"{layers}/attention_norm": f"{layer}.0.layer_norm",
            **within(f"{layers}/attention", f"{layer}.0.SelfAttention", _ATTENTION),
            f"{layers}/mlp_norm": f"{layer}.{last}.layer_norm",
            **within(f"{layers}/mlp", f"{layer}.{last}.DenseReluDense", perceptron),
            f"{stack}/norm": f"{stack}.final_layer_norm",
        }
    return names | {
        "decoder/layers/cross_norm": "decoder.block.{i}.layer.1.layer_norm",
        **within(
            "decoder/layers/cross",
            "decoder.block.{i}.layer.1.EncDecAttention",
            _ATTENTION,
        ),
    }


def _read(source: Source) -> dict[str, Any]:
    """The perceptron and the head."""
    activation, gated = source.values["dense_act_fn"], source.values["is_gated_act"]
    source.require(isinstance(gated, bool), "is_gated_act", gated, _config_json.FLAG)
    tie = source.raw.get("tie_word_embeddings", True)
    source.require(isinstance(tie, bool), "tie_word_embeddings", tie, _config_json.FLAG)
    is_t5 = source.raw["model_type"] == "t5"
    scale = source.values["scale_decoder_outputs"] if is_t5 else False
    source.require(
        isinstance(scale, bool), "scale_decoder_outputs", scale, _config_json.FLAG
    )
    # Written by transformers since 5.0, whose true says nothing of the head.
    is_new = "scale_decoder_outputs" in source.raw or not is_t5
    head = source.tensors.get("lm_head.weight")
    words = [source.tensors[n] for n in _WORDS if n in source.tensors]
    tied = tie
    if tie and is_new and head is not None and words:
        tied = _tensors.equal(head, words[0])
    return {
        "activation": activation,
        "gated": gated,
        "tied": tied,
        "scale_head": scale,
    }


def _write(config: LanguageConfig) -> dict[str, Any]:
    """The perceptron and the head, for releases of transformers before 5.0 too."""
    name = "gelu" if config.activation == "gelu_new" else config.activation
    project = f"gated-{name}" if config.gated else config.activation
    values = {
        "feed_forward_proj": project,
        "dense_act_fn": config.activation,
        "is_gated_act": config.gated,
        "tie_word_embeddings": config.tied,
    }
    if config.family == "t5" and config.tied != config.scale_head:
        values |= {
            "tie_word_embeddings": True,
            "scale_decoder_outputs": config.scale_head,
        }
    return values


T5 = LanguageFamily(
    architecture="T5ForConditionalGeneration",
    prefix="",
    modules=modules,
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_layers": "num_decoder_layers",
        "encoder_layers": "num_layers",
        "num_heads": "num_heads",
        "num_kv_heads": "num_heads",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_distance": "relative_attention_max_distance",
        "norm_eps": "layer_norm_epsilon",
        "dropout": "dropout_rate",
    },
    fixed={
        "positions": "relative",
        "norm": "rms",
        "pre_norm": True,
        "float32_down": True,
        "scale_attention": False,
    },
    demanded={"is_encoder_decoder": True, "is_decoder": False},
    read=_read,
    write=_write,
    twins=_WORDS[1:],
    # Of the first releases; no one reads it.
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
# Never scales the head's input, in transformers since 5.0.
MT5 = T5._replace(architecture="MT5ForConditionalGeneration")
