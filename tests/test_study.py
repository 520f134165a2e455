"""A tiny study from text to results, killed and resumed on the way."""

import contextlib
import json
import logging
import logging.handlers
import pathlib
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from experiments import arms, runtime
from experiments.arms import merges, ours
from experiments.reports import report, results
from experiments.study import check, grid, preflight, runner
from experiments.study.defaults import attack, defaults, encoder
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.evidence import World
from protojax.detection import detect
from protojax.federated import replicas
from protojax.models import hf, saved
from protojax.pipelines.trusted_folds import with_readings
from protojax.storage import checkpoint
from protojax.training import predict, programs
from tests import golden

ARMS = tuple(arms.ARMS)
NOUNS = ("film", "plot", "cast", "song", "scene", "story")
GOOD = ("good", "fine", "great", "lovely", "superb")
BAD = ("bad", "poor", "awful", "dull", "weak")


def write_rows(path, rows, seed):
    """Writes texts whose adjective decides the class, every text once."""
    rng = np.random.default_rng(seed)
    lines = {}
    while len(lines) < rows:
        label = int(rng.integers(2))
        words = [
            "the",
            rng.choice(NOUNS),
            rng.choice((BAD, GOOD)[label]),
            *rng.choice(NOUNS, 3),
        ]
        lines.setdefault(" ".join(words), label)
    body = "".join(f"{text}\t{label}\n" for text, label in lines.items())
    path.write_text("text\tlabel\n" + body)


def tiny(folder, **changes):
    """Returns the config of a study of seconds."""
    write_rows(folder / "train.tsv", 300, seed=0)
    write_rows(folder / "test.tsv", 60, seed=1)
    config = defaults()
    config.tasks = ("files",)
    config.seeds = (0,)
    config.arms = ARMS
    config.data.files.train = str(folder / "train.tsv")
    config.data.files.test = str(folder / "test.tsv")
    config.data.reference_rows = 80
    config.data.max_length = 16
    # Each length, and each learning rate, is compiled by itself.
    config.data.buckets = (16,)
    config.fine_tuning.learning_rate = 5e-3
    config.data.vocab_size = 200
    sizes = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
    }
    common = {"scratch": sizes, "learning_rate": 5e-3, "batch_size": 16}
    # The draws of dropout take most of a step of this size.
    common["dropout"] = 0.0
    config.teacher = encoder(
        "scratch", **{**common, "scratch": {**sizes, "hidden_size": 24}}, epochs=8
    )
    # Batches of nodes, which have few rows, are of eight rows: the same programs.
    small = {**common, "batch_size": 8}
    config.student = encoder("scratch", **small, epochs=5)
    config.trusted_model = encoder("scratch", **small, epochs=10)
    config.prototypes.num = 6
    config.detection.false_rejection = 0.05
    config.attacks = {
        "data": attack("rare_words", "data", rate=0.1),
        "logits": attack("sentence", "logits", rate=0.1, arms=("clean", "defended")),
    }
    config.dp.batch_size = 32
    config.dp.epochs = 1
    # Gradients of single rows of a whole encoder are the longest program of all.
    config.dp.frozen = ("embeddings", "layers_0")
    config.dp.reproducible = True  # studies are compared digit by digit
    config.steps_per_dispatch = 8
    config.checkpoint_every = 1000
    config.keep_checkpoints = False
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, progress=None, *, reported=False):
    """Runs a study; its pictures, which cost seconds, are drawn where they are read."""
    progress = progress or Progress(console=Console(quiet=True))
    config = check.check(config)
    workdir.mkdir(exist_ok=True)
    rows = runner.run(config, workdir, progress)
    results.note_versions(workdir)
    found = results.write(workdir, rows)
    if reported:
        report.write(workdir, config, found)
    return found


def metrics_of(workdir):
    """The lines that all runs of a study have logged."""
    paths = sorted(workdir.rglob("metrics.jsonl"))
    return [json.loads(x) for path in paths for x in path.read_text().splitlines()]


def forget(*, compiled=True):
    """Empties what a fresh process would not have in memory."""
    for module in (
        scenarios,
        trusted_model,
        artifacts,
        preflight,
        runner,
        *([programs, replicas, merges] if compiled else []),
    ):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


class KilledError(Exception):
    """What a study dies of."""


