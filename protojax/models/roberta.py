"""RoBERTa (Liu et al., 2019, arXiv:1907.11692).

The body is BERT's. Positions count the tokens that are not padding, from pad_id + 1 on,
so the position embedding has pad_id + 1 more rows than a text may have tokens. The
head is dropout, a tanh layer, dropout and a linear layer on the first token.

XLM-RoBERTa (Conneau et al., 2019, arXiv:1911.02116) and CamemBERT (Martin et al., 2019,
arXiv:1911.03894) are the same computation on other languages and vocabularies.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from protojax.base import Array, Batch
from protojax.models import bert
from protojax.models.config import EncoderConfig, Family
from protojax.models.layers import Embeddings, dense


def embed(config: EncoderConfig, batch: Batch, deterministic: bool) -> Array:
    """Embeddings `[batch, length, dim]`; token n of a text has position pad_id + n."""
    is_token = (batch.input_ids != config.pad_id).astype(jnp.int32)
    # Padding gets pad_id itself, as in fairseq, whose numbering starts behind it.
    positions = jnp.cumsum(is_token, axis=1) * is_token + config.pad_id
    return Embeddings(config, deterministic, name="embeddings")(batch, positions)


def max_length(config: EncoderConfig) -> int:
    """The largest number of tokens of a row, with positions from pad_id + 1 on."""
    return config.max_positions - config.pad_id - 1


def head(
    config: EncoderConfig,
    first: Array,
    deterministic: bool,
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Array:
    """Logits `[batch, num_labels]`: dropout, tanh layer, dropout, linear layer."""
    x = nn.Dropout(config.classifier_dropout)(first, deterministic)
    x = activation(dense(config.hidden_size, "pooler")(x))
    x = nn.Dropout(config.classifier_dropout)(x, deterministic)
    return dense(config.num_labels, "classifier")(x)


ROBERTA = Family(
    embed=embed,
    head=head,
    architecture="RobertaForSequenceClassification",
    prefix="roberta.",
    modules={
        **bert.body("roberta."),
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
    },
    fields=bert.FIELDS,
    max_length=max_length,
    fixed={"embedding_size": 0},
    ignored=("embeddings.position_ids", "pooler.", "lm_head.", "qa_outputs."),
)
# The names of their tensors begin with "roberta." as well.
CAMEMBERT = ROBERTA._replace(architecture="CamembertForSequenceClassification")
XLM_ROBERTA = ROBERTA._replace(architecture="XLMRobertaForSequenceClassification")
