import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.base import Examples
from protojax.data import take
from protojax.data import tokens as tokens_lib
from protojax.data.batches import (
    Dispatch,
    collect,
    make_batch,
    num_steps,
    plan_epoch,
    plan_evaluation,
    plan_poisson,
)
from protojax.data.tokens import Tokens, tokenize
from protojax.data.wordpiece import train_wordpiece
from protojax.models import hf

BUCKETS = (4, 8, 16)


class WordTokenizer:
    """What `tokenize` needs of a fast tokenizer: an id a word, [CLS] 1 and [SEP] 2."""

    def __init__(self, pad_token_id=0):
        self.pad_token_id = pad_token_id
        self.calls = []

    def num_special_tokens_to_add(self, pair=False):
        return 3 if pair else 2

    def __call__(self, texts, pairs=None, *, truncation, max_length, **_):
        assert truncation
        self.calls.append(texts)
        rows = []
        for row, text in enumerate(texts):
            first = [1, *(len(word) + 10 for word in text.split()), 2]
            second = [len(word) + 10 for word in pairs[row].split()] if pairs else []
            types = [0] * len(first) + [1] * len(second)
            rows.append(((first + second)[:max_length], types[:max_length]))
        ids, types = zip(*rows, strict=True)
        return {"input_ids": list(ids), "token_type_ids": list(types)}


def make_examples(num_rows, num_classes=2, pairs=False, prefix="text"):
    texts = [f"{prefix} {row}" for row in range(num_rows)]
    seconds = [f"pair {row}" for row in range(num_rows)]
    labels = np.arange(num_rows, dtype=np.int32) % num_classes
    return Examples(texts, seconds if pairs else None, labels)


def test_tokenize_by_hand():
    examples = Examples(["a bb", "ccc"], ["d", "e e e e"], np.zeros(2, np.int32))
    tokens = tokenize(WordTokenizer(pad_token_id=7), examples, max_length=6)
    assert tokens.input_ids.tolist() == [[1, 11, 12, 2, 11, 7], [1, 13, 2, 11, 11, 11]]
    assert tokens.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert tokens.lengths.tolist() == [5, 6]
    assert tokens.pad_id == 7
    assert {a.dtype for a in tokens[:3]} == {np.dtype(np.int32)}


def test_tokenize_without_padding_token_or_rows():
    tokenizer = WordTokenizer(pad_token_id=None)
    tokens = tokenize(tokenizer, make_examples(0), max_length=8)
    assert tokens.input_ids.shape == (0, 8)
    assert tokens.pad_id == 0


def test_tokenize_in_chunks_is_tokenize_row_by_row():
    examples = make_examples(2100, pairs=True)
    examples = examples._replace(texts=["w " * (row % 9) for row in range(2100)])
    tokenizer = WordTokenizer()
    tokens = tokenize(tokenizer, examples, max_length=8)
    assert len(tokenizer.calls) == 3
    for row in (0, 1, 1023, 1024, 2048, 2099):
        single = tokenize(tokenizer, take(examples, [row]), max_length=8)
        np.testing.assert_array_equal(tokens.input_ids[row], single.input_ids[0])
        np.testing.assert_array_equal(tokens.lengths[row], single.lengths[0])


def test_tokenize_clips_a_megabyte(caplog):
    tokenizer = WordTokenizer()
    examples = Examples(["short", "word " * 200_000], None, np.zeros(2, np.int32))
    tokens = tokenize(tokenizer, examples, max_length=16)
    assert max(map(len, tokenizer.calls[0])) == 20 * 16
    assert tokens.lengths.tolist() == [3, 16]
    assert "Clipped 1 texts to 320 characters" in caplog.text


def test_tokenize_needs_room_for_a_token():
    with pytest.raises(ValueError, match="max_length > 3, the special tokens"):
        tokenize(WordTokenizer(), make_examples(2, pairs=True), max_length=3)


@pytest.fixture(scope="module")
def wordpiece():
    """A tokenizer of transformers that does what BERT's does."""
    trained = train_wordpiece(["a dull film", "a warm one"], vocab_size=200)
    return hf.wrap_tokenizer(trained)


