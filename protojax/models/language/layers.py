"""The transformer layers that all families of language models share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protojax.base import Array
from protojax.models.config import ACTIVATIONS
from protojax.models.language._linear import Linear
from protojax.models.language.config import LanguageConfig


def linear(
    config: LanguageConfig, features: int, bias: bool, dtype: str | None = None
) -> Linear:
    """A linear layer of the body."""
    return Linear(features, bias, dtype or config.dtype)


def normalisation(config: LanguageConfig) -> nn.Module:
    """RMS norm (Zhang and Sennrich, 2019, arXiv:1910.07467) or layer norm.

    Either computes in float32 and returns `config.dtype`.
    """
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype)
    return nn.LayerNorm(
        epsilon=config.norm_eps,
        dtype=config.dtype,
        # The fast form, E[x²] − E[x]², loses digits where the mean is large.
        use_fast_variance=False,
    )


def rotary_frequencies(config: LanguageConfig) -> np.ndarray:
    """The angle that each pair of a head's numbers turns by from token to token.

    Pair i turns by θ^(−2i / head_dim) (Su et al., 2021, arXiv:2104.09864), changed as
    `RopeScaling` says.

    Returns:
        `[head_dim / 2]`, float32.
    """
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_positions * frequencies / (2 * np.pi)
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies.astype(np.float32)


def rotation(config: LanguageConfig, positions: Array) -> tuple[Array, Array]:
    """Cosine and sine of each token's angles, `[batch, length, head_dim / 2]` each.

    Args:
        config: the model.
        positions: `[batch, length]`, int32.
    """
    angles = positions[..., None].astype(jnp.float32) * rotary_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """The heads of x with their pairs of numbers turned.

    A pair is a number of the first half and its counterpart in the second, as in the
    checkpoints of Hugging Face.

    Args:
        x: `[batch, length, heads, head_dim]`.
        turn: cosine and sine, see `rotation`.
    """
    cos, sin = (part[:, :, None, :] for part in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Context(NamedTuple):
    """The inputs of a layer besides its states; equal for all layers of a stack.

    Attributes:
        mask: `[batch or 1, queries or 1, keys]`, bool, which keys a token may attend
            to. A token without any attends to all, which keeps padding finite.
        bias: `[heads, queries, keys]`, float32, added to the scores, or None.
        turn: cosine and sine of rotary positions, or None.
        memory_mask: `[batch, 1, source]`, bool, of cross-attention, or None.
    """

    mask: Array
    bias: Array | None = None
    turn: tuple[Array, Array] | None = None
    memory_mask: Array | None = None


class Attention(nn.Module):
    """Multi-head attention whose keys and values may be shared by several heads.

    softmax(Q Kᵀ / √d + bias) V, then a linear layer (Vaswani et al., 2017,
    arXiv:1706.03762; Ainslie et al., 2023, arXiv:2305.13245, for grouped queries).

    Attributes:
        config: the model's.
        deterministic: whether dropout is off.
    """

    config: LanguageConfig
    deterministic: bool

    def setup(self):
        """Names the parts."""
        config = self.config
        size = functools.partial(linear, config, bias=config.attention_bias)
        self.query = size(config.num_heads * config.head_dim)
        self.key = size(config.num_kv_heads * config.head_dim)
        self.value = size(config.num_kv_heads * config.head_dim)
        self.output = linear(config, config.hidden_size, config.output_bias)
        if config.query_key_norm:
            self.query_norm = normalisation(config)
            self.key_norm = normalisation(config)
        self.dropout = nn.Dropout(config.dropout)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)

    def keys_values(
        self, x: Array, turn: tuple[Array, Array] | None = None
    ) -> tuple[Array, Array]:
        """Keys and values, `[batch, kv_heads, length, head_dim]` each.

        Args:
            x: `[batch, length, dim]`.
            turn: see `Context`.
        """
        key, value = self._heads(self.key(x)), self._heads(self.value(x))
        if self.config.query_key_norm:
            key = self.key_norm(key)
        if turn is not None:
            key = rotate(key, turn)
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def __call__(
        self,
        x: Array,
        keys: Array,
        values: Array,
        mask: Array,
        bias: Array | None = None,
        turn: tuple[Array, Array] | None = None,
    ) -> Array:
        """The attention output `[batch, queries, dim]`.

        Args:
            x: `[batch, queries, dim]`.
            keys: `[batch, kv_heads, keys, head_dim]`.
            values: `[batch, kv_heads, keys, head_dim]`.
            mask: see `Context`.
            bias: see `Context`.
            turn: see `Context`.
        """
        config = self.config
        query = self._heads(self.query(x))
        if config.query_key_norm:
            query = self.query_norm(query)
        if turn is not None:
            query = rotate(query, turn)
        # Heads that share keys are one more axis, so that keys are never repeated.
        grouped = (*x.shape[:2], config.num_kv_heads, -1, config.head_dim)
        scores = jnp.einsum(
            "bqkgd,bksd->bkgqs",
            query.reshape(grouped),
            keys,
            preferred_element_type=jnp.float32,
        )
        if config.scale_attention:
            scores *= config.head_dim**-0.5
        if bias is not None:
            scores += bias.reshape(config.num_kv_heads, -1, *bias.shape[1:])
        lowest = jnp.finfo(jnp.float32).min
        scores = jnp.where(mask[:, None, None], scores, lowest)
        weights = jax.nn.softmax(scores).astype(config.dtype)
        weights = self.dropout(weights, self.deterministic)
        y = jnp.einsum("bkgqs,bksd->bqkgd", weights, values)
        return self.output(y.reshape(*x.shape[:2], -1))


class Perceptron(nn.Module):
    """Two linear layers with an activation between, gated (Shazeer, 2020,
    arXiv:2002.05202) or not.

    Attributes:
        config: the model's.
    """

    config: LanguageConfig

    def setup(self):
        """Names the parts."""
        config = self.config
        if config.gated:
            self.gate = linear(config, config.intermediate_size, config.mlp_bias)
        self.up = linear(config, config.intermediate_size, config.mlp_bias)
        dtype = "float32" if config.float32_down else None
        self.down = linear(config, config.hidden_size, config.mlp_bias, dtype)

    def __call__(self, x: Array) -> Array:
        """The perceptron's output `[batch, length, dim]`.

        Args:
            x: `[batch, length, dim]`.
        """
        activation = ACTIVATIONS[self.config.activation]
        if self.config.gated:
            return self.down(activation(self.gate(x)) * self.up(x))
        return self.down(activation(self.up(x)))


class Layer(nn.Module):
    """Self-attention, cross-attention in a decoder of an encoder-decoder, perceptron.

    Attributes:
        config: the model's.
        deterministic: whether dropout is off.
        has_cross: whether it has cross-attention.
    """

    config: LanguageConfig
    deterministic: bool
    has_cross: bool

    def setup(self):
        """Names the parts."""
        config = self.config
        self.attention_norm = normalisation(config)
        self.attention = Attention(config, self.deterministic)
        if self.has_cross:
            self.cross_norm = normalisation(config)
            self.cross = Attention(config, self.deterministic)
        self.mlp_norm = normalisation(config)
        self.mlp = Perceptron(config)
        self.dropout = nn.Dropout(config.dropout)

    def memory_keys_values(self, memory: Array) -> tuple[Array, Array]:
        """The keys and values of cross-attention.

        Args:
            memory: `[batch, source, dim]`, the encoder's states.
        """
        return self.cross.keys_values(memory)

    def __call__(
        self,
        x: Array,
        context: Context,
        memory: tuple[Array, Array] | None = None,
        store: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    ) -> Array:
        """The layer's output `[batch, length, dim]`.

        Args:
            x: `[batch, length, dim]`.
            context: masks and positions.
            memory: keys and values of cross-attention, see `memory_keys_values`.
            store: maps the keys and values of x to those of all tokens that x may
                attend to, for a cache.
        """

        def add(norm: nn.Module, x: Array, part: Callable[[Array], Array]) -> Array:
            y = part(norm(x)) if self.config.pre_norm else part(x)
            x = x + self.dropout(y, self.deterministic)
            return x if self.config.pre_norm else norm(x).astype(x.dtype)

        def attend(x: Array) -> Array:
            keys, values = self.attention.keys_values(x, context.turn)
            if store is not None:
                keys, values = store(keys, values)
            return self.attention(
                x, keys, values, context.mask, context.bias, context.turn
            )

        x = add(self.attention_norm, x, attend)
        if self.has_cross:
            x = add(
                self.cross_norm,
                x,
                lambda y: self.cross(y, *memory, context.memory_mask),
            )
        return add(self.mlp_norm, x, self.mlp)
