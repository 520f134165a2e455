"""The study of students of private rows, on a few rows of bundled data."""

import html
import json

import numpy as np
import pytest

from experiments.configs import privacy
from experiments.configs.pilot import minilm
from experiments.run import main
from experiments.systems import private, private_rows
from experiments.systems.privacy_settings import PLANTED, Private, PrivateRows
from protojax.base import Examples
from protojax.pipelines import Watch
from protojax.pipelines.privacy import (
    RECIPES,
    Noise,
    Recipe,
    Rows,
    Shadowed,
    named,
)
from protojax.privacy import complementary_halves
from protojax.privacy.overlap import scan
from tests.tiny_job import SIZES


def tiny():
    config = privacy.get_config("quick")
    config.pipelines, config.arms = 6, ("teacher", "student_hard")
    config.data.private, config.data.public, config.share = 80, 60, 0.25
    config.data.vocab_size = 200
    for part in ("teacher", "student"):
        config.base[part].scratch.update(SIZES)
        config.base[part].epochs, config.base[part].dropout = 2, 0.0
    return config


@pytest.mark.parametrize(
    ("argument", "pipelines", "source"),
    [("", 32, "scratch"), ("quick", 8, "scratch"), ("pretrained", 16, minilm())],
)
def test_the_configs_are_checked(argument, pipelines, source):
    found = private.check(privacy.get_config(argument))
    assert found.pipelines == pipelines
    assert found.base.teacher.model == found.base.student.model == source


