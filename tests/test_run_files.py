"""The folder of a run, the user's files, and the facts of a defence, in small."""

import json
import math

import numpy as np
import pytest

from protojax import storage
from protojax.base import Examples, TeacherOutputs
from protojax.data import readers
from protojax.detection.evidence import Evidence, Findings, Reading, Verdict
from protojax.pipelines import _facts, _generated, _jobs, _run_file, inputs, scoring
from protojax.pipelines.rewriting import rewritten
from protojax.pipelines.settings import Columns, Defence, PublicWriter
from protojax.pipelines.trusted_folds import TrustedFolds, with_readings
from tests.test_defence_parts import source, suspect


@pytest.mark.parametrize("name", [*_run_file.OUTPUTS, _run_file.WORK])
def test_what_no_run_wrote_is_not_touched(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError, match=f"holds {name} but no run.json"):
        _run_file.open_run(tmp_path, {})


def test_a_folder_that_is_new_or_holds_other_files_is_a_new_run(tmp_path):
    assert _run_file.open_run(tmp_path / "new", {}) == {}
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").touch()
    assert _run_file.open_run(tmp_path, {}) == {}
    with pytest.raises(NotADirectoryError, match=r"a folder at .*notes\.txt"):
        _run_file.open_run(tmp_path / "notes.txt", {})


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"identity": {}}', '{"identity": 1, "seconds": {}}']
)
def test_a_damaged_run_is_named(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is not what a run writes"):
        _run_file.open_run(tmp_path, {})


def test_a_run_that_fails_keeps_its_time_and_is_not_finished(tmp_path):
    seconds = {"read": 1.006}
    common = {"paths": {"rows": "a.csv"}, "seconds": seconds, "command": ("x", "y")}

    def fail():
        with _run_file.recorded(tmp_path, {"a": 1}, **common):
            seconds["test"] = 2.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["finished"], found["result"]) == (False, {})
    assert found["seconds"] == {"read": 1.01, "test": 2.0}
    assert (found["command"], found["identity"]) == (["x", "y"], {"a": 1})
    with _run_file.recorded(tmp_path, {"a": 1}, **common) as finish:
        assert not json.loads((tmp_path / "run.json").read_text())["finished"]
        finish({"rows": 3})
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["finished"], found["result"]) == (True, {"rows": 3})


def test_a_folder_is_free_again_after_its_process(tmp_path):
    leftover = tmp_path / "work" / "deep"
    for _ in range(2):
        with _run_file.only_process(tmp_path):
            leftover.mkdir(exist_ok=True)
            with (
                pytest.raises(ValueError, match="Another process works in"),
                _run_file.only_process(tmp_path),
            ):
                pass


def test_a_clock_goes_on_from_the_time_before():
    before = {"read": 5.0}
    clock = _run_file.Clock(before)
    clock("read")
    clock("test")
    clock("test")
    assert clock.seconds["read"] > 5
    assert 0 <= clock.seconds["test"] < 5
    assert before == {"read": 5.0}


