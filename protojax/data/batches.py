"""Rows of tokens on their way to the device, all of it host-side NumPy.

`plan_epoch` decides which rows meet in which batch, and `make_batch` gathers one
dispatch. A plan is a pure function of its seed and epoch, so a run resumes at any
dispatch, and every dispatch has one of a handful of shapes, so little is compiled.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Batch
from protojax.data.tokens import Tokens


class Dispatch(NamedTuple):
    """The rows of one call to a compiled loop over batches.

    Attributes:
        length: the sequence length that the batches are padded to.
        rows: `[steps, batch]`, int64, -1 where nothing.
    """

    length: int
    rows: np.ndarray


def plan_epoch(
    lengths: np.ndarray,
    *,
    batch_size: int,
    buckets: Sequence[int],
    steps_per_dispatch: int,
    seed: int,
    epoch: int,
) -> list[Dispatch]:
    """Decides which rows meet in which batch of one epoch.

    Rows are shuffled and each goes to its shortest bucket; what does not fill a batch
    there moves up to the next, so only the longest bucket in use may end in a partial
    batch. Batches of one bucket are grouped into dispatches, the last of them filled
    with empty batches at its end, and the dispatches are shuffled.

    Args:
        lengths: `[rows]`, tokens of each row.
        batch_size: rows of a batch.
        buckets: the lengths that batches may have, ascending.
        steps_per_dispatch: batches of a dispatch.
        seed: decides the order, together with the epoch.
        epoch: which pass over the rows.

    Returns:
        The dispatches; every row is in exactly one batch.

    Raises:
        ValueError: if the buckets do not ascend or do not hold the longest row.

    >>> lengths = np.array([3, 9, 4, 12, 2])
    >>> settings = dict(batch_size=2, buckets=(4, 16), steps_per_dispatch=2)
    >>> plan = plan_epoch(lengths, **settings, seed=0, epoch=0)
    >>> sorted((length, rows.shape) for length, rows in plan)
    [(4, (2, 2)), (16, (2, 2))]
    """
    validate.positive(steps_per_dispatch=steps_per_dispatch)
    validate.non_negative(seed=seed, epoch=epoch)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    plan = _plan(order, lengths, batch_size, buckets, steps_per_dispatch)
    return [plan[position] for position in rng.permutation(len(plan))]


def plan_poisson(
    lengths: np.ndarray,
    *,
    expected_rows: int,
    num_steps: int,
    buckets: Sequence[int],
    steps_per_dispatch: int,
    seed: int,
) -> list[Dispatch]:
    """Decides which rows meet in which batch, each row by a coin of its own a step.

    What the accounting of DP-SGD assumes: batches differ in size, and a row may be in
    none or in several. Batches are filled up to the largest of the run; those of a
    dispatch are padded to the longest row among them.

    Args:
        lengths: `[rows]`, tokens of each row.
        expected_rows: expected rows of a batch, at most all.
        num_steps: batches of the whole run.
        buckets: the lengths that batches may have, ascending.
        steps_per_dispatch: batches of a dispatch.
        seed: decides all coins; that of a private run is to be secret, as
            `secrets.randbits(128)` is.

    Returns:
        The dispatches, in their order.

    Raises:
        ValueError: if the buckets do not hold the longest row, or more rows are
            expected than there are.

    >>> plan = plan_poisson(
    ...     np.array([3, 9, 4, 12]), expected_rows=2, num_steps=3, buckets=(4, 16),
    ...     steps_per_dispatch=2, seed=0,
    ... )
    >>> [(length, rows.shape[0]) for length, rows in plan]
    [(16, 2), (16, 2)]
    """
    validate.positive(num_steps=num_steps, steps_per_dispatch=steps_per_dispatch)
    count, longest = len(lengths), int(max(lengths, default=0))
    bound = f"in 1..{count}, the rows there are"
    validate.require(1 <= expected_rows <= count, "expected_rows", expected_rows, bound)
    bound = f"the last >= {longest}, the longest row"
    validate.require(buckets[-1] >= longest, "buckets", tuple(buckets), bound)
    rng, rate = np.random.default_rng(seed), expected_rows / count
    chosen = [np.flatnonzero(rng.random(count) < rate) for _ in range(num_steps)]
    # A multiple of 8, for microbatches.
    most = max(map(len, chosen))
    most += -most % 8
    rows = np.full((num_steps + -num_steps % steps_per_dispatch, most), -1, np.int64)
    for step, members in enumerate(chosen):
        rows[step, : len(members)] = members
    plan = []
    for group in rows.reshape(-1, steps_per_dispatch, most):
        tokens = max(np.asarray(lengths)[group[group >= 0]], default=0)
        length = buckets[np.searchsorted(buckets, tokens)]
        plan.append(Dispatch(int(length), group))
    return plan


def plan_evaluation(
    lengths: np.ndarray, *, batch_size: int, buckets: Sequence[int]
) -> list[Dispatch]:
    """Returns what `plan_epoch` does without its shuffling, one batch a dispatch.

    >>> plan_evaluation(np.array([3, 9, 4]), batch_size=2, buckets=(4, 16))
    [Dispatch(length=4, rows=array([[0, 2]])),
     Dispatch(length=16, rows=array([[ 1, -1]]))]
    """
    return _plan(np.arange(len(lengths)), lengths, batch_size, buckets, 1)


def _plan(
    order: np.ndarray,
    lengths: np.ndarray,
    batch_size: int,
    buckets: Sequence[int],
    steps: int,
) -> list[Dispatch]:
    """Rows in the given order -> dispatches, bucket after bucket."""
    lengths = np.asarray(lengths)
    validate.positive(batch_size=batch_size)
    longest = int(max(lengths, default=0))
    ascending = all(a < b for a, b in itertools.pairwise((0, *buckets)))
    validate.require(
        bool(buckets) and ascending and buckets[-1] >= longest,
        "buckets",
        tuple(buckets),
        f"ascending lengths > 0, the last >= {longest}, the longest row",
    )
    bucket_of = np.searchsorted(buckets, lengths[order])
    last = max(bucket_of, default=-1)  # leftovers climb no higher than some row must

    plan = []
    left = order[:0]
    for bucket, length in enumerate(buckets[: last + 1]):
        rows = np.concatenate([left, order[bucket_of == bucket]])
        whole = len(rows) if bucket == last else len(rows) - len(rows) % batch_size
        rows, left = rows[:whole], rows[whole:]
        empty = -len(rows) % (steps * batch_size)
        rows = np.pad(rows, (0, empty), constant_values=-1)
        groups = rows.reshape(-1, steps, batch_size)
        plan.extend(Dispatch(int(length), group) for group in groups)
    return plan


def num_steps(plan: Iterable[Dispatch]) -> int:
    """Returns the number of batches that hold a row.

    >>> num_steps([Dispatch(4, np.array([[0, 1], [2, -1], [-1, -1]]))])
    2
    """
    return sum(int((rows >= 0).any(axis=1).sum()) for _, rows in plan)


def make_batch(
    tokens: Tokens,
    labels: np.ndarray,
    dispatch: Dispatch,
    **columns: np.ndarray | None,
) -> Batch:
    """Gathers the rows of one dispatch.

    Rows of -1 hold padding ids, an empty attention mask, zeros in every other field and
    False in `where`.

    Args:
        tokens: the tokens of all rows.
        labels: `[rows]`, classes or scores.
        dispatch: the rows to gather.
        **columns: further fields of `Batch`, each `[rows, ...]` or None.

    Returns:
        A batch whose fields have leading axes `[steps, batch]`.

    Raises:
        ValueError: if the columns differ in rows, or a row is longer than the dispatch.

    >>> tokens = Tokens(np.array([[5, 6, 0]]), np.zeros((1, 3), int), np.array([2]), 0)
    >>> batch = make_batch(tokens, np.array([1]), Dispatch(3, np.array([[0, -1]])))
    >>> batch.input_ids.tolist(), batch.where.tolist()
    ([[[5, 6, 0], [0, 0, 0]]], [[True, False]])
    """
    columns = {name: c for name, c in columns.items() if c is not None}
    validate.same_length(tokens=tokens.lengths, labels=labels, **columns)
    length, rows = dispatch
    where = rows >= 0
    rows = np.maximum(rows, 0)
    lengths = np.where(where, tokens.lengths[rows], 0)
    if lengths.max(initial=0) > length:
        raise ValueError(
            f"Expected rows of at most {length} tokens in this dispatch, found one of "
            f"{lengths.max()}."
        )

    def gather(column: np.ndarray) -> np.ndarray:
        column = np.asarray(column)
        mask = where.reshape(where.shape + (1,) * (column.ndim - 1))
        return np.where(mask, column[rows], column.dtype.type(0))

    mask = np.arange(length) < lengths[..., None]

    def fill(column: np.ndarray, empty: int) -> np.ndarray:
        # The bucket may be longer than all rows were padded to.
        width = min(length, column.shape[1])
        found = np.full(mask.shape, empty, column.dtype)
        np.copyto(found[..., :width], column[:, :width][rows], where=mask[..., :width])
        return found

    return Batch(
        input_ids=fill(tokens.input_ids, tokens.pad_id),
        attention_mask=mask.astype(np.int32),
        token_type_ids=fill(tokens.token_type_ids, 0),
        labels=gather(labels),
        where=where,
        **{name: gather(column) for name, column in columns.items()},
    )


def collect(
    dispatches: Iterable[Dispatch], outputs: Iterable[Any], num_rows: int
) -> np.ndarray:
    """Puts the outputs of dispatches back into the order of the rows.

    Args:
        dispatches: a plan that holds each row once.
        outputs: one array `[steps, batch, ...]` each; may be a generator.
        num_rows: how many rows there are.

    Returns:
        `[num_rows, ...]`.

    Raises:
        ValueError: if the dispatches do not hold each row exactly once.

    >>> plan = [Dispatch(4, np.array([[2, 0]])), Dispatch(8, np.array([[1, -1]]))]
    >>> collect(plan, [np.array([[20, 0]]), np.array([[10, 99]])], 3)
    array([ 0, 10, 20])
    """
    result = None
    times = np.zeros(num_rows, np.int64)
    for (_, rows), output in zip(dispatches, outputs, strict=True):
        output = np.asarray(output)
        if result is None:
            result = np.zeros((num_rows, *output.shape[2:]), output.dtype)
        where = rows >= 0
        np.add.at(times, rows[where], 1)
        result[rows[where]] = output[where]
    if result is None or (times != 1).any():
        raise ValueError(
            f"Expected each of {num_rows} rows once in the dispatches, found "
            f"{(times == 0).sum()} missing and {(times > 1).sum()} repeated."
        )
    return result
