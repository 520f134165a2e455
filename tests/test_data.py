import logging

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protojax.base import Examples
from protojax.data import (
    concatenate,
    fingerprint,
    held_out,
    rows_to_hold_out,
    sample_rows,
    split,
    take,
)


def make_examples(num_rows, num_classes=2, pairs=False, prefix="text"):
    texts = [f"{prefix} {row}" for row in range(num_rows)]
    seconds = [f"pair {row}" for row in range(num_rows)]
    labels = np.arange(num_rows, dtype=np.int32) % num_classes
    return Examples(texts, seconds if pairs else None, labels)


def same_examples(a, b):
    return a[:2] == b[:2] and np.array_equal(a.labels, b.labels)


def test_take_keeps_columns_together():
    taken = take(make_examples(5, pairs=True), np.array([3, 0]))
    assert taken.texts == ["text 3", "text 0"]
    assert taken.pairs == ["pair 3", "pair 0"]
    assert taken.labels.tolist() == [1, 0]
    assert taken.labels.dtype == np.int32


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_sample_rows_is_stratified(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    num_rows = len(counts) + int(fraction * (len(labels) - len(counts)))
    rows = sample_rows(labels, num_rows, rng=np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows) == num_rows
    found = np.bincount(labels[rows], minlength=len(counts))
    share = np.array(counts) * num_rows / len(labels)
    assert (found >= 1).all()
    assert (found < np.maximum(share + 1, 1.5)).all()


def test_sample_rows_of_scores_is_uniform():
    scores = np.linspace(0, 5, 30, dtype=np.float32)
    rows = sample_rows(scores, 4, rng=np.random.default_rng(0))
    assert len(set(rows.tolist())) == 4


@pytest.mark.parametrize("num_rows", [0, 9])
def test_sample_rows_rejects_impossible_sizes(num_rows):
    with pytest.raises(ValueError, match=rf"in \[1, 8\].*num_rows={num_rows}"):
        sample_rows(np.arange(8) % 2, num_rows, rng=np.random.default_rng(0))


def test_sample_rows_needs_one_row_of_each_class():
    with pytest.raises(ValueError, match="num_rows >= 4, one row of each class"):
        sample_rows(np.arange(8) % 4, 3, rng=np.random.default_rng(0))


@pytest.mark.parametrize("pairs", [False, True])
def test_split_divides_all_rows(pairs):
    train, test = make_examples(50, 3, pairs), make_examples(9, 3, pairs, "other")
    parts = split(train, test, transfer_rows=0, reference_rows=12, seed=3)
    texts = [set(part.texts) for part in parts[:3]]
    assert list(map(len, texts)) == [38, 12, 9]
    assert texts[0] | texts[1] == set(train.texts)
    assert np.bincount(parts.references.labels).tolist() == [4, 4, 4]
    assert parts.removed == 0
    for part in parts[:2]:
        rows = [int(text.split()[1]) for text in part.texts]
        assert same_examples(part, take(train, rows))


def test_split_is_deterministic_and_nested():
    train, test = make_examples(60), make_examples(20, prefix="other")
    settings = {"reference_rows": 10, "test_rows": 5}
    first = split(train, test, transfer_rows=20, seed=1, **settings)
    again = split(train, test, transfer_rows=20, seed=1, **settings)
    assert all(map(same_examples, first[:3], again[:3]))
    larger = split(train, test, transfer_rows=30, seed=1, **settings)
    assert same_examples(first.references, larger.references)
    assert list(larger.transfer.texts[:20]) == list(first.transfer.texts)
    other = split(train, test, transfer_rows=20, seed=2, **settings)
    assert set(other.references.texts) != set(first.references.texts)
    assert len(first.test.texts) == 5
    assert set(first.test.texts) <= set(test.texts)


def test_split_takes_at_most_what_there_is():
    parts = split(
        make_examples(12),
        make_examples(3, prefix="other"),
        transfer_rows=100,
        reference_rows=4,
        test_rows=100,
        seed=0,
    )
    assert [len(part.texts) for part in parts[:3]] == [8, 4, 3]


def test_split_removes_and_logs_duplicates(caplog):
    train = make_examples(20)._replace(
        texts=["Same  text", "same text ", "IN TEST", *map(str, range(17))]
    )
    test = Examples(["in test", "x"], None, np.array([0, 1], np.int32))
    with caplog.at_level(logging.INFO, "protojax"):
        parts = split(train, test, transfer_rows=0, reference_rows=6, seed=0)
    assert parts.removed == 2
    assert "2 duplicates removed" in caplog.text
    kept = [*parts.transfer.texts, *parts.references.texts]
    assert sorted(kept) == sorted(["Same  text", *map(str, range(17))])


def test_split_compares_both_texts_of_a_pair():
    train = make_examples(10, pairs=True)._replace(texts=["same"] * 10)
    test = Examples(["same"], ["pair 4"], np.array([0], np.int32))
    parts = split(train, test, transfer_rows=0, reference_rows=4, seed=0)
    assert parts.removed == 1
    assert "pair 4" not in [*parts.transfer.pairs, *parts.references.pairs]


def test_split_of_scores():
    train = make_examples(20)._replace(labels=np.linspace(0, 5, 20, dtype=np.float32))
    test = Examples(["x"], None, np.array([2.5], np.float32))
    parts = split(train, test, transfer_rows=8, reference_rows=6, seed=0)
    assert [len(part.texts) for part in parts[:3]] == [8, 6, 1]
    assert parts.references.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "test_label", "reference_rows", "message"),
    [
        ([0, 1] * 4, 0, 8, "reference_rows < 8, .*found reference_rows=8"),
        ([0, 2] * 4, 0, 4, "of each of 3 classes, found none of class 1"),
        ([0, 1] * 4, 2, 4, "of each of 3 classes, found none of class 2"),
        ([0, 0] * 4, 0, 4, "at least two classes"),
        ([0, 1] * 4, 0, 1, "num_rows >= 2, one row of each class"),
        ([0, 1] * 4, 0, 0, "reference_rows > 0"),
        ([0, 1] * 3, 0, 4, "same number of rows"),
    ],
)
def test_split_errors(labels, test_label, reference_rows, message):
    train = make_examples(8)._replace(labels=np.array(labels, np.int32))
    test = Examples(["x"], None, np.array([test_label], np.int32))
    with pytest.raises(ValueError, match=message):
        split(train, test, transfer_rows=0, reference_rows=reference_rows, seed=0)


