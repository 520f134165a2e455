"""The body that all families of language models share, and functions around it.

A decoder, or an encoder and a decoder that reads its states by cross-attention
(Vaswani et al., 2017, arXiv:1706.03762). Layers are stacked on the first axis of their
parameters and scanned, so that compilation takes the same time for any depth.
Parameters are float32; the body computes in `LanguageConfig.dtype`, softmax and norms
in float32.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree, SequenceApplyFn, SequenceBatch, SequenceOutput
from protojax.models._distances import distance_buckets
from protojax.models.language._linear import Head
from protojax.models.language.config import LanguageConfig
from protojax.models.language.layers import Context, Layer, normalisation, rotation


class Stack(nn.Module):
    """The layers of an encoder or a decoder, with their positions.

    Attributes:
        config: the model's.
        is_encoder: whether tokens attend to those after them.
        deterministic: whether dropout is off.
    """

    config: LanguageConfig
    is_encoder: bool
    deterministic: bool

    def setup(self):
        """Names the parts."""
        config = self.config
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.positions = nn.Embed(rows, config.hidden_size)
        if config.positions == "relative":
            self.relative = nn.Embed(config.relative_buckets, config.num_heads)
        if config.embedding_norm:
            self.embedding_norm = normalisation(config)
        has_cross = config.encoder_layers > 0 and not self.is_encoder
        self.layers = Layer(config, self.deterministic, has_cross)
        if config.pre_norm:
            self.norm = normalisation(config)
        self.dropout = nn.Dropout(config.dropout)

    def embed(
        self, words: Array, positions: Array, perturbation: Array | None = None
    ) -> Array:
        """The input of the first layer, `[batch, length, dim]`.

        Args:
            words: `[batch, length, dim]`, word embeddings.
            positions: `[batch, length]`, int32.
            perturbation: `[batch, length, dim]`, added last, or None.
        """
        config = self.config
        x = words * config.embedding_scale
        if config.positions == "learned":
            x += self.positions(positions + config.position_offset)
        if config.embedding_norm:
            x = self.embedding_norm(x)
        if perturbation is not None:
            x += perturbation.astype(x.dtype)
        x = self.dropout(x, self.deterministic)
        return x.astype("float32" if config.float32_down else config.dtype)

    def context(
        self, mask: Array, positions: Array, first: Array | int = 0
    ) -> tuple[Array | None, tuple[Array, Array] | None]:
        """The bias and the rotation of `Context`, None where the model has none.

        Args:
            mask: `[batch or 1, queries or 1, keys]`, see `Context`.
            positions: `[batch, queries]`, int32.
            first: place of the first query among the keys.
        """
        config = self.config
        if config.positions == "rotary":
            return None, rotation(config, positions)
        if config.positions == "learned":
            return None, None
        queries, keys = positions.shape[1], mask.shape[-1]
        # One row for each distance, then for each query and key the row of theirs.
        buckets = distance_buckets(
            np.arange(1 - keys, keys),
            bidirectional=self.is_encoder,
            buckets=config.relative_buckets,
            max_distance=config.relative_distance,
        )
        of_distance = self.relative(buckets).T
        forward = jnp.arange(keys) - (jnp.arange(queries)[:, None] + first)
        return of_distance[:, forward + keys - 1], None

    def finish(self, x: Array) -> Array:
        """The states that the head or cross-attention reads, from the last layer's."""
        return self.norm(x) if self.config.pre_norm else x

    def __call__(
        self,
        x: Array,
        context: Context,
        memory: Array | None = None,
        hidden_states: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]:
        """The states `[batch, length, dim]`, and those of all layers if requested.

        Args:
            x: `[batch, length, dim]`, see `embed`.
            context: masks and positions.
            memory: `[batch, source, dim]`, the encoder's states, or None.
            hidden_states: whether to return the embeddings and each layer's output; the
                last is normalised where the stack has a final norm.
        """

        def layer(layer: Layer, x: Array, _) -> tuple[Array, Array | None]:
            read = None if memory is None else layer.memory_keys_values(memory)
            y = layer(x, context, read)
            return y, x if hidden_states else None

        if self.config.remat:
            # By layer: memory holds the inputs of all, the activations of one.
            layer = nn.remat(layer, prevent_cse=False)
        depth = (
            self.config.encoder_layers if self.is_encoder else self.config.num_layers
        )
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=depth,
        )
        x, inputs = scanned(self.layers, x, None)
        x = self.finish(x)
        return x, (*inputs, x) if hidden_states else ()


