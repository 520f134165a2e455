"""Advantages against loops, arguments of policies, and the rows of a calibration."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from protojax import rl
from protojax.rl import advantages, calibration, policy, problems, rewards
from protojax.rl.verifiers import check_answers, multiple_choice
from tests import writers


def one_group(rewards, kind, ddof=1, epsilon=1e-4):
    """The advantages of the draws of one group that count, by sums over others."""
    n, mean = len(rewards), sum(rewards) / len(rewards)
    if n == 1 or len(set(rewards)) == 1:
        return [0.0] * n
    if kind == "centre":
        return [r - mean for r in rewards]
    if kind == "leave_one_out":
        return [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - ddof))
    return [(r - mean) / (deviation + epsilon) for r in rewards]


@pytest.mark.parametrize("kind", advantages.ADVANTAGES)
def test_masked_groups_are_a_loop_over_those_that_count(kind):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(3, 4, 5)).round(1)
    where = rng.random((3, 4, 5)) < 0.6
    # Groups with no draw, with one, and with equal rewards.
    where[0, 0], where[0, 1], drawn[0, 2] = False, np.arange(5) == 3, 0.7
    bad = np.where(where, drawn, np.nan)
    found = advantages.ADVANTAGES[kind](bad, where=where)
    assert found.shape == (3, 4, 5)
    assert (found[~where] == 0).all()
    for place in np.ndindex(3, 4):
        counted = where[place]
        if not counted.any():
            continue
        wanted = one_group(drawn[place][counted].tolist(), kind)
        np.testing.assert_allclose(found[place][counted], wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "unit"),
    [
        (advantages.centre, 10.0),
        (advantages.leave_one_out, 10.0),
        (functools.partial(advantages.group_normalize, epsilon=0.0), 1.0),
    ],
)
def test_a_shift_changes_nothing_and_a_unit_all_or_nothing(function, unit):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, 6))
    np.testing.assert_allclose(function(drawn + 5), function(drawn), atol=1e-12)
    np.testing.assert_allclose(function(10 * drawn), unit * function(drawn))


def test_equal_rewards_have_no_advantage_to_the_last_digit():
    for value in (0.1, 1 / 3, 1e9 + 0.1, -7e-9):
        for function in advantages.ADVANTAGES.values():
            assert not function(np.full((2, 7), value)).any()


@pytest.mark.parametrize("draws", [2, 3, 8, 50])
def test_an_advantage_is_at_most_that_of_one_against_all(draws):
    """(n − 1) / √n, which a group reaches whose draws are equal but one."""
    rng = np.random.default_rng(0)
    bound = (draws - 1) / draws**0.5
    alone = np.eye(draws)[0]
    exact = functools.partial(advantages.group_normalize, epsilon=0.0)
    assert exact(alone).max() == pytest.approx(bound)
    assert np.abs(exact(rng.normal(size=(200, draws)))).max() <= bound + 1e-12


def test_texts_that_are_all_wrong_are_not_calibrated():
    rng = np.random.default_rng(0)
    task, other = np.array([[0.0, 0.5, 0.0], [1, 1, 0.0]]), rng.normal(size=(2, 3))
    found = advantages.calibrated_advantage(task, other, 1.0, correct_only=True)
    np.testing.assert_allclose(found[0], advantages.group_normalize(task[0]))
    first, second = advantages.group_normalize(other[1, :2])
    wanted = advantages.group_normalize(task[1]) + np.array([first, second, 0])
    np.testing.assert_allclose(found[1], wanted)


def test_a_calibration_of_weight_zero_is_the_task_alone():
    rng = np.random.default_rng(0)
    task, other = rng.random((2, 3)), rng.normal(size=(2, 3))
    for function in advantages.ADVANTAGES.values():
        found = advantages.calibrated_advantage(task, other, 0.0, advantage=function)
        np.testing.assert_array_equal(found, function(task))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantages.group_normalize([1.0], ddof=2), "ddof 0 or 1"),
        (lambda: advantages.group_normalize([1.0], epsilon=-1e-9), "epsilon >= 0"),
        (lambda: advantages.centre([1.0, 2.0], where=[True]), r"where\.shape \(2,\)"),
        (lambda: advantages.leave_one_out([1.0, np.inf]), r"found rewards=\[inf\]"),
        (
            lambda: advantages.calibrated_advantage([1.0, 0.0], [1.0], 1.0),
            r"calibration\.shape \(2,\)",
        ),
    ],
)
def test_rewards_without_advantages_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


LOSS = functools.partial(policy.policy_loss, writers.writer_apply, writers.writer_head)
ONE, ALL = np.zeros((1, 2), np.float32), np.ones((1, 2), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LOSS(low=0.0), r"low in \(0, 1\)"),
        (lambda: LOSS(low=1.0), r"low in \(0, 1\)"),
        (lambda: LOSS(high=0.0), "high > 0"),
        (lambda: LOSS(chunk=0), "chunk > 0"),
        (lambda: LOSS(normalizer="texts"), "Did you mean 'text'"),
        (
            lambda: policy.clipped_policy_loss(ONE, ONE, ONE[:, 0], ALL, low=1.0),
            r"low in \(0, 1\)",
        ),
        (
            lambda: policy.clipped_policy_loss(ONE, ONE, ONE[:, 0], ALL, high=-1.0),
            "high > 0",
        ),
        (
            lambda: policy.clipped_policy_loss(ONE, ONE[:, :1], ONE[:, 0], ALL),
            "shape",
        ),
        (lambda: policy.text_mean(ONE, ALL, normalizer="token"), "normalizer one of"),
        (lambda: policy.text_mean(ONE, ALL, length=2), 'with "constant" and only'),
        (
            lambda: policy.text_mean(ONE, ALL, normalizer="constant", length=-2),
            "length > 0",
        ),
        (lambda: policy.kl_estimates(ONE, ONE[0]), r"log_p\.shape \(1, 2\)"),
    ],
)
def test_policies_that_make_no_sense_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_loss_of_tokens_is_a_loop_with_an_advantage_for_each():
    rng = np.random.default_rng(0)
    own, old = np.float32(rng.normal(-2, 0.3, size=(2, 3, 4)))
    advantage = np.float32(rng.normal(size=(3, 4)))
    where = rng.random((3, 4)) < 0.7
    found = jax.jit(policy.clipped_policy_loss)(own, old, advantage, where)
    for place in np.ndindex(3, 4):
        ratio, worth = math.exp(own[place] - old[place]), float(advantage[place])
        wanted = -min(ratio * worth, min(max(ratio, 0.8), 1.28) * worth)
        assert found[place] == pytest.approx(wanted if where[place] else 0, rel=1e-5)


def test_an_estimate_of_a_divergence_is_never_negative():
    rng = np.random.default_rng(0)
    own, other = rng.normal(-2, 1, size=(2, 100)).astype(np.float32)
    first, second, third = policy.kl_estimates(own, other)
    assert (third >= 0).all()
    np.testing.assert_allclose(second, first**2 / 2, rtol=1e-6)
    wanted = np.expm1(np.float64(other) - own) + (np.float64(own) - other)
    np.testing.assert_allclose(third, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"Expected {name} > 0") for name in ("steps", "prompts")),
        *(({name: 0}, f"Expected {name} > 0") for name in ("passes", "minibatches")),
        *(({name: 0}, f"Expected {name} > 0") for name in ("every", "max_new")),
        *(({name: 0}, f"Expected {name} > 0") for name in ("evaluate_every", "high")),
        ({"kl_target": 0.0}, "kl_target > 0"),
        ({"beta": -0.1}, "beta >= 0"),
        ({"seed": -1}, "seed >= 0"),
        ({"skill_loss": 1.5}, r"skill_loss in \[0, 1\]"),
        ({"low": 1.0}, r"low in \(0, 1\)"),
        ({"held_out": 0.0}, r"held_out in \(0, 1\)"),
        ({"least_prob": 1.0}, r"least_prob in \[0, 1\)"),
        ({"eta": math.inf}, "eta finite"),
        ({"advantage": "center"}, "Did you mean 'centre'"),
        ({"kl": "rewards"}, "Did you mean 'reward'"),
        ({"normalizer": "words"}, "normalizer one of text, constant"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
    ],
)
def test_settings_of_a_calibration_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        rl.Calibration(**changes)


def test_whole_numbers_are_the_same_settings():
    one, other = rl.Calibration(eta=1, beta=1), rl.Calibration(eta=1.0, beta=1.0)
    assert repr(one) == repr(other)
    assert one.rows == 16 * 8
    assert one.least == pytest.approx(math.log(1e-4))
    assert rl.Calibration(least_prob=0).least is None


@pytest.mark.parametrize(
    ("count", "share", "held"), [(10, 0.25, 2), (3, 0.01, 1), (10_000, 0.5, 512)]
)
def test_held_out_problems_are_never_trained_on(count, share, held):
    settings = rl.Calibration(held_out=share)
    training, rest = problems.split(count, settings)
    assert len(rest) == held
    assert sorted([*training, *rest]) == [*range(count)]
    again = problems.split(count, settings)
    np.testing.assert_array_equal(again[1], rest)
    if count > 10:
        other = problems.split(count, dataclasses.replace(settings, seed=1))
        assert other[1].tolist() != rest.tolist()


def test_each_pass_of_a_rollout_has_each_text_once():
    settings = rl.Calibration(prompts=3, draws=4, minibatches=2, passes=3)
    found = calibration.step_rows(settings, 5)
    assert found.shape == (6, 6)
    for one in found.reshape(3, 12):
        assert sorted(one) == [*range(12)]
    assert found[0].tolist() != found[2].tolist()
    np.testing.assert_array_equal(found, calibration.step_rows(settings, 5))


def rewarded(*verifiers, texts=("1 + 1 = 2", "1 + 1 = 3", "2"), ended=(1, 1, 1)):
    columns = [""] * 3, texts, ["2", "3", "2"]
    return rewards.task_rewards(verifiers, *columns, np.array(ended, bool))


def test_rewards_are_products_of_what_all_verifiers_give():
    assert rewarded("arithmetic").tolist() == [1, 1, 1]
    assert rewarded("arithmetic", "equations").tolist() == [1, 0, 1]
    assert rewarded("arithmetic", "shown_equations").tolist() == [1, 0, 0]
    assert rewarded("arithmetic", ended=(0, 1, 1)).tolist() == [0, 1, 1]
    half = rewarded(lambda prompt, text, answer: 0.5, "equations")
    assert half.tolist() == [0.5, 0, 0.5]


def test_a_verifier_does_not_read_what_cannot_gain():
    read = []

    def verifier(prompt, text, answer):
        read.append(text)
        return 1.0

    rewarded("equations", verifier, ended=(1, 1, 0))
    assert read == ["1 + 1 = 2"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (rewarded, "verifiers > 0"),
        (lambda: rewarded("equation"), "Did you mean 'equations'"),
        (lambda: rewarded("arithmetic", texts=("a", "b")), "len\\(texts\\)=2"),
        (lambda: rewarded(lambda *texts: -0.1), "<lambda> in \\[0, 1\\]"),
        (lambda: rewarded(lambda *texts: math.nan), "<lambda> in \\[0, 1\\]"),
    ],
)
def test_rewards_that_make_no_sense_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_verifiers_that_need_no_answer_take_any():
    check_answers(["equations", "shown_equations"], ["", "no number"])
    check_answers([], ["", ""])
    check_answers(["arithmetic"], [])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("option B is right", 1),
        ("The choice is: b.", 1),
        # What is said of an answer stands above letters that stand alone.
        ("The answer is B because A. is wrong", 1),
        ("answer A, no, answer B", 1),
        ("Answer B's is wrong", 0),
        ("K.", 0),
    ],
)
def test_the_letter_that_a_text_chooses(text, wanted):
    assert multiple_choice("", text, "B") == wanted
