"""Students that a teacher may meet: the registry, what they choose, what they pay."""

import dataclasses

import jax
import numpy as np
import pytest

from protojax.base import Texts
from protojax.distillability import selection
from protojax.distillability.diagnosis import Figures, headline, traps_of, worst
from protojax.distillability.selection import Held, Lessons, resampled
from protojax.distillability.students import (
    ATTACKERS,
    INTERFACES,
    LOSSES,
    SOURCES,
    Budget,
    budget_of,
    claim_of,
)
from protojax.pipelines.distillability import (
    Query,
    StudentSettings,
    decoding,
    train_student,
)
from protojax.pipelines.distillability.decoding import Shape
from tests.test_diagnose import decoder

PROMPTS = ["one and", "two is", "red and blue", "one is"]
HELD = Held(
    PROMPTS,
    texts=[["2", "3"]] * 4,
    answers=["2", "3", "2", "9"],
    own=[["x 2", "y 3"]] * 4,
    own_answers=[["2", "3"]] * 4,
    scores=np.array([[-1.0, -2.0]] * 4),
    proxy_scores=np.array([[-2.0, -1.0]] * 4),
    values=np.array([[1.0, -1.0]] * 4),
    prefixes=["so "] * 4,
)


@pytest.mark.parametrize("name", ATTACKERS)
def test_an_attacker_is_complete(name):
    attacker = ATTACKERS[name]
    assert attacker.line.endswith(".")
    assert {*attacker.interface} <= {*INTERFACES}
    assert attacker.phases
    for phase in attacker.phases:
        assert phase.source in SOURCES
        assert phase.loss in LOSSES
        if phase.loss == "sequence" and phase.options["hard_weight"] < 1:
            assert "log_probs" in attacker.interface
        if phase.source == "given":
            assert attacker.select is not None
    assert ("texts" in attacker.needs) == ("text" in attacker.interface)
    assert {*attacker.needs} <= {*Held._fields}
    found = budget_of(attacker, prompts=10, draws=2, tokens=5)
    assert found.queries >= 0
    if attacker.select is None:
        return
    lessons = attacker.select(HELD)
    assert len(lessons.weights) == len(lessons.texts.outputs) > 0
    np.testing.assert_allclose(lessons.weights.mean(), 1)
    assert {*lessons.texts.sources} <= {*PROMPTS}
    # What it says that it needs is what it reads.
    rest = Held(PROMPTS)._replace(**{n: getattr(HELD, n) for n in attacker.needs})
    assert attacker.select(rest).texts == lessons.texts
    for field in attacker.needs:
        with pytest.raises(ValueError, match=f"Expected {field} given"):
            attacker.select(rest._replace(**{field: None}))


def test_what_they_choose():
    outputs = {
        n: a.select(HELD).texts.outputs for n, a in ATTACKERS.items() if a.select
    }
    assert outputs["sft"] == ["2", "3"] * 4
    assert outputs["likeliest_of_n"] == ["2"] * 4
    assert outputs["second_proxy"] == ["3"] * 4
    assert outputs["answers_only"] == ["x 2", "y 3", "x 2"]
    assert outputs["prefixed"] == ["so 2", "so 3"] * 4
    weights = selection.tilted(HELD, beta=np.log(3) / 2).weights
    np.testing.assert_allclose(weights, [1.5, 0.5] * 4)


def test_rows_are_resampled_by_their_weights():
    lessons = Lessons(Texts(list("abcd"), list("efgh")), np.array([0, 2, 1.5, 0.5]))
    rng = np.random.default_rng(0)
    counts = np.zeros(4)
    for _ in range(400):
        found = resampled(lessons, rng)
        times = np.array([found.sources.count(letter) for letter in "abcd"])
        assert (np.abs(times - lessons.weights) < 1).all()
        counts += times / 400
    np.testing.assert_allclose(counts, lessons.weights, atol=0.08)
    with pytest.raises(ValueError, match="weights > 0"):
        resampled(lessons._replace(weights=np.zeros(4)), rng)


def test_what_they_pay():
    paid = {
        name: budget_of(
            attacker, prompts=10, draws=4, tokens=20,
            own_texts=30 if attacker.on_policy else 0,
        )
        for name, attacker in ATTACKERS.items()
    }  # fmt: skip
    assert paid["sft"] == Budget(10, 200)
    assert paid["likeliest_of_n"] == paid["second_proxy"] == Budget(40, 800)
    assert paid["answers_only"] == Budget(10, 10)
    assert paid["gkd"] == Budget(40, 800)
    assert paid["minillm"] == Budget(30, 600)
    with pytest.raises(ValueError, match="own_texts 0"):
        budget_of(ATTACKERS["sft"], prompts=1, draws=1, tokens=1, own_texts=1)


def test_only_one_sentence_may_be_said():
    found = claim_of("answers_only", Budget(10, 10), -3.0)
    assert found == (
        "Adaptive students (answers_only) of the interface answers, at 10 queries and "
        "10 tokens, gain 3.0 points."
    )


