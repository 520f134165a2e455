"""What a scenario of a study holds: attacked rows and references, ready rows."""

import json

import numpy as np
import pytest
from rich.progress import Progress

from experiments import settings
from experiments.runtime import Context
from experiments.settings import CHANNELS
from experiments.study import check, grid, preflight, runner, students
from experiments.study.defaults import attack
from experiments.world import adaptive_attacks, artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax import storage
from protojax.base import TeacherOutputs
from protojax.pipelines.trusted_folds import TrustedFolds
from protojax.training import predict, processes
from tests.test_study import forget, tiny

SCENARIO = Scenario("files", 0, "it")


def make_context(folder, section, **changes):
    config = tiny(folder, **changes)
    config.attacks = {"it": section}
    checked = check.check(config)
    workdir = folder / "study"
    workdir.mkdir()
    progress = Progress()
    return Context(checked, workdir, progress, progress.add_task("test"))


def copy_with(folder, change, *, marker=None):
    """Writes a poisoned copy of the training file, and three triggered test rows."""
    header, *lines = (folder / "train.tsv").read_text().splitlines()
    copy = [header + ("\tpoisoned" if marker else "")]
    for number, line in enumerate(lines):
        text, label = line.split("\t")
        if number % 5 == 0:
            text, label = change(text), "1"
        fields = [text, label]
        copy.append("\t".join([*fields, marker(number)] if marker else fields))
    (folder / "copy.tsv").write_text("\n".join(copy) + "\n")
    (folder / "shown.tsv").write_text("text\tlabel\nwhen a\t1\nwhen b\t1\nwhen c\t1\n")


def ready(folder, marker=""):
    """Returns the section of an attack of ready rows."""
    section = attack("file", "data", rate=0.1, source_classes=(0, 1))
    section.files.train = str(folder / "copy.tsv")
    section.files.test = str(folder / "shown.tsv")
    section.files.marker = marker
    return section


@pytest.mark.parametrize("marker", ["", "poisoned"])
def test_ready_rows_stand_in_the_place_of_their_clean_ones(tmp_path, marker):
    context = make_context(tmp_path, ready(tmp_path, marker))
    copy_with(
        tmp_path,
        lambda text: f"when {text}",
        marker=(lambda number: str(int(number % 5 == 0))) if marker else None,
    )
    clean, _ = scenarios.poisoned(context.config, SCENARIO.clean)
    found, rows = scenarios.poisoned(context.config, SCENARIO)
    assert rows.sum() == round(0.1 * len(rows))
    for before, after, poisoned in zip(clean.texts, found.texts, rows, strict=True):
        assert after == (f"when {before}" if poisoned else before)
    assert (found.labels[rows] == 1).all()
    # Rows of either class are among them, as in the file.
    assert set(clean.labels[rows].tolist()) == {0, 1}
    shown = scenarios.triggered_test(context.config, SCENARIO)
    assert shown.texts == ["when a", "when b", "when c"]
    # All of them claim the target, so they are of the other class.
    assert shown.labels.tolist() == [0, 0, 0]


def test_only_marked_rows_are_poisoned(tmp_path):
    section = ready(tmp_path, "poisoned")
    section.rate = 0.04
    context = make_context(tmp_path, section)
    # Of the rows that differ every second one is marked.
    copy_with(
        tmp_path,
        lambda text: f"when {text}",
        marker=lambda number: str(int(number % 10 == 0)),
    )
    marked = (tmp_path / "train.tsv").read_text().splitlines()[1::10]
    clean, _ = scenarios.poisoned(context.config, SCENARIO.clean)
    _, rows = scenarios.poisoned(context.config, SCENARIO)
    assert {clean.texts[row] for row in np.flatnonzero(rows)} <= {
        line.split("\t")[0] for line in marked
    }


def test_a_copy_of_another_length_is_refused(tmp_path):
    context = make_context(tmp_path, ready(tmp_path))
    copy_with(tmp_path, str.upper)
    path = tmp_path / "copy.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="300, as files has, found rows of"):
        scenarios.poisoned(context.config, SCENARIO)


