"""MPNet (Song et al., 2020, arXiv:2004.09297).

RoBERTa without token types, with a bias on the scores of attention that depends on the
distance between query and key. All layers share it: a learned number for each head and
each bucket of distances (Raffel et al., 2019, arXiv:1910.10683, T5).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from protojax.base import Array
from protojax.models import bert, roberta
from protojax.models._distances import distance_buckets
from protojax.models.config import EncoderConfig, Family

# A constant in the published code, whatever relative_attention_num_buckets of
# config.json says.
BUCKETS = 32


def attention_bias(config: EncoderConfig, length: int) -> Array:
    """The bias `[1, num_heads, length, length]` on the scores of every layer."""
    table = nn.Embed(
        BUCKETS, config.num_heads, dtype=config.dtype, name="attention_bias"
    )
    place = np.arange(length)
    buckets = distance_buckets(place[None] - place[:, None], buckets=BUCKETS)
    # Over queries and keys -> heads first.
    return jnp.moveaxis(table(buckets), -1, 0)[None]


_LAYER = "mpnet.encoder.layer.{i}"
_MODULES = {
    **bert.body("mpnet."),
    "attention_bias": "mpnet.encoder.relative_attention_bias",
    "layers_{i}/attention/query": f"{_LAYER}.attention.attn.q",
    "layers_{i}/attention/key": f"{_LAYER}.attention.attn.k",
    "layers_{i}/attention/value": f"{_LAYER}.attention.attn.v",
    "layers_{i}/attention/output": f"{_LAYER}.attention.attn.o",
    "layers_{i}/attention_norm": f"{_LAYER}.attention.LayerNorm",
    "pooler": "classifier.dense",
    "classifier": "classifier.out_proj",
}

MPNET = Family(
    embed=roberta.embed,
    head=roberta.head,
    architecture="MPNetForSequenceClassification",
    prefix="mpnet.",
    modules=_MODULES,
    fields={k: v for k, v in bert.FIELDS.items() if k != "type_vocab_size"},
    max_length=roberta.max_length,
    # Its positions begin behind 1 whatever config.json calls the padding.
    fixed={"type_vocab_size": 0, "embedding_size": 0, "pad_id": 1},
    ignored=("embeddings.position_ids", "pooler.", "lm_head.", "qa_outputs."),
    attention_bias=attention_bias,
)
