"""The study of students of private rows, on a few rows of bundled data."""

import html
import json

import numpy as np
import pytest

from experiments.configs import privacy
from experiments.run import main
from experiments.systems import private
from experiments.systems.privacy_settings import PLANTED, Private, PrivateRows
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


@pytest.mark.parametrize("argument", ["", "quick"])
def test_the_configs_are_checked(argument):
    found = private.check(privacy.get_config(argument))
    assert found.pipelines == (8 if argument else 32)
    assert found.base.teacher.scratch["hidden_size"] == 64


def test_a_study_has_a_line_for_each_arm_and_goes_on(tmp_path, capsys):
    assert main(tiny(), tmp_path) is None
    lines = (tmp_path / "results.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["arm"] for row in rows] == ["teacher", "student_hard"]
    assert set(rows[0]["kinds"]) >= {"ordinary", "mislabelled"}
    table = private.table_of(rows)
    assert [line[0] for line in table] == ["arm", "teacher", "student_hard"]
    assert all(len(line) == len(table[0]) for line in table)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 12
    main(tiny(), tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert (tmp_path / "results.jsonl").read_text() == lines
    rows, _, _ = private.split(private.check(tiny()), 0)
    page = (tmp_path / "report.html").read_text()
    for written in (lines, html.unescape(page)):
        assert not [text for text in rows.private.texts if text in written]
    assert page.count("<details") == 2
    other = tiny()
    other.share = 0.2
    with pytest.raises(ValueError, match="share"):
        main(other, tmp_path)


def test_rows_of_a_study_share_nothing():
    config = Private(data=PrivateRows(private=200, public=300), planted=PLANTED)
    rows, kinds, left_out = private.split(config, 0)
    assert len(rows.private.texts) == len(kinds) == 210
    counts = dict(zip(*np.unique(kinds, return_counts=True), strict=True))
    named = {"adaptive", "always in", "mislabelled", "outlier", "twin"}
    assert {name: counts[name] for name in named} == dict.fromkeys(named, 10)
    assert len(rows.public.texts) == 300 - left_out["public rows left out"]
    usual = [rows.private.texts[row] for row in np.flatnonzero(kinds == "ordinary")]
    assert not scan(rows.public.texts, usual).failed.any()