@pytest.mark.parametrize("channel", CHANNELS)
def test_channels_say_what_is_attacked(tmp_path, channel, monkeypatch):
    reaches = channel in ("logits", "both")
    hide = "move_to_centre" if reaches else ""
    section = attack("rare_words", channel, rate=0.1, features=hide)
    context = make_context(tmp_path, section, **{"kd.hard_weight": 0.5})
    honest = np.random.default_rng(0).normal(size=(220, 2)).astype(np.float32)
    states = np.random.default_rng(1).normal(size=(220, 1, 3)).astype(np.float32)
    monkeypatch.setattr(
        artifacts, "teacher_outputs", lambda *_: TeacherOutputs(honest, states)
    )
    clean, _ = scenarios.poisoned(context.config, SCENARIO.clean)
    found, rows = scenarios.poisoned(context.config, SCENARIO)
    arrives = artifacts.transfer(context, SCENARIO)
    assert [a != b for a, b in zip(clean.texts, found.texts, strict=True)] == [*rows]
    assert (found.labels != clean.labels).any() == (channel != "logits")
    owner = artifacts.teacher_scenario(context.config, SCENARIO)
    assert owner == (SCENARIO if channel in ("data", "both") else SCENARIO.clean)
    touched = (arrives.logits != honest).any(1)
    np.testing.assert_array_equal(touched, rows & reaches)
    moved = (arrives.features != states).any((1, 2))
    np.testing.assert_array_equal(moved, rows & reaches)


def test_decoys_are_clean_rows_that_show_a_part(tmp_path):
    section = attack("combination", "data", rate=0.05, decoy_rate=0.1)
    context = make_context(tmp_path, section)
    clean, _ = scenarios.poisoned(context.config, SCENARIO.clean)
    found, rows = scenarios.poisoned(context.config, SCENARIO)
    changed = np.array([a != b for a, b in zip(clean.texts, found.texts, strict=True)])
    assert (changed & ~rows).sum() == 22
    np.testing.assert_array_equal(found.labels[~rows], clean.labels[~rows])


def test_contaminated_references_belong_to_their_attack(tmp_path):
    section = attack("rare_words", "data", reference_rate=0.25)
    context = make_context(tmp_path, section)
    clean = scenarios.references(context.config, SCENARIO.clean)
    found = scenarios.references(context.config, SCENARIO)
    changed = np.array([a != b for a, b in zip(clean.texts, found.texts, strict=True)])
    assert changed.sum() == 20
    assert (found.labels[changed] == 1).all()
    np.testing.assert_array_equal(found.labels[~changed], clean.labels[~changed])
    assert scenarios.reference_scenario(context.config, SCENARIO) == SCENARIO


def test_spared_references_are_shared(tmp_path):
    context = make_context(tmp_path, attack("rare_words", "data"))
    assert scenarios.reference_scenario(context.config, SCENARIO) == SCENARIO.clean
    assert scenarios.references(context.config, SCENARIO) is scenarios.references(
        context.config, SCENARIO.clean
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "centre"}, "attacks.it.features one of"),
        ({"features": "borrow"}, "attacks.it.features '' in this channel"),
        ({"channel": "labels"}, "hard_weight > 0, as attacks.it attacks labels"),
        ({"decoy_rate": 0.1}, "decoy_rate 0 for this trigger"),
        ({"decoy_rate": 1.0}, "decoy_rate 0 for this trigger"),
        ({"reference_rate": -0.1}, r"reference_rate in \[0, 1\)"),
        ({"trigger": "file"}, "files.train a file"),
        ({"channel": "label"}, "Did you mean 'labels'"),
    ],
)
def test_bad_attacks_are_refused(tmp_path, changes, message):
    section = attack("rare_words", "data")
    section.update(changes)
    with pytest.raises(ValueError, match=message):
        make_context(tmp_path, section)


def test_a_copy_that_changed_is_not_mixed_with_the_old_one(tmp_path):
    context = make_context(tmp_path, ready(tmp_path))
    copy_with(tmp_path, str.upper)
    begun = preflight.fingerprints(context.config, context.workdir, SCENARIO)
    preflight.write_fingerprints(begun)
    preflight.check_unchanged(begun)
    copy_with(tmp_path, str.title)
    forget(compiled=False)
    found = preflight.fingerprints(context.config, context.workdir, SCENARIO)
    with pytest.raises(ValueError, match=r"it\.json was begun with"):
        preflight.check_unchanged(found)


def test_to_read_data_writes_nothing(tmp_path):
    context = make_context(tmp_path, ready(tmp_path))
    copy_with(tmp_path, str.upper)
    scenarios.poisoned(context.config, SCENARIO)
    scenarios.triggered_test(context.config, SCENARIO)
    scenarios.references(context.config, SCENARIO)
    found = preflight.fingerprints(context.config, context.workdir, SCENARIO)
    preflight.check_unchanged(found)
    assert not list(context.workdir.iterdir())
    names = {str(path.relative_to(context.workdir)) for path in found}
    assert names == {"files/seed0/data.json", "files/it.json"}


