"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108).

BERT without token types; the head is a relu layer on the first token and a linear
classifier.
"""

import flax.linen as nn
import jax

from protojax.base import Array
from protojax.models import bert
from protojax.models.config import EncoderConfig, Family
from protojax.models.layers import dense


def head(config: EncoderConfig, first: Array, deterministic: bool) -> Array:
    """Logits `[batch, num_labels]`: relu layer, dropout, classifier."""
    x = jax.nn.relu(dense(config.hidden_size, "pooler")(first))
    x = nn.Dropout(config.classifier_dropout)(x, deterministic)
    return dense(config.num_labels, "classifier")(x)


_EMBEDDINGS = "distilbert.embeddings"
_LAYER = "distilbert.transformer.layer.{i}"

DISTILBERT = Family(
    embed=bert.embed,
    head=head,
    architecture="DistilBertForSequenceClassification",
    prefix="distilbert.",
    modules={
        "embeddings/word": f"{_EMBEDDINGS}.word_embeddings",
        "embeddings/position": f"{_EMBEDDINGS}.position_embeddings",
        "embeddings/norm": f"{_EMBEDDINGS}.LayerNorm",
        "layers_{i}/attention/query": f"{_LAYER}.attention.q_lin",
        "layers_{i}/attention/key": f"{_LAYER}.attention.k_lin",
        "layers_{i}/attention/value": f"{_LAYER}.attention.v_lin",
        "layers_{i}/attention/output": f"{_LAYER}.attention.out_lin",
        "layers_{i}/attention_norm": f"{_LAYER}.sa_layer_norm",
        "layers_{i}/up": f"{_LAYER}.ffn.lin1",
        "layers_{i}/down": f"{_LAYER}.ffn.lin2",
        "layers_{i}/output_norm": f"{_LAYER}.output_layer_norm",
        "pooler": "pre_classifier",
        "classifier": "classifier",
    },
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_positions": "max_position_embeddings",
        "pad_id": "pad_token_id",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    max_length=bert.max_length,
    # Constants in the published code, and therefore absent from config.json.
    fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12, "embedding_size": 0},
    ignored=("embeddings.position_ids", "vocab_", "qa_outputs."),
)