@pytest.mark.parametrize(
    "filler",
    [" " * 700, "\n \t" * 400, "\u200b" * 900, "x" * 700, "e" + "\u0301" * 700],
    ids=["spaces", "white", "zero-width", "unknown", "accents"],
)
@pytest.mark.parametrize("paired", [False, True])
def test_no_text_is_clipped_before_it_fills_a_row(wordpiece, filler, paired):
    texts = [f"{filler} a dull film", f"a {filler} warm one" * 3, filler, "warm " * 900]
    pairs = texts[::-1] if paired else None
    tokens = tokenize(wordpiece, Examples(texts, pairs, np.zeros(4)), max_length=32)
    expected = wordpiece(
        texts, pairs, truncation=True, max_length=32, padding="max_length"
    )
    assert tokens.input_ids.tolist() == expected["input_ids"]
    assert tokens.lengths.tolist() == [sum(m) for m in expected["attention_mask"]]


def test_clipping_cuts_no_word(wordpiece):
    # The cut at 80 characters is within the last word, which fills the row.
    texts = ["  ".join(["film"] * 3).ljust(78) + "dull " * 90]
    tokens = tokenize(wordpiece, Examples(texts, None, np.zeros(1)), max_length=4)
    expected = wordpiece(texts, truncation=True, max_length=4)["input_ids"]
    assert tokens.input_ids.tolist() == expected


def test_tokenize_refuses_ids_beyond_the_embedding():
    tokenizer, examples = WordTokenizer(), make_examples(3, prefix="sixteen_letters_")
    tokens = tokenize(tokenizer, examples, max_length=8, vocab_size=27)
    assert tokens.input_ids.max() == 26
    message = r"token ids in \[0, 26\), .*found id 26 in row 0\. Give the model"
    with pytest.raises(ValueError, match=message):
        tokenize(tokenizer, examples, max_length=8, vocab_size=26)
    # Padding is looked up like any token, and NaN there is NaN everywhere.
    with pytest.raises(ValueError, match="found id 40 in the padding"):
        tokenize(WordTokenizer(40), examples, max_length=8, vocab_size=40)


@pytest.mark.parametrize("wrong", [-1, 10, 2**31 - 1])
def test_ids_that_have_no_row(wrong):
    ids = np.ones((3, 4), np.int32)
    tokens = Tokens(ids, np.zeros_like(ids), np.full(3, 4), 0)
    tokens_lib.check_ids(tokens, 10)
    ids[2, 1] = wrong
    with pytest.raises(ValueError, match=f"found id {wrong} in row 2"):
        tokens_lib.check_ids(tokens, 10)


def test_tokenize_needs_a_tokenizer():
    with pytest.raises(
        ValueError, match=r"Expected a tokenizer, found None.*vocab\.txt"
    ):
        tokenize(None, make_examples(2), max_length=8)


plans = {
    "lengths": st.lists(st.integers(0, 16), max_size=80),
    "batch_size": st.integers(1, 9),
    "steps": st.integers(1, 4),
    "buckets": st.sampled_from([(16,), (4, 16), (4, 8, 16), (2, 3, 9, 20)]),
}


