"""What students choose and pay at the edges, and the weights of texts and tokens."""

import math

import numpy as np
import pytest

from protojax.base import Texts
from protojax.distillability import selection
from protojax.distillability.answers import answer_of, equations_hold
from protojax.distillability.selection import Held, Lessons, resampled
from protojax.distillability.students import (
    ATTACKERS,
    Budget,
    budget_of,
    claim_of,
    is_undistillable,
)
from protojax.distillability.values import tilted_weights, token_gate

# Prompts may have different numbers of texts, or none.
HELD = Held(["a", "b", "c"], texts=[["1", "2", "3"], ["4"], []])


def test_all_texts_are_there_in_their_order():
    found = selection.every_text(HELD)
    assert found.texts == Texts(["a", "a", "a", "b"], ["1", "2", "3", "4"])
    assert found.weights.tolist() == [1, 1, 1, 1]
    empty = selection.every_text(Held([], texts=[]))
    assert empty.texts == Texts([], [])
    assert empty.weights.shape == (0,)


@pytest.mark.parametrize(
    ("select", "field"),
    [
        (selection.likeliest_of_n, "scores"),
        (selection.second_proxy, "proxy_scores"),
    ],
)
def test_of_equally_likely_texts_the_first_is_taken(select, field):
    held = HELD._replace(prompts=["a", "b"], texts=HELD.texts[:2])
    found = select(held._replace(**{field: [[-2.0, -1.0, -1.0], [-9.0]]}))
    assert found.texts == Texts(["a", "b"], ["2", "4"])


@pytest.mark.parametrize(
    ("select", "field", "values", "message"),
    [
        (selection.likeliest_of_n, "scores", [[0, 0, 0]], r"len\(scores\)=1"),
        (selection.second_proxy, "proxy_scores", [[0], [0], []], r"_scores\)=1"),
        (selection.tilted, "values", [[0, 0, 0], [0, 0], []], r"len\(values\)=2"),
        (selection.tilted, "values", [[0, 0, np.nan], [0], []], "values finite"),
    ],
)
def test_figures_that_do_not_fit_the_texts_are_refused(select, field, values, message):
    with pytest.raises(ValueError, match=message):
        select(HELD._replace(**{field: values}))


def test_values_that_are_all_equal_weigh_nothing():
    held = HELD._replace(values=[[3.0, 3.0, 3.0], [3.0], []])
    assert selection.tilted(held).weights.tolist() == [1, 1, 1, 1]
    # At another unit of the values they are the same weights.
    values = [[1.0, -2.0, 0.5], [4.0], []]
    scaled = [[100 * value for value in row] for row in values]
    weights = [
        selection.tilted(HELD._replace(values=rows)).weights
        for rows in (values, scaled)
    ]
    np.testing.assert_allclose(*weights)


def test_a_prompt_whose_answer_no_text_has_teaches_nothing():
    held = Held(["a", "b"], answers=["1", "2"], own=[["x", "y"], ["z"]])
    found = selection.answers_only(held._replace(own_answers=[["3", "1"], ["3"]]))
    assert found.texts == Texts(["a"], ["y"])
    none = selection.answers_only(held._replace(own_answers=[["3", "3"], ["3"]]))
    assert none.texts == Texts([], [])


@pytest.mark.parametrize("weights", [[-0.5, 1.5], [np.nan, 1.0]])
def test_weights_below_zero_cannot_be_drawn(weights):
    lessons = Lessons(Texts(["a", "b"], ["c", "d"]), np.array(weights))
    with pytest.raises(ValueError, match="weights >= 0"):
        resampled(lessons, np.random.default_rng(0))


def test_resampling_equal_weights_takes_each_row_once():
    lessons = selection.every_text(HELD)
    for seed in range(20):
        found = resampled(lessons, np.random.default_rng(seed))
        assert found == lessons.texts


@pytest.mark.parametrize(
    ("values", "beta", "weights"),
    [
        ([0.0, 1.0, 1000.0], 0.5, [0, 0, 3]),
        ([0.0, -1000.0, -2000.0], -0.5, [0, 0, 3]),
        ([0.0, np.log(3.0)], -1.0, [1.5, 0.5]),
        ([5.0, -5.0], 0.0, [1, 1]),
        ([7.0], 3.0, [1]),
        ([-np.log(3.0), 0.0], 1.0, [0.5, 1.5]),
    ],
)
def test_tilted_weights_have_mean_one(values, beta, weights):
    found = tilted_weights(values, beta=beta)
    np.testing.assert_allclose(found, weights, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "rows > 0"), ([np.nan], "values finite"), ([0.0, np.inf], "values finite")],
)
def test_values_that_have_no_weights(values, message):
    with pytest.raises(ValueError, match=message):
        tilted_weights(values)


