"""What measurements of privacy refuse, and what they say at their edges."""

import numpy as np
import pytest
from scipy import special, stats

from protojax.base import Examples
from protojax.privacy.blind import Blind, blind_auc, require_blind
from protojax.privacy.canaries import adaptive, outliers, twins
from protojax.privacy.dp_audit import ceiling, one_run_ceiling, require_stated
from protojax.privacy.exposure import (
    attempts_needed,
    discoverable,
    emitted,
    greedily_discoverable,
    suffix_tree_log_probs,
)
from protojax.privacy.leakage import leakage, naturally_worst, null_check
from protojax.privacy.membership_attacks import (
    MEMBERSHIP_ATTACKS,
    Moments,
    log_ratio,
    rmia,
)
from protojax.privacy.memberships import (
    candidates,
    coin_flips,
    complement_of,
    complementary_halves,
    drawn_anew,
)
from protojax.privacy.overlap import clean_rows, require_clean, scan
from protojax.privacy.probes import planted, prefix_probes, repetition_probes
from protojax.privacy.rates import (
    bootstrap_band,
    bootstrap_interval,
    clopper_pearson,
    found_rates,
    mean_of_members,
    smallest_rate,
    true_positive_rate,
)

RNG = np.random.default_rng(0)
MEMBERS = complementary_halves(40, 6, seed=0)
EVIDENCE = RNG.normal(size=MEMBERS.shape)
TEXTS = ["one two", "two three"] * 5
HITS = mean_of_members(MEMBERS, MEMBERS)
FOUR = Examples(["a", "b", "c", "d"], None, np.array([0, 1, 0, 1]))
LINE = np.array([[0.0], [1.0], [9.0], [2.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planted(RNG, num_secrets=0), "num_secrets > 0"),
        (lambda: planted(RNG, num_secrets=1, kinds=()), "num_kinds > 0"),
        (lambda: planted(RNG, num_secrets=1, repetitions=()), "num_repetitions > 0"),
        (lambda: planted(RNG, num_secrets=1, repetitions=(1, 0)), "repetitions > 0"),
        (lambda: prefix_probes(["a b"], num_words=0), "num_words > 0"),
        (lambda: prefix_probes(["a b"], num_words=1, least_rest=0), "least_rest > 0"),
        (lambda: repetition_probes(["a"], times=0), "times > 0"),
        (lambda: coin_flips(0, seed=0), "num_rows > 0"),
        (lambda: coin_flips(1, 0, seed=0), "num_pipelines > 0"),
        (lambda: coin_flips(1, seed=0, rate=1.0), r"rate in \(0, 1\)"),
        (lambda: blind_auc(TEXTS, MEMBERS[0, :10], num_draws=0), "num_draws > 0"),
        (lambda: blind_auc(TEXTS[1:], MEMBERS[0, :10]), "number of rows"),
        (lambda: discoverable([-1.0], n=0, p=0.5), "n > 0"),
        (lambda: attempts_needed([-1.0], p=0.0), r"p in \(0, 1\)"),
        (lambda: attempts_needed([np.nan], p=0.5), "log_probs <= 0"),
        (lambda: emitted(["a"], ["a", ""]), "secrets not empty"),
        (lambda: greedily_discoverable(np.zeros((1, 2, 3)), [[0]]), r"ids\.shape"),
        (
            lambda: suffix_tree_log_probs(None, (), np.zeros((1, 3)), np.array([]), 1),
            "symbols > 0",
        ),
        (
            lambda: suffix_tree_log_probs(None, (), np.zeros((2, 3)), np.arange(2), 1),
            "rows 1, found rows=2",
        ),
        (
            lambda: outliers(FOUR, None, vectors=LINE, neighbours=0, share=0.25),
            r"neighbours in \[1, 3\], found neighbours=0",
        ),
        (
            lambda: adaptive(
                FOUR,
                RNG,
                vectors=LINE,
                public_vectors=LINE[:2],
                neighbours=0,
                share=0.25,
            ),
            r"neighbours in \[1, 2\]",
        ),
        (lambda: twins(FOUR._replace(labels=[0]), RNG), "number of rows"),
        (lambda: scan(["a"], ["b"], ngram=0), "ngram > 0"),
        (lambda: scan(["a"], ["b"], shingle=0), "shingle > 0"),
        (lambda: scan(["a"], ["b"], similarity=1.1), r"similarity in \(0, 1\]"),
        (
            lambda: clean_rows(["a"], ["b"], action="warn", name="public"),
            "action one of error, drop",
        ),
        (lambda: naturally_worst(EVIDENCE, MEMBERS, share=1.0), r"share in \(0, 1\)"),
        (
            lambda: null_check(
                MEMBERSHIP_ATTACKS["lira"], EVIDENCE, MEMBERS, num_draws=1
            ),
            "num_draws >= 2",
        ),
        (
            lambda: true_positive_rate([1.0], [True], max_false_positive_rate=-0.1),
            r"max_false_positive_rate in \[0, 1\]",
        ),
        (lambda: found_rates(EVIDENCE, MEMBERS, levels=()), "num_levels > 0"),
        (
            lambda: found_rates(EVIDENCE, MEMBERS, levels=(0.1,), where=MEMBERS),
            "num_non_members > 0",
        ),
        (lambda: mean_of_members(MEMBERS, MEMBERS[:2]), r"members\.shape"),
        (lambda: mean_of_members(MEMBERS, MEMBERS, where=MEMBERS[0]), r"where\.shape"),
        (lambda: bootstrap_interval(HITS, MEMBERS, confidence=1.0), "confidence in"),
        (lambda: bootstrap_interval(HITS, MEMBERS, num_draws=0), "num_draws > 0"),
        (
            lambda: bootstrap_interval(HITS, MEMBERS, groups=np.zeros(40)),
            "number of groups >= 2",
        ),
        (
            lambda: bootstrap_interval(HITS, MEMBERS, groups=np.zeros(39)),
            r"groups\.shape \(40,\)",
        ),
        (lambda: ceiling(0, 1), "num_members > 0"),
        (lambda: ceiling(1, 1, significance=0.0), r"significance in \(0, 1\)"),
        (lambda: one_run_ceiling(0), "num_guesses > 0"),
        (lambda: one_run_ceiling(1, significance=1.0), r"significance in \(0, 1\)"),
    ],
)
def test_what_cannot_be_measured_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_guess_refutes_next_to_nothing():
    assert one_run_ceiling(1) == 0
    # 0.05 of being right by guessing alone, q^n = 0.05 at q = 1 / (1 + e^-epsilon).
    found = [one_run_ceiling(count) for count in (1, 5, 20, 1000)]
    assert found == sorted(found)
    chance = special.expit(found[2])
    assert chance**20 == pytest.approx(0.05)
    assert ceiling(1, 1) == 0
    assert ceiling(50, 200) > ceiling(50, 50) > ceiling(10, 50)


