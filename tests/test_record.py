"""The tables of the README are those of the files beside it."""

import json
import re

import pytest

from experiments import record

NAMES = sorted(path.stem for path in record.FOLDER.glob("*.json"))
ROW = {
    "task": "t",
    "attack": "a",
    "metric_name": "accuracy",
    "commit": "abc",
    "step_seconds": 0.5,
    "step_rows": 4,
}
ROWS = [
    {**ROW, "arm": "clean", "seed": 0, "clean_metric": 0.5, "asr": 0.25},
    {**ROW, "arm": "plain", "seed": 0, "clean_metric": 0.5, "asr": 1.0},
    {
        **ROW,
        "arm": "dp_sgd",
        "seed": 0,
        "clean_metric": 0.25,
        "asr": 0.5,
        "step_rows": 2,
    },
    {**ROW, "arm": "clean", "seed": 0, "task": "other", "clean_metric": 1, "asr": 0.0},
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_file_renders(name):
    found = json.loads((record.FOLDER / f"{name}.json").read_text())
    readme = record.README.read_text()
    assert record.placed(readme, name, record.rendered(found)) == readme


def test_every_table_has_its_file():
    assert NAMES
    marked = re.findall(r"<!-- results: (\S+) -->", record.README.read_text())
    assert sorted(marked) == NAMES


def test_a_study_is_recorded(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("# Results\n<!-- results: it -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(record, "README", readme)
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    for row in ROWS:
        path = tmp_path / f"{row['task']}/seed0/a/{row['arm']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    (tmp_path / "t/seed0/a/trigger.json").write_text('{"words": ["cf"]}')
    (tmp_path / "versions.json").write_text('{"jax": "1.2", "commit": "later"}')
    record.record("it", tmp_path, tasks=("t",))
    found = json.loads((tmp_path / "it.json").read_text())
    assert found["commits"] == ["abc"]
    text = readme.read_text()
    assert "| t | a | plain | 50.0 | 100.0 | 25.0 | 75.0 | 500 ms | 1.00 |" in text
    # Half the rows in a step of the same time: twice the time a row.
    assert "| t | a | dp_sgd | 25.0 | 50.0 | 25.0 | 25.0 | 500 ms | 2.00 |" in text
    assert "other" not in text
    assert "1 seed(s), commit abc, jax 1.2." in text
    assert text.startswith("# Results\n")
    assert text.endswith("after\n")
    record.record("it", tmp_path, tasks=("t",))
    assert readme.read_text() == text
    with pytest.raises(ValueError, match="results: nowhere"):
        record.record("nowhere", tmp_path)
    with pytest.raises(ValueError, match="found none"):
        record.record("it", tmp_path, tasks=("u",))