def test_a_class_without_a_row_is_called_by_its_name():
    train = make_examples(8)
    test = Examples(["x"], None, np.array([2], np.int32))
    names = ("neg", "pos", "third")
    with pytest.raises(ValueError, match="found none of class 'third'"):
        split(train, test, transfer_rows=0, reference_rows=4, seed=0, label_names=names)


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    fraction=st.floats(0, 0.5),
)
@settings(max_examples=50, deadline=None)
def test_the_only_row_of_a_class_is_not_held_out(counts, fraction):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    spare = [count for count in counts if count > 1]
    if not spare:
        with pytest.raises(ValueError, match="a class of two rows"):
            rows_to_hold_out(labels, 1)
        return
    num_rows = max(len(spare), int(fraction * sum(spare)))
    rows = rows_to_hold_out(labels, num_rows)
    assert len(set(rows.tolist())) == len(rows) == num_rows
    found = np.bincount(labels[rows], minlength=len(counts))
    assert ((found > 0) == (np.array(counts) > 1)).all()
    train = Examples([str(row) for row in range(len(labels))], None, labels)
    rest, chosen = held_out(train, num_rows)
    assert set(rest.labels) == set(labels)
    assert chosen.texts == [str(row) for row in rows]


@pytest.mark.parametrize("scale", [1, 1.5])
def test_where_no_class_has_one_row_the_choice_is_of_all_rows(scale):
    labels = np.arange(20) % 3 * scale
    chosen = sample_rows(labels, 5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(rows_to_hold_out(labels, 5), chosen)


def test_concatenate_keeps_columns_together():
    first, second = make_examples(3, pairs=True), make_examples(2, pairs=True)
    both = concatenate(first, second)
    same_examples(take(both, range(3)), first)
    same_examples(take(both, range(3, 5)), second)
    assert both.labels.dtype == np.int32


def test_fingerprint_is_pinned():
    # A change of this value makes every cache on disk stale.
    value = fingerprint("text", np.arange(3, dtype=np.int32))
    assert value == "fd1e52f4b0843d51f89de4017ac492119f455d6d1041127211d86585d22bc8a4"
    assert value == fingerprint("text", jnp.arange(3, dtype=jnp.int32))


def test_fingerprint_tells_apart_what_differs():
    zeros = np.zeros(4, np.float32)
    values = [
        (),
        ("",),
        ("", ""),
        ("ab", "c"),
        ("a", "bc"),
        (zeros,),
        (zeros.reshape(2, 2),),
        (zeros.astype(np.int32),),
        (zeros[:0],),
        (zeros[:2], zeros[:2]),
        (np.float32(0),),
        ("\ud800",),
    ]
    assert len({fingerprint(*value) for value in values}) == len(values)


def test_fingerprint_ignores_memory_layout():
    array = np.arange(6.0).reshape(2, 3)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array))


def test_fingerprint_rejects_objects():
    with pytest.raises(ValueError, match="dtype plain"):
        fingerprint(np.array([None]))