@given(**plans, seed=st.integers(0, 5), epoch=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_plan_holds_every_row_once(lengths, batch_size, steps, buckets, seed, epoch):
    lengths = np.array(lengths, np.int32)
    plan = plan_epoch(
        lengths,
        batch_size=batch_size,
        buckets=buckets,
        steps_per_dispatch=steps,
        seed=seed,
        epoch=epoch,
    )
    rows = np.concatenate([d.rows.ravel() for d in plan] or [np.zeros(0, int)])
    assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
    partial = []
    for length, group in plan:
        assert length in buckets
        assert group.shape == (steps, batch_size)
        assert group.dtype == np.int64
        assert (lengths[group[group >= 0]] <= length).all()
        filled = (group >= 0).sum(axis=1)
        assert filled[0] > 0
        assert (np.diff(filled) <= 0).all()  # empty batches come last
        assert (np.diff((group >= 0).astype(int), axis=1) <= 0).all()
        partial += [length for n in filled if 0 < n < batch_size]
    # At most one partial batch, in the longest bucket that some row needs.
    if partial:
        needed = min(b for b in buckets if b >= lengths.max())
        assert partial == [needed]
    assert num_steps(plan) == -(-len(lengths) // batch_size)


@given(**plans)
@settings(max_examples=50, deadline=None)
def test_evaluation_plan_keeps_the_order(lengths, batch_size, steps, buckets):
    del steps
    lengths = np.array(lengths, np.int32)
    plan = plan_evaluation(lengths, batch_size=batch_size, buckets=buckets)
    assert [d.length for d in plan] == sorted(d.length for d in plan)
    rows = np.concatenate([d.rows.ravel() for d in plan] or [np.zeros(0, int)])
    assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
    assert {d.rows.shape for d in plan} <= {(1, batch_size)}
    if len(buckets) == 1:
        assert list(rows[rows >= 0]) == list(range(len(lengths)))


def test_plan_by_hand():
    # Rows 0, 2, 4 are short: two fill a batch, the third moves up beside row 1.
    plan = plan_evaluation(np.array([1, 9, 2, 7, 3]), batch_size=2, buckets=(4, 8, 16))
    assert [(d.length, d.rows.tolist()) for d in plan] == [
        (4, [[0, 2]]),
        (8, [[4, 3]]),
        (16, [[1, -1]]),
    ]


def same_plan(a, b):
    return len(a) == len(b) and all(
        x.length == y.length and np.array_equal(x.rows, y.rows)
        for x, y in zip(a, b, strict=True)
    )


def test_plan_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 17, 200)
    settings = {"batch_size": 8, "buckets": BUCKETS, "steps_per_dispatch": 3}
    plan = plan_epoch(lengths, **settings, seed=4, epoch=2)
    # A run that stopped anywhere plans the epoch again and goes on where it was.
    assert same_plan(plan, plan_epoch(lengths, **settings, seed=4, epoch=2))
    assert not same_plan(plan, plan_epoch(lengths, **settings, seed=4, epoch=3))
    assert not same_plan(plan, plan_epoch(lengths, **settings, seed=5, epoch=2))
    # Dispatches of different lengths are mixed.
    order = [dispatch.length for dispatch in plan]
    assert order != sorted(order)


def test_plan_has_one_shape_per_bucket():
    lengths = np.random.default_rng(0).integers(1, 17, 500)
    shapes = {
        (dispatch.length, *dispatch.rows.shape)
        for epoch in range(4)
        for dispatch in plan_epoch(
            lengths,
            batch_size=16,
            buckets=BUCKETS,
            steps_per_dispatch=4,
            seed=0,
            epoch=epoch,
        )
    }
    assert shapes == {(length, 4, 16) for length in BUCKETS}


@pytest.mark.parametrize(
    "buckets", [(), (8, 4, 16), (4, 4, 16), (0, 16), (4, 8)], ids=str
)
def test_plan_rejects_buckets(buckets):
    with pytest.raises(ValueError, match=r"buckets ascending .* last >= 9"):
        plan_evaluation(np.array([3, 9]), batch_size=2, buckets=buckets)


@pytest.mark.parametrize("name", ["batch_size", "steps_per_dispatch"])
def test_plan_rejects_empty_shapes(name):
    settings = {"batch_size": 2, "steps_per_dispatch": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} > 0"):
        plan_epoch(np.array([3]), buckets=(4,), seed=0, epoch=0, **settings)


def make_tokens(lengths, max_length=16, pad_id=9):
    rng = np.random.default_rng(0)
    lengths = np.asarray(lengths, np.int32)
    filled = np.arange(max_length) < lengths[:, None]
    ids = np.where(filled, rng.integers(10, 99, filled.shape), pad_id)
    types = np.where(filled, rng.integers(0, 2, filled.shape), 0)
    return Tokens(ids.astype(np.int32), types.astype(np.int32), lengths, pad_id)


def test_make_batch_matches_a_loop():
    tokens = make_tokens([3, 8, 1, 5, 16])
    labels = np.array([0, 1, 1, 0, 1], np.int32)
    columns = {
        "teacher_logits": np.random.default_rng(1).normal(size=(5, 2)).astype("f4"),
        "teacher_features": np.ones((5, 2, 3), np.float32),
        "assigned_class": np.array([1, 1, 0, 0, 1], np.int32),
    }
    dispatch = Dispatch(8, np.array([[1, 0], [3, -1], [-1, -1]]))
    batch = make_batch(tokens, labels, dispatch, **columns)
    for index in np.ndindex(dispatch.rows.shape):
        row = dispatch.rows[index]
        one = jax.tree.map(operator.itemgetter(index), batch)
        assert one.where == (row >= 0)
        if row < 0:
            assert (one.input_ids == tokens.pad_id).all()
            zeros = one._replace(input_ids=0, where=False)
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
            continue
        np.testing.assert_array_equal(one.input_ids, tokens.input_ids[row, :8])
        types = tokens.token_type_ids[row, :8]
        np.testing.assert_array_equal(one.token_type_ids, types)
        mask = [position < tokens.lengths[row] for position in range(8)]
        assert one.attention_mask.tolist() == mask
        assert one.labels == labels[row]
        for name, column in columns.items():
            np.testing.assert_array_equal(getattr(one, name), column[row])


def test_make_batch_keeps_dtypes_and_leaves_out_none():
    dispatch = Dispatch(8, np.array([[0, -1]]))
    scores = np.array([2.5], np.float32)
    batch = make_batch(make_tokens([4]), scores, dispatch, teacher_logits=None)
    assert batch.teacher_logits is None
    assert batch.assigned_class is None
    assert batch.labels.tolist() == [[2.5, 0.0]]
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(batch)]
    assert dtypes == ["int32", "int32", "int32", "float32", "bool"]


