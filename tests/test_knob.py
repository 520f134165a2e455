"""The study of calibrated teachers: its plan, its lines and its table."""

import numpy as np
import pytest

from experiments import settings
from experiments.configs import distillability as config
from experiments.systems import SYSTEMS
from experiments.systems import distillability as study
from protojax.rl import Problems
from protojax.rl.problems import Drawn


@pytest.mark.parametrize("size", ["", "quick"])
def test_a_config_makes_the_study(size):
    fields = config.get_config(size).to_dict()
    assert fields.pop("system") in SYSTEMS
    found = settings.make(study.Knob(), fields)
    assert found.calibration.max_new == 11
    todo = study._todo(found)
    # The control is a calibration as well, and has students of its own.
    arms = {arm.name for arm, *_ in todo}
    assert {"original", "chain, η = +0", "chain, η = -1"} <= arms
    assert all(not arm.reward for arm, _, kind, _ in todo if kind == "none")
    assert len(todo) == len(set(todo))


def test_problems_to_measure_on_are_not_used():
    given, asked = study.problems_of(study.Knob(problems=50, held_out=20))
    assert (len(given.prompts), len(asked.answers)) == (50, 20)
    assert not {*given.prompts} & {*asked.prompts}


def test_each_problem_has_its_verdict():
    asked = Problems(["87+59+56="] * 4, ["202"] * 4)
    texts = ["p146,202", "p156,202", "p146,203", "p146,202"]
    ended = np.array([True, True, True, False])
    column = np.arange(4.0)
    drawn = Drawn(column, texts, *[column] * 7, ended)
    found = study._record(asked, drawn)
    assert found["items"] == "ta--"
    assert (found["answer"], found["chain"]) == (0.5, 0.25)
    assert found["styles"]["p"] == 1


def test_the_table_has_a_line_for_each_arm():
    line = {"teacher": "original", "student": "large", "attacker": "sft", "chain": 0.5}
    rows = [line | {"seed": seed, "answer": seed / 2} for seed in range(3)]
    header, one = study.table_of(rows)
    assert len(header) == len(one)
    assert one[3:] == ["3", "50.0 (0.0 to 100.0)", "50.0"]
