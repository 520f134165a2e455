"""The configuration of an encoder, and the differences between families."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import PROBLEMS, Array, Batch

ACTIVATIONS = {
    # jax.nn.gelu approximates by default; checkpoints were trained with the exact form.
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
DTYPES = ("float32", "bfloat16")
HEAD = ("pooler", "classifier")  # in every family, may be missing in a checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The settings that determine an encoder's computation. Hashable.

    >>> config = EncoderConfig(family="bert", vocab_size=100, hidden_size=32,
    ...     num_layers=2, num_heads=4, intermediate_size=64, max_positions=16)
    >>> dataclasses.replace(config, num_heads=5)
    Traceback (most recent call last):
    ValueError: Expected num_heads a divisor of hidden_size=32, found num_heads=5.

    Attributes:
        family: a name in `protojax.models.MODELS`.
        vocab_size: rows of the word embedding.
        hidden_size: width of the residual stream.
        num_layers: encoder layers.
        num_heads: attention heads; divides hidden_size.
        intermediate_size: width inside the perceptron.
        max_positions: rows of the position embedding.
        type_vocab_size: rows of the token type embedding; 0 for none, and with 1 every
            token is of the one type whatever the batch says.
        pad_id: the padding token.
        embedding_size: width of the embeddings where it differs from hidden_size and a
            linear layer maps one to the other, as in ELECTRA; else 0.
        layer_norm_eps: added to the variance.
        activation: of the perceptron, a key of `ACTIVATIONS`.
        dropout: rate on embeddings and on what each layer adds.
        attention_dropout: rate on attention weights.
        classifier_dropout: rate before the classifier.
        num_labels: logits per row; 1 for regression.
        problem: "classification" or "regression".
        dtype: "float32" or "bfloat16", what the body computes in.
        products: "float32" or "bfloat16", what linear layers of a float32 body round
            the factors of their matrix products to; see `bfloat16_product`.
        attention: implementation of `jax.nn.dot_product_attention`, None for JAX's
            choice; "cudnn" needs bfloat16, rows of even length and a GPU. Where
            attention dropout acts, Flax computes attention, as JAX's has none.
        remat: recompute each layer in the backward pass to save memory.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int = 2
    pad_id: int = 0
    embedding_size: int = 0
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    num_labels: int = 2
    problem: str = "classification"
    dtype: str = "float32"
    products: str = "float32"
    attention: str | None = None
    remat: bool = False

    def __post_init__(self):
        validate.positive(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            max_positions=self.max_positions,
            layer_norm_eps=self.layer_norm_eps,
            num_labels=self.num_labels,
        )
        validate.non_negative(
            type_vocab_size=self.type_vocab_size,
            pad_id=self.pad_id,
            embedding_size=self.embedding_size,
        )
        validate.fraction(
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            classifier_dropout=self.classifier_dropout,
        )
        validate.one_of(ACTIVATIONS, activation=self.activation)
        validate.one_of(PROBLEMS, problem=self.problem)
        validate.one_of(DTYPES, dtype=self.dtype)
        validate.one_of(DTYPES, products=self.products)
        if self.attention is not None:
            validate.one_of(["xla", "cudnn"], attention=self.attention)
        validate.require(
            self.hidden_size % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"a divisor of hidden_size={self.hidden_size}",
        )
        validate.require(
            # The fused kernels of cuDNN take half precision only.
            self.attention != "cudnn" or self.dtype == "bfloat16",
            "dtype",
            self.dtype,
            "'bfloat16' with attention='cudnn'",
        )
        is_regression = self.problem == "regression"
        validate.require(
            (self.num_labels == 1) == is_regression,
            "num_labels",
            self.num_labels,
            "1 for regression" if is_regression else ">= 2 for classification",
        )


def check_layers(depth: int, **layers: tuple[int, ...]) -> None:
    """Raises unless chosen layers are ascending and exist.

    Args:
        depth: the number of layers of the model that they are chosen of.
        **layers: the numbers of the layers, under the name of the argument.

    Raises:
        ValueError: with the name and the value.
    """
    for name, found in layers.items():
        exist = all(0 <= layer < depth for layer in found)
        rising = all(low < high for low, high in itertools.pairwise(found))
        bound = f"rising and in [0, {depth})"
        validate.require(bool(found) and exist and rising, name, found, bound)


class Family(NamedTuple):
    """The parts in which one encoder family differs from others.

    Attributes:
        embed: `(config, batch, deterministic) -> [batch, length, dim]`, called inside
            the encoder, so that the layers it makes are the encoder's.
        head: `(config, [batch, dim], deterministic) -> [batch, num_labels]` on the
            first token, in the same way; its layers are named as in `HEAD`.
        architecture: the transformers class that a saved checkpoint names.
        prefix: the prefix of the body's tensors in checkpoints of that class; those of
            the bare encoder have none.
        modules: parameter path -> checkpoint name; `{i}` stands for a layer.
        fields: field of `EncoderConfig` -> field of config.json.
        max_length: `(config) -> tokens` that a row may have.
        fixed: fields of `EncoderConfig` with the only value that the family allows.
        ignored: beginnings of tensor names (prefix removed) that a checkpoint may hold
            and a classifier does not use.
        attention_bias: `(config, length) -> [1, num_heads, length, length]`, what every
            layer adds to the scores of its attention, made inside the encoder as the
            embeddings are; None for nothing.
    """

    embed: Callable[[EncoderConfig, Batch, bool], Array]
    head: Callable[[EncoderConfig, Array, bool], Array]
    architecture: str
    prefix: str
    modules: Mapping[str, str]
    fields: Mapping[str, str]
    max_length: Callable[[EncoderConfig], int]
    fixed: Mapping[str, Any]
    ignored: tuple[str, ...]
    attention_bias: Callable[[EncoderConfig, int], Array] | None = None