def test_make_batch_of_bfloat16_features():
    features = np.asarray(jnp.ones((2, 1, 3), jnp.bfloat16))
    dispatch = Dispatch(4, np.array([[1, -1]]))
    batch = make_batch(
        make_tokens([4, 2]), np.zeros(2, np.int32), dispatch, teacher_features=features
    )
    assert batch.teacher_features.dtype == jnp.bfloat16
    assert batch.teacher_features[0, :, 0, 0].tolist() == [1, 0]


def test_make_batch_never_truncates():
    dispatch = Dispatch(4, np.array([[1, 0]]))
    with pytest.raises(ValueError, match=r"at most 4 tokens .* one of 6"):
        make_batch(make_tokens([3, 6]), np.zeros(2, np.int32), dispatch)


def test_make_batch_rejects_a_column_of_other_rows():
    dispatch = Dispatch(4, np.array([[0]]))
    with pytest.raises(ValueError, match=r"len\(assigned_class\)=2"):
        make_batch(
            make_tokens([3]), np.zeros(1, np.int32), dispatch, assigned_class=[0, 1]
        )


@given(**plans)
@settings(max_examples=50, deadline=None)
def test_collect_inverts_make_batch(lengths, batch_size, steps, buckets):
    lengths = np.array([*lengths, 5], np.int32)
    tokens, labels = make_tokens(lengths, 20), np.arange(len(lengths), dtype=np.int32)
    plan = plan_epoch(
        lengths,
        batch_size=batch_size,
        buckets=buckets,
        steps_per_dispatch=steps,
        seed=0,
        epoch=0,
    )
    batches = [make_batch(tokens, labels, dispatch) for dispatch in plan]
    outputs = (np.stack([b.labels, b.attention_mask.sum(-1)], -1) for b in batches)
    found = collect(plan, outputs, len(lengths))
    np.testing.assert_array_equal(found, np.stack([labels, lengths], -1))


def test_collect_takes_device_arrays():
    plan = [Dispatch(4, np.array([[1, 0]]))]
    assert collect(plan, [jnp.array([[5.0, 6.0]])], 2).tolist() == [6.0, 5.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([[0, -1]], "1 missing and 0 repeated"), ([[0, 0]], "1 missing and 1 repeated")],
)
def test_collect_rejects_a_plan_of_other_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        collect([Dispatch(4, np.array(rows))], [np.zeros((1, 2))], 2)


def test_collect_rejects_a_missing_output():
    plan = plan_evaluation(np.array([1, 2, 3]), batch_size=2, buckets=(4,))
    with pytest.raises(ValueError, match="shorter"):
        collect(plan, [np.zeros((1, 2))], 3)


POISSON = {"num_steps": 50, "buckets": (8, 16), "steps_per_dispatch": 4, "seed": 0}


def test_batches_that_all_happen_to_be_empty_have_a_shape():
    """One row in 200, at a rate at which two steps draw none."""
    draws = {**POISSON, "num_steps": 2, "steps_per_dispatch": 2, "seed": 0}
    for seed in range(50):
        (item,) = plan_poisson(
            np.full(200, 3), expected_rows=1, **{**draws, "seed": seed}
        )
        if not (item.rows >= 0).any():
            break
    assert item.rows.shape == (2, 8)
    assert (item.rows == -1).all()
    assert item.length == POISSON["buckets"][0]


