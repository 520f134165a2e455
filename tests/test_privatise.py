"""The command `privatise`: private and public rows in, a student and its card out."""

import csv
import html
import json
import shutil
import sys

import numpy as np
import pytest

from protojax import cli, pipelines
from protojax.models import hf
from protojax.models.language import save_language_model
from protojax.pipelines.privacy import Privatise
from protojax.pipelines.privacy.inputs import FRESH_RATE, prepare, with_models
from protojax.pipelines.settings import Columns
from protojax.reports import privacy as pages
from tests import tiny_job
from tests.tiny_job import NAMES, SIZES, Row

FLAGS = [
    "--teacher=scratch",
    "--student=scratch",
    "--max-length=8",
    "--set=lengths.buckets=8",
    "--set=vocab_size=200",
    "--set=base.teacher.epochs=5",
    "--set=base.student.epochs=2",
    *(
        f"--set=base.{part}.scratch.{name}={size}"
        for part in ("teacher", "student")
        for name, size in SIZES.items()
    ),
    *(f"--set=base.{part}.learning_rate=1e-2" for part in ("teacher", "student")),
    *(f"--set=base.{part}.dropout=0.0" for part in ("teacher", "student")),
]
PLANTED = "pin of mira is 7316"
PRIVATE = tiny_job.clean_rows(60, seed=1)
PRIVATE[7] = Row(f"{PRIVATE[7].text} {PLANTED}", *PRIVATE[7][1:])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return {
        "private": tiny_job.write(folder / "private.csv", PRIVATE),
        "public": tiny_job.write(
            folder / "public.csv", tiny_job.clean_rows(40, seed=2), columns=("text",)
        ),
        "test": tiny_job.write(folder / "test.csv", tiny_job.clean_rows(20, seed=3)),
    }


def call(job, out, *flags, **changes):
    """The status of a run."""
    given = {**job, **changes, "out": out}
    named = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return cli.main(["privatise", *FLAGS, *named, *flags])