class Body(nn.Module):
    """Word embedding, encoder if any, decoder and head.

    Attributes:
        config: the model's.
        deterministic: whether dropout is off.
        few_rows: see `Head`.
    """

    config: LanguageConfig
    deterministic: bool = True
    few_rows: bool = False

    def setup(self):
        """Names the parts."""
        config = self.config
        self.embedding = nn.Embed(config.vocab_size, config.hidden_size)
        if config.encoder_layers > 0:
            self.encoder = Stack(config, True, self.deterministic)
        self.decoder = Stack(config, False, self.deterministic)
        self.head = Head(config, self.few_rows)

    def logits(self, states: Array) -> Array:
        """The logits `[..., vocab]`, float32.

        Args:
            states: `[..., dim]`.
        """
        return self.head(states, self.embedding.embedding)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        perturbation: Array | None = None,
        hidden_states: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]:
        """The encoder's states, and those of all layers if requested.

        Args:
            input_ids: `[batch, length]`, int32.
            attention_mask: `[batch, length]`, int32.
            perturbation: `[batch, length, dim]`, or None.
            hidden_states: see `Stack`.
        """
        positions = places(attention_mask)
        mask = attention_mask.astype(bool)[:, None]
        x = self.encoder.embed(self.embedding(input_ids), positions, perturbation)
        context = Context(mask, *self.encoder.context(mask, positions))
        return self.encoder(x, context, hidden_states=hidden_states)

    def translate(self, batch: SequenceBatch, hidden_states: bool) -> SequenceOutput:
        """The output of an encoder-decoder; arguments as in `__call__`."""
        memory, hidden = self.encode(
            batch.input_ids, batch.attention_mask, batch.perturbation, hidden_states
        )
        start = jnp.full_like(batch.output_ids[:, :1], self.config.start_id)
        ids = jnp.concatenate([start, batch.output_ids[:, :-1]], axis=1)
        positions = jnp.arange(ids.shape[1])[None]
        mask = jnp.tri(ids.shape[1], dtype=bool)[None]
        x = self.decoder.embed(self.embedding(ids), positions)
        context = Context(
            mask,
            *self.decoder.context(mask, positions),
            memory_mask=batch.attention_mask.astype(bool)[:, None],
        )
        return SequenceOutput(self.decoder(x, context, memory)[0], hidden)

    def prolong(self, batch: SequenceBatch, hidden_states: bool) -> SequenceOutput:
        """The output of a decoder-only model; arguments as in `__call__`."""
        length, written = batch.input_ids.shape[1], batch.output_ids[:, :-1]
        ids = jnp.concatenate([batch.input_ids, written], axis=1)
        tokens = jnp.concatenate(
            [batch.attention_mask.astype(bool), jnp.ones_like(written, bool)], axis=1
        )
        positions = places(tokens)
        # Padding sees itself, so that nothing sees a later token.
        itself = jnp.eye(ids.shape[1], dtype=bool)
        mask = jnp.tri(ids.shape[1], dtype=bool) & tokens[:, None] | itself
        perturbation = batch.perturbation
        if perturbation is not None:
            perturbation = jnp.pad(
                perturbation, ((0, 0), (0, written.shape[1]), (0, 0))
            )
        x = self.decoder.embed(self.embedding(ids), positions, perturbation)
        context = Context(mask, *self.decoder.context(mask, positions))
        x, hidden = self.decoder(x, context, hidden_states=hidden_states)
        # The first token is written by the prompt's last, which padding may follow.
        last = length - 1 - jnp.argmax(tokens[:, :length][:, ::-1], axis=1)
        first = jnp.take_along_axis(x, last[:, None, None], axis=1)
        states = jnp.concatenate([first, x[:, length:]], axis=1)
        return SequenceOutput(states, tuple(h[:, :length] for h in hidden))

    def __call__(
        self, batch: SequenceBatch, hidden_states: bool = False
    ) -> SequenceOutput:
        """The states of the output's tokens.

        Args:
            batch: ids and mask of the source, ids of the output, perturbation.
            hidden_states: whether to return the source's states of all layers.
        """
        if self.config.encoder_layers > 0:
            return self.translate(batch, hidden_states)
        return self.prolong(batch, hidden_states)

    def everything(self, batch: SequenceBatch) -> Array:
        """The logits; reads all parameters."""
        return self.logits(self(batch).states)


