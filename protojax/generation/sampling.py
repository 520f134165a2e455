"""Texts written token by token: greedy, or sampled."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.generation.filters import keep_top_k, keep_top_p

# (params, input_ids, attention_mask, *, max_new) -> (cache, logits [batch, vocab]).
StartFn = Callable[..., tuple[PyTree, Array]]
# (params, cache, tokens [batch]) -> (cache, logits [batch, vocab]).
StepFn = Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


class Generated(NamedTuple):
    """Tokens that a model wrote.

    Attributes:
        ids: `[batch, max_new]`, int32, the padding id beyond a row's end.
        log_probs: `[batch, max_new]`, float32, of each token given those before it,
            under the model's own distribution: that of the sampling only where the
            temperature is 1 and nothing is filtered. 0 beyond a row's end.
        where: `[batch, max_new]`, bool, True up to and including the stop token.
        ended: `[batch]`, bool, whether a stop token ended the row; False where it was
            cut at `max_new`. True for a row without a source, which has no tokens.
    """

    ids: Array
    log_probs: Array
    where: Array
    ended: Array


def generate(
    start: StartFn,
    step: StepFn,
    params: PyTree,
    input_ids: Array,
    attention_mask: Array,
    *,
    max_new: int,
    stop_ids: Iterable[int],
    pad_id: int,
    key: Array | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Generated:
    """A text for each row: the most probable token at each step, or a sampled one.

    Sampling draws from `softmax(logits / temperature)`, filtered by `top_k` and then by
    `top_p`, in float32. It ends when every row has ended, so a batch takes as many
    steps as its longest text. One program is compiled for each shape and setting, and
    the cache is updated in place in it.

    >>> def start(params, input_ids, attention_mask, *, max_new):
    ...     return input_ids[:, -1], params[input_ids[:, -1]]
    >>> def step(params, cache, tokens):
    ...     return tokens, params[tokens]
    >>> chain = jnp.log(jnp.array([[0.1, 0.9, 0.0], [0.2, 0.0, 0.8], [1.0, 0.0, 0.0]]))
    >>> ids = jnp.array([[0], [1]])
    >>> found = generate(start, step, chain, ids, ids * 0 + 1,
    ...     max_new=3, stop_ids=[2], pad_id=0)
    >>> found.ids.tolist(), found.where.sum(1).tolist(), found.ended.tolist()
    ([[1, 2, 0], [2, 0, 0]], [2, 1], [True, True])

    Args:
        start: reads the prompts or sources; gives a cache and the logits of the first
            token. Compiled for each function object, as is `step`.
        step: appends a token to each row of the cache; gives the next one's logits.
        params: the model's parameters.
        input_ids: `[batch, length]`.
        attention_mask: `[batch, length]`; a row of zeros only fills the batch.
        max_new: the most tokens of a text, the stop token included.
        stop_ids: the ids that end a text; none lets every row run to `max_new`.
        pad_id: what fills a row beyond its end; it may be a stop id.
        key: a PRNG key, or one for each row, `[batch]`, so that a row's text does not
            depend on its place. Needed where the temperature is above 0.
        temperature: 0 takes the most probable token.
        top_k: sample from the k most probable tokens; 0 for all.
        top_p: sample from the fewest tokens with this total probability; 1 for all.

    Raises:
        ValueError: on a setting out of its range, or a temperature without a key.
    """
    validate.positive(max_new=max_new, top_p=top_p)
    validate.non_negative(temperature=temperature, top_k=top_k, pad_id=pad_id)
    validate.fraction(top_p=top_p)
    sampled = temperature > 0
    bound = "a PRNG key where temperature > 0"
    validate.require(key is not None or not sampled, "key", key, bound)
    idle = sampled or (top_k == 0 and top_p == 1)
    validate.require(idle, "temperature", temperature, "> 0 with top_k or top_p")
    return _generate(
        start,
        step,
        params,
        input_ids,
        attention_mask,
        key if sampled else None,
        temperature,
        max_new=max_new,
        stop_ids=checked_stop_ids(stop_ids),
        pad_id=pad_id,
        top_k=top_k,
        top_p=top_p,
    )


def checked_stop_ids(stop_ids: Iterable[int]) -> tuple[int, ...]:
    """The stop ids, ascending and each once; negative ones are refused."""
    found = tuple(sorted({int(number) for number in stop_ids}))
    validate.require(not found or found[0] >= 0, "stop_ids", found, ">= 0")
    return found


def is_in(tokens: Array, ids: tuple[int, ...]) -> Array:
    """Whether each token is one of a few ids."""
    return (tokens[..., None] == jnp.array(ids, tokens.dtype)).any(-1)


class _State(NamedTuple):
    """The state between two steps; `tokens` are those not yet in the cache."""

    count: Array
    cache: PyTree
    tokens: Array
    found: Generated


# Traced, so that another temperature is not another program: `temperature`.
_STATIC = ("start", "step", "max_new", "stop_ids", "pad_id", "top_k", "top_p")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _generate(
    start: StartFn,
    step: StepFn,
    params: PyTree,
    input_ids: Array,
    attention_mask: Array,
    key: Array | None,
    temperature: Array,
    *,
    max_new: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    top_k: int,
    top_p: float,
) -> Generated:
    """`generate` without checks; greedy where there is no key."""
    batch = len(input_ids)
    if key is not None and key.ndim == 0:
        key = jax.random.split(key, batch)

    def choose(logits: Array, count: Array) -> Array:
        if key is None:
            return logits.argmax(-1)
        logits = logits / temperature
        if top_k:
            logits = keep_top_k(logits, top_k)
        if top_p < 1:
            logits = keep_top_p(logits, top_p)
        keys = jax.vmap(jax.random.fold_in, (0, None))(key, count)
        return jax.vmap(jax.random.categorical)(keys, logits)

    def append(count: Array, cache: PyTree, logits: Array, found: Generated) -> _State:
        logits = logits.astype(jnp.float32)
        tokens = choose(logits, count).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
        open_rows = ~found.ended
        tokens = jnp.where(open_rows, tokens, pad_id)
        found = Generated(
            found.ids.at[:, count].set(tokens),
            found.log_probs.at[:, count].set(jnp.where(open_rows, log_probs, 0)),
            found.where.at[:, count].set(open_rows),
            found.ended | is_in(tokens, stop_ids),
        )
        return _State(count + 1, cache, tokens, found)

    def unfinished(state: _State) -> Array:
        return (state.count < max_new) & ~state.found.ended.all()

    def advance(state: _State) -> _State:
        cache, logits = step(params, state.cache, state.tokens)
        return append(state.count, cache, logits, state.found)

    cache, logits = start(params, input_ids, attention_mask, max_new=max_new)
    empty = Generated(
        ids=jnp.full((batch, max_new), pad_id, jnp.int32),
        log_probs=jnp.zeros((batch, max_new), jnp.float32),
        where=jnp.zeros((batch, max_new), bool),
        ended=~attention_mask.astype(bool).any(-1),
    )
    first = append(jnp.int32(0), cache, logits, empty)
    return jax.lax.while_loop(unfinished, advance, first).found
