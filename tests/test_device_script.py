"""The script that calibrates a real decoder on an accelerator."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from protojax.rl.verifiers import arithmetic, equations

PATH = pathlib.Path(__file__).parent.parent / "tpu" / "calibrate_decoder.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_texts_of_all_manners_are_right(script):
    texts, given, asked = script.world_of(script.sizes_of(False))
    assert len(given.prompts) == 4096
    assert len({*given.prompts, *asked.prompts}) == 4096 + 256
    for prompt, text, answer in zip(*texts, given.answers, strict=True):
        assert arithmetic(prompt, text, answer) == equations(prompt, text, answer) == 1
    manners = [script.manner_of(text) for text in texts.outputs]
    assert {*manners} == {*script.MANNERS}
    numbers = (23, 45, 12)
    for manner in script.MANNERS:
        assert script.manner_of(script.text_of(manner, numbers)) == manner


def test_a_cut_has_the_ends(script):
    model = script.tiny()
    layers = model.params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    found = script.cut(model, 2).params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(found, layers[np.array([0, 2])])


@pytest.mark.parametrize("arguments", [["runs"], ["--dry", "teacher", "runs"]])
def test_a_teacher_or_a_trial(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit):
        script.main()
    assert "either a teacher or --dry" in capsys.readouterr().err


@pytest.mark.extra
def test_a_trial_writes_all_lines(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--dry", str(tmp_path)])
    script.main()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 10
    teachers = [json.loads(line)["teacher"] for line in lines]
    assert teachers[2:] == [
        name for name in ("original", "η = -1", "η = +1", "η = +0") for _ in range(2)
    ]
    assert "10 of 10 lines" in capsys.readouterr().out
