"""Batches of tokens for the device, planned and gathered on the host in NumPy.

`plan_epoch` assigns rows to batches, and `make_batch` gathers one dispatch. A plan is a
pure function of its seed and epoch, so a run can resume at any dispatch. Dispatches
have only a few different shapes, so few programs are compiled.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Batch, SequenceBatch
from protojax.data.sequences import Sequences
from protojax.data.tokens import Tokens

# A length, or the lengths of source and output.
Length = int | tuple[int, ...]

# Fields of `SequenceBatch` that have an entry for each token of the output.
_ALONG_OUTPUT = ("output_weights", "top_ids", "top_log_probs", "rest_log_prob")


class Dispatch(NamedTuple):
    """The rows of one call to a compiled loop over batches.

    Attributes:
        length: what the batches are padded to: a length, or those of source and output.
        rows: `[steps, batch]`, int64, -1 where there is no row.
    """

    length: Length
    rows: np.ndarray


def plan_epoch(
    lengths: np.ndarray,
    *,
    batch_size: int,
    buckets: Sequence[Length],
    steps_per_dispatch: int,
    seed: int,
    epoch: int,
) -> list[Dispatch]:
    """The dispatches of one epoch, with rows assigned to batches at random.

    Rows are shuffled and each goes to the first bucket that holds it. Rows that do
    not fill a batch move up to the next bucket, so only the longest bucket in use may
    end in a partial batch. Batches of one bucket are grouped into dispatches, the last
    of which is filled up with empty batches, and the dispatches are shuffled.

    Args:
        lengths: `[rows]`, tokens of each row; `[rows, 2]` of sources and outputs.
        batch_size: rows per batch.
        buckets: the lengths that batches may have, ascending; those of sources and
            outputs are pairs, neither of which may fall.
        steps_per_dispatch: batches per dispatch.
        seed: determines the order, together with the epoch.
        epoch: the number of the pass over the rows, from 0.

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
    # Both at once, so that a resumed run plans an epoch without the ones before it.
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    plan = _plan(order, lengths, batch_size, buckets, steps_per_dispatch)
    return [plan[position] for position in rng.permutation(len(plan))]