def test_a_bound_that_is_the_stated_epsilon_holds():
    require_stated(1.0, 1.0)
    with pytest.raises(ValueError, match="stated epsilon 1 does not hold"):
        require_stated(1.0001, 1.0)


def test_words_at_chance_are_no_difference():
    assert not Blind(0.6, (0.5, 0.7)).above_chance
    require_blind(Blind(0.4, (0.3, 0.49)))
    with pytest.raises(ValueError, match=r"0\.600 \[0\.510, 0\.700\]"):
        require_blind(Blind(0.6, (0.51, 0.7)))


def test_offline_ratios_of_a_population_by_hand():
    """Six pipelines of three pairs; the fifth is attacked with the first four."""
    members = np.array([True, False] * 3)[:, None]
    confidences = np.array([0.5, 0.1, 0.7, 0.3, 0.8, 0.9])[:, None]
    population = np.full((6, 3), 0.2)
    population[4] = 0.2, 0.4, 0.9
    # p(x) = (1.3 · 0.2 + 0.7) / 2 for the row and for each of the population.
    ratio = 0.8 / 0.48
    beaten = [ratio >= value / 0.48 for value in population[4]]
    found = rmia(confidences, members, population, a=0.3)
    assert found[4, 0] == np.mean(beaten) == 2 / 3
    # A row must beat others twice over.
    strict = rmia(confidences, members, population, a=0.3, gamma=3.0)
    assert strict[4, 0] == 1 / 3


def test_a_ratio_of_equal_moments_is_nothing():
    scores = np.random.default_rng(0).normal(size=(4, 3))
    same = Moments(np.full((4, 3), 2), scores + 1, np.full((4, 3), 0.5))
    assert not log_ratio(scores, same, same).any()
    other = same._replace(mean=scores - 2, variance=np.full((4, 3), 2.0))
    found = log_ratio(scores, same, other)
    wanted = stats.norm.logpdf(1, scale=0.5**0.5) - stats.norm.logpdf(2, scale=2**0.5)
    np.testing.assert_allclose(found, wanted)


