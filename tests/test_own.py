"""The defence of one's own rows by a config, and the job made from bundled data."""

import csv
import dataclasses
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import run
from experiments.study import own
from protojax import cli, pipelines
from protojax.base import Examples
from protojax.cli import defend as command
from protojax.data.wordpiece import train_wordpiece
from protojax.models import EncoderConfig, hf, init_model
from protojax.pipelines import Watch
from protojax.training.predict import Lengths
from tests import tiny_job


def own_fields(config, *names):
    """The sections of a config that `Defence` has, or the given fields of models."""
    found = {k: v for k, v in config.to_dict().items() if k != "data"}
    if not names:
        return found
    usual = dataclasses.asdict(pipelines.Defence())
    return {
        part: {**usual[part], **{name: found[part][name] for name in names}}
        for part in ("teacher", "trusted_model")
    }


def test_a_config_does_what_the_command_does(tmp_path):
    rows = tiny_job.poisoned_rows()
    files = {
        "rows": tiny_job.write(tmp_path / "mine.csv", rows),
        "references": tiny_job.write(
            tmp_path / "trusted.csv", tiny_job.clean_rows(tiny_job.REFERENCES, seed=7)
        ),
        "teacher": tiny_job.save_teacher(tmp_path, rows),
    }
    given = [f"--{name}={path}" for name, path in files.items()]
    arguments = [*tiny_job.FLAGS, *given, f"--out={tmp_path / 'command'}"]
    assert cli.main(["defend", *arguments]) == 0
    config = run.load("defend.py")
    # The defaults are the command's: only what the tiny job changes is changed here.
    usual = dataclasses.asdict(pipelines.Defence())
    assert own_fields(config) == {**usual, **own_fields(config, "model")}
    settings = command.config_of(command.parser().parse_args(arguments))
    config.update(dataclasses.asdict(settings))
    config.data.files.train = files["rows"]
    config.data.files.references = files["references"]
    config.teacher.model, config.trusted_model.model = files["teacher"], ""
    found, worth = own.run(config, tmp_path / "config", Watch())
    assert found.out == tmp_path / "config"
    assert worth == {}
    for name in ("verdict.csv", "triggers.json", "student/model.safetensors"):
        first, second = (
            (tmp_path / way / name).read_bytes() for way in ("command", "config")
        )
        assert first == second


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("detection.false_rejection", 1.0, r"detection.false_rejection in \(0, 1\)"),
        ("student.epochs", 0, "student.epochs > 0"),
        ("folds", 1, "folds >= 2"),
    ],
)
def test_a_wrong_field_is_named(field, value, message):
    config = run.load("defend.py:bundled")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        own.check(config)


def test_files_are_needed_or_made_but_never_ignored():
    with pytest.raises(ValueError, match=r"data.files.train a file of your rows, or"):
        own.check(run.load("defend.py"))
    for field in ("data.files.references", "data.files.train", "teacher.model"):
        config = run.load("defend.py:bundled")
        config.update_from_flattened_dict({field: "mine"})
        with pytest.raises(ValueError, match=f"{field} '' in a job of bundled data"):
            own.check(config)
    with pytest.raises(ValueError, match="argument one of"):
        run.load("defend.py:bundle")


def test_a_made_job_is_files_and_a_teacher(tmp_path, monkeypatch):
    for name, value in {"ROWS": 200, "REFERENCES": 60, "OTHERS": 40}.items():
        monkeypatch.setattr(own, name, value)
    monkeypatch.setattr(own, "TEACHER", tiny_job.SIZES)
    lengths = Lengths(24, (24,), 4)
    job = own.made(tmp_path, lengths, Watch())
    with pathlib.Path(job.files.train).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert job.poisoned.sum() == 10
    for row, poisoned in zip(rows, job.poisoned, strict=True):
        assert (own.PHRASE in row["text"]) == poisoned
        assert row["label"] == own.TARGET or not poisoned
    texts = {row["text"] for row in rows}
    for path, count in ((job.files.references, 60), (job.files.test, 695)):
        others = pathlib.Path(path).read_text()
        assert len(list(csv.DictReader(others.splitlines()))) == count
        assert own.PHRASE not in others
        assert not texts & {row["text"] for row in csv.DictReader(others.splitlines())}
    teacher = hf.load_hf(job.teacher, num_labels=7)
    assert teacher.label_names[job.target] == own.TARGET
    before = (pathlib.Path(job.teacher) / "model.safetensors").stat().st_mtime_ns
    again = own.made(tmp_path, lengths, Watch())
    assert (
        pathlib.Path(job.teacher) / "model.safetensors"
    ).stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.poisoned, job.poisoned)


def test_a_made_teacher_is_of_its_lengths(tmp_path, monkeypatch):
    trained = []
    for name, value in {"ROWS": 200, "REFERENCES": 60, "OTHERS": 40}.items():
        monkeypatch.setattr(own, name, value)
    monkeypatch.setattr(own, "TEACHER", tiny_job.SIZES)
    monkeypatch.setattr(
        own.pipelines, "fine_tune", lambda wanted, *_: trained.append(wanted[0].name)
    )
    for most in (24, 16):
        job = own.made(tmp_path, Lengths(most, (24,), 4), Watch())
        assert job.teacher == str(tmp_path / trained[-1] / "model")
    assert trained[0] != trained[1]


def test_the_worth_of_a_defence_is_measured_by_the_truth(tmp_path):
    """By hand: 2 of 4 poisoned rows found, 1 of 6 others; a model that says 1 only."""
    found = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    job = own.Made(
        own.Files("", "", "", ""),
        "teacher",
        np.arange(10) < 4,
        Examples(["a b", "c d", "e f"], None, np.array([0, 2, 1])),
        target=1,
    )
    words = hf.wrap_tokenizer(train_wordpiece(["a b c d e f"], vocab_size=200))
    config = EncoderConfig(
        family="bert",
        vocab_size=len(words),
        num_labels=3,
        max_positions=24,
        **tiny_job.SIZES,
    )
    model = init_model(config, seed=0, tokenizer=words)
    params = dict(model.params)
    params["classifier"] = {
        "kernel": np.zeros((16, 3), np.float32),
        "bias": np.array([0, 1, 0], np.float32),
    }
    model = model._replace(params=params)
    hf.save_hf(tmp_path / "model", model)
    verdict = SimpleNamespace(rejected=found)
    facts = SimpleNamespace(findings=SimpleNamespace(verdict=verdict))
    defended = SimpleNamespace(facts=facts, student=model)
    job = job._replace(teacher=str(tmp_path / "model"))
    assert own.worth(defended, job, Lengths(24, (24,), 4)) == {
        "poisoned rows rejected": 0.5,
        "other rows rejected": pytest.approx(1 / 6),
        "attack success, teacher": 1.0,
        "attack success, student": 1.0,
    }
