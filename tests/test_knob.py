"""The study of calibrated teachers: its plan, its lines, its claims and its table."""

import dataclasses

import numpy as np
import pytest

from experiments import settings
from experiments.configs import distillability as config
from experiments.systems import SYSTEMS
from experiments.systems.distillability import RIVALS, Knob, claims, study
from experiments.systems.distillability import scene as scenes
from experiments.world.small import WORLDS, Lesson
from protojax.distillability import ATTACKERS, Budget
from protojax.models.language import init_model
from protojax.rl import Problems

SUMS = WORLDS["sums"](3)


@pytest.mark.parametrize("variant", ["", "full", "quick", "briefs"])
def test_a_config_makes_the_study(variant):
    fields = config.get_config(variant).to_dict()
    assert fields.pop("system") in SYSTEMS
    found = settings.make(Knob(), fields)
    assert found.calibration.max_new == found.problem_world.text_tokens
    todo = study.plan_of(found)
    # The control is a calibration as well, and has students of its own.
    arms = {arm.name for arm, *_ in todo}
    assert {"original", "chain, η = +0", "chain, η = -1"} <= arms
    assert all(not arm.reward for arm, _, kind, _ in todo if kind == "none")
    assert len(todo) == len(set(todo))


def test_rivals_are_in_the_plan():
    found = Knob(seeds=(0,), etas=(), students=("large",), attackers=("sft",))
    plan = [(arm.name, *rest) for arm, *rest in study.plan_of(found)]
    assert ("original", "large", "likeliest_of_n", 0) in plan
    assert ("experts 0.3", "", "itself", 0) in plan
    assert ("no chain", "large", "sft", 0) in plan
    assert ("no chain", "large", "gkd", 0) not in plan
    same = dataclasses.replace(found, attackers=("sft", "likeliest_of_n"))
    assert sorted(map(str, study.plan_of(same))) == sorted(
        map(str, study.plan_of(found))
    )
    # A proxy with other tokens cannot write along.
    turned = study.plan_of(dataclasses.replace(found, shift=5))
    assert not any(arm.name.startswith("experts") for arm, *_ in turned)
    # Students with other tokens learn from texts.
    strange = dataclasses.replace(
        found, students=("stranger",), attackers=("gkd", "sft", "other_tokens")
    )
    kinds = {(arm.name, kind) for arm, _, kind, _ in study.plan_of(strange)}
    assert {("original", "sft"), ("original", "other_tokens")} <= kinds
    assert ("original", "gkd") not in kinds
    assert ("early layers", "sft") in kinds
    assert ("early layers", "gkd") not in kinds
    for rival in RIVALS.values():
        assert rival.line.endswith(".")
        assert {*rival.attackers} <= {*ATTACKERS}


def test_rivals_offer_the_teacher_otherwise():
    teacher, proxy = (
        init_model(SUMS.body(3, 8), seed=seed, tokenizer=SUMS.tokens.tokenizer())
        for seed in range(2)
    )
    offers = {
        name: rival.offer_of(teacher, proxy, SUMS)
        for name, rival in RIVALS.items()
        if rival.offer_of is not None
    }
    assert offers["experts 0.6"].experts == (proxy, 0.6)
    assert offers["early layers"].model.config.num_layers == 2
    shown = offers["no chain"].shown
    assert [shown(text) for text in ("c15,13,135", "d135", "o48,68,468")] == [
        "d135"
    ] * 3
    assert shown("c1") == shown("p068,") == "d"


@pytest.fixture
def scene(tmp_path):
    knob = Knob(problems=8, held_out=6, training=dataclasses.replace(
        Knob().training, batch_size=4, steps=1
    ))  # fmt: skip
    models = [
        init_model(SUMS.body(1, 8), seed=seed, tokenizer=SUMS.tokens.tokenizer())
        for seed in range(2)
    ]
    parts = scenes.problems_of(knob)
    return scenes.Scene(
        knob,
        tmp_path,
        Lesson(SUMS, SUMS.styles, 10, 4, 1e-3, frozenset()),
        *models,
        *parts,
    )


