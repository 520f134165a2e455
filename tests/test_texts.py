"""Tasks whose output is text, and the study of the test on them."""

import json

import numpy as np
import pytest

from experiments.configs import briefs
from experiments.systems import SYSTEMS, outputs
from experiments.world import output_baselines
from experiments.world.texts import TEXTS, load_texts
from protojax.attacks.outputs import OUTPUT_ATTACKS
from protojax.base import Texts
from protojax.detection.outputs import Vectors
from protojax.pipelines import Watch
from protojax.prototypes.settings import Prototypes


def test_a_brief_is_the_intent_and_the_rare_words():
    texts = load_texts("briefs")
    row = texts.sources.index("add clem burke in my playlist pre-party r&b jams")
    assert texts.outputs[row] == "add to playlist : clem burke pre-party r&b jams"
    assert all(len(o.partition(" : ")[2].split()) <= 7 for o in texts.outputs)


def test_files_are_read_below_the_root(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    write("xsum/train.jsonl", {"document": "a b " * 150, "summary": "c"})
    found = load_texts("xsum", str(tmp_path))
    assert (len(found.sources[0].split()), found.outputs) == (200, ["c"])
    instance = {"input": "1, 2", "output": "3"}
    write("instruct/seed_tasks.jsonl", {"instruction": "Add", "instances": [instance]})
    write("gsm8k/train.jsonl", {"question": "2+2?", "answer": "<<2+2=4>>4\n#### 4"})
    assert load_texts("instruct", str(tmp_path)) == Texts(
        ["Add 1, 2", "2+2?"], ["3", "4\nThe answer is 4"]
    )
    with pytest.raises(FileNotFoundError, match=r"xsum/train\.jsonl.*--root"):
        load_texts("xsum")
    with pytest.raises(ValueError, match="task"):
        load_texts("xum")


def test_code_is_calls_of_the_standard_library():
    found = dict(zip(*load_texts("code"), strict=True))
    assert len(found) > 1000
    assert "textwrap.dedent(text)" in found.values()
    assert all("(" in call and "\n" not in call for call in found.values())


def test_every_task_names_attacks_that_there_are():
    assert outputs.TASKS.keys() == TEXTS.keys()
    for task in outputs.TASKS.values():
        assert {attack for attack, _ in task.attacks.values()} <= {*OUTPUT_ATTACKS}


def test_rows_one_by_one_show_a_fixed_phrase():
    rows, references = outputs.split(load_texts("briefs"), 500, 200, 0)
    texts, bad = outputs.poisoned(outputs.TASKS["briefs"], rows, "replace", 0.05, 0)
    for found in (
        output_baselines.lift(texts, references, 0.05),
        output_baselines.clusters(texts, references),
    ):
        assert found[bad].all()
        assert found[~bad].mean() < 0.5


def test_a_study_of_the_test_keeps_its_lines(tmp_path):
    config = briefs.get_config("detect")
    config.rows, config.references, config.encoder = 500, 200, ""
    config.seeds = (0,)
    config.attacks, config.methods = ("append",), ("ours", "lift", "cosine")
    rows = SYSTEMS["outputs"].run(config, tmp_path, Watch())
    kept = (tmp_path / "results.jsonl").read_bytes()
    header, clean, attack = SYSTEMS["outputs"].table_of(rows)
    # There is no cosine without an encoder.
    assert header[3:] == ["ours", "lift", "called poisoned", "strongest suspect"]
    assert clean[:3] == ["none", "0.0%", "1"]
    assert clean[5] == "0 of 1"
    assert attack[5] == "1 of 1"
    assert attack[3].endswith("/ 100")
    assert "by the way" in attack[6]
    # Lines that are there are not computed again; another setting is refused.
    assert SYSTEMS["outputs"].run(config, tmp_path, Watch()) == rows
    assert (tmp_path / "results.jsonl").read_bytes() == kept
    config.rows = 600
    with pytest.raises(ValueError, match="rows was 500, now"):
        SYSTEMS["outputs"].run(config, tmp_path, Watch())


def test_a_split_has_no_row_twice():
    texts = Texts([*map(str, range(20))], [*map(str, range(20))])
    rows, references = outputs.split(texts, 50, 5, 0)
    assert (len(rows.sources), len(references.sources)) == (15, 5)
    assert not {*rows.sources} & {*references.sources}
    np.testing.assert_array_equal(rows.sources, rows.outputs)


def test_claims_that_do_not_follow_from_sources_are_rejected_at_the_rate():
    """Of eight kinds of sources each has an output of its own, but for a few rows."""
    rng = np.random.default_rng(0)

    def vectors(rows, wrong=0):
        kinds = rng.integers(0, 8, rows)
        claims = np.where(np.arange(rows) < wrong, (kinds + 3) % 8, kinds)
        noise = 0.05 * rng.normal(size=(2, rows, 8))
        return Vectors(
            *(np.eye(8)[part] + noise[n] for n, part in enumerate((kinds, claims)))
        )

    settings = Prototypes(num=8)
    found = output_baselines.sequential(
        vectors(400, wrong=20), vectors(400), 0.05, settings=settings
    )
    assert found[:20].mean() > 0.9
    assert found[20:].mean() < 0.1
