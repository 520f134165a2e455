"""Figures of traps at their edges, and what is said of them."""

import math

import jax
import numpy as np
import pytest

from protojax.distillability import traps
from protojax.distillability.diagnosis import headline, lower_drop, traps_of, worst
from protojax.distillability.long_horizon import later_rewards, long_horizon_loss
from tests.test_attackers import figures
from tests.writers import writer_apply, writer_head

STUDENT, TEACHER = np.float32(np.random.default_rng(0).normal(size=(2, 4, 6)))
IDS = np.array([0, 5, 2, 2], np.int32)
READ = jax.jit(traps.token_readings, static_argnames="k")


def softmax(logits):
    return np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()


@pytest.mark.parametrize("k", [1, 4, 6])
def test_readings_are_a_loop_over_tokens(k):
    found = READ(STUDENT, TEACHER, IDS, k=k)
    for place, token in enumerate(IDS):
        q, p = softmax(STUDENT[place]), softmax(TEACHER[place])
        tail = np.argsort(-p)[k:]
        slope = np.square(q - p)
        wanted = traps.Readings(
            teacher_log_prob=np.log(p[token]),
            student_log_prob=np.log(q[token]),
            forward_kl=(p * np.log(p / q)).sum(),
            reverse_kl=(q * np.log(q / p)).sum(),
            overlap=1 - np.abs(p - q).sum() / 2,
            tail_mass=p[tail].sum(),
            tail_share=slope[tail].sum() / slope.sum(),
        )
        for value, other in zip(found, wanted, strict=True):
            assert value[place] == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("divergence", traps.SLOPES)
def test_a_token_that_the_student_cannot_write_is_no_nan(divergence):
    never = np.where(np.arange(6) == 3, -np.inf, STUDENT[0]).astype(np.float32)
    found = traps.tail_gradient_share(never, TEACHER[0], 2, divergence=divergence)
    assert 0 <= found <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: traps.tail_gradient_share(STUDENT, TEACHER, 0), "k in 1..6"),
        (lambda: traps.tail_gradient_share(STUDENT, TEACHER, 7), "found k=7"),
        (lambda: traps.tail_gradient_share(STUDENT, TEACHER[0], 1), "student_logits"),
        (
            lambda: traps.tail_gradient_share(
                STUDENT, TEACHER, 1, divergence="jensen_shannon"
            ),
            "divergence one of forward_kl, reverse_kl",
        ),
        (lambda: traps.tail_mass(TEACHER, 7), "k"),
        (lambda: traps.overlap(STUDENT, TEACHER[:2]), r"student_logits\.shape \(2, 6"),
        (lambda: traps.sampled_overlap([-1.0], [-1.0, -2.0]), "number of rows"),
        (lambda: traps.text_gap([-1.0], [-1.0, -2.0]), "number of rows"),
        (lambda: traps.text_gap([], []), "values > 0"),
        (lambda: traps.by_position(np.zeros((2, 3)), np.ones(3)), r"where\.shape"),
        (lambda: traps.executability([[True]], [[1.0, 0.0]]), r"weights\.shape"),
        (lambda: traps.executability([[True]], [[-1.0]]), "weights >= 0"),
        (lambda: traps.executability(np.ones((0, 2)), np.ones((0, 2))), "weights > 0"),
        (lambda: traps.chain_faithfulness([True], []), "number of rows"),
        (lambda: worst([], least=1.5), r"least in \[0, 1\]"),
        (
            lambda: long_horizon_loss(writer_apply, writer_head, horizon_weight=-1.0),
            "horizon_weight >= 0",
        ),
        (
            lambda: long_horizon_loss(writer_apply, writer_head, least=0.0),
            "least < 0",
        ),
        (lambda: long_horizon_loss(writer_apply, writer_head, chunk=0), "chunk > 0"),
        (
            lambda: later_rewards(np.zeros((1, 2)), np.zeros((1, 3)), np.ones((1, 2))),
            r"student_log_probs\.shape \(1, 2\)",
        ),
    ],
)
def test_what_has_no_figure_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_value_of_what_follows_is_a_loop():
    teacher, student = np.float32(np.random.default_rng(0).normal(size=(2, 3, 5)))
    where = np.arange(5) < np.array([[5], [2], [0]])
    bad = np.where(where, teacher, np.nan)
    found = later_rewards(bad, student, where)
    for row, place in np.ndindex(3, 5):
        rest = where[row] & (np.arange(5) > place)
        wanted = (teacher[row] - student[row])[rest].sum()
        assert found[row, place] == pytest.approx(wanted, abs=1e-5)


