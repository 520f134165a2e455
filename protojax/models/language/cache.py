"""Writing token by token: keys and values of all tokens so far, kept.

A step computes one token of each row. Its layers are not scanned: what a scan reads is
copied out of the stack first, which takes as long as reading it, and a step does little
else than read parameters and cache.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.models.language.body import Body, Stack, check_length, head_fn
from protojax.models.language.config import LanguageConfig
from protojax.models.language.layers import Context, Layer


class Cache(NamedTuple):
    """The keys and values of the tokens that a decoder has read.

    A step writes one slot of each array in place where the caller donates the cache.

    Attributes:
        keys: an array `[batch, kv_heads, slots, head_dim]` a layer.
        values: an array `[batch, kv_heads, slots, head_dim]` a layer.
        mask: `[batch, slots]`, bool, which slots hold tokens.
        positions: `[batch]`, int32, the position of each row's next token.
        length: scalar int32, the next slot.
        cross_keys: an array `[batch, kv_heads, source, head_dim]` a layer of an
            encoder-decoder, else None.
        cross_values: likewise.
        cross_mask: `[batch, source]`, bool, or None.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    mask: Array
    positions: Array
    length: Array
    cross_keys: tuple[Array, ...] | None = None
    cross_values: tuple[Array, ...] | None = None
    cross_mask: Array | None = None


_Held = tuple[Array, Array]  # keys and values of a layer
StartFn = Callable[..., tuple[Cache, Array]]
StepFn = Callable[[PyTree, Cache, Array], tuple[Cache, Array]]


def take_rows(cache: Cache, rows: Array, *, same_sources: bool = False) -> Cache:
    """The cache of the given rows, which may repeat, as beams do.

    Args:
        cache: of any rows.
        rows: `[taken]`, int32.
        same_sources: whether each row taken has the source of the row it replaces, so
            that what was computed from sources stays as it is.
    """
    taken = jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim > 0 else leaf, cache)
    if not same_sources:
        return taken
    return taken._replace(
        cross_keys=cache.cross_keys,
        cross_values=cache.cross_values,
        cross_mask=cache.cross_mask,
    )


@jax.jit
def split_layers(params: PyTree) -> PyTree:
    """The parameters with those of the decoder's layers apart, kernels transposed.

    `start_fn` and `step_fn` take either form; a loop of steps is faster with this one,
    see `few_rows_product`. It is a copy.

    Args:
        params: as `LanguageModel.params`.
    """

    def transposed(tree: PyTree) -> PyTree:
        if not isinstance(tree, dict):
            return tree
        tree = {name: transposed(part) for name, part in tree.items()}
        if "kernel" in tree:
            tree["transposed"] = tree.pop("kernel").T
        return tree

    layers = tuple(map(transposed, _layers(params)))
    return {**params, "decoder": {**params["decoder"], "layers": layers}}


def _layers(params: PyTree) -> tuple[PyTree, ...]:
    """The parameters of each layer of the decoder."""
    layers = params["decoder"]["layers"]
    if isinstance(layers, tuple):
        return layers
    depth = len(jax.tree.leaves(layers)[0])
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(depth))


def _empty(config: LanguageConfig, rows: int, slots: int) -> Cache:
    """A cache without tokens."""
    shape = (rows, config.num_kv_heads, slots, config.head_dim)
    zeros = tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
    return Cache(
        keys=zeros,
        values=zeros,
        mask=jnp.zeros((rows, slots), bool),
        positions=jnp.zeros(rows, jnp.int32),
        length=jnp.int32(0),
    )


