"""Models so small that a test compiles and trains them in a moment."""

from protojax.models import MODELS, EncoderConfig

# Families that differ from another in names alone, and so need no tests of their own
# of what they compute.
ALIASES = {"camembert": "roberta", "xlm-roberta": "roberta"}
FAMILIES = [name for name in MODELS if name not in ALIASES]


def encoder_config(family="bert", **overrides):
    """The config of a tiny encoder; what its family fixes is as it must be.

    Embeddings are narrower than the layers where the family allows it. Nothing is
    dropped unless it is asked for: random numbers are a third of a small program.

    >>> encoder_config("distilbert", num_labels=3).type_vocab_size
    0
    """
    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 16,
        "max_positions": 8,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
    }
    if "embedding_size" in MODELS[family].fields:
        sizes["embedding_size"] = 6
    return EncoderConfig(
        family=family, **{**sizes, **MODELS[family].fixed, **overrides}
    )
