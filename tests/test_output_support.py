"""What references make one expect of an output, and words as claims."""

import numpy as np
import pytest
from scipy import sparse

from protojax.base import Texts
from protojax.detection.excess import Claims, Excess, Units, units_of
from protojax.detection.explanations import explain
from protojax.detection.outputs.support import expected, fit_support, incidence
from protojax.detection.outputs.units import NEW, foreign, words_claimed
from tests.test_excess import groups_of


def tables(sources, outputs):
    """Incidences over one vocabulary, and the vocabulary."""
    vocabulary = {}
    parts = [incidence(texts, vocabulary) for texts in (sources, outputs)]
    for part in parts:
        part.resize(part.shape[0], len(vocabulary))
    return *parts, vocabulary


def random_texts(seed, rows, words=12, length=4):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{n}" for n in rng.integers(words, size=rng.integers(length + 1)))
        for _ in range(rows)
    ]


def test_three_references_by_hand():
    """Two sources have "red", and one of these outputs has it: (1 + 4 · 0.5) / 6."""
    read, written, words = tables(["red car", "red bus", "bus"], ["red", "car", "bus"])
    found = fit_support(read, written, shrinkage=4.0)
    assert found.base[words["red"]] == pytest.approx(1.5 / 4)
    # "red" and "bus" are in two sources each, and copied in one each: (2 + 0.5) / 5.
    assert found.copy[words["red"]] == pytest.approx((1 + 4 * 0.5) / 6)
    # "car" is the only word of one source, and was not copied: (0 + 0.5) / 2.
    assert found.copy[words["car"]] == pytest.approx(4 * 0.25 / 5)
    # "car" given "red": one of two, shrunk to its base of 1.5 / 4.
    table = found.table.toarray()
    assert table[words["red"], words["car"]] == pytest.approx((1 + 4 * 0.375) / 6)
    raw = fit_support(read, written, own=False)
    np.testing.assert_allclose(raw.copy[[words["red"], words["bus"]]], 0.5)


@pytest.mark.parametrize("own", [True, False])
def test_the_expectation_is_that_of_a_loop(own):
    sources, outputs = random_texts(0, 40), random_texts(1, 40)
    read, written, words = tables(sources, outputs)
    support = fit_support(read, written, own=own)
    n = len(sources)
    for word, unit in words.items():
        found = expected(support, read.T.tocsr(), unit)
        base = (sum(word in o.split() for o in outputs) + 0.5) / (n + 1)
        for row, source in enumerate(sources):
            wanted = base
            for other in {*source.split()}:
                having = [i for i in range(n) if other in sources[i].split()]
                both = sum(word in outputs[i].split() for i in having)
                if other != word and both:
                    wanted = max(wanted, (both + 4 * base) / (len(having) + 4))
            if word in source.split():
                wanted = max(wanted, support.copy[unit])
            assert found[row] == pytest.approx(wanted)


def test_a_word_that_no_reference_has_is_improbable_wherever_it_is():
    pool = Texts(["a zebra", "a cat"], ["zebra", "sat"])
    trusted = Texts(["a dog", "a cow"], ["dog", "cow"])
    units = words_claimed(pool, trusted, shrinkage=4.0, own=True)
    sat = [*units.values].index("sat")
    np.testing.assert_allclose(units.expected(sat), 0.5 / 3)
    # Copied as words that one source has are: of "a", "dog" and "cow" two.
    zebra = units.expected([*units.values].index("zebra"))
    assert zebra[0] > zebra[1] == pytest.approx(0.5 / 3)


def test_a_new_word_is_in_neither_the_source_nor_any_trusted_output():
    pool = Texts(["a cat"] * 4, ["cat", "dog", "zebra", "sat zebra"])
    trusted = Texts(["a dog", "a cow", "a pig"], ["dog sat", "cow sat", "pig ran"])
    units = words_claimed(pool, trusted, shrinkage=4.0, own=True)
    assert units.values[-1] == NEW
    assert units.made_by(len(units.values) - 1).tolist() == [False, False, True, True]
    # "ran" is new in one of three, for the other two.
    np.testing.assert_allclose(units.expected(len(units.values) - 1), 1.5 / 4)


def test_only_claims_above_the_rate_of_all_rows_are_kept():
    """The pairs of a screened search are the strong ones of all pairs."""
    rng = np.random.default_rng(3)
    made = sparse.csc_array((rng.random((80, 15)) < 0.2).astype(np.float32))
    chance = rng.uniform(0.02, 0.1, (80, 15))
    names = np.full(15, "word")
    units = Units(names, names.astype(object), made, lambda unit: chance[:, unit])
    members = [np.flatnonzero(rng.random(80) < 0.2) for _ in range(30)]
    groups = groups_of(*members, range(80), rows=80)
    kept, whole = Excess(groups, units, 0.0, 2.0), Excess(groups, units, 0.0)
    z = whole.z(whole.pairs.data, np.repeat(np.arange(31), 15)).reshape(31, 15)
    found = np.full((31, 15), -np.inf)
    for group in range(31):
        pairs = kept.pairs[[group]]
        z_of_pairs = kept.z(pairs.data, np.full(pairs.nnz, group))
        found[group, pairs.indices] = z_of_pairs
    known = found > -np.inf
    np.testing.assert_allclose(found[known], z[known])
    assert (z[known] >= 2).all()
    rate = made.toarray().mean(0)
    for group, unit in zip(*np.nonzero((z >= 2) & ~known), strict=True):
        size, share = len(members[group]), rate[unit]
        count = made.toarray()[members[group], unit].sum()
        assert count - size * share < 2 * np.sqrt(size * share * (1 - share) + 0.5)
    # All rows are never above their own rate, and are looked at all the same.
    np.testing.assert_array_equal(known[30], z[30] >= 2)


def test_a_class_is_the_case_of_one_unit_a_row():
    rng = np.random.default_rng(0)
    classes, chance = rng.integers(0, 2, 200), np.full((200, 2), 0.5)
    classes[:25] = 1
    members = [range(25), *[rng.choice(200, 20, replace=False) for _ in range(8)]]
    groups = groups_of(*members, rows=200)
    by_class = units_of([Claims("label", classes, chance)])
    by_word = by_class._replace(exclusive=False)
    first, other = (explain(groups, units)[0] for units in (by_class, by_word))
    assert (first.name, first.unit, first.z) == (other.name, other.unit, other.z)
    np.testing.assert_array_equal(first.claimants, other.claimants)


def test_words_are_explained_one_by_one():
    """What one word's excess explains leaves the other words of a row as they were."""
    made = np.zeros((60, 2), np.float32)
    made[:20] = 1
    units = Units(
        np.full(2, "word"),
        np.array(["call", "now"], object),
        sparse.csc_array(made),
        lambda unit: np.full(60, 0.01),
    )
    groups = groups_of(range(20), range(30, 60), rows=60)
    found = explain(groups, units, overdispersion=0.0)
    assert [units.values[one.unit] for one in found] == ["call", "now"]
    assert found[0].z == pytest.approx(found[1].z)
    assert found[0].z == pytest.approx(19.8 / np.sqrt(20 * 0.0099 + 0.5))


def test_foreign_outputs_are_those_below_the_trusted():
    units = foreign([-1.0, 0.05, 0.2, 0.9, np.nan], np.linspace(0, 1, 100))
    np.testing.assert_array_equal(
        units.made.toarray(),
        [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]],
    )
    shares = [units.expected(unit)[0] for unit in range(3)]
    np.testing.assert_allclose(shares, np.array([3, 11, 31]) / 101)