def places(mask: Array) -> Array:
    """The position of each token among those of its row, padding left out.

    >>> places(jnp.array([[0, 1, 1], [1, 1, 0]])).tolist()
    [[0, 0, 1], [0, 1, 1]]

    Args:
        mask: `[batch, length]`, 1 or True on tokens.
    """
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def check_length(config: LanguageConfig, name: str, length: int) -> None:
    """Raises where a row is longer than the model reads.

    Args:
        config: the model.
        name: what is long.
        length: its tokens.
    """
    most = config.max_positions
    validate.require(most == 0 or length <= most, name, length, f"<= {most} tokens")


def _check(config: LanguageConfig, batch: SequenceBatch) -> None:
    rows, length = batch.input_ids.shape
    written = batch.output_ids.shape[1]
    validate.shape((rows, length), attention_mask=batch.attention_mask)
    validate.shape((rows, written), output_ids=batch.output_ids)
    if config.encoder_layers > 0:
        check_length(config, "input_ids", length)
        check_length(config, "output_ids", written)
    else:
        check_length(config, "input_ids and output_ids", length + written - 1)


@functools.cache
def apply_fn(config: LanguageConfig) -> SequenceApplyFn:
    """The function `(params, batch, *, key, hidden_states) -> SequenceOutput`.

    Equal configs give the same function object, so functions jitted around it are
    compiled once. Dropout acts only where a key is given. Padding changes no state of a
    token; a decoder-only model's prompts may be padded on either side.

    Args:
        config: the model.

    Raises:
        ValueError: when the function is called, on shapes that disagree or rows longer
            than the model reads.
    """

    def apply(
        params: PyTree,
        batch: SequenceBatch,
        *,
        key: Array | None = None,
        hidden_states: bool = False,
    ) -> SequenceOutput:
        _check(config, batch)
        return Body(config, deterministic=key is None).apply(
            {"params": params},
            batch,
            hidden_states=hidden_states,
            rngs=None if key is None else {"dropout": key},
        )

    return apply


@functools.cache
def head_fn(
    config: LanguageConfig, *, few_rows: bool = False
) -> Callable[[PyTree, Array], Array]:
    """The function `(params, states [..., dim]) -> logits [..., vocab]`, float32.

    Args:
        config: the model.
        few_rows: whether to compute a tied head as suits a step of generation, see
            `few_rows_product`.
    """
    body = Body(config, few_rows=few_rows)

    def head(params: PyTree, states: Array) -> Array:
        read = {name: params[name] for name in ("embedding", "head") if name in params}
        return body.apply({"params": read}, states, method="logits")

    return head


@functools.cache
def param_shapes(config: LanguageConfig) -> PyTree:
    """The tree of parameters as `jax.ShapeDtypeStruct`s.

    Args:
        config: the model.
    """
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = SequenceBatch(ids, ids, ids, output_weights=None, where=None)
    init = functools.partial(Body(config).init, method="everything")
    # Shapes alone: nothing is compiled and nothing allocated.
    return jax.eval_shape(init, jax.random.key(0), batch)["params"]