def test_pipelines_without_an_opposite_are_their_own():
    members = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1]], bool)
    assert complement_of(members).tolist() == [1, 0, 2]
    assert candidates(members).tolist() == [True, True, True, False]
    # Two of one half and one of the other: only one pair is found.
    twice = members[[0, 0, 1]]
    found = complement_of(twice)
    assert sorted(found.tolist()) in ([0, 1, 2], [0, 2, 2])
    assert found[found[2]] == 2
    assert complement_of(np.zeros((0, 3))).tolist() == []


def test_memberships_of_an_odd_number_of_rows_are_nearly_halves():
    pairs = complementary_halves(9, 4, seed=0, groups=np.arange(9))
    found = drawn_anew(pairs, np.random.default_rng(1))
    np.testing.assert_array_equal(found[0], ~found[1])
    assert {*found.sum(1)} == {4, 5}
    coins = coin_flips(4000, 3, seed=0, rate=0.2)
    drawn = drawn_anew(coins, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn != coins).mean() == pytest.approx(2 * 0.2 * 0.8, abs=0.03)


@pytest.mark.parametrize(
    ("others", "rate"), [(0, 1.0), (5, 1.0), (10, 1.0), (100, 0.1), (1000, 0.01)]
)
def test_the_smallest_rate_takes_ten_false_alarms(others, rate):
    members = np.arange(others + 3) < 3
    assert smallest_rate(members) == pytest.approx(rate)


def test_all_alarms_allowed_find_every_member():
    evidence, members = np.array([1.0, 0.0, 5.0]), np.array([True, True, False])
    given = {"max_false_positive_rate": 1.0, "fewest": 0}
    assert true_positive_rate(evidence, members, **given) == 1
    assert true_positive_rate(evidence[:2], members[:2], **given) == 1
    assert (
        true_positive_rate(evidence[:2], members[:2], max_false_positive_rate=1) is None
    )


def test_the_ends_of_exact_intervals():
    assert clopper_pearson(0, 1) == (0, 0.975)
    assert clopper_pearson(3, 3)[1] == 1
    low, high = clopper_pearson(4, 10, confidence=0.5)
    assert 0.2 < low < 0.4 < high < 0.6


def test_a_figure_that_never_varies_has_a_band_without_width():
    low, high = bootstrap_band(
        lambda pipelines, rows: np.full(
            (len(rows if pipelines is None else pipelines), 2), [0.25, 0.5]
        ),
        MEMBERS,
        num_draws=60,
    )
    assert low.tolist() == high.tolist() == [0.25, 0.5]


def test_planted_rows_alone_are_measured_by_themselves():
    """Without ordinary rows accuracy is that of all, and none is naturally worst."""
    members = complementary_halves(300, 8, seed=0)
    scores = np.random.default_rng(0).normal(size=members.shape) + 4 * members
    found = leakage(
        np.stack([scores, 0 * scores], -1),
        members,
        np.zeros(300, int),
        kinds=np.full(300, "twin"),
        attacks=["lira"],
        num_draws=5,
    )
    assert found.kinds == ("twin",)
    assert found.worst.kind == "twin"
    assert found.member_accuracy == pytest.approx((scores > 0)[members].mean())
    assert found.accuracy == pytest.approx((scores > 0)[~members].mean())
    assert {*found.smallest_rates} == {"twin"}


def test_a_row_is_dropped_whatever_check_it_fails(caplog):
    private = ["book a table for 5 people tonight", "play some jazz"]
    texts = ["Play SOME jazz!", "stop", "book a table for 7 people tonight"]
    kept = clean_rows(texts, private, action="drop", name="public")
    assert kept.tolist() == [False, True, False]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of 3 public rows hold something")
    assert "exact: 1" in record.getMessage()
    assert "jazz" not in record.getMessage()
    with pytest.raises(
        ValueError, match="number of public rows some that hold nothing"
    ):
        clean_rows(texts[:1], private, action="drop", name="public")
    with pytest.raises(ValueError, match=r"of 3 rows.* Or --overlap drop\."):
        clean_rows(texts, private, action="error", name="public")


def test_checks_that_are_accepted_may_fail():
    found = scan(["play some jazz", "play some jaz"], ["play some jazz"])
    assert found.counts() == {
        "exact": 1, "ngram": 0, "near": 2, "template": 0, "secret": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match="found exact: 1 of 2 rows"):
        require_clean(found, accepted=["near"])
    require_clean(found, accepted=["near", "exact"])
