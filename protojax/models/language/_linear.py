"""Linear layers and the head, in the two forms that training and steps need."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from protojax.base import Array
from protojax.models.language.config import LanguageConfig


def few_rows_product(x: Array, transposed: Array, dtype: str | None = None) -> Array:
    """The product x W, computed as (Wᵀ xᵀ)ᵀ.

    On CPUs it is up to twice as fast for the few rows of a step of generation.

    Args:
        x: `[..., dim]`.
        transposed: `[features, dim]`, Wᵀ.
        dtype: of the output; by default that of the factors.

    Returns:
        `[..., features]`.
    """
    y = jax.lax.dot_general(
        transposed,
        x,
        (((1,), (x.ndim - 1,)), ((), ())),
        preferred_element_type=dtype,
    )
    # Else XLA folds the transposition into the product, and computes x W.
    return jnp.moveaxis(jax.lax.optimization_barrier(y), 0, -1)


class Linear(nn.Module):
    """A linear layer: x W + b.

    Its parameters are `kernel`, `[dim, features]`, or in its place `transposed`,
    `[features, dim]`, see `few_rows_product`; and `bias`.

    Attributes:
        features: width of the output.
        use_bias: whether b is added.
        dtype: what it computes in.
    """

    features: int
    use_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The output `[..., features]`.

        Args:
            x: `[..., dim]`.
        """
        x = x.astype(self.dtype)
        if self.has_variable("params", "transposed"):
            transposed = self.get_variable("params", "transposed")
            y = few_rows_product(x, transposed.astype(self.dtype))
        else:
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.zeros, shape)
            y = x @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(self.dtype)
        return y


class Head(nn.Module):
    """The logits of the next token.

    Attributes:
        config: the model's.
        few_rows: whether the product is that of `few_rows_product`.
    """

    config: LanguageConfig
    few_rows: bool

    @nn.compact
    def __call__(self, states: Array, words: Array) -> Array:
        """The logits `[..., vocab]`, float32.

        Args:
            states: `[..., dim]`.
            words: `[vocab, dim]`, the word embedding, read if tied.
        """
        config = self.config
        if config.scale_head:
            states = states * config.hidden_size**-0.5
        states = states.astype(config.dtype)
        if not config.tied:
            shape = (config.hidden_size, config.vocab_size)
            words = self.param("kernel", nn.initializers.zeros, shape).T
        words = words.astype(config.dtype)
        if self.few_rows and config.tied:
            logits = few_rows_product(states, words, "float32")
        else:
            logits = jnp.einsum(
                "...d,vd->...v", states, words, preferred_element_type=jnp.float32
            )
        if config.head_bias:
            shape = (config.vocab_size,)
            logits += self.param("bias", nn.initializers.zeros, shape)
        return logits
