"""Tokens of sources and outputs, planned and gathered."""

import numpy as np
import pytest

from protojax.data.batches import (
    Dispatch,
    make_batch,
    plan_epoch,
    plan_evaluation,
    plan_poisson,
)
from protojax.data.sequences import tokenize_sequences
from protojax.training.predict import SequenceLengths
from tests.writers import Letters

SIZES = {"max_length": 4, "max_output": 3, "end_id": 1}
BUCKETS = ((2, 2), (4, 2), (4, 3))


def rows_of(sources=("ab", "abcdef"), outputs=("c", "def"), **options):
    return tokenize_sequences(Letters(), sources, outputs, **{**SIZES, **options})


def test_outputs_keep_their_end_when_they_are_cut():
    rows = rows_of()
    assert rows.sources.input_ids.tolist() == [[2, 3, 1, 0], [2, 3, 4, 1]]
    assert rows.outputs.input_ids.tolist() == [[4, 1, 0], [5, 6, 1]]
    assert rows.lengths.tolist() == [[3, 2], [4, 3]]
    begun = rows_of(begin_id=9).outputs
    assert begun.input_ids.tolist() == [[9, 4, 1], [9, 5, 1]]
    # An output without text is written too.
    assert rows_of(outputs=("", "a")).outputs.input_ids.tolist() == [
        [1, 0, 0],
        [2, 1, 0],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ("c",)}, r"len\(sources\)=2, len\(outputs\)=1"),
        ({"max_output": 1}, "max_output > 1, the special"),
        ({"max_output": 2, "begin_id": 3}, "max_output > 2, the special"),
        ({"vocab_size": 5}, "found id 7 in row 1|found id 6 in row 1"),
    ],
)
def test_what_cannot_be_tokenised_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        rows_of(**options)


def test_a_source_without_a_token_is_named():
    class NoEnd(Letters):
        def num_special_tokens_to_add(self, pair=False):
            return 0

        def __call__(self, *texts, **options):
            return super().__call__(*texts, **{**options, "add_special_tokens": False})

    with pytest.raises(ValueError, match=r"sources\[1\] with a token, found .*=''"):
        tokenize_sequences(NoEnd(), ["a", ""], ["a", "a"], **SIZES)


def random_lengths(rows=40):
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(1, 5, rows), rng.integers(1, 4, rows)], axis=1)


def test_a_plan_holds_each_row_once_in_few_shapes():
    lengths = random_lengths()
    plan = plan_epoch(
        lengths, batch_size=4, buckets=BUCKETS, steps_per_dispatch=2, seed=0, epoch=0
    )
    rows = np.concatenate([item.rows.ravel() for item in plan])
    assert sorted(rows[rows >= 0]) == list(range(40))
    assert {item.length for item in plan} == {*BUCKETS}
    for item in plan:
        assert item.rows.shape == (2, 4)
        assert (lengths[item.rows[item.rows >= 0]] <= item.length).all()
    # Without rows to fill up with, each row is in the first bucket that holds it.
    for item in plan_evaluation(lengths, batch_size=1, buckets=BUCKETS):
        holding = [b for b in BUCKETS if (lengths[item.rows[0, 0]] <= b).all()]
        assert item.length == holding[0]


def test_poisson_samples_are_padded_to_what_holds_them():
    lengths = random_lengths()
    options = {"expected_rows": 3, "num_steps": 12, "steps_per_dispatch": 1, "seed": 0}
    plan = plan_poisson(lengths, buckets=BUCKETS, **options)
    alone = plan_poisson(lengths[:, 0], buckets=(4,), **options)
    for item, other in zip(plan, alone, strict=True):
        # The draws do not depend on lengths.
        np.testing.assert_array_equal(item.rows, other.rows)
        longest = lengths[item.rows[item.rows >= 0]].max(axis=0, initial=0)
        assert item.length == next(b for b in BUCKETS if (longest <= b).all())


@pytest.mark.parametrize(
    "buckets",
    [(), ((4, 2),), ((2, 3), (4, 2), (4, 3)), ((4, 3), (4, 3)), ((0, 1), (4, 3))],
    ids=["none", "short", "one falls", "twice", "zero"],
)
def test_buckets_that_do_not_ascend_or_hold_are_refused(buckets):
    with pytest.raises(ValueError, match=r"buckets ascending .* last >= 4, 3, the"):
        plan_evaluation(random_lengths(), batch_size=2, buckets=buckets)


def test_a_plan_of_no_rows_is_empty():
    empty = np.zeros((0, 2), int)
    assert plan_evaluation(empty, batch_size=2, buckets=BUCKETS) == []


def test_a_batch_by_hand():
    rows = rows_of()
    weights = np.array([[0.5, 1.0, 7.0], [1.0, 0.0, 1.0]], np.float32)
    batch = make_batch(
        rows,
        None,
        Dispatch((5, 4), np.array([[1, 0, -1]])),
        output_weights=weights,
        top_ids=np.arange(12).reshape(2, 3, 2),
        top_log_probs=-np.ones((2, 3, 2), np.float16),
        teacher_features=np.ones((2, 1, 2), np.float32),
    )
    assert batch.input_ids[0, 0].tolist() == [2, 3, 4, 1, 0]
    assert batch.attention_mask[0].tolist() == [
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0],
        [0] * 5,
    ]
    assert batch.output_ids[0].tolist() == [[5, 6, 1, 0], [4, 1, 0, 0], [0] * 4]
    # A weight behind the end has no effect.
    assert batch.output_weights[0].tolist() == [[1, 0, 1, 0], [0.5, 1, 0, 0], [0] * 4]
    assert batch.top_ids[0, 1].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]
    assert batch.top_log_probs.dtype == np.float16
    assert batch.where.tolist() == [[True, True, False]]
    assert batch.teacher_features[0, :, 0, 0].tolist() == [1, 1, 0]
    assert batch.rest_log_prob is None
    short = make_batch(rows, None, Dispatch((3, 2), np.array([[0]])))
    assert short.output_ids.tolist() == [[[4, 1]]]
    assert short.output_weights.tolist() == [[[1, 1]]]
    for length in ((3, 3), (4, 2)):
        with pytest.raises(ValueError, match="Expected rows of at most"):
            make_batch(rows, None, Dispatch(length, np.array([[1]])))


def test_buckets_hold_the_longest():
    with pytest.raises(ValueError, match=r"buckets whose last holds .*=\(9, 3\)"):
        SequenceLengths(max_length=9, max_output=3, buckets=[[8, 4]])
    assert SequenceLengths(8, 4, [[8, 4]]).buckets == ((8, 4),)
