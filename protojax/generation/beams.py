"""Beam search: the best of several texts that are written side by side."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, PyTree
from protojax.generation.sampling import (
    Generated,
    StartFn,
    StepFn,
    checked_stop_ids,
    is_in,
)
from protojax.models.language import take_rows as take_language_rows

# (cache, rows [taken], *, same_sources) -> the cache of these rows; same_sources says
# that each has the source of the row it replaces.
TakeRowsFn = Callable[..., PyTree]


class _Texts(NamedTuple):
    """Texts of each row, the best first.

    Attributes:
        ids: `[batch, texts, max_new]`, int32.
        log_probs: `[batch, texts, max_new]`, of each token.
        lengths: `[batch, texts]`, int32.
        scores: `[batch, texts]`, minus infinity where there is no text.
    """

    ids: Array
    log_probs: Array
    lengths: Array
    scores: Array

    def take(self, places: Array) -> "_Texts":
        """The texts at the given places, `[batch, taken]`."""
        return _Texts(*(_take(part, places) for part in self))

    def best(self, number: int) -> tuple["_Texts", Array]:
        """The texts of the highest scores, and their places."""
        places = jax.lax.top_k(self.scores, number)[1]
        return self.take(places), places


class _State(NamedTuple):
    """The state between two steps.

    Attributes:
        cache: of `batch * beams` rows, as the previous step left it.
        rows: `[batch * beams]`, the row of the cache that each open text continues.
        open: the texts being written; their scores are sums of log-probabilities.
        closed: the best complete texts; their scores are penalised by length.
        done: `[batch]`, bool.
    """

    count: Array
    cache: PyTree
    rows: Array
    open: _Texts
    closed: _Texts
    done: Array


def beam_search(
    start: StartFn,
    step: StepFn,
    params: PyTree,
    input_ids: Array,
    attention_mask: Array,
    *,
    beams: int,
    max_new: int,
    stop_ids: Iterable[int],
    pad_id: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    take_rows: TakeRowsFn = take_language_rows,
) -> Generated:
    """The text of the highest score that a beam search finds for each row.

        score = Σ_t log p(token_t | source, tokens before) / length ** length_penalty

    At each step the `beams` best open texts go on, and complete ones are kept if they
    are among the `beams` best candidates of their step. The rules are those of
    transformers 5, applied to each row by itself. A row is done

    - with `early_stopping=True`, when it has `beams` complete texts;
    - with False, when it has them and the best open text would not replace the worst of
      them if it ended now;
    - with "never", when it could not even at its best length: `max_new` for a positive
      penalty.

    A text that is cut at `max_new` counts as complete.

    >>> def start(params, input_ids, attention_mask, *, max_new):
    ...     return input_ids[:, -1], params[input_ids[:, -1]]
    >>> def step(params, cache, tokens):
    ...     return tokens, params[tokens]
    >>> def take_rows(cache, rows, *, same_sources=False):
    ...     return cache[rows]
    >>> chain = jnp.log(jnp.array([  # 0.6 * 0.4 < 0.4 * 0.9
    ...     [0.0, 0.6, 0.4, 0.0], [0.4, 0.3, 0.0, 0.3], [0.0, 0.0, 0.1, 0.9],
    ...     [1.0, 0.0, 0.0, 0.0]]))
    >>> ids = jnp.array([[0]])
    >>> found = beam_search(start, step, chain, ids, ids + 1, beams=2, max_new=2,
    ...     stop_ids=[3], pad_id=0, take_rows=take_rows)
    >>> found.ids[0].tolist(), f"{jnp.exp(found.log_probs[0].sum()):.2f}"
    ([2, 3], '0.36')

    Args:
        start: as for `generate`; it reads each row once, not once a beam.
        step: as for `generate`.
        params: the model's parameters.
        input_ids: `[batch, length]`.
        attention_mask: `[batch, length]`; a row of zeros only fills the batch.
        beams: how many texts of a row are written side by side.
        max_new: the most tokens of a text, the stop token included.
        stop_ids: the ids that complete a text.
        pad_id: what fills a row beyond its end.
        length_penalty: above 0 longer texts are preferred, below 0 shorter ones.
        early_stopping: True, False or "never".
        take_rows: `(cache, rows, *, same_sources) -> cache`, for a cache that is not
            `models.language.Cache`.

    Raises:
        ValueError: on a setting out of its range.
    """
    validate.positive(beams=beams, max_new=max_new)
    validate.non_negative(pad_id=pad_id)
    bound = 'True, False or "never"'
    known = any(early_stopping is value for value in (True, False))
    known |= early_stopping == "never"
    validate.require(known, "early_stopping", early_stopping, bound)
    return _beam_search(
        start,
        step,
        params,
        input_ids,
        attention_mask,
        take_rows=take_rows,
        beams=beams,
        max_new=max_new,
        stop_ids=checked_stop_ids(stop_ids),
        pad_id=pad_id,
        length_penalty=jnp.float32(length_penalty),
        early_stopping=early_stopping,
    )


# Traced, so that another penalty is not another program: `length_penalty`.
_STATIC = ("start", "step", "take_rows", "beams", "max_new", "stop_ids", "pad_id")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "early_stopping"))
def _beam_search(
    start: StartFn,
    step: StepFn,
    params: PyTree,
    input_ids: Array,
    attention_mask: Array,
    *,
    take_rows: TakeRowsFn,
    beams: int,
    max_new: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    length_penalty: Array,
    early_stopping: bool | str,
) -> Generated:
    """`beam_search` without checks."""
    batch = len(input_ids)
    extend = functools.partial(
        _extend,
        stop_ids=stop_ids,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )

    def unfinished(state: _State) -> Array:
        return (state.count < max_new) & ~state.done.all()

    def advance(state: _State) -> _State:
        cache = take_rows(state.cache, state.rows, same_sources=True)
        last = state.open.ids[:, :, state.count - 1].reshape(-1)
        cache, logits = step(params, cache, last)
        return extend(state._replace(cache=cache), logits)

    cache, logits = start(params, input_ids, attention_mask, max_new=max_new)
    rows = jnp.repeat(jnp.arange(batch), beams)
    nothing = _Texts(
        ids=jnp.full((batch, beams, max_new), pad_id, jnp.int32),
        log_probs=jnp.zeros((batch, beams, max_new), jnp.float32),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        scores=jnp.full((batch, beams), -jnp.inf),
    )
    begun = _State(
        count=jnp.int32(0),
        cache=take_rows(cache, rows, same_sources=False),
        rows=rows,
        # The open texts are equal at first, so only one of them counts.
        open=nothing._replace(scores=nothing.scores.at[:, 0].set(0)),
        closed=nothing,
        done=~attention_mask.astype(bool).any(-1),
    )
    state = jax.lax.while_loop(unfinished, advance, extend(begun, logits[rows]))

    ids, log_probs, lengths, _ = (part[:, 0] for part in state.closed)
    where = jnp.arange(max_new) < lengths[:, None]
    final = jnp.take_along_axis(ids, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    return Generated(
        ids=jnp.where(where, ids, pad_id),
        log_probs=jnp.where(where, log_probs, 0),
        where=where,
        ended=is_in(final, stop_ids) | (lengths == 0),
    )


def _extend(
    state: _State,
    logits: Array,
    *,
    stop_ids: tuple[int, ...],
    length_penalty: Array,
    early_stopping: bool | str,
) -> _State:
    """The state with one more token of each open text, some of which it completes.

    Args:
        state: whose cache has given the logits.
        logits: `[batch * beams, vocab]`, of the next token.
        stop_ids: see `beam_search`, as the others.
        length_penalty: see `beam_search`.
        early_stopping: see `beam_search`.
    """
    batch, beams, max_new = state.open.ids.shape
    length = state.count + 1.0
    candidates, origins = _candidates(state.open, logits, state.count, len(stop_ids))
    last = candidates.ids[:, :, state.count]
    complete = is_in(last, stop_ids) | (length == max_new)

    scores = jnp.where(complete, -jnp.inf, candidates.scores)
    open_texts, places = candidates._replace(scores=scores).best(beams)
    rows = jnp.arange(batch)[:, None] * beams + _take(origins, places)

    # Candidates beyond the best `beams` are only there in place of complete ones.
    counted = complete & (jnp.arange(complete.shape[1]) < beams)
    counted &= ~state.done[:, None]
    scores = jnp.where(counted, candidates.scores / length**length_penalty, -jnp.inf)
    pool = zip(state.closed, candidates._replace(scores=scores), strict=True)
    closed, _ = _Texts(*(jnp.concatenate(pair, axis=1) for pair in pool)).best(beams)

    worst, best = closed.scores[:, -1], open_texts.scores[:, 0]
    if early_stopping == "never":
        length = jnp.where(length_penalty > 0, max_new, length)
    hopeless = best / length**length_penalty <= worst
    done = jnp.isfinite(worst) & ((early_stopping is True) | hopeless)
    done |= state.done | (best == -jnp.inf)
    return _State(
        state.count + 1, state.cache, rows.reshape(-1), open_texts, closed, done
    )


def _candidates(
    texts: _Texts, logits: Array, count: Array, num_stop: int
) -> tuple[_Texts, Array]:
    """The best continuations by one token, and the text that each continues.

    Enough of them that `beams` are left if each text's stop tokens are all among them.
    """
    batch, beams = texts.scores.shape
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_probs = log_probs.reshape(batch, beams, -1)
    vocab = log_probs.shape[-1]
    scores = (texts.scores[..., None] + log_probs).reshape(batch, -1)
    number = min(max(2, 1 + num_stop) * beams, beams * vocab)
    scores, places = jax.lax.top_k(scores, number)
    origins, tokens = places // vocab, places % vocab
    added = _take(log_probs.reshape(batch, -1), places)
    texts = texts.take(origins)
    found = _Texts(
        ids=texts.ids.at[:, :, count].set(tokens),
        log_probs=texts.log_probs.at[:, :, count].set(added),
        lengths=texts.lengths + 1,
        scores=scores,
    )
    return found, origins


def _take(values: Array, places: Array) -> Array:
    """`values[row, places[row, i]]` for `[batch, texts, ...]` and `[batch, taken]`."""
    return jax.vmap(lambda part, where: part[where])(values, places)