def test_a_study_has_a_line_for_each_arm_and_goes_on(tmp_path, capsys):
    assert main(tiny(), tmp_path) is None
    lines = (tmp_path / "results.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["arm"] for row in rows] == [*tiny().arms]
    assert set(rows[0]["kinds"]) >= {"ordinary", "mislabelled"}
    table = private.table_of(rows)
    assert [line[0] for line in table] == ["arm", *tiny().arms]
    assert all(len(line) == len(table[0]) for line in table)
    assert [row["audit"] for row in rows] == [None, None]
    assert "audited" not in table[0]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 12
    main(tiny(), tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert (tmp_path / "results.jsonl").read_text() == lines
    rows, _, _ = private_rows.split(private.check(tiny()), 0)
    page = (tmp_path / "report.html").read_text()
    for written in (lines, html.unescape(page)):
        assert not [text for text in rows.private.texts if text in written]
    assert page.count("<details") == 2
    other = tiny()
    other.share = 0.2
    with pytest.raises(ValueError, match="share"):
        main(other, tmp_path)


def test_what_states_an_epsilon_is_audited_against_the_plain_teacher():
    labels = np.zeros(200, np.int32)
    rows = Rows(Examples([""] * 200, None, labels), *[Examples([], None, [])] * 2, 2)
    kinds = np.repeat(["ordinary", "mislabelled"], 100)
    members = complementary_halves(200, 8, seed=0)
    own = np.stack([np.where(members, 3.0, -3.0), np.zeros((8, 200))], axis=-1)
    base = Recipe(teacher_noise=Noise(batch_size=32))
    names = ("teacher", "dp_teacher_1", "dp_teacher_8")
    recipes = {name: named(name, base) for name in names}
    given = (Shadowed(own * size, np.ones(8)) for size in (1, 0, 0))
    found = private._audited(
        recipes, dict(zip(names, given, strict=True)), rows, kinds, members, 0
    )
    assert found["teacher"] == {"guarantee": None, "audit": None}
    for epsilon in (1, 8):
        one = found[f"dp_teacher_{epsilon}"]
        assert one["audit"]["epsilon"] == one["guarantee"]["epsilon"] == epsilon
        assert one["audit"]["bound"] == 0
        assert one["audit"]["control"] == one["audit"]["ceiling"] > 1
        assert (one["audit"]["kind"], one["audit"]["trials"]) == ("mislabelled", 200)
    results = [
        {"seed": 0, "arm": name, "accuracy": 90.0, "ordinary": 1.0, "worst": 1.0}
        | {"worst interval": None, "kinds": {}, "conclusive": True, **found[name]}
        for name in names
    ]
    private.require_audited(results)
    table = private.table_of(results)
    place = table[0].index("audited")
    control = f"{one['audit']['control']:.3g}"
    assert [line[place] for line in table[1:]] == ["–", *[f"0 ({control})"] * 2]


def test_an_arm_of_several_seeds_has_the_ends_of_all_their_intervals():
    usual = {"arm": "student", "accuracy": 90.0, "ordinary": 1.0, "kinds": {}}
    usual |= {"conclusive": True, "guarantee": None, "audit": None}
    rows = [
        usual | {"seed": seed, "worst": worst, "worst interval": ends}
        for seed, worst, ends in ((0, 2.0, [1.5, 3.0]), (1, 4.0, [1.0, 6.0]))
    ]

    def cell(rows, column):
        header, line = private.table_of(rows)
        return line[header.index(column)]

    assert cell(rows, "worst [95 %]") == "3.0 [1.0, 6.0]"
    assert (cell(rows, "seeds"), cell(rows[:1], "seeds")) == ("2", "1")
    teachers = [usual | {"arm": "teacher", "seed": 0, "accuracy": 80.0}]
    teachers[0] |= {"worst": 50.0, "worst interval": None}
    rows[1]["accuracy"] = 70.0
    header, _, line = private.table_of([*teachers, *rows])
    assert line[header.index("accuracy")] == "80.0"
    # Against the teacher of seed 0 alone, which has no other.
    assert line[header.index("gap")] == "+10.0"
    assert cell(rows, "gap") == "–"
    rows[1]["worst interval"] = None
    assert cell(rows, "worst [95 %]") == "3.0"


def test_an_epsilon_that_is_refuted_ends_the_study():
    audit = {"epsilon": 1.0, "bound": 0.4}
    rows = [
        {"arm": "dp_teacher_1", "seed": 2, "audit": audit},
        {"arm": "teacher", "seed": 2, "audit": None},
        {"arm": "of an earlier version", "seed": 2},
    ]
    private.require_audited(rows)
    rows[0]["audit"] = {**audit, "bound": 1.2}
    with pytest.raises(ValueError, match="dp_teacher_1, seed 2: The stated epsilon 1 "):
        private.require_audited(rows)


def test_rows_of_a_study_share_nothing():
    config = Private(data=PrivateRows(private=200, public=300), planted=PLANTED)
    rows, kinds, left_out = private_rows.split(config, 0)
    assert len(rows.private.texts) == len(kinds) == 210
    counts = dict(zip(*np.unique(kinds, return_counts=True), strict=True))
    named = {"adaptive", "always in", "mislabelled", "outlier", "twin"}
    assert {name: counts[name] for name in named} == dict.fromkeys(named, 10)
    assert len(rows.public.texts) == 300 - left_out["public rows left out"]
    usual = [rows.private.texts[row] for row in np.flatnonzero(kinds == "ordinary")]
    assert not scan(rows.public.texts, usual).failed.any()


def test_epochs_of_early_teachers_are_chosen_on_public_rows(tmp_path):
    config = tiny()
    config.early_stopping, config.planted = 2, ()
    config.arms = ("teacher", "early", "student_hard", "student_early_hard", "early:3")
    found = private.check(config)
    rows, *_ = private_rows.split(found, 0)
    recipes = private._recipes(found, rows, 40, 0, tmp_path, Watch())
    chosen = json.loads((tmp_path / "epochs.json").read_text())["epochs"]
    assert chosen in (1, 2)
    # What was chosen before holds, and for teachers that are stopped early alone.
    (tmp_path / "epochs.json").write_text('{"epochs": 7}')
    again = private._recipes(found, rows, 40, 0, tmp_path, Watch())
    epochs = {name: one.teacher.epochs for name, one in again.items()}
    assert epochs == {
        "teacher": 2, "early": 7, "student_hard": 2, "student_early_hard": 7,
        "early:3": 3,
    }  # fmt: skip
    assert recipes["early"].teacher.epochs == chosen
    assert private._recipes(private.check(tiny()), rows, 40, 0, tmp_path, Watch()) == {
        name: named(name, private.check(tiny()).base) for name in tiny().arms
    }


def test_recipes_that_are_compared_unless_others_are_named():
    left_out = {
        "student_early_hard_written",
        *(f"student_of_dp_{n}" for n in (8, 3, 1)),
    }
    assert {*RECIPES} - {*Private().arms} == left_out