def plan_poisson(
    lengths: np.ndarray,
    *,
    expected_rows: int,
    num_steps: int,
    buckets: Sequence[Length],
    steps_per_dispatch: int,
    seed: int,
) -> list[Dispatch]:
    """The dispatches of a run with Poisson sampling of rows at each step.

    The privacy accounting of DP-SGD assumes this sampling: batches differ in size, and
    a row may be in none or in several. Batches are filled up to the size of the largest
    one of the run; those of a dispatch are padded to their longest row.

    Args:
        lengths: as in `plan_epoch`.
        expected_rows: expected rows per batch, at most the number of rows.
        num_steps: batches of the whole run.
        buckets: as in `plan_epoch`.
        steps_per_dispatch: batches per dispatch.
        seed: determines all draws; a private run needs a secret one, such as
            `secrets.randbits(128)`.

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
    count, bucket_of = len(lengths), _bucket_of(lengths, buckets)
    bound = f"in 1..{count}, the rows there are"
    validate.require(1 <= expected_rows <= count, "expected_rows", expected_rows, bound)
    rng, rate = np.random.default_rng(seed), expected_rows / count
    chosen = [np.flatnonzero(rng.random(count) < rate) for _ in range(num_steps)]
    # A multiple of 8, so that batches can be divided into microbatches; not 0, since
    # batches without any row have a shape too.
    most = max(8, *map(len, chosen))
    most += -most % 8
    # One batch size for the whole run, or every batch would be compiled anew.
    rows = np.full((num_steps + -num_steps % steps_per_dispatch, most), -1, np.int64)
    for step, members in enumerate(chosen):
        rows[step, : len(members)] = members
    plan = []
    for group in rows.reshape(-1, steps_per_dispatch, most):
        # An empty group gets the shortest bucket.
        bucket = max(bucket_of[group[group >= 0]], default=0)
        plan.append(Dispatch(buckets[bucket], group))
    return plan


def plan_evaluation(
    lengths: np.ndarray, *, batch_size: int, buckets: Sequence[Length]
) -> list[Dispatch]:
    """The dispatches of `plan_epoch` without shuffling, one batch per dispatch.

    >>> plan_evaluation(np.array([3, 9, 4]), batch_size=2, buckets=(4, 16))
    [Dispatch(length=4, rows=array([[0, 2]])),
     Dispatch(length=16, rows=array([[ 1, -1]]))]
    """
    return _plan(np.arange(len(lengths)), lengths, batch_size, buckets, 1)


def _plan(
    order: np.ndarray,
    lengths: np.ndarray,
    batch_size: int,
    buckets: Sequence[Length],
    steps: int,
) -> list[Dispatch]:
    """The dispatches of rows in the given order, bucket after bucket."""
    validate.positive(batch_size=batch_size)
    bucket_of = _bucket_of(lengths, buckets)[order]
    last = max(bucket_of, default=-1)  # leftovers move no higher than the longest row

    plan = []
    left = order[:0]
    for bucket, length in enumerate(buckets[: last + 1]):
        rows = np.concatenate([left, order[bucket_of == bucket]])
        whole = len(rows) if bucket == last else len(rows) - len(rows) % batch_size
        rows, left = rows[:whole], rows[whole:]
        # Whole batches may be empty: fewer steps would be another program.
        empty = -len(rows) % (steps * batch_size)
        rows = np.pad(rows, (0, empty), constant_values=-1)
        groups = rows.reshape(-1, steps, batch_size)
        plan.extend(Dispatch(length, group) for group in groups)
    return plan


def _bucket_of(lengths: np.ndarray, buckets: Sequence[Length]) -> np.ndarray:
    """The number of the first bucket that holds each row, `[rows]`."""
    rows = np.asarray(lengths)
    rows = rows[:, None] if rows.ndim == 1 else rows
    longest = rows.max(axis=0, initial=0)
    # Leading zeros require the first bucket to be positive as well.
    sizes = np.array([np.zeros_like(longest), *map(np.atleast_1d, buckets)])
    growth = np.diff(sizes, axis=0)
    ascending = (growth >= 0).all() and growth.any(axis=1).all() and sizes[1:].all()
    validate.require(
        bool(buckets) and bool(ascending) and bool((sizes[-1] >= longest).all()),
        "buckets",
        tuple(buckets),
        f"ascending lengths > 0, the last >= {', '.join(map(str, longest))}, the "
        "longest row",
    )
    # Buckets never fall, so the last of the columns' buckets holds all of them.
    columns = zip(sizes[1:].T, rows.T, strict=True)
    return np.max([np.searchsorted(*column) for column in columns], axis=0)


def num_steps(plan: Iterable[Dispatch]) -> int:
    """The number of batches that hold a row.

    >>> num_steps([Dispatch(4, np.array([[0, 1], [2, -1], [-1, -1]]))])
    2
    """
    return sum(int((rows >= 0).any(axis=1).sum()) for _, rows in plan)


def make_batch(
    tokens: Tokens | Sequences,
    labels: np.ndarray | None,
    dispatch: Dispatch,
    **columns: np.ndarray | None,
) -> Batch | SequenceBatch:
    """The batches of one dispatch.

    Rows numbered -1 hold padding ids, an empty attention mask, zeros in every other
    field and False in `where`.

    Args:
        tokens: the tokens of all rows.
        labels: `[rows]`, classes or scores; None for `Sequences`.
        dispatch: the rows to gather.
        **columns: further fields of the batch, each `[rows, ...]` or None; those of
            each token of an output `[rows, max_output, ...]`. Without `output_weights`
            all tokens of an output teach.

    Returns:
        A batch whose fields have leading axes `[steps, batch]`: a `SequenceBatch` for
        `Sequences`.

    Raises:
        ValueError: if the columns differ in rows, or a row is longer than the dispatch.

    >>> tokens = Tokens(np.array([[5, 6, 0]]), np.zeros((1, 3), int), np.array([2]), 0)
    >>> batch = make_batch(tokens, np.array([1]), Dispatch(3, np.array([[0, -1]])))
    >>> batch.input_ids.tolist(), batch.where.tolist()
    ([[[5, 6, 0], [0, 0, 0]]], [[True, False]])
    """
    columns = {"labels": labels, **columns}
    columns = {name: c for name, c in columns.items() if c is not None}
    validate.same_length(tokens=tokens.lengths, **columns)
    # An index of -1 would gather the last row; row 0 is masked instead.
    chosen = _Chosen(np.maximum(dispatch.rows, 0), dispatch.rows >= 0)
    if isinstance(tokens, Tokens):
        mask = chosen.mask(tokens.lengths, dispatch.length)
        return Batch(
            input_ids=chosen.fill(tokens.input_ids, mask, tokens.pad_id),
            attention_mask=mask.astype(np.int32),
            token_type_ids=chosen.fill(tokens.token_type_ids, mask),
            where=chosen.where,
            **{name: chosen.take(column) for name, column in columns.items()},
        )
    sources, outputs = tokens
    mask = chosen.mask(sources.lengths, dispatch.length[0])
    written = chosen.mask(outputs.lengths, dispatch.length[1])
    along = {
        name: chosen.fill(columns.pop(name), written)
        for name in _ALONG_OUTPUT
        if name in columns
    }
    return SequenceBatch(
        input_ids=chosen.fill(sources.input_ids, mask, sources.pad_id),
        attention_mask=mask.astype(np.int32),
        output_ids=chosen.fill(outputs.input_ids, written),
        where=chosen.where,
        **{"output_weights": written.astype(np.float32), **along},
        **{name: chosen.take(column) for name, column in columns.items()},
    )


class _Chosen(NamedTuple):
    """Rows to gather, `[steps, batch]`, and where there is one."""

    rows: np.ndarray
    where: np.ndarray

    def take(self, column: np.ndarray) -> np.ndarray:
        """The rows of a column, zeros where there is none."""
        column = np.asarray(column)
        mask = self.where.reshape(self.where.shape + (1,) * (column.ndim - 1))
        # A zero of the column's own type: a Python 0 would make flags int64.
        return np.where(mask, column[self.rows], column.dtype.type(0))

    def mask(self, lengths: np.ndarray, length: int) -> np.ndarray:
        """Where the tokens of the rows are, `[steps, batch, length]`."""
        lengths = np.where(self.where, lengths[self.rows], 0)
        if lengths.max(initial=0) > length:
            raise ValueError(
                f"Expected rows of at most {length} tokens in this dispatch, found one "
                f"of {lengths.max()}."
            )
        return np.arange(length) < lengths[..., None]

    def fill(self, column: np.ndarray, mask: np.ndarray, empty: int = 0) -> np.ndarray:
        """The tokens of the rows, `[steps, batch, length, ...]`, `empty` elsewhere."""
        # The bucket may be longer than the length that the rows were padded to.
        width = min(mask.shape[-1], column.shape[1])
        found = np.full(mask.shape + column.shape[2:], empty, column.dtype)
        tokens = mask[..., :width].reshape(
            *mask.shape[:-1], width, *(1,) * (column.ndim - 2)
        )
        np.copyto(found[:, :, :width], column[:, :width][self.rows], where=tokens)
        return found


def collect(
    dispatches: Iterable[Dispatch], outputs: Iterable[Any], num_rows: int
) -> np.ndarray:
    """The outputs of dispatches in the order of the rows.

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
        # Not `times[rows] += 1`, which counts a row that occurs twice only once.
        np.add.at(times, rows[where], 1)
        result[rows[where]] = output[where]
    if result is None or (times != 1).any():
        raise ValueError(
            f"Expected each of {num_rows} rows once in the dispatches, found "
            f"{(times == 0).sum()} missing and {(times > 1).sum()} repeated."
        )
    return result
