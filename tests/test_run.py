"""The command line, the configs and the checks before a study begins."""

import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import uuid

import pytest

from experiments import errors, run, runtime
from experiments.configs import glue, robustness
from experiments.reports import results
from experiments.study import check, grid, resume

ROOT = pathlib.Path(__file__).parent.parent
EVERY_CONFIG = [
    "quickstart.py",
    "pilot.py",
    "agnews.py",
    "agnews.py:quick",
    "federated.py",
    "federated.py:precision",
    "federated.py:hostile",
    "federated.py:long",
    "federated.py:p2p",
    *(f"glue.py:{task}" for task in glue.TASKS),
    *(f"glue.py:{task},quick" for task in glue.TASKS),
]


@pytest.mark.parametrize("value", EVERY_CONFIG)
def test_every_config_passes_its_check(value):
    check.check(run.load(value))


def test_what_was_counted_is_shown_and_shown_once(capsys):
    loggers = [logging.getLogger(name) for name in ("", "protojax", "other")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    try:
        errors.log_to_terminal()
        for name in ("protojax", "protojax", "other"):
            logging.getLogger(name).info("3 duplicates removed by %s", name)
        try:
            raise OSError("disk full")
        except OSError:
            # As Orbax does of what it raises too.
            logging.getLogger("absl").exception("a thread raised")
            logging.getLogger("other").exception("another thread failed")
        logging.getLogger("absl").error("nobody raised this")
    finally:
        for logger, (handlers, level) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)
    shown = capsys.readouterr().out
    assert shown.count("duplicates removed") == 1
    assert "by protojax" in shown
    assert "a thread raised" not in shown
    assert "another thread failed" in shown
    assert "nobody raised this" in shown


def test_a_typo_in_a_config_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'quickstart.py'"):
        run.resolve("quikstart.py")


def test_a_typo_in_a_task_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'sst2'"):
        run.load("glue.py:sst")


def test_arguments_are_resolved_in_both_spellings():
    expected = ["run", f"--config={run.resolve('glue.py:sst2')}", "--workdir=x"]
    for given in (["--config=glue.py:sst2"], ["--config", "glue.py:sst2"]):
        assert run.resolve_arguments(["run", *given, "--workdir=x"]) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("plian",)}, "Did you mean 'plain'"),
        ({"tasks": ("sst3",)}, "Did you mean 'sst2'"),
        ({"tasks": ()}, "Expected tasks not empty"),
        ({"seeds": ()}, "Expected seeds not empty"),
        ({"attacks.word_data.trigger": "rare_word"}, "Did you mean 'rare_words'"),
        ({"attacks.word_data.channel": "label"}, "attacks.word_data.channel"),
        ({"attacks.word_data.rate": 1.5}, r"attacks.word_data.rate in \(0, 1\)"),
        ({"attacks.word_data.position": "middle"}, "position"),
        ({"kd.divergence": "forward"}, "kd.divergence"),
        ({"kd.temperature": 0.0}, "kd.temperature > 0"),
        ({"kd.hard_weight": 2.0}, "kd.hard_weight"),
        ({"margin.layer_weights": (1.0, 1.0)}, "margin.layer_weights"),
        ({"margin.schedule": "relax"}, "margin.schedule"),
        ({"detection.groups": ("clumps",)}, "detection.groups"),
        ({"quarantine.action": "delete"}, "quarantine.action"),
        ({"quarantine.references": 1001}, "quarantine.references"),
        ({"detection.claims": ()}, "detection.claims"),
        ({"detection.false_rejection": 0.0}, "detection.false_rejection"),
        ({"student.epochs": 0}, "student.epochs"),
        ({"prototypes.metric": "cosin"}, "Did you mean 'cosine'"),
        ({"features.pooling": "max"}, "features.pooling"),
        ({"features.layers": ()}, "features.layers not empty"),
        ({"seeds": (0, 0)}, "seeds without repetition"),
        ({"student.warmup": 1.0}, r"student.warmup in \[0, 1\)"),
        ({"student.dropout": 1.0}, "student.dropout"),
        ({"student.layers": (0, 1)}, "student.layers"),
        ({"student.products": "bf16"}, "student.products one of float32, bfloat16"),
        ({"teacher.dtype": "float16"}, "teacher.dtype one of"),
        ({"evaluation.batch_size": 0}, "evaluation.batch_size"),
        ({"data.buckets": (32, 16)}, "data.buckets"),
        ({"data.max_length": 64}, "data.buckets"),
        ({"kd.hidden_weight": -1.0}, "kd.hidden_weight"),
        ({"dp.epsilon": 0.0}, "dp.epsilon > 0"),
        ({"dp.batch_size": 16}, "dp.batch_size >= 32"),
        ({"dp.microbatch": 3}, "dp.microbatch 1, 2, 4 or 8"),
        ({"arms": ("dp_sgd@four",)}, "another arm in a federation"),
        ({"filters.isolated_share": 1.0}, "filters.isolated_share"),
        ({"filters.min_cluster_rows": 1}, "filters.min_cluster_rows >= 2"),
        ({"fine_tuning.epochs": 0}, "fine_tuning.epochs > 0"),
        ({"adversarial.norm": "l3"}, "adversarial.norm one of linf, l2"),
        ({"margin.value": -0.1}, "margin.value"),
        ({"margin.schedule": "relaxing"}, "margin.schedule_args"),
        ({"prototypes.num": 5000}, "prototypes.num"),
        ({"detection.false_rejection": 0.0005}, "detection.false_rejection"),
        ({"detection.groups": ("ngrams", "ngrams")}, "without repetition"),
        ({"attacks.word_data.strength": -1.0}, "attacks.word_data.strength"),
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
    return check.check(config)