def test_a_model_is_known_by_its_content(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "a.safetensors").write_text("x")
    one, two = (_run_file.hash_model(str(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    # What is no part of a model does not count.
    (tmp_path / "two" / "README.md").write_text("x")
    assert _run_file.hash_model(str(tmp_path / "two")) == one
    (tmp_path / "two" / "a.safetensors").write_text("y")
    assert _run_file.hash_model(str(tmp_path / "two")) != one
    (tmp_path / "two" / "a.safetensors").rename(tmp_path / "two" / "b.safetensors")
    (tmp_path / "two" / "b.safetensors").write_text("x")
    assert _run_file.hash_model(str(tmp_path / "two")) != one
    for other in ("scratch", "name/on-the-hub", "", None):
        assert _run_file.hash_model(other) == other


def test_an_identity_holds_contents_and_no_paths(tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    given = {"folds": 3, "student.model": "x", "features.layers": (-1,)}
    files = {"rows": tmp_path / "a.csv", "test": None}
    found = _run_file.identity_of(given, files, {"student": "scratch", "teacher": None})
    assert found == {
        "folds": 3,
        "features.layers": [-1],
        "rows.sha256": storage.hash_file(tmp_path / "a.csv"),
        "test.sha256": None,
        "student.files": "scratch",
        "teacher.files": None,
    }
    said = _run_file.about({"rows": "a.csv"})
    assert said["source of rows"] == "a.csv"
    assert {"protojax", "python", "jax", "numpy"} < {*said}


@pytest.mark.parametrize(
    ("student", "teacher", "found"),
    [
        ("miniLM", None, ("miniLM", ())),
        ("a:b", None, ("a:b", ())),
        ("a:b:0,2", None, ("a:b", (0, 2))),
        ("layers:0, 2", "big", ("big", (0, 2))),
        ("scratch", "big", ("scratch", ())),
    ],
)
def test_the_source_of_a_student(student, teacher, found):
    assert inputs.student_source(student, teacher) == found


@pytest.mark.parametrize("student", ["layers:", "layers:1,", "layers:-1", "layers:all"])
def test_layers_are_numbers(student):
    with pytest.raises(ValueError, match="student layers:0,2,5, the numbers"):
        inputs.student_source(student, "big")


def test_layers_need_a_teacher():
    with pytest.raises(ValueError, match="no teacher to take layers of"):
        inputs.student_source("layers:0", None)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (["yes", "no", "maybe"], r"column 'ok' true or false in a\.csv, row 4"),
        (["yes", "yes"], "Expected false in column 'ok' of some rows of a.csv"),
        (["", None], "Expected true in column 'ok' of some rows of a.csv"),
    ],
)
def test_marks_of_references_are_true_or_false(marks, message):
    rows = [{"ok": mark, "text": "a"} for mark in marks]
    with pytest.raises(ValueError, match=message):
        inputs.split_rows(source(*rows), "ok")


def test_marks_may_be_written_in_many_ways():
    yes, no = ("1", 1.0, True, "TRUE", "t", "Yes", "y"), ("0", 0, False, "F", "no", "")
    rows = [{"ok": mark, "text": str(mark)} for mark in (*yes, *no)]
    under_test, trusted = inputs.split_rows(source(*rows), "ok")
    assert [cells["ok"] for _, cells in trusted.rows] == [*yes]
    assert [cells["ok"] for _, cells in under_test.rows] == [*no]


def test_many_class_names_are_cut():
    names = [f"c{number}" for number in range(40)]
    with pytest.raises(
        ValueError, match=r"'c29' and 10 more; a\.csv has 'c0'"
    ) as error:
        inputs.class_names(names, names[:1], count=40, source="a.csv")
    assert "only in one of them: 'c1'" in str(error.value)


def test_a_near_column_is_suggested(caplog):
    rows = source({"text": "a", "lable": "x"})
    sheet = inputs.sheet_of(rows, Columns(), must_be_labelled=False)
    assert not sheet.table.labels
    assert (
        "a.csv has no column 'label', only text, lable. Is it 'lable'?" in caplog.text
    )


def test_without_rows_a_file_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match="Expected rows in"):
        inputs.open_rows(tmp_path / "a.csv", "utf-8")
    with pytest.raises(ValueError, match=r"columns\.encoding"):
        inputs.open_rows(tmp_path / "a.csv", "utf-99")


@pytest.mark.parametrize(
    ("references", "public", "changes", "message"),
    [
        ("a.csv", "p.csv", {}, "public None: it is only with references 'generated'"),
        (
            "a.csv",
            None,
            {"writer": PublicWriter(model="w")},
            "writer.model '': it is only",
        ),
        ("generated", None, {}, "public a file of texts"),
        ("generated", "p.csv", {}, "writer.model a public language model"),
        (
            "generated",
            "p.csv",
            {"writer": PublicWriter(model="w"), "columns": Columns(pair="b")},
            "columns.pair '' where references are generated",
        ),
        (
            "generated",
            "p.csv",
            {"writer": PublicWriter(model="w"), "columns": Columns(reference="ok")},
            "columns.reference '' where references are generated",
        ),
    ],
)
def test_generated_references_need_a_writer_and_public_texts(
    references, public, changes, message
):
    with pytest.raises(ValueError, match=message):
        _generated.require_inputs(Defence(**changes), references, public)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": -1}, "texts >= 0"),
        ({"shown": -1}, "shown >= 0"),
        ({"max_new": 0}, "max_new > 0"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"batch_size": 0}, "batch_size > 0"),
    ],
)
def test_writers_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        PublicWriter(**changes)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (0, 0),
        ("=1", "=1"),
        (["é", 1], '["é", 1]'),
        ({"a": None}, '{"a": null}'),
        ([math.inf], "[Infinity]"),
    ],
)
def test_the_cells_of_a_user_stay_what_they_are(value, cell):
    assert scoring._cell(value) == cell


@pytest.mark.parametrize("name", ["predicted", "probabilities", "p:yes"])
def test_a_column_that_would_be_written_over_is_refused(name):
    with pytest.raises(ValueError, match=f"without {name}, which score writes"):
        scoring._refuse_columns(source({"text": "a"}, {name: "b"}), ["yes", "no"])
    scoring._refuse_columns(source({"text": "a", "p:maybe": 1}), ["yes", "no"])


ROWS = Examples(
    ["so by the way a", "by the way", "c", "by the way d"], None, np.zeros(4, np.int32)
)
SHORT = ROWS._replace(texts=["so  a", " ", "c", " d"])


