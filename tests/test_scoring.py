"""The command `score`: the user's rows back, with classes and probabilities."""

import csv
import json

import pytest

from protojax import cli
from protojax.data.wordpiece import train_wordpiece
from protojax.models import hf, init_model
from tests import tiny

NAMES = ("yes", "no")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    words = hf.wrap_tokenizer(train_wordpiece(["good", "bad"], vocab_size=200))
    config = tiny.encoder_config(vocab_size=len(words), max_positions=16, num_layers=1)
    model = init_model(config, seed=0, tokenizer=words)._replace(label_names=NAMES)
    folder = tmp_path_factory.mktemp("run") / "student"
    hf.save_hf(folder, model)
    return folder


def rows_file(tmp_path, *rows):
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(student, rows, out, *flags):
    given = ["--rows", rows, "--out", out, "--max-length", 16, *flags]
    return cli.main(["score", str(student), *map(str, given)])


def test_every_row_comes_back_with_its_columns(student, tmp_path, capsys):
    rows = [
        {"id": 7, "text": "good", "tags": ["a"]},
        {"id": 8, "text": ""},
        {"id": 9, "text": "bad é"},
    ]
    path = rows_file(tmp_path, *rows)
    assert score(student, path, tmp_path / "out.jsonl") == 0
    assert capsys.readouterr().out.startswith("2 rows scored")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    chances = [row.pop("probabilities") for row in found]
    predicted = [row.pop("predicted") for row in found]
    assert found == rows
    assert (chances[1], predicted[1]) == (None, None)
    for row in (0, 2):
        assert list(chances[row]) == [*NAMES]
        assert sum(chances[row].values()) == pytest.approx(1, abs=1e-5)
        assert predicted[row] == max(chances[row], key=chances[row].get)

    assert score(student, path, tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "text", "tags", "predicted", "p:yes", "p:no"]
    assert table[0]["tags"] == '["a"]'
    assert [row["predicted"] or None for row in table] == predicted


def test_columns_are_those_of_the_run(student, tmp_path):
    run = student.parent / "run.json"
    identity = {"columns.text": "body", "lengths.max_length": 16}
    run.write_text(json.dumps({"identity": identity}))
    try:
        path = rows_file(tmp_path, {"body": "good", "text": ""})
        assert score(student, path, tmp_path / "out.jsonl") == 0
        assert '"predicted": null' not in (tmp_path / "out.jsonl").read_text()
    finally:
        run.unlink()


@pytest.mark.parametrize(
    ("row", "out", "flags", "said"),
    [
        ({"text": "a"}, "out.txt", [], "ending in .jsonl or .csv"),
        ({"text": "a"}, "new.jsonl", [], "Expected another file"),
        ({"text": "a"}, ".", [], "ending in"),
        ({"txt": "a"}, "out.csv", [], "expected column 'text', found txt"),
        ({"text": "a"}, "out.csv", ["--text", "txt"], "expected column 'txt'"),
        ({"text": "a", "p:no": 1}, "out.csv", [], "without p:no"),
        ({"text": "a"}, "out.csv", ["--max-length", "x"], "--max-length"),
    ],
)
def test_a_mistake_is_one_line(row, out, flags, said, student, tmp_path, capsys):
    path = rows_file(tmp_path, row)
    before = path.read_text()
    assert score(student, path, tmp_path / out, *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("protojax score: ")
    assert said in line
    assert path.read_text() == before
    assert [found.name for found in tmp_path.iterdir()] == ["new.jsonl"]


def test_a_folder_without_a_classifier_is_refused(tmp_path, capsys):
    path = rows_file(tmp_path, {"text": "a"})
    (tmp_path / "student").mkdir()
    assert score(tmp_path / "student", path, tmp_path / "out.csv") == 2
    assert "config.json" in capsys.readouterr().err