def begin(workdir):
    """Puts a file there that a study writes once it has computed something."""
    path = workdir / "snips/seed0/no_attack/teacher/metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("")


def test_a_study_that_computed_nothing_may_have_other_settings(tmp_path):
    resume.open_workdir(frozen(), tmp_path / "a")
    data = tmp_path / "a/snips/seed0/data.json"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    (tmp_path / "a/versions.json").write_text("[]")
    (tmp_path / "a/error.log").write_text("typo")
    resume.open_workdir(frozen(**{"kd.temperature": 4.0}), tmp_path / "a")
    saved = json.loads((tmp_path / "a/config.json").read_text())
    assert saved["kd"]["temperature"] == 4.0
    # Hashes of data under the former settings.
    assert not data.exists()
    begin(tmp_path / "a")
    with pytest.raises(ValueError, match=re.escape("kd.temperature was 4.0, now 2.0")):
        resume.open_workdir(frozen(), tmp_path / "a")


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[]", "7"])
def test_the_settings_of_something_else_are_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="other files"):
        resume.open_workdir(frozen(), tmp_path)
    assert (tmp_path / "config.json").read_text() == content


def test_a_corrected_typo_is_not_refused(tmp_path, monkeypatch):
    config = run.load("quickstart.py")
    config.tasks = ("files",)
    config.data.files.train = str(tmp_path / "typo.tsv")
    with pytest.raises(SystemExit, match=r"typo\.tsv"):
        run.run(config, tmp_path / "study")
    assert "Traceback" in (tmp_path / "study/error.log").read_text()
    config.data.files.train = str(tmp_path / "right.tsv")
    with pytest.raises(SystemExit, match=r"FileNotFoundError.*right\.tsv"):
        run.run(config, tmp_path / "study")


def test_a_second_run_leaves_the_folder_of_the_first_alone(tmp_path):
    resume.open_workdir(frozen(), tmp_path)

    def files():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with runtime.only_process(tmp_path):
        before = files()
        config = run.load("quickstart.py")
        config.kd.temperature = 4.0
        with pytest.raises(SystemExit, match="Another process works in"):
            run.run(config, tmp_path)
        assert files() == before