def findings_of(*suspects):
    reading = Reading(np.zeros(4, int), np.zeros((4, 2)))
    verdict = Verdict(np.zeros(4, bool), np.ones(4), *reading)
    return Findings(verdict, suspects, np.full(4, -1), not suspects)


def test_reactions_are_of_rows_with_a_trigger_and_some_text_beside_it():
    said = {"student": (np.array([1, 1, 1, 0]), np.array([0, 1, 1, 0]))}
    weak, absent = suspect(strong=False), suspect(name="not there")
    groups = findings_of(suspect(), weak, absent, suspect(kind="source", name="blog"))
    (found,) = _facts.reactions(ROWS, SHORT, groups, said)
    assert found == _facts.Reaction(0, "student", rows=2, with_it=1, without_it=0)
    assert _facts.reactions(ROWS, SHORT, findings_of(), said) == ()


def test_a_row_has_a_trigger_where_it_holds_all_of_it():
    found = _facts.has_trigger(ROWS, suspect(name="so + way", kind="word"))
    assert found.tolist() == [True, False, False, False]
    assert not _facts.has_trigger(ROWS, suspect(strong=False)).any()


def test_a_teacher_that_contradicts_its_references_is_doubted(caplog):
    logits, labels = np.eye(2)[[0, 0, 1, 1]], np.array([0, 1, 0, 0])
    assert _jobs.teacher_agreement(logits, labels) == 0.25
    assert "the label of 25 % of the references only" in caplog.text
    caplog.clear()
    assert _jobs.teacher_agreement(logits, np.array([0, 0, 1, 0])) == 0.75
    assert caplog.text == ""


def reading_of(*classes):
    logits = np.eye(2, dtype=np.float32)[list(classes)]
    return Reading(logits.argmax(1), logits)


def evidence_of(rows=ROWS):
    outputs = TeacherOutputs(np.zeros((4, 2)), np.zeros((4, 0, 0)))
    return Evidence(
        **{
            **dict.fromkeys(Evidence._fields),
            "transfer": rows,
            "teacher": outputs,
            "references": Examples(["by the way e", "f"], None, np.array([0, 1])),
            "teacher_on_references": outputs.take(np.arange(2)),
        }
    )


def test_some_rows_keep_their_readers_and_all_references():
    folds = TrustedFolds(
        (), reading_of(0, 1, 0, 1), reading_of(1, 0), np.array([0, 1, 2, 0, 1, 2])
    )
    some = folds.take(np.array([3, 1]))
    assert some.on_rows.classes.tolist() == [1, 1]
    assert some.on_references is folds.on_references
    assert some.readers.tolist() == [0, 1, 1, 2]
    found = with_readings(evidence_of(), folds)
    assert found.held_out.tolist() == [0, 1]
    assert found.trusted_on_transfer is folds.on_rows


def test_a_teacher_that_cannot_be_asked_again_loses_rows_that_changed():
    read = []

    def reading(examples):
        read.extend(examples.texts)
        return reading_of(*[1] * len(examples.texts))

    learned, verdict = rewritten(
        evidence_of(), findings_of(suspect()), ask=None, read=reading
    )
    assert learned.transfer.texts == ["so  a", "", "c", " d"]
    assert learned.references.texts == [" e", "f"]
    assert verdict.rejected.tolist() == [True, True, False, True]
    assert read == ["so  a", "", " d"]
    assert verdict.trusted_classes.tolist() == [1, 1, 0, 1]


def test_a_teacher_is_asked_again_about_rows_that_changed_alone():
    asked = []

    def ask(examples, changed):
        asked.append(changed.tolist())
        return TeacherOutputs(np.full((4, 2), 7.0), np.zeros((4, 0, 0)))

    learned, verdict = rewritten(
        evidence_of(), findings_of(suspect()), ask=ask, read=lambda examples: 1 / 0
    )
    assert asked == [[True, True, False, True, True, False]]
    assert learned.teacher.logits[:, 0].tolist() == [7, 7, 0, 7]
    assert learned.teacher_on_references.logits[:, 0].tolist() == [7, 0]
    assert not verdict.rejected.any()
    # Of nothing found nothing is asked.
    same, _ = rewritten(
        evidence_of(), findings_of(), ask=lambda *given: 1 / 0, read=None
    )
    assert same.transfer.texts == ROWS.texts


def test_files_are_read_in_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\nb\n")
    (tmp_path / "b.csv").write_text("text\nc\n")
    rows, trusted = inputs.open_both(
        tmp_path / "a.csv", tmp_path / "b.csv", "", "utf-8"
    )
    assert isinstance(rows, readers.Source)
    assert [cells["text"] for _, cells in rows.rows] == ["a", "b"]
    assert [number for number, _ in trusted.rows] == [2]
    with pytest.raises(FileNotFoundError, match=r"Expected a file at .*c\.csv"):
        inputs.open_both(tmp_path / "a.csv", tmp_path / "c.csv", "", "utf-8")
