"""Settings of the source of a model and of its computation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from protojax import models, validate
from protojax.models.config import DTYPES, EncoderConfig
from protojax.models.encoder import Model, init_model

SCRATCH = "scratch"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A pretrained encoder, or the sizes of a fresh one, and how it computes.

    Attributes:
        model: a hub id, a local folder, or `"scratch"` for fresh weights of the sizes
            in `scratch` and a tokenizer trained on the given texts.
        layers: keep these encoder layers; () keeps all.
        scratch: sizes of a fresh encoder.
        dropout: of hidden states, and before the classifier.
        attention_dropout: above 0 the fused attention is not used.
        dtype: of the computation; parameters are float32.
        products: "bfloat16": linear layers multiply rounded factors and sum in float32,
            which is several times faster on CPUs with matrix units, for one model at a
            time; gradients of single rows (DP-SGD) stay in float32.
        attention: implementation of `jax.nn.dot_product_attention`.
        remat: whether activations are computed again in the backward pass.
    """

    model: str = SCRATCH
    layers: tuple[int, ...] = ()
    scratch: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "hidden_size": 128,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 512,
        },
        # A dict has no hash; equality still compares it.
        hash=False,
    )
    dropout: float = 0.1
    attention_dropout: float = 0.0
    dtype: str = "float32"
    products: str = "float32"
    attention: str = "xla"
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        for field in ("dropout", "attention_dropout"):
            value = getattr(self, field)
            validate.require(0 <= value < 1, field, value, "in [0, 1)")
        validate.one_of(DTYPES, dtype=self.dtype)
        validate.one_of(DTYPES, products=self.products)
        if self.model == SCRATCH:
            bound = "() from scratch"
            validate.require(not self.layers, "layers", self.layers, bound)

    @property
    def computation(self) -> dict[str, Any]:
        """The fields that are not stored with a saved model."""
        fields = ("dtype", "products", "attention", "remat")
        return {name: getattr(self, name) for name in fields}


def build(
    settings: ModelSettings,
    *,
    num_labels: int,
    problem: str,
    seed: int,
    max_positions: int,
    tokenizer: Callable[[], Any],
) -> Model:
    """An untrained or pretrained model.

    Args:
        settings: the source of the model.
        num_labels: classes, 1 for regression.
        problem: "classification" or "regression".
        seed: the seed of fresh weights.
        max_positions: the most tokens per row, for a model from scratch.
        tokenizer: makes the tokenizer of a model from scratch; not called for others.
    """
    common = {"num_labels": num_labels, "problem": problem, **settings.computation}
    dropout = {
        "dropout": settings.dropout,
        "attention_dropout": settings.attention_dropout,
        "classifier_dropout": settings.dropout,
    }
    if settings.model != SCRATCH:
        layers = tuple(settings.layers)
        model = models.load_hf(settings.model, layers=layers, seed=seed, **common)
        # The study's dropout, not the checkpoint's: all students must train alike.
        return model._replace(config=dataclasses.replace(model.config, **dropout))
    words = tokenizer()
    config = EncoderConfig(
        family="bert",
        vocab_size=len(words),
        max_positions=max_positions,
        type_vocab_size=2,
        pad_id=words.pad_token_id,
        **settings.scratch,
        **dropout,
        **common,
    )
    return init_model(config, seed=seed, tokenizer=words)
