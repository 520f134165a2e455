"""The command `defend`: a user's files in, verdicts and a student out."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from protojax import cli, pipelines
from protojax.base import Examples
from protojax.cli import defend as command
from protojax.models import hf
from protojax.models.language import save_language_model
from protojax.pipelines import _run_file
from protojax.training import predict
from protojax.training.predict import Features, Lengths
from tests import tiny_job
from tests.tiny_job import FLAGS, NAMES, PHRASE, TARGET

LENGTHS = Lengths(24, (24,), 4)


class Job:
    """The user's files and teacher, and runs over them."""

    def __init__(self, folder):
        self.folder = folder
        self.rows_list = tiny_job.poisoned_rows()
        self.poisoned = np.array([row.poisoned for row in self.rows_list])
        self.reference_list = tiny_job.clean_rows(tiny_job.REFERENCES, seed=7)
        self.rows = tiny_job.write(folder / "mine.csv", self.rows_list)
        self.references = tiny_job.write(folder / "trusted.csv", self.reference_list)
        self.test = tiny_job.write(
            folder / "test.csv", tiny_job.clean_rows(60, 9, noise=0)
        )
        self.teacher = tiny_job.save_teacher(folder, self.rows_list)

    def arguments(self, folder, **changes):
        """The command line, with flags changed or left out (None)."""
        given = {
            "rows": self.rows,
            "references": self.references,
            "teacher": self.teacher,
            **{"out": self.folder / folder, **changes},
        }
        named = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in given.items()
            if value is not None
        ]
        return ["defend", *FLAGS, *named]

    def run(self, out, **changes):
        """Runs the command, and returns the folder of its outputs."""
        assert cli.main(self.arguments(out, **changes)) == 0
        return self.folder / out


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def ran(job):
    return job.run("ran", test=job.test)


