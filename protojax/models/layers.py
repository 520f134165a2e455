"""The transformer body that every encoder family shares.

A post-norm encoder (Vaswani et al., 2017, arXiv:1706.03762; Devlin et al., 2018,
arXiv:1810.04805): embeddings, then layers that each add attention and a two-layer
perceptron to their input and normalise after either sum, then a head on the first
token. Parameters are float32; the body computes in `EncoderConfig.dtype`, the head and
its logits in float32. A family (bert.py, roberta.py, ...) supplies what differs:
embeddings, head, a bias of attention, and the names in a Hugging Face checkpoint.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, Batch, ModelOutput
from protojax.models.config import ACTIVATIONS, EncoderConfig


# A gradient of its own: that of the casts would round the sums to bfloat16 as well.
@jax.custom_vjp
def bfloat16_product(x: Array, kernel: Array) -> Array:
    """The product x W of factors rounded to bfloat16, summed in float32.

    The two products of its gradient are computed in the same way. Processors with
    matrix units, including some CPUs, multiply bfloat16 several times faster. Only
    factors of a product are rounded, never a sum, a parameter or a state of the
    optimiser (mixed precision as in Micikevicius et al., 2017, arXiv:1710.03740,
    without loss scaling, because bfloat16 has the range of float32). Without matrix
    units the rounding only takes time.

    Args:
        x: `[..., dim]`, float32.
        kernel: `[dim, features]`, float32.

    Returns:
        `[..., features]`, float32.

    >>> bfloat16_product(jnp.full((1, 1, 2), 1.001), jnp.ones((2, 1))).item()
    2.0
    """
    return _rounded_product(x, kernel, (x.ndim - 1,), (0,))


def _rounded_product(a: Array, b: Array, of_a, of_b) -> Array:
    """The product of a and b over given axes, rounded to bfloat16, in float32."""
    return jax.lax.dot_general(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        ((of_a, of_b), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _product_forward(x: Array, kernel: Array):
    return bfloat16_product(x, kernel), (x, kernel)


def _product_backward(saved, g: Array):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return (
        _rounded_product(g, kernel, (g.ndim - 1,), (1,)),
        _rounded_product(x, g, rows, rows),
    )


bfloat16_product.defvjp(_product_forward, _product_backward)


# Parameters come from `init_params` or a checkpoint. Flax traces what it would draw in
# their place at every call, for its shape; zeros take half the time of random numbers.
_NOTHING = nn.initializers.zeros


def dense(features: int, name: str) -> nn.Dense:
    """A linear layer of a head, in float32."""
    return nn.Dense(features, dtype="float32", kernel_init=_NOTHING, name=name)


def embed(rows: int, features: int, name: str) -> nn.Embed:
    """A table of vectors."""
    return nn.Embed(rows, features, embedding_init=_NOTHING, name=name)


def linear(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    """A linear layer of the body."""
    product = None
    if config.dtype == "float32" and config.products == "bfloat16":

        def product(x, kernel, dimension_numbers, precision=None):
            del dimension_numbers, precision  # nn.Dense uses only one of each
            return bfloat16_product(x, kernel)

    return nn.Dense(
        features,
        dtype=config.dtype,
        dot_general=product,
        kernel_init=_NOTHING,
        name=name,
    )


def layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    """The layer norm of the body, with its variance computed in two passes."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=config.dtype,
        # The fast form, E[x²] − E[x]², loses digits where the mean is large.
        use_fast_variance=False,
        name=name,
    )


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, normalised (and widened).

    Attributes:
        config: the encoder's.
        deterministic: whether dropout is off.
    """

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, batch: Batch, positions: Array) -> Array:
        """The embeddings `[batch, length, dim]`.

        Args:
            batch: token ids `[batch, length]` and token types.
            positions: `[batch, length]` or `[1, length]`, int32, rows of the position
                embedding.
        """
        config = self.config
        size = config.embedding_size or config.hidden_size
        table = functools.partial(embed, features=size)
        x = table(config.vocab_size, name="word")(batch.input_ids)
        x += table(config.max_positions, name="position")(positions)
        if config.type_vocab_size > 0:
            types = batch.token_type_ids
            if config.type_vocab_size == 1:
                # RoBERTa has a single type; type 1 would read beyond its row.
                types = jnp.zeros_like(types)
            x += table(config.type_vocab_size, name="token_type")(types)
        x = layer_norm(config, "norm")(x)
        x = nn.Dropout(config.dropout)(x, self.deterministic)
        if size != config.hidden_size:
            x = linear(config, config.hidden_size, "projection")(x)
        return x


class Attention(nn.Module):
    """Multi-head self-attention: softmax(Q Kᵀ / √d + bias) V, then a linear layer.

    Attributes:
        config: the encoder's.
        deterministic: whether dropout is off.
    """

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array | None) -> Array:
        """The attention output `[batch, length, dim]`.

        Args:
            x: `[batch, length, dim]`.
            mask: `[batch, 1, 1, length]`, bool, which keys may be attended to. A row
                without any attends to all keys, which keeps padding rows finite.
            bias: `[1, num_heads, length, length]`, or None for no bias.
        """
        config = self.config
        heads = (*x.shape[:2], config.num_heads, -1)
        query, key, value = (
            linear(config, config.hidden_size, name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        # `jax.nn.dot_product_attention` has no dropout.
        if self.deterministic or config.attention_dropout == 0:
            if config.attention == "cudnn":  # it accepts only masks of full size
                mask = jnp.broadcast_to(mask, (len(x), 1, x.shape[1], x.shape[1]))
            y = jax.nn.dot_product_attention(
                query,
                key,
                value,
                bias=bias,
                mask=mask,
                implementation=config.attention,
            )
        else:
            y = nn.dot_product_attention(
                query,
                key,
                value,
                bias=bias,
                mask=mask,
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=config.attention_dropout,
                # A mask for each head and row, as in PyTorch; Flax shares one.
                broadcast_dropout=False,
                # As the other branch does, so that the two differ by dropout alone.
                force_fp32_for_softmax=True,
            )
        return linear(config, config.hidden_size, "output")(y.reshape(x.shape))


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each added to its input and then normalised.

    Attributes:
        config: the encoder's.
        deterministic: whether dropout is off.
    """

    config: EncoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array | None) -> Array:
        """The layer's output `[batch, length, dim]`; arguments as in `Attention`."""
        config = self.config
        dropout = functools.partial(
            nn.Dropout(config.dropout), deterministic=self.deterministic
        )
        y = Attention(config, self.deterministic, name="attention")(x, mask, bias)
        x = layer_norm(config, "attention_norm")(x + dropout(y))
        y = linear(config, config.intermediate_size, "up")(x)
        y = ACTIVATIONS[config.activation](y)
        y = linear(config, config.hidden_size, "down")(y)
        return layer_norm(config, "output_norm")(x + dropout(y))