def figures(**changes):
    given = {
        "same_tokens": True, "prompts": 4, "texts": 4, "k": 16, "gap": 2.0,
        "gap_error": 0.1, "gap_per_byte": 0.1, "own_gap": 3.0, "own_gap_error": 0.1,
        "teacher_overlap": 0.9, "student_overlap": 0.85, "tail_mass": 0.01,
        "own_tail_mass": 0.02, "tail_share": 0.1, "positions": [1.0],
        "own_positions": [1.0], "teacher_ended": 1.0, "student_ended": 1.0,
    }  # fmt: skip
    return Figures(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "name", "severity"),
    [
        ({}, None, None),
        ({"teacher_overlap": 0.6}, "gap between teacher and student", 0.4),
        ({"teacher_overlap": 1.0, "student_overlap": 0.7}, "off-policy drift", 0.3),
        (
            {
                "starts": (0, 1, 2),
                "continuations": (0.8, 0.6, 0),
                "reached": (2000,) * 2 + (9,),
            },
            "off-policy drift",
            0.25,
        ),
        # Of eight texts a fourth and none may be the same.
        ({"starts": (0, 1), "continuations": (0.25, 0), "reached": (8, 8)}, None, None),
        ({"tail_share": 0.5}, "tail noise", 0.5),
        ({"tail_share": None}, None, None),
        ({"faithfulness": 0.05, "with_steps": 9}, "wrong steps of the teacher", 0.95),
        ({"faithfulness": 0.0, "with_steps": 1}, None, None),
        ({"faithfulness": float("nan")}, None, None),
    ],
)
def test_the_worst_trap_is_named(changes, name, severity):
    found = figures(**changes)
    traps = traps_of(found)
    assert len(traps) == 4
    one = worst(traps)
    if name is None:
        assert one is None
        assert headline(found) == "No trap stands out for this pair."
        return
    assert one.name == name
    np.testing.assert_allclose(one.severity, severity)
    assert f"holds this pair back most is the {name}." in headline(found)


def test_a_student_that_is_right_as_often_has_nothing_to_gain():
    found = headline(figures(teacher_accuracy=0.5, student_accuracy=0.5))
    assert "nothing to gain" in found


SETTINGS = StudentSettings(
    learning_rate=1e-2,
    steps=2,
    batch_size=4,
    max_length=8,
    max_new=4,
    draws=2,
    own_draws=2,
    top_k=3,
)
QUERY = Query(
    decoder(0),
    answer_of=lambda text: "",
    prefix_of=lambda prompt: " so",
    hold_out=Texts(PROMPTS[:2], ["2", "3"]),
    proxy=decoder(1),
)


@pytest.mark.parametrize(
    ("name", "queries"),
    [
        ("answers_only", 4),
        ("tilted", 4),
        ("second_proxy", 8),
        ("prefixed", 4),
        ("gkd", 4 + 2 * 2),
        ("minillm", 2 * 4),
        ("cold_start", 4 + 2 * 4),
        ("token_gate", 4),
    ],
)
def test_a_student_learns(name, queries):
    student = decoder(1)
    found = train_student(name, student, QUERY, PROMPTS, SETTINGS)
    assert found.budget.queries == queries
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), found.model.params, student.params
    )
    assert 0 < max(jax.tree.leaves(moved)) < 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.model.params))
    if name == "minillm":
        again = train_student(name, student, QUERY, PROMPTS, SETTINGS)
        for a, b in zip(
            jax.tree.leaves(found.model.params),
            jax.tree.leaves(again.model.params),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_a_student_comes_to_write_what_the_teacher_writes():
    student = decoder(1)
    settings = dataclasses.replace(SETTINGS, steps=40)
    trained = train_student("seq_kd", student, QUERY, PROMPTS, settings).model
    shape = Shape(8, 4, 4, settings.chunk)
    ids = decoding.read_prompts(student, PROMPTS, max_length=8)
    wanted = decoding.draw(
        QUERY.model, ids, shape, key=jax.random.key(0), temperature=0.0
    )
    before, after = (
        decoding.read_own(model, ids, wanted, shape, k=1)[0][wanted.where].mean()
        for model in (student, trained)
    )
    assert after > before + 1


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sftt", {}, "name one of"),
        ("prefixed", {"prefix_of": None}, "prefix_of given"),
        ("second_proxy", {"proxy": None}, "proxy given"),
        ("tilted", {"hold_out": None}, "hold_out given"),
        (
            "gkd",
            {"model": decoder(0, 180, ["other words", *PROMPTS])},
            "same tokenizer",
        ),
    ],
)
def test_what_an_attack_needs_is_named(name, changes, message):
    query = QUERY._replace(**changes)
    with pytest.raises(ValueError, match=message):
        train_student(name, decoder(1), query, PROMPTS, SETTINGS)