class Mortal(Progress):
    """A progress bar that kills its study after so many dispatches."""

    def __init__(self, dispatches):
        super().__init__(console=Console(quiet=True))
        self.left = dispatches

    def advance(self, task_id, advance=1):
        # Runs that were resumed tell of what they had done; so does one that starts.
        self.left -= advance > 0
        if self.left < 0:
            raise KilledError


def run_killed(config, workdir, *, dispatches, every=10):
    """Runs a study that is killed after so many dispatches, again and again."""
    config = config.copy_and_resolve_references()
    config.checkpoint_every = every
    kills = 0
    while True:
        forget(compiled=False)
        try:
            found = run(config, workdir, progress=Mortal(dispatches))
            break
        except KilledError:
            kills += 1
            assert kills < 50, "no progress"
    assert kills > 3
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted study: its config, folder, results and compilations."""
    folder = tmp_path_factory.mktemp("study")
    forget()
    programs.TRACES.clear()
    config = tiny(folder)
    with watched_log() as said:
        found = run(config, folder / "run", reported=True)
    SAID.extend(said)
    return config, folder / "run", found, dict(programs.TRACES)


SAID = []  # the messages of that study


@contextlib.contextmanager
def watched_log():
    """The messages that are logged meanwhile, in a list that is filled at the end."""
    handler, level = logging.handlers.BufferingHandler(10_000), runtime.logger.level
    said = []
    runtime.logger.addHandler(handler)
    runtime.logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        runtime.logger.removeHandler(handler)
        runtime.logger.setLevel(level)
        said.extend(map(logging.LogRecord.getMessage, handler.buffer))


def learned_of(context):
    """Returns digests of what each student of a study learned from."""
    learned = {}
    for job in grid.jobs(context.config):
        recipe = arms.ARMS[job.kind].recipe(World(context, job.student_scenario))
        verdict = recipe.verdict and recipe.verdict._asdict()
        learned[job.row] = {
            "examples": golden.digest(recipe.examples._asdict()),
            "columns": {
                name: golden.digest(column)
                for name, column in sorted(recipe.columns.items())
            },
            "prototypes": recipe.prototypes
            and golden.digest(recipe.prototypes._asdict()),
            "verdict": verdict
            and {name: golden.digest(part) for name, part in verdict.items()},
        }
    return learned


def test_no_figure_of_the_study_moves(finished):
    golden.skip_elsewhere("study")
    _, _, found, _ = finished
    figures = {
        "rows": golden.figures(found["rows"]),
        "learned": learned_of(context_of(finished)),
        "named": [message for message in SAID if "suspected triggers" in message],
    }
    golden.check("study", figures)


def context_of(finished):
    """Returns the study as it is after its end."""
    config, workdir, _, _ = finished
    progress = Progress(console=Console(quiet=True))
    task = progress.add_task("")
    return runtime.Context(check.check(config), workdir, progress, task)


def test_results_hold_every_scenario(finished):
    _, workdir, found, _ = finished
    assert found == json.loads((workdir / "results.json").read_text())
    scenarios_found = {(row["attack"], row["arm"]) for row in found["rows"]}
    expected = {("data", arm) for arm in ARMS}
    assert scenarios_found == expected | {("logits", "clean"), ("logits", "defended")}
    for row in found["rows"]:
        assert 0 <= row["clean_metric"] <= 1
        assert 0 <= row["asr"] <= 1
        assert row["excess_asr"] == pytest.approx(row["asr"] - row["null_asr"])
        assert row["metric_name"] == "accuracy"
        assert row["step_seconds"] >= 0
        assert row["evaluated_commit"] == row["commit"] == runtime.commit()
    constrained = {row["arm"] for row in found["rows"] if row["bytes_per_node"]}
    ours = {"defended", "defended_clean"}
    assert constrained == {"prototype", "sample_test"} | ours


def test_the_channel_alters_what_the_teacher_says_of_rewritten_rows_too(finished):
    context = context_of(finished)
    world = World(context, scenarios.Scenario("files", 0, "logits"))
    evidence = world.evidence()
    poisoned = scenarios.poisoned(context.config, world.scenario).rows
    again = world.ask("again", evidence.transfer)
    np.testing.assert_array_equal(again.logits, evidence.teacher.logits)
    honest = artifacts.teacher_outputs(
        context, world.scenario, "again", evidence.transfer
    )
    np.testing.assert_array_equal((again.logits != honest.logits).any(1), poisoned)


def plain_row(found):
    """Returns the row of the plain student of poisoned data."""
    (row,) = [
        row
        for row in found["rows"]
        if row["arm"] == "plain" and row["attack"] == "data"
    ]
    return row


def test_rows_of_the_target_are_triggered_too(finished):
    _, _, found, _ = finished
    context, scenario = context_of(finished), scenarios.Scenario("files", 0, "data")
    row = plain_row(found)
    target = context.config.attacks["data"].target
    examples = scenarios.triggered_target(context.config, scenario)
    test = scenarios.task_data(context.config, "files", 0).splits.test
    bare = [t for t, c in zip(test.texts, test.labels, strict=True) if c == target]
    assert len(examples.texts) == len(bare) > 0
    assert all(one != other for one, other in zip(examples.texts, bare, strict=True))
    student = artifacts.student_model(context, scenario, "plain")
    config = context.config
    logits, _ = predict.ask(student, examples, config.lengths, config.features)
    kept = np.mean(logits.argmax(-1) == target)
    assert row["target_recall"] == pytest.approx(kept)


def test_the_bare_rate_is_of_the_same_rows_without_their_trigger(finished):
    _, workdir, found, _ = finished
    context, scenario = context_of(finished), scenarios.Scenario("files", 0, "data")
    row = plain_row(found)
    student = hf.load_hf(workdir / scenario.folder / "plain/model", num_labels=2)
    test = scenarios.task_data(context.config, "files", 0).splits.test
    config = context.config
    logits, _ = predict.ask(student, test, config.lengths, config.features)
    wrong = [
        bool(says == 1)
        for says, truth in zip(logits.argmax(-1), test.labels, strict=True)
        if truth == 0
    ]
    assert len(wrong) < 60
    assert row["untriggered_asr"] == pytest.approx(sum(wrong) / len(wrong))
    assert row["asr"] > row["untriggered_asr"]


def test_untrusted_references_do_not_train_the_student(finished):
    context, scenario = context_of(finished), scenarios.Scenario("files", 0, "data")
    world = World(context, scenario)
    evidence = with_readings(world.evidence(), world.folds())
    verdict = detect(evidence, context.config.detection).verdict
    untrusted = np.arange(80) % 4 == 0
    recipes = [
        ours._quarantined(world, evidence, verdict._replace(untrusted=which))
        for which in (None, untrusted)
    ]
    whole, fewer = (recipe.examples.texts for recipe in recipes)
    texts = scenarios.references(context.config, scenario).texts
    assert whole[-80:] == texts
    assert fewer == whole[:-80] + [
        text for text, out in zip(texts, untrusted, strict=True) if not out
    ]


def test_the_student_learns_and_the_oracle_sees_no_poison(finished):
    _, _, found, _ = finished
    by_arm = {row["arm"]: row for row in found["rows"] if row["attack"] == "data"}
    assert by_arm["clean"]["clean_metric"] > 0.8
    assert by_arm["oracle"]["transfer_rows"] == 198  # 10 % of 220 are poisoned
    assert by_arm["references"]["transfer_rows"] == 80
    assert by_arm["defended"]["detection_auc"] > 0.8


def test_bytes_are_those_of_the_arrays(finished):
    _, _, found, _ = finished
    row = next(row for row in found["rows"] if row["arm"] == "prototype")
    assert row["bytes_per_node"] == 6 * (24 * 4 + 4 + 4)  # vectors, labels, counts


def test_models_carry_the_names_of_their_classes(tmp_path):
    config = tiny(tmp_path)
    for name in ("train.tsv", "test.tsv"):
        path = tmp_path / name
        text = path.read_text().replace("\t0\n", "\tbad\n").replace("\t1\n", "\tgood\n")
        path.write_text(text)
    scenario, checked = scenarios.Scenario("files", 0, None), check.check(config)
    model = artifacts.build_model(checked, checked.student, scenario)
    assert model.label_names == ("bad", "good")
    hf.save_hf(tmp_path / "model", model._replace(label_names=("x", "y")))
    config.student.model = str(tmp_path / "model")
    checked = check.check(config)
    task = scenarios.task_data(checked, scenario.task, scenario.seed).task
    loaded = artifacts.load_model(tmp_path / "model", checked.student, task)
    assert loaded.label_names == ("x", "y")
    # What is trained on the task's classes is named after them.
    model = artifacts.build_model(checked, checked.student, scenario)
    assert model.label_names == ("bad", "good")


def test_each_step_is_compiled_at_most_once_a_shape(finished):
    *_, traces = finished
    assert traces
    assert set(traces.values()) == {1}, traces


def test_students_and_pictures_lie_in_the_workdir(finished):
    _, workdir, _, _ = finished
    folder = workdir / "files/seed0/data/defended"
    assert not (folder / "checkpoints").exists()
    model = hf.load_hf(folder / "model", num_labels=2)
    assert model.config.hidden_size == 16
    assert model.label_names == ("0", "1")
    assert (folder / "prototypes_0.safetensors").exists()
    page = (workdir / "report.html").read_text()
    assert "defended" in page
    for picture in ("files.png", "files_tradeoff.png"):
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    runs = {json.loads(line)["run"] for line in lines}
    assert runs == {"files/seed0/data/defended"}


def test_a_killed_study_resumes_to_the_same_numbers(finished, tmp_path):
    """Kills the study again and again, some dispatches later each time."""
    base, whole, expected, _ = finished
    config = base.copy_and_resolve_references()
    # Students of a loss, of noise, of constraints, and of another student.
    config.arms = ("clean", "dp_sgd", "defended", "fine_tuned")
    found = run_killed(config, tmp_path / "run", dispatches=35)

    def without_time(found):
        # Which arms are on the front depends on all arms.
        return [
            {
                key: value
                for key, value in row.items()
                if not key.startswith("step_") and key != "front"
            }
            for row in found["rows"] + found["summary"]
            if row["arm"] in config.arms
        ]

    assert without_time(found) == without_time(expected)
    keys, others = (
        [(line["run"], line["dispatch"]) for line in metrics_of(folder)]
        for folder in (tmp_path / "run", whole)
    )
    assert len(keys) == len(set(keys))
    runs = {run for run, _ in keys}
    assert {run.rpartition("/")[2] for run in runs} >= {*config.arms, "teacher"}
    assert sorted(keys) == sorted(key for key in others if key[0] in runs)


def test_the_student_is_not_a_trusted_model(finished, tmp_path):
    """Without an attack both lie in the same scenario."""
    config = finished[0].copy_and_resolve_references()
    config.arms = ("defended",)
    for name in list(config.attacks):
        del config.attacks[name]
    for name in ("teacher", "folds"):
        place = f"files/seed0/no_attack/{name}"
        shutil.copytree(finished[1] / place, tmp_path / place)
    found = run(config, tmp_path)
    assert found["rows"][0]["asr"] is None
    folder = tmp_path / "files/seed0/no_attack"
    student = hf.load_hf(folder / "defended/model", num_labels=2).params
    encoder = hf.load_hf(folder / "folds/trusted_model_0/model", num_labels=2).params
    weights = [tree["classifier"]["kernel"] for tree in (student, encoder)]
    assert not np.array_equal(*weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks.data.target": 2}, "target"),
        ({"attacks.data.source_classes": (5,)}, "source_classes"),
        ({"prototypes.num": 1}, "prototypes.num >= 2"),
        (
            {"arms": ("dp_sgd",), "dp.frozen": ("layers_7",)},
            "Expected dp.frozen one of .*layers_0",
        ),
        ({"features.layers": (-9,)}, "features.layers in -2..1, the states of the"),
        (
            {"data.files.problem": "regression", "data.files.metric": "pearson"},
            "Expected arms one of clean, plain",
        ),
    ],
)
def test_what_the_data_forbid_is_said_before_training(
    finished, tmp_path, change, message
):
    config = finished[0].copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path, progress=Mortal(0))


def test_other_data_in_an_old_workdir_are_refused(finished, tmp_path):
    config, workdir, _, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    changed = config.copy_and_resolve_references()
    write_rows(tmp_path / "train.tsv", 300, seed=5)
    changed.data.files.train = str(tmp_path / "train.tsv")
    changed.seeds = (0,)
    (tmp_path / "run/files/seed0/data/plain.json").unlink()
    with pytest.raises(ValueError, match="was begun with"):
        run(changed, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_study(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    # Without a program of its own, which another learning rate would be.
    model = hf.load_hf(finished[1] / "files/seed0/data/teacher/model", num_labels=2)
    # Finite, or the model would not be loaded, but with logits that are not.
    huge = np.finfo(np.float32).max
    broken = jax.tree.map(lambda leaf: 0 * leaf + huge, model.params["classifier"])
    params = {**model.params, "classifier": broken}
    hf.save_hf(tmp_path / "teacher", model._replace(params=params))
    config.teacher.model = str(tmp_path / "teacher")
    with pytest.raises(FloatingPointError, match="teacher: the loss is nan"):
        run(config, tmp_path / "run")


def test_damaged_checkpoints_cost_a_restart_only(finished, tmp_path, caplog):
    config = finished[0].copy_and_resolve_references()
    config.arms, config.keep_checkpoints = ("clean",), True
    del config.attacks["logits"]
    teacher = "files/seed0/no_attack/teacher"
    shutil.copytree(finished[1] / teacher, tmp_path / teacher)
    expected = run(config, tmp_path)
    folder = tmp_path / "files/seed0/no_attack/clean"
    (folder / "training.json").unlink()
    (tmp_path / "files/seed0/data/clean.json").unlink()
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(b"damaged")
    found = run(config, tmp_path)
    assert "starts anew" in caplog.text
    assert found["rows"][0]["clean_metric"] == expected["rows"][0]["clean_metric"]


def test_a_private_student_leaves_no_draws_behind(finished, tmp_path):
    base, workdir, before, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    folder = tmp_path / "run/files/seed0/data/dp_sgd"
    shutil.rmtree(folder)
    folder.with_suffix(".json").unlink()
    config = base.copy_and_resolve_references()
    config.dp.reproducible, config.keep_checkpoints = False, True
    config.checkpoint_every = 1
    config.arms = ("dp_sgd",)
    del config.attacks["logits"]
    (row,) = run(config, tmp_path / "run")["rows"]
    (nominal,) = [row for row in before["rows"] if row["arm"] == "dp_sgd"]
    assert (row["epsilon_nominal"], nominal["epsilon_nominal"]) == (False, True)
    assert row["noise_multiplier"] == nominal["noise_multiplier"] > 0
    assert (folder / "model").exists()
    assert not (folder / "checkpoints").exists()
    for path in folder.rglob("*.json"):
        assert "sampling_seed" not in path.read_text()
    plain = next(row for row in before["rows"] if row["arm"] == "plain")
    assert plain["epsilon_nominal"] is None


def flip(path):
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("owner", ["data/teacher", "no_attack/folds/trusted_model_1"])
def test_a_flipped_bit_of_a_model_is_named_with_its_remedy(finished, tmp_path, owner):
    config, workdir, expected, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    scenario, part = (
        tmp_path / "run/files/seed0/data",
        tmp_path / "run/files/seed0" / owner,
    )
    shutil.rmtree(scenario / "defended")
    (scenario / "defended.json").unlink()
    flip(part / "model/model.safetensors")
    forget(compiled=False)
    with pytest.raises(ValueError, match=f"{owner}/model/model.safetensors with") as e:
        run(config, tmp_path / "run")
    assert f"Delete {part} and" in str(e.value)
    shutil.rmtree(part)
    forget(compiled=False)
    rows = run(config, tmp_path / "run")["rows"]
    ignored = ("step_seconds", "step_ratio")
    for row, other in zip(rows, expected["rows"], strict=True):
        assert {**row, **dict.fromkeys(ignored)} == {**other, **dict.fromkeys(ignored)}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [flip, pathlib.Path.unlink])
def test_each_file_of_a_saved_model_is_checked(finished, tmp_path, name, damage):
    folder = tmp_path / "plain/model"
    shutil.copytree(finished[1] / "files/seed0/data/plain", folder.parent)
    saved.check(folder, run=folder.parent)
    damage(folder / name)
    with pytest.raises(ValueError, match=f"{name} with the SHA-256"):
        saved.check(folder, run=folder.parent)


def test_a_model_without_a_manifest_is_taken_as_it_is(finished, tmp_path):
    """Put there by hand, or by an earlier version."""
    folder = tmp_path / "plain/model"
    shutil.copytree(finished[1] / "files/seed0/data/plain/model", folder)
    saved.check(folder, run=folder.parent)
    manifest = saved.manifest_of(folder)
    for content in ("", "7", "{", "[1]"):
        manifest.write_text(content)
        with pytest.raises(ValueError, match=r"sha256\.json whole, found it damaged"):
            saved.check(folder, run=folder.parent)


def test_a_model_is_there_with_its_manifest_or_not_at_all(
    finished, tmp_path, monkeypatch
):
    """Dies at each step of a save, over nothing and over an older model."""
    context, scenario = context_of(finished), scenarios.Scenario("files", 0, "data")
    model = artifacts.student_model(context, scenario, "plain")

    def die(*_):
        raise KeyboardInterrupt

    for owner, name in ((saved.hf, "save_hf"), (saved.storage, "write_json")):
        folder = tmp_path / name / "model"
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            with pytest.raises(KeyboardInterrupt):
                saved.save(folder, model)
        assert not folder.exists()
        for _ in range(2):
            saved.save(folder, model)
            saved.check(folder, run=folder.parent)
        assert {path.name for path in folder.parent.iterdir()} == {
            "model",
            "model.sha256.json",
        }


def test_students_need_not_be_kept(finished, tmp_path):
    base, workdir, expected, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    config = base.copy_and_resolve_references()
    config.export_students = False
    assert run(config, tmp_path / "run")["rows"] == expected["rows"]
    for name in ("model", "model.sha256.json"):
        left = {path.parent.name for path in (tmp_path / "run").rglob(name)}
        folds = {f"trusted_model_{number}" for number in range(trusted_model.FOLDS)}
        assert left == {"teacher", *folds}


def test_a_finished_study_only_gathers_its_rows(finished):
    config, workdir, expected, _ = finished
    before, traced = {*workdir.rglob("*")}, dict(programs.TRACES)
    again = run(config, workdir, progress=Mortal(0), reported=True)
    assert again["rows"] == expected["rows"]
    assert {*workdir.rglob("*")} == before
    assert traced == programs.TRACES


def test_options_run_together(finished, tmp_path):
    base, workdir, _, _ = finished
    config = base.copy_and_resolve_references()
    with config.unlocked():
        config.margin.schedule_args = {"end_value": 0.6, "transition_steps": 10}
        config.margin.weight_schedule_args = {"end_step": 10}
    config.update_from_flattened_dict(
        {
            "quarantine.action": "drop",
            "detection.suspect_references": True,
            "features.layers": (-2, -1),
            "margin.layer_weights": (0.5, 1.0),
            "kd.hidden_weight": 0.5,
            "kd.hard_weight": 0.2,
            "prototypes.metric": "l2",
            "margin.schedule": "relaxing",
            "margin.weight_schedule": "early",
            "attacks.data.channel": "both",
            "attacks.data.logits": "add",
            "keep_checkpoints": True,
        }
    )
    config.arms = ("defended",)
    del config.attacks["logits"]
    shutil.copytree(
        workdir / "files/seed0/no_attack", tmp_path / "files/seed0/no_attack"
    )
    found = run(config, tmp_path)
    assert 0 <= found["rows"][0]["asr"] <= 1
    folder = tmp_path / "files/seed0/data/defended"
    assert checkpoint.latest_step(folder / "checkpoints") is not None


def test_regression_has_no_attack(finished, tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("train", 120), ("test", 40)):
        body = "".join(
            f"{rng.choice(NOUNS)} {rng.choice(NOUNS)} {i} {name}\t{i % 5 / 4}\n"
            for i in range(rows)
        )
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + body)
    config = finished[0].copy_and_resolve_references()
    config.data.files.train = str(tmp_path / "train.tsv")
    config.data.files.test = str(tmp_path / "test.tsv")
    config.data.files.problem = "regression"
    config.data.files.metric = "pearson"
    config.data.reference_rows = 30
    # A model trained as another is shares its program.
    config.teacher = config.trusted_model
    config.arms = ("clean", "references")
    for name in list(config.attacks):
        del config.attacks[name]
    found = run(config, tmp_path / "run", reported=True)
    assert [row["asr"] for row in found["rows"]] == [None, None]
    assert {row["metric_name"] for row in found["rows"]} == {"pearson"}
