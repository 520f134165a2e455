"""ELECTRA (Clark et al., 2020, arXiv:2003.10555).

The body is BERT's. The embeddings of small models are narrower than their layers, and a
linear layer maps them to `hidden_size`: that is hidden state 0, and where perturbations
are added. The head is dropout, a gelu layer, dropout and a linear layer on the first
token.
"""

from protojax.base import Array
from protojax.models import bert, roberta
from protojax.models.config import ACTIVATIONS, EncoderConfig, Family


def head(config: EncoderConfig, first: Array, deterministic: bool) -> Array:
    """Logits `[batch, num_labels]`: dropout, gelu layer, dropout, linear layer."""
    # Of any ELECTRA, whatever the activation of its perceptrons.
    gelu = ACTIVATIONS["gelu"]
    return roberta.head(config, first, deterministic, activation=gelu)


ELECTRA = Family(
    embed=bert.embed,
    head=head,
    architecture="ElectraForSequenceClassification",
    prefix="electra.",
    modules={
        **bert.body("electra."),
        "embeddings/projection": "electra.embeddings_project",
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
    },
    fields={**bert.FIELDS, "embedding_size": "embedding_size"},
    max_length=bert.max_length,
    fixed={},
    # The heads of its pretraining, a discriminator and a generator of words.
    ignored=(
        "embeddings.position_ids",
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "qa_outputs.",
    ),
)
