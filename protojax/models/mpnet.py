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
from protojax.models.config import EncoderConfig, Family

# Constants in the published code, the first whatever relative_attention_num_buckets of
# config.json says.
BUCKETS = 32
MAX_DISTANCE = 128


def distance_buckets(length: int) -> np.ndarray:
    """The bucket of the distance between each query and each key.

    The first half of the buckets is for keys that come before the query, the second for
    those after it. In either, half of the buckets hold one distance each, the others
    ever longer ranges of them, and the last all that are longer.

    >>> distance_buckets(3).tolist()
    [[0, 17, 18], [1, 0, 17], [2, 1, 0]]

    Args:
        length: tokens of a row.

    Returns:
        `[length, length]`, int32, queries by keys.
    """
    places = np.arange(length)
    forward = places[None] - places[:, None]
    distance, half = np.abs(forward), BUCKETS // 2
    exact = half // 2
    # In float32 as in PyTorch, so that a distance on a border gets the same bucket.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = (
        growth / np.float32(np.log(MAX_DISTANCE / exact)) * np.float32(half - exact)
    )
    wide = np.minimum(exact + growth.astype(np.int32), half - 1)
    bucket = np.where(distance < exact, distance, wide)
    return (bucket + half * (forward > 0)).astype(np.int32)


def attention_bias(config: EncoderConfig, length: int) -> Array:
    """The bias `[1, num_heads, length, length]` on the scores of every layer."""
    table = nn.Embed(
        BUCKETS, config.num_heads, dtype=config.dtype, name="attention_bias"
    )
    # Over queries and keys -> heads first.
    return jnp.moveaxis(table(distance_buckets(length)), -1, 0)[None]


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