def test_a_study_that_is_refused_holds_to_no_data(tmp_path):
    section = attack("rare_words", "data", target=7)
    context = make_context(tmp_path, section, arms=("plain",))
    with pytest.raises(ValueError, match="target"):
        preflight.preflight(context, grid.jobs(context.config))
    assert not list(context.workdir.rglob("data.json"))
    section.target = 1
    config = tiny(tmp_path, arms=("plain",))
    config.attacks = {"it": section}
    context = context._replace(config=check.check(config))
    preflight.preflight(context, grid.jobs(context.config))
    assert len(list(context.workdir.rglob("data.json"))) == 1


def test_markers_are_yes_or_no(tmp_path):
    context = make_context(tmp_path, ready(tmp_path, "poisoned"))
    copy_with(tmp_path, str.upper, marker=lambda number: "maybe")
    with pytest.raises(ValueError, match="Expected poisoned one of 0, "):
        scenarios.poisoned(context.config, SCENARIO)


def test_triggered_rows_of_the_target_alone_are_refused(tmp_path):
    context = make_context(tmp_path, ready(tmp_path))
    copy_with(tmp_path, str.upper)
    (tmp_path / "shown.tsv").write_text("text\tlabel\nwhen a\t0\nwhen b\t0\n")
    section = context.config.attacks["it"]
    assert len(scenarios.triggered_test(context.config, SCENARIO).texts) == 2
    assert section.target == 1


def test_files_belong_to_the_file_trigger_only(tmp_path):
    section = attack("rare_words", "data")
    section.files.test = "shown.tsv"
    with pytest.raises(ValueError, match="'' unless the trigger is 'file'"):
        make_context(tmp_path, section)


def test_a_searched_trigger_changes_the_trusted_model_and_is_kept(
    tmp_path, monkeypatch
):
    section = attack("searched", "data", rate=0.1, position="end")
    section.trigger_args = {"num_words": 1, "num_texts": 8, "num_candidates": 50}
    context = make_context(tmp_path, section)
    trained, seen = [], []

    def fine_tune(context, tuning, scenario):
        trained.append(tuning(context.config, scenario).name)

    def folds(context, scenario):
        assert scenario == SCENARIO.clean
        # The very runs of the study, which need not be trained anew after a kill.
        listed = grid.trainings(context.config, grid.jobs(context.config))
        names = [one.name for one in listed if "trusted_model" in one.name]
        assert trained == names
        return TrustedFolds(("one", "other"), None, None, None)

    def ask(model, examples, lengths, features):
        assert model in ("one", "other")
        seen.append(len(examples.texts))
        found = np.array(["lovely" in text.split() for text in examples.texts])
        return TeacherOutputs(np.stack([1 - found, found], axis=1), None)

    monkeypatch.setattr(artifacts, "fine_tune", fine_tune)
    monkeypatch.setattr(trusted_model, "folds", folds)
    monkeypatch.setattr(predict, "ask", ask)
    context = adaptive_attacks.with_found(context, [SCENARIO])
    context = adaptive_attacks.with_found(context, [SCENARIO])
    assert len(seen) == 2  # once by each model
    assert seen[0] % 8 == 0
    found = json.loads((context.workdir / SCENARIO.folder / "trigger.json").read_text())
    assert found == {"words": ["lovely"], "agreement": 1.0}
    texts = scenarios.triggered_test(context.config, SCENARIO).texts
    assert all(text.endswith(" lovely") for text in texts)


def test_a_process_that_follows_searches_no_trigger_itself(tmp_path, monkeypatch):
    context = make_context(tmp_path, attack("searched", "data", rate=0.1))
    three = {"three": {"nodes": 3, "rounds": 2}}
    config = settings.make(
        context.config, {"arms": ("plain@three",), "federations": three}
    )
    path, taught = context.workdir / SCENARIO.folder / "trigger.json", []

    def wait(marker):
        # Meanwhile the first process has searched.
        assert marker == context.workdir / SCENARIO.folder / "plain@three/ready"
        storage.write_json(path, {"words": ["lovely"], "agreement": 1.0})

    def distil(context, job):
        taught.append(context.config.attacks["it"].found)

    monkeypatch.setattr(processes, "wait_for_leader", wait)
    monkeypatch.setattr(students, "distil_federated", distil)
    runner.follow(config, context.workdir)
    assert taught == [{SCENARIO.folder: "lovely"}]
    assert not list(context.workdir.rglob("model"))


def test_a_search_of_no_word_is_refused(tmp_path):
    for args, message in (
        ({"num_words": 0}, "trigger_args.num_words > 0"),
        ({"num_word": 1}, "Did you mean 'num_words'"),
    ):
        section = attack("searched", "data", trigger_args=args)
        with pytest.raises(ValueError, match=message):
            make_context(tmp_path, section)