def test_what_rivals_give_away_is_measured(scene):
    offer = RIVALS["no chain"].offer_of(scene.teacher, scene.proxy, SUMS)
    found = study.measured_offer(scene, offer, 0)
    assert len(found["items"]) == 6
    assert 2 <= found["tokens"] <= 5
    assert found["styles"]["d"] == 1
    query = study.query_of(scene, offer)
    assert query.shown is offer.shown
    assert query.folder.parent == scene.folder
    assert query.prefix_of("") == "c"


def test_students_may_have_other_tokens(scene):
    small = dataclasses.replace(scene.config, student_size=(1, 8))
    scene = scene._replace(config=small, lesson=scene.lesson._replace(steps=10))
    student = scene.student("stranger")
    vocabs = [m.tokenizer.get_vocab() for m in (student, scene.teacher)]
    assert vocabs[0].keys() == vocabs[1].keys()
    assert vocabs[0] != vocabs[1]
    for kind in ("sft", "other_tokens"):
        line = study._line(scene, scenes.Arm("", 0.0, 0), "stranger", kind, 0, None)
        assert line["queries"] == 8
        assert len(line["items"]) == 6
    assert small.size_of("teacher_sized") == small.teacher_size
    assert small.size_of("stranger") == small.size_of("student") == (1, 8)


def test_trusted_texts_are_of_no_problem_to_measure_on(scene):
    drawn = SUMS.practice(64, np.random.default_rng(1), frozenset())
    scene = scene._replace(asked=SUMS.asked(drawn[:3]))
    offer = RIVALS["no chain"].offer_of(scene.teacher, scene.proxy, SUMS)
    trusted = study.query_of(scene, offer).hold_out
    assert len(trusted.sources) == 61
    assert not {*trusted.sources} & {*scene.asked.prompts}


