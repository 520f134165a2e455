"""Models so small that a test compiles and trains them in a moment."""

from protojax.models import MODELS, EncoderConfig


def encoder_config(family="bert", **overrides):
    """The config of a tiny encoder; what its family fixes is as it must be.

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
    }
    return EncoderConfig(
        family=family, **{**sizes, **MODELS[family].fixed, **overrides}
    )