def test_an_error_is_kept_unless_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "error.log"
    with pytest.raises(ValueError, match="said"), errors.error_kept(path):
        raise ValueError("said")
    assert path.read_text().endswith("ValueError: said\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(ValueError, match="said") as caught, errors.error_kept(path):
        raise ValueError("said")
    assert "No space" not in str(caught.value)


def test_versions_of_each_run_are_kept(tmp_path, monkeypatch):
    for commit in ("a", "a", "b", "a"):
        monkeypatch.setattr(runtime, "commit", lambda commit=commit: commit)
        results.note_versions(tmp_path)
    found = results.read_versions(tmp_path)
    assert [versions["commit"] for versions in found] == ["a", "b", "a"]
    # As an earlier version wrote it.
    (tmp_path / "versions.json").write_text('{"commit": "old"}')
    results.note_versions(tmp_path)
    found = results.read_versions(tmp_path)
    assert [versions["commit"] for versions in found] == ["old", "a"]


def test_a_workdir_belongs_to_one_study_that_may_grow(tmp_path):
    resume.open_workdir(frozen(), tmp_path / "a")
    begin(tmp_path / "a")
    resume.open_workdir(frozen(seeds=(0, 1)), tmp_path / "a")
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["seeds"] == [0, 1]
    with pytest.raises(ValueError, match=re.escape("kd.temperature was 2.0, now 4.0")):
        resume.open_workdir(frozen(**{"kd.temperature": 4.0}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"attacks.word_data.rate was 0.05, now 0.1"):
        resume.open_workdir(frozen(**{"attacks.word_data.rate": 0.1}), tmp_path / "a")


@pytest.mark.parametrize("section", ["anchor", "audit", "trigger_search"])
def test_a_study_of_a_former_version_is_refused_whole(tmp_path, section):
    resume.open_workdir(frozen(), tmp_path)
    begin(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), section: {}}))
    before = path.read_text()
    with pytest.raises(ValueError, match="study of a former version of protojax"):
        resume.open_workdir(frozen(), tmp_path)
    assert path.read_text() == before


def test_an_attack_taken_out_keeps_its_settings(tmp_path):
    resume.open_workdir(frozen(), tmp_path / "a")
    begin(tmp_path / "a")
    config = run.load("quickstart.py")
    del config.attacks["word_data"]
    resume.open_workdir(check.check(config), tmp_path / "a")
    with pytest.raises(ValueError, match=r"attacks.word_data.rate was 0.05, now 0.1"):
        resume.open_workdir(frozen(**{"attacks.word_data.rate": 0.1}), tmp_path / "a")


def test_a_variant_keeps_all_that_it_changes():
    before = {"variants": {"warm": {"kd.temperature": 4.0, "kd.weight": 0.5}}}
    less = {"variants": {"warm": {"kd.temperature": 4.0}}}
    for first, then, said in (
        (before, less, "kd.weight was 0.5, now None"),
        (less, before, "kd.weight was None, now 0.5"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"variants.warm.{said}")):
            resume.joined(first, then, "a folder")


def test_what_changes_no_result_may_change(tmp_path):
    resume.open_workdir(frozen(), tmp_path / "a")
    begin(tmp_path / "a")
    resume.open_workdir(frozen(keep_checkpoints=False), tmp_path / "a")


@pytest.mark.parametrize("name", ["no_attack", "a/b"])
def test_an_attack_needs_a_name_of_its_own(name):
    config = run.load("quickstart.py")
    with config.unlocked():
        config.attacks[name] = config.attacks.word_data
    with pytest.raises(ValueError, match="attack's name"):
        check.check(config)