class Encoder(nn.Module):
    """Embeddings, layers and head.

    Attributes:
        config: the encoder's.
        embed: see `protojax.models.Family`.
        head: see `protojax.models.Family`.
        attention_bias: see `protojax.models.Family`.
    """

    config: EncoderConfig
    embed: Callable[[EncoderConfig, Batch, bool], Array]
    head: Callable[[EncoderConfig, Array, bool], Array]
    attention_bias: Callable[[EncoderConfig, int], Array] | None

    @nn.compact
    def __call__(
        self, batch: Batch, deterministic: bool = True, hidden_states: bool = False
    ) -> ModelOutput:
        """The logits and, if requested, the output of embeddings and every layer.

        Args:
            batch: its ids, mask and token types `[batch, length]` are read, and its
                perturbation.
            deterministic: whether dropout is off.
            hidden_states: whether to return the outputs of embeddings and layers.
        """
        x = self.embed(self.config, batch, deterministic)
        if batch.perturbation is not None:
            # After the layer norm, so that a radius means the same for every model.
            x += batch.perturbation.astype(x.dtype)
        # Over heads and queries: padding is no key, and its own output is unused.
        mask = batch.attention_mask.astype(bool)[:, None, None, :]
        bias = None
        if self.attention_bias is not None:
            bias = self.attention_bias(self.config, x.shape[1])
        states = [x]
        # By layer: memory holds the inputs of all, the activations of one.
        layer = nn.remat(EncoderLayer) if self.config.remat else EncoderLayer
        for i in range(self.config.num_layers):
            x = layer(self.config, deterministic, name=f"layers_{i}")(x, mask, bias)
            states.append(x)
        # The head computes in float32 whatever the body does.
        first = x[:, 0].astype(jnp.float32)
        logits = self.head(self.config, first, deterministic)
        return ModelOutput(logits, tuple(states) if hidden_states else ())


def check_batch(batch: Batch, max_length: int) -> None:
    """Raises where shapes disagree or rows are longer than the position embedding.

    Without this check a row that is too long would get NaN embeddings.

    Args:
        batch: `[batch, length]` ids, mask and token types.
        max_length: the most tokens that the position embedding allows.
    """
    shape = batch.input_ids.shape
    if len(shape) != 2:
        raise ValueError(f"Expected input_ids [batch, length], found shape {shape}.")
    for name in ("attention_mask", "token_type_ids"):
        found = getattr(batch, name).shape
        if found != shape:
            raise ValueError(
                f"Expected {name} of the shape of input_ids {shape}, found {found}."
            )
    validate.require(
        shape[1] <= max_length, "length", shape[1], f"<= {max_length}, as the model has"
    )