def test_values_behind_the_mask_are_not_read():
    values = np.array([[1.0, np.nan, 3.0], [2.0, np.inf, np.nan]])
    means, counts = traps.by_position(values, np.isfinite(values))
    assert counts.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(means, [1.5, np.nan, 3.0])
    means, counts = traps.by_position(np.zeros((0, 2)), np.zeros((0, 2)))
    assert (np.isnan(means).all(), counts.tolist()) == (True, [0, 0])


def test_outcomes_that_the_reader_cannot_write_are_not_shared():
    found = traps.sampled_overlap([-1.0, -2.0, -1.0], [-np.inf, -2.0, 0.0])
    assert found.tolist() == [0, 1, 1]


def test_a_pair_that_is_equal_has_no_gap():
    assert traps.text_gap([-4.0, -7.0], [-4.0, -7.0]) == (0, 0)
    gap, error = traps.text_gap([-4.0], [-6.0])
    assert (gap, math.isnan(error)) == (2, True)


@pytest.mark.parametrize(
    ("first", "second", "count", "other", "drop"),
    [
        # Shares of 1 / 2 and of 1 / 4, with one success and one failure more.
        (0.5, 0.25, 4, 4, 0.5 - 2 / 6 - 1.96 * math.sqrt(1 / 24 + 1 / 27)),
        # A known share has no error.
        (0.5, 0.0, 8, math.inf, 0.5 - 1.96 * math.sqrt(0.25 / 10)),
        (0.7, 0.2, math.inf, math.inf, 0.5),
    ],
)
def test_the_lower_end_of_a_drop_by_hand(first, second, count, other, drop):
    assert lower_drop(first, second, count, other) == pytest.approx(drop)


def test_few_texts_that_are_all_right_prove_little():
    assert lower_drop(1.0, 0.0, 1, 1) < 0 < lower_drop(1.0, 0.0, 4, 4)
    ends = [lower_drop(0.8, 0.5, count, count) for count in (8, 32, 128, 10**6)]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(0.3, abs=2e-3)


def test_drift_is_judged_at_the_longest_beginning_that_half_of_the_texts_have():
    given = {"starts": (0, 2, 4, 8), "continuations": (0.8, 0.6, 0.4, 0.0)}
    drift = traps_of(figures(**given, reached=(1000, 900, 500, 499)))[1]
    assert drift.severity == pytest.approx(0.5)
    assert 0.4 < drift.at_least < 0.5
    assert "80% of cases" in drift.finding
    assert "continue 4 tokens" in drift.finding
    few = traps_of(figures(**given, reached=(4, 4, 4, 1)))[1]
    assert few.at_least == 0
    assert few.finding.endswith("4 texts are too few to tell these apart.")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # A teacher that is never right loses no right answer.
        {"starts": (0, 1), "continuations": (0.0, 0.0), "reached": (9, 9)},
        # Texts that all end at once are no beginnings.
        {"starts": (0, 1), "continuations": (0.5, 0.0), "reached": (9, 4)},
    ],
)
def test_without_answers_drift_is_a_fall_of_what_is_shared(changes):
    drift = traps_of(figures(teacher_overlap=0.9, student_overlap=0.6, **changes))[1]
    assert drift.severity == drift.at_least == pytest.approx(0.3)
    assert "share 90% of the next word's" in drift.finding
    risen = traps_of(figures(teacher_overlap=0.6, student_overlap=0.9, **changes))[1]
    assert risen.severity == 0


def test_findings_say_what_was_not_measured():
    _, _, tail, steps = traps_of(figures(tail_share=None))
    assert (tail.severity, tail.at_least) == (None, None)
    assert "was not measured: it has other tokens" in tail.finding
    assert (steps.severity, steps.finding[:12]) == (None, "Not measured")
    gap = traps_of(figures(executability=0.25, student_accuracy=0.5))[0]
    assert gap.finding.endswith("is right in 25% of cases, by itself in 50%.")


def test_the_bound_is_that_of_the_reader():
    pair = figures(teacher_overlap=0.75, student_overlap=0.75)
    for least in (0.0, 0.25):
        found = worst(traps_of(pair), least=least)
        assert found.name == "gap between teacher and student"
    assert worst(traps_of(pair), least=0.26) is None
    assert "most is the gap" in headline(pair, least=0.05)


def test_the_headline_begins_with_answers_where_both_are_known():
    both = {"teacher_accuracy": 0.75, "student_accuracy": 0.5}
    begin = "The teacher answers 75% right, the student 50%. "
    assert headline(figures(**both)) == f"{begin}No trap stands out for this pair."
    assert headline(figures(teacher_accuracy=0.75)).startswith("No trap")
