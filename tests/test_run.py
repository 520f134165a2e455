"""The command line, the configs and the checks before a study begins."""

import json
import re

import ml_collections
import pytest

from experiments import check, run
from experiments.configs import glue

EVERY_CONFIG = [
    "quickstart.py",
    "pilot.py",
    "agnews.py",
    "agnews.py:quick",
    *(f"glue.py:{task}" for task in glue.TASKS),
    *(f"glue.py:{task},quick" for task in glue.TASKS),
]


@pytest.mark.parametrize("value", EVERY_CONFIG)
def test_every_config_passes_its_check(value):
    check.check(run.load(value))


def test_a_typo_in_a_config_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'quickstart.py'"):
        run.resolve("quikstart.py")


def test_a_typo_in_a_task_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'sst2'"):
        run.load("glue.py:sst")


def test_arguments_are_resolved_in_both_spellings():
    path = run.resolve("glue.py:sst2")
    assert run.resolve_arguments(["run", "--config=glue.py:sst2"])[1] == (
        f"--config={path}"
    )
    assert run.resolve_arguments(["run", "--config", "glue.py:sst2"])[2] == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("plian",)}, "Did you mean 'plain'"),
        ({"tasks": ("sst3",)}, "Did you mean 'sst2'"),
        ({"tasks": ()}, "Expected tasks not empty"),
        ({"seeds": ()}, "Expected seeds not empty"),
        ({"attacks.word_data.trigger": "rare_word"}, "Did you mean 'rare_words'"),
        ({"attacks.word_data.channel": "labels"}, "attacks.word_data.channel"),
        ({"attacks.word_data.rate": 1.5}, r"attacks.word_data.rate in \(0, 1\)"),
        ({"attacks.word_data.position": "middle"}, "position"),
        ({"kd.divergence": "forward"}, "kd.divergence"),
        ({"kd.temperature": 0.0}, "kd.temperature > 0"),
        ({"kd.hard_weight": 2.0}, "kd.hard_weight"),
        ({"margin.layer_weights": (1.0, 1.0)}, "margin.layer_weights"),
        ({"margin.schedule": "relax"}, "margin.schedule"),
        ({"quarantine.groups": ("clumps",)}, "quarantine.groups"),
        ({"quarantine.action": "delete"}, "quarantine.action"),
        ({"quarantine.spaces": ()}, "quarantine.spaces"),
        ({"quarantine.false_rejection": 0.0}, "quarantine.false_rejection"),
        ({"student.epochs": 0}, "student.epochs"),
        ({"prototypes.metric": "cosin"}, "Did you mean 'cosine'"),
        ({"features.pooling": "max"}, "features.pooling"),
    ],
)
def test_a_bad_config_is_named_before_anything_runs(change, message):
    config = run.load("quickstart.py")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        check.check(config)


def frozen(**changes):
    config = run.load("quickstart.py")
    config.update_from_flattened_dict(changes)
    return ml_collections.FrozenConfigDict(config)


def test_a_workdir_belongs_to_one_study_that_may_grow(tmp_path):
    check.open_workdir(frozen(), tmp_path / "a")
    check.open_workdir(frozen(seeds=(0, 1)), tmp_path / "a")
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["seeds"] == [0, 1]
    with pytest.raises(ValueError, match=re.escape("kd.temperature was 2.0, now 4.0")):
        check.open_workdir(frozen(**{"kd.temperature": 4.0}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"attacks.word_data.rate was 0.05, now 0.1"):
        check.open_workdir(frozen(**{"attacks.word_data.rate": 0.1}), tmp_path / "a")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        check.open_workdir(frozen(), tmp_path)