def _read(
    config: LanguageConfig, params: PyTree, cache: Cache, ids: Array, tokens: Array
) -> tuple[Cache, Array]:
    """The cache with more tokens, and their states.

    Args:
        config: the model.
        params: in either form.
        cache: of the tokens before.
        ids: `[batch, length]`, int32.
        tokens: `[batch, length]`, bool, False on padding.
    """
    parts = {k: v for k, v in params["decoder"].items() if k != "layers"}
    stack = functools.partial(Stack(config, False, True).apply, {"params": parts})
    counts = jnp.cumsum(tokens, axis=1, dtype=jnp.int32)
    positions = jnp.maximum(cache.positions[:, None] + counts - 1, 0)
    tokens_held = jax.lax.dynamic_update_slice(cache.mask, tokens, (0, cache.length))
    places = (jnp.arange(ids.shape[1]) + cache.length)[:, None]
    slots = jnp.arange(tokens_held.shape[1])
    mask = tokens_held[:, None] & (slots <= places) | (slots == places)
    bias, turn = stack(mask, positions, cache.length, method="context")
    memory_mask = None if cache.cross_mask is None else cache.cross_mask[:, None]
    context = Context(mask, bias, turn, memory_mask)

    layer = Layer(config, True, config.encoder_layers > 0)

    @jax.jit  # traced once for all layers
    def read(own: PyTree, x: Array, held: _Held, memory: _Held | None):
        after = held

        def store(*parts: Array) -> _Held:
            nonlocal after
            place = (0, 0, cache.length, 0)
            after = tuple(
                jax.lax.dynamic_update_slice(old, new, place)
                for old, new in zip(held, parts, strict=True)
            )
            return after

        return layer.apply({"params": own}, x, context, memory, store), after

    words = params["embedding"]["embedding"][ids]
    x = stack(words, positions, method="embed")
    held = list(zip(cache.keys, cache.values, strict=True))
    memories = [None] * len(held)
    if cache.cross_keys is not None:
        memories = list(zip(cache.cross_keys, cache.cross_values, strict=True))
    for i, own in enumerate(_layers(params)):
        x, held[i] = read(own, x, held[i], memories[i])
    keys, values = zip(*held, strict=True)
    cache = cache._replace(
        keys=keys,
        values=values,
        mask=tokens_held,
        positions=cache.positions + counts[:, -1],
        length=cache.length + ids.shape[1],
    )
    return cache, stack(x, method="finish")


def _start_prompt(
    config: LanguageConfig, params: PyTree, ids: Array, mask: Array, max_new: int
) -> tuple[Cache, Array]:
    """The cache and the last state of a decoder-only model's prompts."""
    rows, length = ids.shape
    check_length(config, "input_ids and max_new", length + max_new - 1)
    cache = _empty(config, rows, length)
    cache, states = _read(config, params, cache, ids, mask.astype(bool))
    more = max_new - 1  # the last token is not read
    longer = functools.partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, more), (0, 0)))
    cache = cache._replace(
        keys=tuple(map(longer, cache.keys)),
        values=tuple(map(longer, cache.values)),
        mask=jnp.pad(cache.mask, ((0, 0), (0, more))),
    )
    return cache, states[:, -1]


def _start_source(
    config: LanguageConfig, params: PyTree, ids: Array, mask: Array, max_new: int
) -> tuple[Cache, Array]:
    """The cache and the first state of an encoder-decoder's outputs."""
    check_length(config, "input_ids", ids.shape[1])
    check_length(config, "max_new", max_new)
    parts = {name: params[name] for name in ("embedding", "encoder")}
    memory, _ = Body(config).apply({"params": parts}, ids, mask, method="encode")
    layer = functools.partial(
        Layer(config, True, True).apply, method="memory_keys_values"
    )
    cross = [layer({"params": own}, memory) for own in _layers(params)]
    keys, values = zip(*cross, strict=True)
    cache = _empty(config, len(ids), max_new)._replace(
        cross_keys=keys, cross_values=values, cross_mask=mask.astype(bool)
    )
    first = jnp.full((len(ids), 1), config.start_id, jnp.int32)
    cache, states = _read(config, params, cache, first, jnp.ones_like(first, bool))
    return cache, states[:, 0]


@functools.cache
def start_fn(config: LanguageConfig) -> StartFn:
    """The function `(params, input_ids, attention_mask, *, max_new)` that begins.

    It returns a `Cache` with room for `max_new` tokens and the logits `[batch, vocab]`
    of the first. Prompts of a decoder-only model are padded on the left: all rows write
    to the same slot.

    Args:
        config: the model.

    Raises:
        ValueError: when the function is called, on shapes that disagree or rows longer
            than the model reads.
    """
    begin = _start_source if config.encoder_layers > 0 else _start_prompt

    def start(
        params: PyTree, input_ids: Array, attention_mask: Array, *, max_new: int
    ) -> tuple[Cache, Array]:
        validate.positive(max_new=max_new)
        validate.shape(input_ids.shape, attention_mask=attention_mask)
        cache, states = begin(config, params, input_ids, attention_mask, max_new)
        return cache, head_fn(config, few_rows=True)(params, states)

    return start


@functools.cache
def step_fn(config: LanguageConfig) -> StepFn:
    """The function `(params, cache, tokens [batch]) -> (cache, logits [batch, vocab])`.

    The logits are those of the token after the given ones.

    Args:
        config: the model.
    """

    def step(params: PyTree, cache: Cache, tokens: Array) -> tuple[Cache, Array]:
        ids = tokens[:, None]
        cache, states = _read(config, params, cache, ids, jnp.ones_like(ids, bool))
        return cache, head_fn(config, few_rows=True)(params, states[:, 0])

    return step
