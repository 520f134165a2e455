"""BERT (Devlin et al., 2018, arXiv:1810.04805) and smaller models like MiniLM.

Learned positions and token types; the head is a tanh "pooler" on the first token and a
linear classifier. RoBERTa and ELECTRA name their bodies' tensors and settings the same
way.
"""

import flax.linen as nn
import jax.numpy as jnp

from protojax.base import Array, Batch
from protojax.models.config import EncoderConfig, Family
from protojax.models.layers import Embeddings, dense

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
}


def body(prefix: str) -> dict[str, str]:
    """A map from parameter path to checkpoint name, of embeddings and layers.

    >>> body("bert.")["layers_{i}/up"]
    'bert.encoder.layer.{i}.intermediate.dense'
    """
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    return {
        "embeddings/word": f"{embeddings}.word_embeddings",
        "embeddings/position": f"{embeddings}.position_embeddings",
        "embeddings/token_type": f"{embeddings}.token_type_embeddings",
        "embeddings/norm": f"{embeddings}.LayerNorm",
        "layers_{i}/attention/query": f"{layer}.attention.self.query",
        "layers_{i}/attention/key": f"{layer}.attention.self.key",
        "layers_{i}/attention/value": f"{layer}.attention.self.value",
        "layers_{i}/attention/output": f"{layer}.attention.output.dense",
        "layers_{i}/attention_norm": f"{layer}.attention.output.LayerNorm",
        "layers_{i}/up": f"{layer}.intermediate.dense",
        "layers_{i}/down": f"{layer}.output.dense",
        "layers_{i}/output_norm": f"{layer}.output.LayerNorm",
    }


def embed(config: EncoderConfig, batch: Batch, deterministic: bool) -> Array:
    """Embeddings `[batch, length, dim]`, with positions from 0 on."""
    positions = jnp.arange(batch.input_ids.shape[1])[None]
    return Embeddings(config, deterministic, name="embeddings")(batch, positions)


def max_length(config: EncoderConfig) -> int:
    """The largest number of tokens of a row: the rows of the position embedding."""
    return config.max_positions


def head(config: EncoderConfig, first: Array, deterministic: bool) -> Array:
    """Logits `[batch, num_labels]`: tanh pooler, dropout, classifier."""
    x = jnp.tanh(dense(config.hidden_size, "pooler")(first))
    x = nn.Dropout(config.classifier_dropout)(x, deterministic)
    return dense(config.num_labels, "classifier")(x)


BERT = Family(
    embed=embed,
    head=head,
    architecture="BertForSequenceClassification",
    prefix="bert.",
    modules={
        **body("bert."),
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
    },
    fields=FIELDS,
    max_length=max_length,
    fixed={"embedding_size": 0},
    # A buffer of older transformers, and the heads of other tasks.
    ignored=("embeddings.position_ids", "cls.", "qa_outputs."),
)
