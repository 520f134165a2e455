"""The calibration of a user's teacher: from folders and a file to a folder."""

import json

import jax
import numpy as np
import pytest

from protojax.cli import commands
from protojax.models.language import load_language_model, save_language_model
from tests.test_calibrate import PROBLEMS, PROXY, TEACHER

FLAGS = ["--steps", "2", "--max-new", "4", "--verifier", "arithmetic", "--eta=-1"]
SET = ("prompts=2", "draws=3", "held_out=0.3", "evaluate_every=1", "skill_loss=1.0")
SET += ("learning_rate=1e-2", "kl_budget=1e6", "kl_target=1e6")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    save_language_model(folder / "teacher", TEACHER)
    save_language_model(folder / "proxy", PROXY)
    rows = zip(*PROBLEMS, strict=True)
    lines = [json.dumps({"prompt": a, "answer": int(b)}) for a, b in rows]
    (folder / "problems.jsonl").write_text("\n".join(lines))
    return folder


def run(job, *more, proxy="proxy", prompts="problems.jsonl", out="out"):
    given = {"teacher": "teacher", "proxy": proxy, "prompts": prompts, "out": out}
    flags = [part for name, path in given.items() for part in (f"--{name}", job / path)]
    sets = [part for one in SET for part in ("--set", f"calibration.{one}")]
    return commands.main(["calibrate", *map(str, flags), *FLAGS, *sets, *more])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_teacher_is_calibrated_and_nothing_is_claimed_of_students(job, capsys):
    assert run(job) == 0
    assert "No student was trained" in capsys.readouterr().out
    out = job / "out"
    items, history = lines_of(out / "items.jsonl"), lines_of(out / "history.jsonl")
    assert [one["rollout"] for one in history] == [0, 1]
    assert len(items) == 2
    for item in items:
        place = item["line"] - 1
        assert item["prompt"] == PROBLEMS.prompts[place]
        assert item["answer"] == PROBLEMS.answers[place]
        for side in ("before", "after"):
            found = item[side]
            ratio = found["proxy_log_prob"] - found["log_prob"]
            assert found["calibration"] == pytest.approx(ratio, abs=1e-4)
        assert item["before"]["kl"] == 0
    card = (out / "calibrated/README.md").read_text()
    assert "Nothing was measured of any student, at any budget" in card
    assert "η = -1: harder to distil" in card
    assert "did not look at written steps" in card
    about = json.loads((out / "run.json").read_text())
    assert about["finished"]
    assert about["result"]["students_measured"] == 0
    assert about["result"]["evaluations"][0]["rollouts"] == 0
    loaded = load_language_model(out / "calibrated")
    assert jax.tree.structure(loaded.params) == jax.tree.structure(TEACHER.params)
    moved = loaded.params["embedding"]["embedding"] != np.asarray(
        TEACHER.params["embedding"]["embedding"]
    )
    assert moved.any()
    assert run(job) == 0
    assert lines_of(out / "items.jsonl") == items


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"proxy": "nothing"}, [], "nothing"),
        ({"prompts": "nothing.csv"}, [], "nothing.csv"),
        ({}, ["--prompt", "question"], "question"),
        ({}, ["--verifier", "arithmetics"], "Did you mean 'arithmetic'"),
        ({}, ["--set", "calibration.drawz=2"], "Did you mean 'draws'"),
        ({}, ["--set", "calibration.prompts=9"], "Expected prompts <= 4"),
        ({}, ["--eta", "much"], "eta"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    job, changes, more, said, capsys
):
    assert run(job, *more, **{"out": "refused", **changes}) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("protojax calibrate: ")
    assert said in line
    assert not (job / "refused").exists()
