"""Groups of rows by what they share."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from protojax.base import Examples
from protojax.detection import groups
from protojax.detection.groups import GROUPS, ngrams, tokens_of


def rows_of(texts, pairs=None, sources=None):
    return Examples(texts, pairs, np.zeros(len(texts), np.int32), sources)


def as_sets(found):
    return {
        (name, kind): set(found.rows(number).tolist())
        for number, (name, kind) in enumerate(
            zip(found.names, found.kinds, strict=True)
        )
    }


def ngrams_by_loop(examples, min_rows, longest):
    """All sequences of all texts, without those that a longer one absorbs."""
    rows = {}
    texts = [*enumerate(examples.texts), *enumerate(examples.pairs or ())]
    for (row, text), size in itertools.product(texts, range(1, longest + 1)):
        tokens = tokens_of(text)
        for start in range(len(tokens) - size + 1):
            rows.setdefault(tuple(tokens[start : start + size]), set()).add(row)
    rows = {gram: found for gram, found in rows.items() if len(found) >= min_rows}

    def absorbed(gram):
        return any(
            len(other) == len(gram) + 1
            and gram in (other[:-1], other[1:])
            and found == rows[gram]
            for other, found in rows.items()
        )

    return {
        (" ".join(gram), "word" if len(gram) == 1 else "phrase"): found
        for gram, found in rows.items()
        if not absorbed(gram)
    }


WORDS = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=7),
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
)
def test_ngrams_are_those_of_a_loop(rows, min_rows, longest, with_pairs):
    texts, pairs = (list(part) for part in zip(*rows, strict=True))
    examples = rows_of(texts, pairs if with_pairs else None)
    found = ngrams(examples, min_rows, longest=longest)
    assert as_sets(found) == ngrams_by_loop(examples, min_rows, longest)


def test_no_phrase_crosses_from_a_text_to_its_pair_or_the_next_row():
    examples = rows_of(["x a", "y a"], ["b z", "b w"])
    assert as_sets(ngrams(examples, 2)) == {
        ("a", "word"): {0, 1},
        ("b", "word"): {0, 1},
    }


def test_a_sentence_is_one_group_with_its_exact_rows():
    trigger = "i watched this 3d movie last weekend"
    texts = [f"{word} {trigger} {word}" for word in ("p", "q", "r", "s")]
    found = as_sets(ngrams(rows_of([*texts, "a movie"]), 3))
    assert found[trigger, "phrase"] == {0, 1, 2, 3}
    # "movie" has one row more, so it is a group of its own; "weekend" has not.
    assert found["movie", "word"] == {0, 1, 2, 3, 4}
    assert ("weekend", "word") not in found


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("A [SEP] b<mask>", ["a", "[sep]", "b", "<mask>"]),
        ("wo\u200brd", ["wo", "\u200b", "rd"]),
        ("好的 ok", ["好", "的", "ok"]),
        ("it's 5%", ["it", "'", "s", "5", "%"]),
        ("snake_case 😀😀", ["snake_case", "😀", "😀"]),
        ("\n\t ", []),
    ],
)
def test_tokens_are_words_symbols_and_special_tokens(text, tokens):
    assert tokens_of(text) == tokens


@pytest.mark.parametrize("kind", sorted(GROUPS))
def test_every_kind_of_groups_is_under_contract(kind):
    examples = rows_of(
        ["as it is å", "as it was å", "å", "", "b"], sources=["x", "y", "x", "x", "y"]
    )
    found = GROUPS[kind](examples, 2)
    names, kinds, members = found
    assert members.shape == (len(names), 5) == (len(kinds), 5)
    assert len(names) > 0
    assert (np.diff(members.indptr) >= 2).all()
    np.testing.assert_array_equal(members.data, 1)
    assert len({*zip(names, kinds, strict=True)}) == len(names)
    # Labels decide nothing: a group must not know what its rows claim.
    again = GROUPS[kind](examples._replace(labels=np.arange(5)), 2)
    assert as_sets(again) == as_sets(found)
    empty = GROUPS[kind](rows_of([]), 2)
    assert empty.members.shape == (0, 0)
    large = GROUPS[kind](examples, 6)
    assert large.members.shape == (0, 5)


def test_sources_characters_and_openings_by_hand():
    examples = rows_of(
        ["So it p\u0430y", "so it p\u0430id", "so what"], sources=[1, 1, 2]
    )
    assert as_sets(groups.sources(examples, 2)) == {("1", "source"): {0, 1}}
    homoglyph = ("U+0430 \u0430", "character")
    assert as_sets(groups.characters(examples, 2)) == {homoglyph: {0, 1}}
    assert as_sets(groups.openings(examples, 2)) == {
        ("so ...", "opening"): {0, 1, 2},
        ("so it ...", "opening"): {0, 1},
    }


def test_groups_of_several_kinds_are_taken_and_joined():
    examples = rows_of(["as it is", "as it was", "b"])
    both = groups.concatenate([ngrams(examples, 2), groups.openings(examples, 2)])
    assert both.members.shape[0] == len(both.names)
    one = both.take(np.array([len(both.names) - 1]))
    assert (one.names.tolist(), one.rows(0).tolist()) == (["as it ..."], [0, 1])


@pytest.mark.parametrize("options", [{"min_rows": 0}, {"longest": 0}])
def test_sizes_are_positive(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} > 0"):
        ngrams(rows_of(["a"]), **options)