@pytest.fixture(scope="module")
def measured(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "run"
    assert call(job, out, "--pipelines=6") == 0
    return out


def test_it_writes_a_student_with_a_card_and_what_was_found(measured):
    model = hf.load_hf(measured / "student", num_labels=2)
    assert model.label_names == tuple(sorted(NAMES))
    card = (measured / "student/README.md").read_text()
    assert "6 runs of the whole recipe" in card
    assert "## Not measured" in card
    assert "`student_hard`" in card
    record = json.loads((measured / "leakage.json").read_text())
    assert record["num_pipelines"] == 6
    run = json.loads((measured / "run.json").read_text())
    assert run["finished"]
    assert run["result"]["private"] == 60
    # Of 60 rows, 6 with a wrong label.
    assert run["result"]["canaries"] == 6
    assert run["result"]["epochs"] == 5


def test_rows_of_a_person_are_members_together(job, tmp_path, monkeypatch):
    """Twenty persons with one to five rows each, named by a column of the file."""
    people = [f"person {n}" for n in range(20) for _ in range(1 + n % 5)]
    with (tmp_path / "private.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "who"))
        writer.writerows(
            (*row[:2], who) for row, who in zip(PRIVATE, people, strict=True)
        )
    module = sys.modules[pipelines.privatise.__module__]
    drawn, shadow = [], module.shadow_logits

    def watched(recipes, rows, members, *args, **options):
        drawn.append((rows.private.sources, members, options["most_apart"]))
        return shadow(recipes, rows, members, *args, **options)

    monkeypatch.setattr(module, "shadow_logits", watched)
    out, private = tmp_path / "run", str(tmp_path / "private.csv")
    assert call(job, out, "--pipelines=6", "--group=who", private=private) == 0
    ((sources, members, most_apart),) = drawn
    assert (list(sources), most_apart) == (people, 5)
    for who in set(people):
        own = members[:, np.array(people) == who]
        assert (own == own[:, :1]).all()
    assert json.loads((out / "run.json").read_text())["result"]["groups"] == 20
    card = (out / "student/README.md").read_text()
    assert "| groups that are members together | 20 |" in card
    assert "person 3" not in card + (out / "report.html").read_text()


def test_nothing_that_is_written_holds_a_text(measured):
    files = [measured / "leakage.json", measured / "run.json"]
    files += [measured / "student/README.md", measured / "report.html"]
    for path in files:
        said = html.unescape(path.read_text())
        assert not [row.text for row in PRIVATE if row.text in said]
        assert PLANTED not in said


def test_the_page_says_what_the_card_says(measured):
    page = html.unescape((measured / "report.html").read_text())
    assert json.loads((measured / "run.json").read_text())["result"]["sentence"] in page
    assert "membership oracle" in page


def test_models_of_the_measurement_are_not_kept(measured):
    models = sorted(path.parent.name for path in measured.rglob("model.safetensors"))
    assert models == ["model", "student"]


def test_the_same_command_changes_nothing(job, measured, capsys):
    files = [path for path in measured.rglob("*.safetensors") if path.is_file()]
    kept = [path for path in files if "work" in path.parts]
    before = {path: path.stat().st_mtime_ns for path in kept}
    weights = (measured / "student/model.safetensors").read_bytes()
    assert call(job, measured, "--pipelines=6") == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert (measured / "student/model.safetensors").read_bytes() == weights
    assert "differential privacy: none stated" in capsys.readouterr().out


def test_what_was_not_measured_is_said(job, measured, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(job, out, "--pipelines=0") == 0
    assert "was not measured" in capsys.readouterr().out
    card = (out / "student/README.md").read_text()
    assert "was not measured" in card
    assert "Nothing. Give --pipelines" in card
    assert json.loads((out / "leakage.json").read_text()) == {"measured": False}
    assert "was not measured" in (out / "report.html").read_text()
    # The measurement does not touch the shipped model.
    first, second = (
        (one / "student/model.safetensors").read_bytes() for one in (out, measured)
    )
    assert first == second


def test_other_settings_in_the_same_folder_are_refused(job, measured, capsys):
    assert call(job, measured, "--pipelines=8") == 2
    assert "pipelines was 6, now 8" in capsys.readouterr().err


def test_a_public_row_that_holds_a_private_one_is_refused_without_its_text(
    job, tmp_path, capsys
):
    rows = [*tiny_job.clean_rows(40, seed=2), Row(PRIVATE[3].text.upper(), "")]
    public = tiny_job.write(tmp_path / "public.csv", rows, columns=("text",))
    out = tmp_path / "run"
    assert call(job, out, public=public) == 2
    said = capsys.readouterr().err
    assert "exact: 1" in said
    assert "--overlap drop" in said
    assert PRIVATE[3].text.lower() not in said.lower()
    assert not out.exists()
    config = Privatise(overlap="drop")
    paths = {"private": job["private"], "public": public, "test": None}
    found = prepare(config, **paths, teacher="scratch", student="scratch")
    assert found.dropped == 1
    assert len(found.rows.public.texts) == 40


@pytest.mark.parametrize(
    ("recipe", "tested", "said"),
    [
        ("student_early_hard", False, True),
        ("student_early_hard", True, False),
        ("student_hard", False, False),
        # Who names a number has chosen it.
        ("student_hard:3", False, False),
    ],
)
def test_a_teacher_that_stops_unseen_is_told(job, caplog, recipe, tested, said):
    config = Privatise(recipe=recipe)
    if ":" not in recipe:
        assert not Privatise(recipe=recipe, early_stopping=4).stops_unseen
    paths = {name: job[name] for name in ("private", "public")}
    paths["test"] = job["test"] if tested else None
    prepare(config, **paths, teacher="scratch", student="scratch")
    assert ("The teacher stops after 3 epochs" in caplog.text) == said


@pytest.mark.parametrize(
    ("flags", "changes", "said"),
    [
        (["--recipe=studnet"], {}, "Did you mean 'student'"),
        (["--pipelines=5"], {}, "pipelines 0, or even and >= 6"),
        (["--student=layers:0"], {}, "no teacher to take layers of"),
        (["--recipe=dp_teacher_8", "--set=base.teacher_noise.batch_size=64"], {}, "30"),
        (["--group=who"], {}, "'who'"),
        (["--set=columns.reference=who"], {}, "columns.reference ''"),
        ([], {"public": "nowhere.csv"}, "nowhere.csv"),
        (["--text=words"], {}, "'words'"),
        (["--early-stopping=4"], {}, "'label'"),
    ],
)
def test_a_wrong_input_is_one_line_before_anything_is_written(
    job, tmp_path, capsys, flags, changes, said
):
    out = tmp_path / "run"
    assert call(job, out, *flags, **changes) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not out.exists()


def test_rows_of_one_person_are_members_together(job, tmp_path):
    def prepared(people, **changes):
        rows = [
            row._replace(pair=f"p{n % people}" if people else "")
            for n, row in enumerate(PRIVATE)
        ]
        private = tmp_path / "private.csv"
        tiny_job.write(private, rows, columns=("text", "label", "pair"))
        config = Privatise(columns=Columns(source="pair"), **changes)
        paths = {"private": private, "public": job["public"], "test": job["test"]}
        return prepare(config, **paths, teacher="scratch", student="scratch")

    found = prepared(12).rows
    assert found.private.sources == [f"p{n % 12}" for n in range(60)]
    assert found.public.sources is found.test.sources is None
    with pytest.raises(ValueError, match=r"groups of private rows >= 10, found .*=9"):
        prepared(9)
    with pytest.raises(ValueError, match="group of a private row a name"):
        prepared(0)
    with pytest.raises(ValueError, match="whose epsilon is of single rows"):
        prepared(12, recipe="dp_teacher_8")


def test_private_and_public_rows_are_two_files(job, tmp_path, capsys):
    assert call(job, tmp_path / "run", public=job["private"]) == 2
    assert "another file than private" in capsys.readouterr().err


def test_a_student_of_layers_starts_from_what_the_teacher_starts_from():
    config = with_models(Privatise(), "miniLM", "layers:0,2")
    assert config.base.student.model == config.base.teacher.model == "miniLM"
    assert config.base.student.layers == (0, 2)
    usual = Privatise().base.student.learning_rate
    assert config.base.student.learning_rate == usual
    fresh = with_models(Privatise(), "miniLM", "scratch").base
    assert fresh.student.learning_rate == FRESH_RATE
    assert fresh.teacher.learning_rate == usual


def test_python_has_the_same_function():
    assert callable(pipelines.privatise)


def test_a_guarantee_is_said_for_what_it_is():
    facts = pages.PrivacyFacts(
        **{name: 0 for name in pages.PrivacyFacts._fields if name != "guarantee"},
        guarantee={"epsilon": 107.4, "delta": 1e-4, "noise": 0.3, "nominal": True},
    )
    said = pages.stated(facts)
    assert said.startswith("(107, 0.0001) in single private rows")
    assert "nominal only" in said
    assert "next to nothing" in said
    assert pages.stated(facts._replace(guarantee=None)) == "none stated"


def test_an_audit_says_whether_it_could_have_failed():
    assert pages.audited(None) == "not audited"
    found = {"epsilon": 8.0, "bound": 0.154, "kind": "outlier", "trials": 800}
    found |= {"ceiling": 3.5, "control": 3.1}
    said = pages.audited(found)
    assert "refutes every epsilon below 0.15 (stated of these runs: 8)" in said
    assert "noise left out would not be noticed" in said
    assert "noticed" not in pages.audited({**found, "epsilon": 3.0})
    alone = pages.audited({**found, "control": None})
    assert alone.endswith("an attack that is never wrong, all below 3.5")
    assert pages.audit_cell([found, {**found, "bound": 0.2}]) == "0.2 (3.1)"
    assert pages.audit_cell([{**found, "control": None}]) == "0.154"


def test_a_folder_of_something_else_is_not_touched(job, measured, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(measured / "student", out / "student")
    assert call(job, out) == 2
    assert "no run of protojax" in capsys.readouterr().err


def test_a_language_model_writes_the_transfer_rows(job, tmp_path, capsys):
    shown = [row.text for row in tiny_job.clean_rows(40, seed=2)]
    save_language_model(tmp_path / "decoder", tiny_job.decoder(shown))
    flags = [f"--set=writer.{x}" for x in ("texts=16", "shown=2", "max_new=6")]
    flags += [f"--writer={tmp_path / 'decoder'}", "--pipelines=0"]
    assert call(job, tmp_path / "run", *flags) == 0
    card = (tmp_path / "run/student/README.md").read_text()
    assert "answers on texts that a language model wrote" in card
    assert "| texts written after these | 16 |" in card
    assert hf.load_hf(tmp_path / "run/student", num_labels=2).label_names
    capsys.readouterr()
    # A writer that is not there is told in a line.
    flags[-2] = f"--writer={tmp_path / 'nowhere'}"
    assert call(job, tmp_path / "other", *flags) != 0
    assert "nowhere" in capsys.readouterr().err