def test_problems_to_measure_on_are_not_used():
    given, asked = scenes.problems_of(Knob(problems=50, held_out=20))
    assert (len(given.prompts), len(asked.answers)) == (50, 20)
    assert not {*given.prompts} & {*asked.prompts}
    given, asked = scenes.problems_of(Knob(problems=5, held_out=2, terms=2))
    assert all(prompt.count("+") == 1 for prompt in (*given.prompts, *asked.prompts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rivals": ("expert 0.3",)}, "rivals one of"),
        ({"world": "products"}, "world one of"),
        ({"terms": 4}, "terms 2 or 3"),
        ({"styles": ("x",)}, "styles one of"),
        ({"styles": ()}, "styles > 0"),
        ({"base_styles": ("x",)}, "styles one of"),
        ({"student_size": (2, 30)}, "student_size layers and width"),
        ({"terms": 2, "problems": 8000}, "problems <= 7600"),
        (
            {"training": dataclasses.replace(Knob().training, max_length=8)},
            "training.max_length >= 9",
        ),
        (
            {"training": dataclasses.replace(Knob().training, max_new=8)},
            "training.max_new >= 11",
        ),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Knob(**changes)


def test_each_problem_has_its_verdict():
    asked = Problems(["87+59+56="] * 4, ["202"] * 4)
    texts = ["p146,202", "p156,202", "p146,203", "p146,202"]
    ended = np.array([True, True, True, False])
    found = study.figures(SUMS, asked, texts, ended, 8.0)
    assert found["items"] == "ta--"
    assert (found["answer"], found["chain"]) == (0.5, 0.25)
    assert found["styles"]["p"] == 1


def line(teacher, attacker, items, seed=0, student="student"):
    right = np.array([*items]) != "-"
    key = {"teacher": teacher, "student": student, "attacker": attacker, "seed": seed}
    found = {"answer": right.mean(), "chain": items.count("t") / len(items)}
    return key | found | {"items": items, "queries": 10, "teacher_tokens": 50 + seed}


def test_claims_compare_the_same_problems_and_seeds():
    rows = [
        line("original", "sft", "tt-a", 0),
        line("original", "sft", "ttt-", 1),
        line("original", "sft", "----", 2),
        line("chain, η = +0", "sft", "tt--", 0),
        line("chain, η = +0", "sft", "tt--", 1),
        line("chain, η = -1", "sft", "t---", 0),
        line("chain, η = -1", "sft", "----", 1),
        line("chain, η = -1", "gkd", "tttt", 0),
        line("chain, η = -1", "itself", "tttt", 0, student=""),
    ]
    found = {claim[:3]: claim for claim in claims.claims_of(rows)}
    # Without the same student of the original there is nothing to say.
    assert {key[2] for key in found} == {"sft"}
    harder = found["chain, η = -1", "student", "sft"]
    assert harder.seeds == 2
    assert harder.gain.mean == pytest.approx((-2 - 3) / 8)
    assert harder.control.mean == pytest.approx((-1 - 2) / 8)
    assert harder.gain.low < harder.gain.mean < harder.gain.high
    assert harder.p_value is None
    assert harder.budget == Budget(10, 50)
    assert harder.sentence.startswith(
        "chain, η = -1, student (2 seeds): Passive students (sft) of the interface "
        "text, at 10 queries and 50 tokens, lose 62.5 points ["
    )
    assert found["chain, η = +0", "student", "sft"].control is None


def test_students_of_the_original_are_compared_with_sft():
    rows = [
        line("original", "sft", "----------"),
        line("original", "likeliest_of_n", "tttttttttt"),
        line("original", "none", "----------"),
    ]
    [claim] = claims.claims_of(rows)
    assert claim.gain == (1, 1, 1)
    assert claim.p_value == pytest.approx(2 / 2**10)
    assert claim.sentence == (
        "original, student over sft (1 seed, McNemar's p = 0.002): Adaptive students "
        "(likeliest_of_n) of the interface text, at 10 queries and 50 tokens, gain "
        "100.0 points [100.0, 100.0]."
    )


def test_the_word_is_allowed_below_both_nulls_only():
    harder, many = "chain, η = -1", 40
    rows = [
        line("original", "none", "t" * many),
        line("original", "answers_only", "t" * 30 + "-" * 10),
        line(harder, "sft", "-" * many),
        line(harder, "gkd", "t" + "-" * 39),
    ]
    [said] = claims.verdicts_of(rows)
    assert "answers_only" in said
    assert "were not run, so nothing follows" in said
    adaptive = [name for name, found in ATTACKERS.items() if found.adaptive]
    rows += [line(harder, name, "-" * many) for name in adaptive]
    [said] = claims.verdicts_of(rows)
    # Clopper and Pearson: 1 of 40 is at most 13.2 %.
    assert "gkd, 2.5 % right, at most 13.2 %" in said
    assert "without a teacher 100.0 %, with steps withheld 75.0 %: it may be " in said
    rows.append(line(harder, "answers_only", "t" * 35 + "-" * 5))
    [said] = claims.verdicts_of(rows)
    assert "answers_only, 87.5 % right" in said
    assert "may not be called" in said
    [said] = claims.verdicts_of(rows[2:])
    assert "nothing follows" in said
    assert claims.notes_of(rows)[-1] == claims.verdicts_of(rows)[0]


def test_the_table_has_a_line_for_each_arm():
    rows = [line("original", "sft", items, i) for i, items in enumerate(["tt", "--"])]
    rows += [line("experts 0.3", "sft", "t-", seed) for seed in range(2)]
    header, one, other = claims.table_of(rows)
    assert len(header) == len(one) == len(other)
    assert one[3:] == ["2", "50.0 (0.0 to 100.0)", "50.0", "", ""]
    assert other[6].startswith("+0.0 [-")
    assert other[7] == ""


def test_the_overview_has_a_column_for_each_teacher():
    rows = [line("original", "none", "-" * 40), line("original", "sft", "t" * 40)]
    rows += [line("chain, η = -1", "sft", "-" * 40)]
    rows += [line("chain, η = +1", "sft", "t" * 40)]
    rows += [line("original", "gkd", "t" * 20 + "-" * 20) | {"student": "large"}]
    own = line("original", "itself", "t" * 40) | {"student": ""}
    assert claims.overview_of([own, *rows]) == [
        ["student", "learns by", "original", "chain, η = -1", "chain, η = +1"],
        ["–", "itself", "100.0", "", ""],
        ["student", "none", "0.0", "", ""],
        ["student", "sft", "100.0", "**0.0**", "100.0"],
        ["large", "gkd", "50.0", "", ""],
    ]
    # Nothing is said of seeds that the original's student lacks.
    more = line("chain, η = +1", "sft", "-" * 40, 1)
    [*_, last] = claims.overview_of([*rows[1:2], *rows[3:4], more])
    assert last == ["student", "sft", "100.0", "50.0"]