def test_a_gate_keeps_tokens_as_likely_as_the_last_one_kept():
    log_probs = np.array([[-1.0, -2.0, -2.0, -2.0], [-9.0, -9.0, 0.0, 0.0]])
    where = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    found = token_gate(log_probs, where, share=0.5)
    assert found.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(token_gate(log_probs, where, share=1), where)
    # At least one token is kept.
    assert token_gate(log_probs, where, share=1e-9).tolist()[0] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "share", "message"),
    [
        ((1, 2), 0.0, r"share in \(0, 1\]"),
        ((1, 2), 1.1, r"share in \(0, 1\]"),
        ((1, 3), 0.5, r"where\.shape \(1, 3\)"),
    ],
)
def test_gates_that_make_no_sense(shape, share, message):
    with pytest.raises(ValueError, match=message):
        token_gate(np.zeros(shape), np.ones((1, 2), bool), share=share)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "prompts > 0"),
        ({"draws": 0}, "draws > 0"),
        ({"tokens": 0}, "tokens > 0"),
        ({"answer_tokens": -1}, "answer_tokens >= 0"),
        ({"own_texts": -1}, "own_texts >= 0"),
    ],
)
def test_budgets_of_numbers_that_make_no_sense(changes, message):
    given = {"prompts": 1, "draws": 1, "tokens": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        budget_of(ATTACKERS["gkd"], **given)


def test_tokens_are_rounded_once_and_answers_are_billed_by_their_own():
    given = {"prompts": 3, "draws": 2, "tokens": 1.5}
    assert budget_of(ATTACKERS["sft"], **given) == Budget(3, 4)
    found = budget_of(ATTACKERS["answers_only"], **given, answer_tokens=2.5)
    assert found == Budget(3, 8)
    both = budget_of(ATTACKERS["cold_start"], **given, own_texts=2)
    assert both == Budget(3 + 2, 4 + 3)
    # What it writes by itself costs nothing until it asks.
    assert budget_of(ATTACKERS["minillm"], **given) == Budget(0, 0)


BEGIN = "Passive students (sft) of the interface text, at 1 queries and 2 tokens, "


@pytest.mark.parametrize(
    ("points", "interval", "end"),
    [
        (0.0, None, "lose 0.0 points."),
        (3.0, (1.0, 5.0), "lose 3.0 points [1.0, 5.0]."),
        (3.0, (-1.0, 5.0), "lose 3.0 points [-1.0, 5.0], or none."),
        (3.0, (0.0, 5.0), "lose 3.0 points [0.0, 5.0], or none."),
        (-3.0, (-5.0, -1.0), "gain 3.0 points [1.0, 5.0]."),
        (-3.0, (-5.0, 1.0), "gain 3.0 points [-1.0, 5.0], or none."),
        (3.0, (3.0, 3.0), "lose 3.0 points [3.0, 3.0]."),
    ],
)
def test_a_claim_says_where_it_shows_nothing(points, interval, end):
    said = claim_of("sft", Budget(1, 2), points, interval=interval)
    assert said == BEGIN + end


@pytest.mark.parametrize(
    ("name", "interval", "message"),
    [
        ("stf", None, "Did you mean 'sft'"),
        ("sft", (4.0, 5.0), r"points in \(4\.0, 5\.0\)"),
        ("sft", (1.0, 2.0), "found points=3.0"),
        ("sft", (math.nan, 5.0), "points"),
    ],
)
def test_a_claim_without_ground_is_refused(name, interval, message):
    with pytest.raises(ValueError, match=message):
        claim_of(name, Budget(1, 2), 3.0, interval=interval)


@pytest.mark.parametrize(
    ("upper", "said"), [(0.29, True), (0.3, False), (0.35, False), (math.nan, False)]
)
def test_the_word_undistillable_needs_both_nulls(upper, said):
    assert is_undistillable(upper, no_teacher=0.4, withheld=0.3) == said
    assert is_undistillable(upper, no_teacher=0.3, withheld=0.4) == said


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("from 1,000 to -2.5 degrees", "-2.5"),
        ("5-3", "3"),
        ("1,2,7", "7"),
        ("a1 b\n\n  last line  \n", "last line"),
        (" \n\t ", ""),
        ("one", "one"),
    ],
)
def test_the_answer_of_a_text(text, answer):
    assert answer_of(text) == answer


def test_one_false_equation_spoils_a_text():
    assert equations_hold("1 + 1 = 2 and 2 + 2 = 5") is False
    assert equations_hold("") is None