def test_poisson_batches_draw_each_row_by_itself():
    lengths = np.random.default_rng(0).integers(2, 17, 400)
    plan = plan_poisson(lengths, expected_rows=40, **POISSON)
    steps = np.concatenate([item.rows for item in plan])
    assert len(steps) == 52
    assert (steps[50:] == -1).all()
    sizes = (steps[:50] >= 0).sum(1)
    assert sizes.mean() == pytest.approx(40, abs=4 * np.sqrt(36 / 50))
    assert sizes.std() == pytest.approx(6, abs=2)
    for step in steps:
        members = step[step >= 0]
        assert len(set(members)) == len(members)
    # Each row is in a tenth of the batches, within the noise of the draws.
    counts = np.bincount(steps[steps >= 0], minlength=400)
    assert counts.mean() == pytest.approx(5, abs=0.45)
    assert counts.std() == pytest.approx(np.sqrt(50 * 0.1 * 0.9), abs=0.3)
    assert steps.shape[1] % 8 == 0
    for item in plan:
        assert lengths[item.rows[item.rows >= 0]].max() <= item.length


def test_poisson_batches_depend_on_the_seed_alone():
    lengths = np.full(50, 4)
    plans = [
        plan_poisson(lengths, expected_rows=5, **{**POISSON, "seed": seed})
        for seed in (0, 0, 1)
    ]
    for first, again in zip(*plans[:2], strict=True):
        np.testing.assert_array_equal(first.rows, again.rows)
    assert any(
        a.rows.shape != b.rows.shape or (a.rows != b.rows).any()
        for a, b in zip(plans[0], plans[2], strict=True)
    )


def test_all_rows_are_in_each_batch_where_all_are_expected():
    (item,) = plan_poisson(
        np.array([3, 20]),
        expected_rows=2,
        num_steps=1,
        buckets=(4, 32),
        steps_per_dispatch=1,
        seed=0,
    )
    assert item.length == 32
    np.testing.assert_array_equal(np.sort(item.rows[0])[-2:], [0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected_rows": 0}, "expected_rows in 1..3"),
        ({"expected_rows": 4}, "expected_rows in 1..3"),
        ({"expected_rows": 1, "num_steps": 0}, "num_steps > 0"),
        ({"expected_rows": 1, "buckets": (4, 8)}, "the last >= 9, the longest row"),
    ],
)
def test_poisson_plans_reject(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_poisson(np.array([3, 4, 9]), **{**POISSON, **changes})


def test_a_bucket_may_be_longer_than_the_tokens():
    tokens = Tokens(np.array([[5, 6, 7]]), np.array([[0, 0, 1]]), np.array([3]), 9)
    batch = make_batch(tokens, np.array([1]), Dispatch(5, np.array([[0, -1]])))
    assert batch.input_ids.tolist() == [[[5, 6, 7, 9, 9], [9, 9, 9, 9, 9]]]
    assert batch.token_type_ids.tolist() == [[[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]]
    assert batch.attention_mask.tolist() == [[[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]]


def test_hidden_tokens_are_gone_and_the_others_move_up():
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 9, 20).astype(np.int32)
    ids = rng.integers(1, 50, (20, 8)).astype(np.int32)
    kinds = rng.integers(0, 2, (20, 8)).astype(np.int32)
    hidden = rng.random((20, 8)) < 0.4
    tokens = tokens_lib.Tokens(ids, kinds, lengths, 99)
    found = tokens_lib.without(tokens_lib.take(tokens, np.arange(20)), hidden)
    for row, length in enumerate(lengths):
        kept = [place for place in range(length) if not hidden[row, place]]
        empty = 8 - len(kept)
        assert found.input_ids[row].tolist() == [*ids[row, kept], *[99] * empty]
        assert found.token_type_ids[row].tolist() == [*kinds[row, kept], *[0] * empty]
        assert found.lengths[row] == len(kept)
    with pytest.raises(ValueError, match=r"hidden\.shape"):
        tokens_lib.without(tokens, hidden[:3])