def test_one_process_a_workdir_and_no_leftovers(tmp_path):
    mark = f"protojax-{uuid.uuid4().hex}"
    (tmp_path / "sub" / "seed0" / f".model.{mark}.new").mkdir(parents=True)
    (tmp_path / f".config.json.{mark}.tmp").write_text("")
    foreign = {
        *(".env", ".venv", ".venv/bin", ".venv/bin/python", ".config.json.1"),
        *("sub/.git", "sub/.git/HEAD", "sub/seed0/.notes", "sub/draft.tmp", "other"),
        # Named as if it were ours, where the study has nothing.
        *(f"other/.a.{mark}.tmp", f".venv/.a.{mark}.tmp", f"sub/.git/.a.{mark}.tmp"),
    }
    for name in foreign - {".venv", ".venv/bin", "sub/.git", "other"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a user's")
    ours = {".lock", "sub", "sub/seed0"}
    with runtime.only_process(tmp_path, ["sub", "missing"]):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert found == foreign | ours
        with (
            pytest.raises(ValueError, match="Another process works in"),
            runtime.only_process(tmp_path),
        ):
            pass
    with runtime.only_process(tmp_path):
        pass
    assert (tmp_path / ".env").read_text() == "a user's"


def test_a_repository_may_be_a_workdir_and_is_not_touched(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name in (".env", ".lock"):
        (tmp_path / name).write_text("SECRET=1")
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    content = {path: path.read_bytes() for path in before if path.is_file()}
    for _ in range(2):  # the first start, and one that goes on
        resume.open_workdir(frozen(), tmp_path)
        with runtime.only_process(tmp_path, frozen().tasks):
            pass
    after = set(tmp_path.rglob("*"))
    assert after == before.keys() | {tmp_path / "config.json"}
    for path, text in content.items():
        assert path.read_bytes() == text
        assert path.stat().st_mtime_ns == before[path].st_mtime_ns


def test_a_study_clears_the_folders_of_its_tasks(monkeypatch, tmp_path):
    asked = []

    class Held(Exception):  # noqa: N818 (no error)
        pass

    def only_process(workdir, folders):
        asked.append((workdir, tuple(folders)))
        raise Held

    monkeypatch.setattr(runtime, "only_process", only_process)
    with pytest.raises(Held):
        run.main(run.load("quickstart.py"), tmp_path)
    assert asked == [(tmp_path, tuple(run.load("quickstart.py").tasks))]


WRONG = {
    "temperature": ["--config=quickstart.py", "--config.kd.temprature=4"],
    "Did you mean 'sst2'": ["--config=glue.py:sst"],
    "Did you mean 'quickstart.py'": ["--config=quikstart.py"],
    "Expected --config=NAME": ["--config.kd.temperature=3"],
    "Did you mean: workdir": ["--config", "quickstart.py", "--wordir=x"],
    "'plain'": ["--config=quickstart.py", "--config.arms=('plian',)"],
    "--config.seeds='(0,1,2)'": ["--config=quickstart.py", "--config.seeds=3"],
    "data.files.train a file": ["--config=quickstart.py", "--config.tasks=files"],
}
# A process for each command line, forked from one that has imported the libraries. It
# ends as the interpreter does, but does not take the libraries apart.
FORKED = """
import gc, json, os, runpy, sys, traceback
import experiments.reports.report, experiments.study.own, experiments.study.runner
import experiments.systems, protojax.cli.defend, protojax.cli.terminal
gc.freeze()
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv, code = ["run.py", *arguments], 0
        try:
            runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """The exit code and the last words of each wrong command line."""
    folder = tmp_path_factory.mktemp("wrong")
    found = subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps(list(WRONG.values()))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    )
    said = [(folder / f"{number}.txt").read_text() for number in range(len(WRONG))]
    return dict(zip(WRONG, zip(found.stdout.split(), said, strict=True), strict=True))


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_command_line_ends_in_one_line(refused, message):
    code, said = refused[message]
    assert code != "0"
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_helps(option, tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "experiments.run", option],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    ).stdout
    for name in ("workdir", "coordinator", "heartbeat_seconds", "config.FIELD=VALUE"):
        assert f"--{name}: " in found
    for path in run.CONFIGS.glob("[!_]*.py"):
        first = path.read_text().partition("\n")[0].strip('"')
        assert re.search(rf"{re.escape(path.name)} +{re.escape(first)}", found)
    assert "usage: python -m experiments.run --config=NAME" in found
    examples = found.partition("examples:")[2]
    assert examples.count("python -m experiments.run --config=") == 2


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("--config.seeds=3", "seeds"),
        ("--config.seeds=(3)", "seeds"),
        ("-config.student.layers= 2", "student.layers"),
        ("--config.data.buckets=+50", "data.buckets"),
    ],
)
def test_one_whole_number_is_no_list(given, field):
    config = run.load("quickstart.py")
    message = rf"--config.{field} a list, such as --config.{field}='\(0,1,2\)'"
    for arguments in ([given], given.split("=")):
        with pytest.raises(ValueError, match=message):
            run.check_overrides(config, ["run", *arguments])


@pytest.mark.parametrize(
    "given",
    [
        *("--config.seeds=(3,)", "--config.seeds=0,1", "--config.seeds=[3]"),
        *("--config.arms=plain", "--config.kd.temperature=3", "--workdir=3"),
    ],
)
def test_a_list_and_one_name_are_lists(given):
    run.check_overrides(run.load("quickstart.py"), ["run", given])


@pytest.mark.parametrize("field", ["train", "text", "label"])
def test_own_files_need_a_file_and_its_columns(field):
    config = run.load("quickstart.py")
    config.tasks = ("files",)
    config.data.files.train = "rows.csv"
    check.check(config)
    config.data.files[field] = ""
    with pytest.raises(ValueError, match=rf"Expected data.files.{field} a "):
        check.check(config)


FEW = {"data.reference_rows": 12}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("clean", "plain", "cube", "dp_sgd", "references"), None),
        (("prototype",), "prototypes.num <= 12"),
        (("plain", "sample_test"), "detection.false_rejection >= "),
        (("onion",), "filters.outlier_neighbours <= 8"),
        (("defended",), "detection.false_rejection >= "),
    ],
)
def test_few_references_concern_only_arms_that_are_asked_for(arms, message):
    config = run.load("quickstart.py")
    config.update_from_flattened_dict(FEW)
    config.arms = arms
    if message is None:
        check.check(config)
    else:
        with pytest.raises(ValueError, match=message):
            check.check(config)


def test_a_searched_trigger_asks_the_trusted_model():
    config = run.load("quickstart.py")
    config.data.reference_rows = 2
    config.arms = ("plain",)
    check.check(config)
    config.attacks.word_data.trigger = "searched"
    with pytest.raises(ValueError, match="number of references >= 3"):
        check.check(config)
    # No row is tested at any rate.
    config.update_from_flattened_dict(FEW)
    check.check(config)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="other files"):
        resume.open_workdir(frozen(), tmp_path)


@pytest.mark.parametrize(
    "argument",
    [
        *("standard", "adaptive", "rates", "syntactic", "classes", "glue", "labels"),
        *("ablations", "noise", "quick"),
    ],
)
def test_every_variant_of_the_bench_is_a_study(argument):
    config = robustness.get_config(argument)
    check.check(config)
    jobs = grid.jobs(check.check(config))
    assert {"clean", "plain", "defended"} <= {job.arm for job in jobs}
    assert {job.scenario.task for job in jobs} == set(config.tasks)


def test_tuning_sees_no_attack_and_no_test_row():
    config = robustness.get_config("tuning")
    check.check(config)
    assert not config.attacks
    assert config.data.validation_rows
    arms = {job.arm for job in grid.jobs(check.check(config))}
    assert {"plain", "dp_sgd", "nad+attention1"} <= arms


def test_ready_rows_are_no_validation_rows():
    config = robustness.get_config("syntactic")
    config.data.validation_rows = 100
    with pytest.raises(ValueError, match=r"data.validation_rows 0 with attacks.synt"):
        check.check(config)


def test_an_attack_may_be_of_some_tasks_only():
    config = robustness.get_config("standard")
    config.attacks.several.tasks = ("ag_news",)
    jobs = grid.jobs(check.check(config))
    assert {job.scenario.task for job in jobs if job.scenario.attack == "several"} == {
        "ag_news"
    }
    config.tasks = ("sst2_sentence",)
    check.check(config)
    jobs = grid.jobs(check.check(config))
    assert not {"several", "one_to_one"} & {job.scenario.attack for job in jobs}
    config.attacks.several.tasks = ("agnews",)
    with pytest.raises(ValueError, match=r"Did you mean .ag_news."):
        check.check(config)


def test_a_study_from_before_a_field_was_there_goes_on(tmp_path):
    config = robustness.get_config("labels")
    resume.open_workdir(check.check(config), tmp_path)
    begin(tmp_path)
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    del before["attacks"]["labels"]["reference_rate"]
    path.write_text(json.dumps(before))
    config.attacks.labels.tasks = ("ag_news",)
    resume.open_workdir(check.check(config), tmp_path)
    path.write_text(json.dumps(before))
    config.attacks.labels.reference_rate = 0.1
    with pytest.raises(ValueError, match=r"reference_rate was 0.0, now 0.1"):
        resume.open_workdir(check.check(config), tmp_path)