def verdicts(out):
    with (out / "verdict.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rejected(out):
    return np.array([row["rejected"] == "true" for row in verdicts(out)])


def student_bytes(out):
    return (out / "student/model.safetensors").read_bytes()


def student_says_the_target(out):
    """The share of new rows of another class, with the phrase, that get the target."""
    student = hf.load_hf(out / "student", num_labels=2)
    rows = [row for row in tiny_job.clean_rows(90, 11, noise=0) if row.label != TARGET]
    with_it = [f"{row.text} {PHRASE}" for row in rows]
    examples = Examples(with_it, None, np.zeros(len(rows), np.int32))
    said = predict.ask(student, examples, LENGTHS, Features()).logits.argmax(-1)
    return np.mean(said == NAMES.index(TARGET))


def test_every_row_has_its_verdict(job, ran):
    found = verdicts(ran)
    assert [int(row["line"]) for row in found] == [*range(2, 2 + len(job.rows_list))]
    assert [row["text"] for row in found] == [row.text for row in job.rows_list]
    assert [row["label"] for row in found] == [row.label for row in job.rows_list]
    assert rejected(ran)[job.poisoned].all()
    assert rejected(ran)[~job.poisoned].mean() <= 0.05
    for row, poisoned in zip(found, job.poisoned, strict=True):
        if poisoned:
            assert row["group"] == f"phrase: {PHRASE}"
            assert float(row["z"]) > 5
            assert row["teacher_says"] == TARGET
            assert float(row["p"]) <= 0.02


def test_the_trigger_is_named_with_the_lines_of_its_rows(job, ran):
    found = json.loads((ran / "triggers.json").read_text())
    (strong,) = [one for one in found if one["strong"]]
    assert (strong["name"], strong["label"]) == (PHRASE, TARGET)
    lines = [n for n, row in enumerate(job.rows_list, 2) if row.poisoned]
    assert strong["lines"] == lines


def test_the_student_has_the_teachers_classes_and_not_the_trigger(job, ran):
    config = json.loads((ran / "student/config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert hf.load_hf(ran / "student", num_labels=2).label_names == NAMES
    assert student_says_the_target(ran) < 0.15
    metrics = json.loads((ran / "run.json").read_text())["result"]["metrics"]
    assert metrics["student on the test file"] > 0.8
    assert metrics["teacher on the test file"] > 0.9


def test_everything_is_written_beside_the_student(ran):
    names = {path.name for path in ran.iterdir()}
    assert names == {
        "student",
        "student_prototypes.safetensors",
        "calibration.json",
        "verdict.csv",
        "triggers.json",
        "report.html",
        "run.json",
        "work",
    }
    run = json.loads((ran / "run.json").read_text())
    assert run["finished"]
    assert run["result"]["triggers"] == 1
    assert not run["result"]["clean"]
    assert {"protojax", "jax", "transformers"} <= set(run["versions"])
    card = (ran / "student/README.md").read_text()
    assert PHRASE in card
    assert "## Limits" in card
    calibration = json.loads((ran / "calibration.json").read_text())
    assert list(calibration["distance"]) == list(NAMES)
    assert all(0 < distance < 2 for distance in calibration["distance"].values())


def test_the_report_needs_no_network_and_marks_the_phrase(ran):
    page = (ran / "report.html").read_text()
    assert f"24 of 240 rows carry the phrase “{PHRASE}” and claim {TARGET}." in page
    assert f"<mark>{PHRASE}</mark>" in page
    assert 'name="viewport"' in page
    assert "<svg" in page
    assert not any(part in page for part in ("http", "<script", "<link", "<img"))


def test_the_same_command_again_changes_nothing(job, ran, capsys):
    before = {
        name: (ran / name).read_bytes() for name in ("verdict.csv", "report.html")
    }
    before["student"] = student_bytes(ran)
    job.run("ran", test=job.test)
    assert before.pop("student") == student_bytes(ran)
    assert before == {name: (ran / name).read_bytes() for name in before}
    shown = capsys.readouterr()
    assert f"carry the phrase “{PHRASE}”" in shown.out
    assert re.search(r"240 rows of 2 classes: sport \(\d+\), music \(\d+\)", shown.err)


class Killer:
    """Ends a run after a share of its work."""

    def __init__(self, share):
        self.share, self.left = share, None

    def total(self, units):
        self.left = self.share * units

    def advance(self, units):
        self.left -= units
        if self.left < 0:
            raise InterruptedError


# Once while a trusted model learns, then while the student does.
def test_a_killed_run_goes_on_to_the_same_student(job, ran):
    out, often = job.folder / "killed", "--set=every=4"
    arguments = [*job.arguments("killed", test=job.test), often]
    config = command.config_of(command.parser().parse_args(arguments[1:]))
    for share in (0.1, 0.75):
        killer = Killer(share)
        with pytest.raises(InterruptedError):
            pipelines.defend(
                job.rows,
                job.references,
                job.teacher,
                student="scratch",
                test=job.test,
                config=config,
                out=out,
                watch=pipelines.Watch(killer.total, advance=killer.advance),
            )
        assert not (out / "student").exists()
        assert not json.loads((out / "run.json").read_text())["finished"]
    assert (out / "work/trusted_model_2/model").exists()
    assert any((out / "work/student/checkpoints").iterdir())
    assert cli.main(arguments) == 0
    assert student_bytes(out) == student_bytes(ran)
    assert (out / "verdict.csv").read_text() == (ran / "verdict.csv").read_text()


def test_a_folder_keeps_its_settings(job, ran, capsys):
    assert cli.main(job.arguments("ran", test=job.test, epochs=9)) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "student.epochs was 4, now 9" in line


def npz(job, path, *, features, names=NAMES):
    """The teacher's outputs on all rows, as a file."""
    model = hf.load_hf(job.teacher, num_labels=2)
    arrays = {}
    for part, rows in (("rows", job.rows_list), ("references", job.reference_list)):
        texts = [row.text for row in rows]
        examples = Examples(texts, None, np.zeros(len(rows)))
        outputs = predict.ask(model, examples, LENGTHS, Features())
        arrays[part] = outputs.logits
        if features:
            arrays[f"{part}_features"] = outputs.features[:, 0]
    if names:
        arrays["label_names"] = np.array(names)
    np.savez(path, **arrays)
    return str(path)


def test_logits_with_features_are_as_good_as_the_teacher(job, ran):
    path = npz(job, job.folder / "all.npz", features=True)
    out = job.run("given", teacher=None, teacher_logits=path, epochs=1)
    np.testing.assert_array_equal(rejected(out), rejected(ran))
    page = (out / "report.html").read_text()
    assert "The teacher was not asked" in page
    assert "<td>teacher</td>" not in page


def test_logits_as_columns_and_references_in_the_same_file(job, ran):
    with np.load(npz(job, job.folder / "columns.npz", features=False)) as arrays:
        parts = {name: arrays[name] for name in ("rows", "references")}
    path = job.folder / "both.jsonl"
    # The classes in another order than that of the file beside it.
    order = [1, 0]
    with path.open("w") as file:
        for part, rows in (
            ("references", job.reference_list),
            ("rows", job.rows_list),
        ):
            for row, logits in zip(rows, parts[part].tolist(), strict=True):
                cells = {"text": row.text, "label": row.label}
                cells["ours"] = part == "references"
                cells["site"] = "ours" if cells["ours"] else f"site {len(row.text) % 3}"
                cells |= {f"logit:{NAMES[i]}": logits[i] for i in order}
                file.write(json.dumps(cells) + "\n")
    out = job.run(
        "columns",
        rows=path,
        references=None,
        reference_column="ours",
        source="site",
        teacher=None,
        teacher_logits="columns",
    )
    assert [int(row["line"]) for row in verdicts(out)][:2] == [121, 122]
    found, expected = (
        [row["teacher_says"] for row in verdicts(folder)] for folder in (out, ran)
    )
    assert found == expected
    config = json.loads((out / "student/config.json").read_text())
    assert list(config["id2label"].values()) == [NAMES[i] for i in order]
    # Without the teacher's features there is no constraint.
    assert "margin_loss" not in (out / "work/student/metrics.jsonl").read_text()
    assert "margin_loss" in (ran / "work/student/metrics.jsonl").read_text()


def test_rows_without_labels_are_tested_by_what_the_teacher_says(job, capsys):
    path = tiny_job.write(job.folder / "bare.csv", job.rows_list, columns=("text",))
    out = job.run("bare", rows=path, epochs=1)
    assert "has no column 'label', only text." in capsys.readouterr().err
    found = verdicts(out)
    assert {row["label"] for row in found} == {""}
    assert {row["claim"] for row in found} <= {"", "teacher"}
    assert rejected(out)[job.poisoned].all()


def test_the_trigger_may_be_in_the_second_text_of_a_pair(job):
    def with_pairs(name, rows):
        rows = [row._replace(text="and today", pair=row.text) for row in rows]
        columns = ("text", "pair", "label")
        return tiny_job.write(job.folder / name, rows, columns=columns)

    out = job.run(
        "pairs",
        rows=with_pairs("pairs.csv", job.rows_list),
        references=with_pairs("trusted_pairs.csv", job.reference_list),
        pair="pair",
        epochs=1,
    )
    found = verdicts(out)
    assert [row["pair"] for row in found] == [row.text for row in job.rows_list]
    assert rejected(out)[job.poisoned].all()
    assert "label" in {row["claim"] for row in found}


def test_references_that_hold_the_trigger_too_are_left_out(job):
    rows = tiny_job.poisoned_rows(tiny_job.REFERENCES, 16, seed=7)
    path = tiny_job.write(job.folder / "hostile.csv", rows)
    out = job.run("hostile", references=path, epochs=1, suspect_references=True)
    assert rejected(out)[job.poisoned].all()
    result = json.loads((out / "run.json").read_text())["result"]
    lines = [number for number, row in enumerate(rows, 2) if row.poisoned]
    assert result["untrusted_reference_lines"] == lines
    assert (
        "16 of 120 references carry a suspected trigger"
        in (out / "report.html").read_text()
    )


def test_of_a_clean_set_little_is_rejected(job):
    rows = tiny_job.clean_rows(tiny_job.ROWS, seed=21)
    path = tiny_job.write(job.folder / "clean.csv", rows)
    out = job.run("clean", rows=path, epochs=1)
    assert rejected(out).mean() <= 0.05
    run = json.loads((out / "run.json").read_text())
    assert run["result"]["clean"]
    page = (out / "report.html").read_text()
    assert "Nothing was found in 240 rows that looks like a trigger." in page


def test_a_student_of_the_teachers_layers_unlearns_the_trigger(job):
    out = job.run("layers", student="layers:0", trusted_model="scratch", epochs=3)
    page = (out / "report.html").read_text()
    assert "The student started from layers of the teacher" in page
    assert "still reacts" not in page
    assert student_says_the_target(out) < 0.15
    metrics = json.loads((out / "run.json").read_text())["result"]["metrics"]
    assert metrics["teacher on the references"] > 0.9


def test_two_processes_do_not_share_a_folder(job, ran, capsys):
    with _run_file.only_process(ran):
        assert cli.main(job.arguments("ran", test=job.test)) == 2
    assert "Another process works in" in capsys.readouterr().err


def test_files_of_others_are_not_touched(job, capsys):
    out = job.folder / "others"
    out.mkdir()
    (out / "verdict.csv").write_text("mine")
    assert cli.main(job.arguments("others")) == 2
    assert "holds verdict.csv but no run.json" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["verdict.csv"]


def copied_teacher(job, name, **fields):
    """A copy of the teacher with other fields in its config.json."""
    folder = job.folder / name
    if not folder.exists():
        shutil.copytree(job.teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def renamed(job):
    names = ("sport", "Musik")
    return copied_teacher(
        job,
        "renamed",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )


def unnamed(job):
    return copied_teacher(job, "unnamed", id2label=None, label2id=None, num_labels=2)


def written(job, name, text):
    path = job.folder / name
    path.write_text(text)
    return path


def speechless(job):
    folder = copied_teacher(job, "speechless")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    return folder


MISTAKES = {
    "no such file": (lambda j: {"rows": "no.csv"}, "no.csv"),
    "no such references": (lambda j: {"references": "no.csv"}, "no.csv"),
    "no such teacher": (lambda j: {"teacher": j.folder / "no"}, "no"),
    "no such test": (lambda j: {"test": "no.csv"}, "no.csv"),
    "a folder": (lambda j: {"rows": j.folder}, "Expected a file at"),
    "suffix": (lambda j: {"rows": written(j, "a.xlsx", "a")}, "to end in one of"),
    "empty": (lambda j: {"rows": written(j, "empty.csv", "")}, "Expected rows in"),
    "header only": (
        lambda j: {"rows": written(j, "header.csv", "text,label\n")},
        "Expected rows in",
    ),
    "text column": (lambda j: {"text": "txt"}, "expected column 'txt', found text"),
    "label column": (lambda j: {"label": "lable"}, "expected column 'lable'"),
    "same file": (lambda j: {"references": j.rows}, "found .* as both"),
    "no references": (lambda j: {"references": None}, "Expected references as a file"),
    "two kinds of references": (
        lambda j: {"reference_column": "text"},
        "not both or none",
    ),
    "marks": (
        lambda j: {"references": None, "reference_column": "text"},
        "true or false in .*mine.csv, row 2",
    ),
    "few references": (lambda j: {"false_rejection": 0.001}, ">= 999 = 1 / "),
    "labels of the teacher": (lambda j: {"teacher": renamed(j)}, "'Musik'.*'music'"),
    "teacher without names": (lambda j: {"teacher": unnamed(j)}, "numbers 0 to 1"),
    "teacher without tokenizer": (
        lambda j: {"teacher": speechless(j)},
        "holds no tokenizer",
    ),
    "layer of features": (lambda j: {"set": "features.layers=7"}, "features.layers in"),
    "label of rows": (
        lambda j: {"rows": written(j, "odd.csv", "text,label\na,what\n")},
        "unknown label 'what'",
    ),
    "out is a file": (lambda j: {"out": j.rows}, "Expected a folder at"),
    "the teacher as trusted model": (
        lambda j: {"student": "layers:0"},
        "untrusted. Give --trusted-model",
    ),
    "the teacher as student": (lambda j: {"student": j.teacher}, "untrusted"),
    "layers": (
        lambda j: {"student": "layers:a", "trusted_model": "scratch"},
        "layers:0,2,5",
    ),
    "no teacher": (lambda j: {"teacher": None}, "either a teacher or its logits"),
    "logits of other rows": (
        lambda j: {
            "teacher": None,
            "teacher_logits": npz(j, j.folder / "m.npz", features=False),
            "rows": j.references,
            "references": j.rows,
        },
        r"rows.shape.*\[120, ...\]",
    ),
    "logits without names": (
        lambda j: {
            "teacher": None,
            "teacher_logits": npz(j, j.folder / "n.npz", features=False, names=()),
        },
        "no names",
    ),
    "no npz": (lambda j: {"teacher": None, "teacher_logits": j.rows}, "no npz file"),
    "setting": (lambda j: {"set": "student.epoch=3"}, "student.field.*'epochs'"),
    "value": (lambda j: {"epochs": "many"}, "epochs"),
    "negative value": (lambda j: {"epochs": 0}, "epochs > 0"),
    "length": (lambda j: {"max_length": "long"}, "--max-length"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, job, capsys):
    changes, said = MISTAKES[mistake]
    out = job.folder / "mistake"
    assert cli.main(job.arguments("mistake", **changes(job))) == 2
    shown = capsys.readouterr().err.splitlines()
    (line,) = [line for line in shown if line.startswith("protojax defend: ")]
    assert line == shown[-1]
    assert re.search(said, line), line
    assert "Traceback" not in "".join(shown)
    # Nothing was computed, so that the corrected command may use the same folder.
    assert not out.exists()


def test_a_language_model_writes_the_references(job):
    shown = tiny_job.clean_rows(60, seed=13)
    public = tiny_job.write(job.folder / "public.csv", shown, columns=("text",))
    writer = job.folder / "decoder"
    save_language_model(writer, tiny_job.decoder([row.text for row in shown]))
    given = {"references": "generated", "public": public, "writer": writer}
    written = ["texts=160", "shown=1", "max_new=8", "batch_size=80"]
    arguments = job.arguments("written", **given)
    assert cli.main([*arguments, *(f"--set=writer.{x}" for x in written)]) == 0
    out = job.folder / "written"
    assert len(verdicts(out)) == tiny_job.ROWS
    for path in (out / "student/README.md", out / "report.html"):
        assert "texts that a language model wrote" in path.read_text()
