"""The parts of a defence of own data: settings, inputs, logits, reports, folds."""

import csv
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protojax import reports
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.data import readers
from protojax.detection.evidence import Findings, Reading, Suspect, Verdict
from protojax.models.settings import SCRATCH
from protojax.pipelines import _run_file, inputs, settings, teachers
from protojax.pipelines._facts import StudentView, nearest_references
from protojax.pipelines._jobs import Job, with_models
from protojax.pipelines._outputs import class_distances
from protojax.pipelines.settings import Columns, Defence, Encoder
from protojax.pipelines.trusted_folds import fold_of, mean_reading
from protojax.prototypes import without_rare
from protojax.reports.marking import marked

ODD = '=1+1 <b>&"a" | x'


def suspect(**changes):
    one = Suspect("by the way", "phrase", "teacher", 1, 3, 2, 0.5, 0, 9.0, 0.01, True)
    return one._replace(**changes)


def facts(*texts, suspects=(), reasons=None, labels=None, names=("a", "b")):
    """The facts of a few rows."""
    rows = len(texts)
    reasons = np.full(rows, -1) if reasons is None else np.array(reasons)
    labels = np.zeros(rows, np.int32) if labels is None else np.array(labels)
    reading = Reading(np.zeros(rows, np.int32), np.zeros((rows, 2)))
    verdict = Verdict(reasons >= 0, np.linspace(0.01, 1, rows), *reading)
    clean = not any(one.strong for one in suspects)
    return reports.Facts(
        label_names=names,
        rows=Examples([*texts], None, labels, [ODD] * rows),
        lines=np.arange(2, 2 + rows),
        labelled=True,
        references=Examples([ODD, "fine"], None, np.array([0, 1])),
        findings=Findings(verdict, tuple(suspects), reasons, clean),
        teacher_classes=labels,
        trusted_classes=reading.classes,
        features=np.eye(rows, 3),
        prototypes=Prototypes(np.eye(3)[:2], np.array([0, 1]), np.ones(2)),
        nearest=[[0], [1]],
        reactions=(reports.Reaction(0, "student", 2, 2, 0),) if suspects else (),
        metrics={"student on the test file": 0.5},
        teacher_asked=True,
        false_rejection=0.01,
        warnings=(ODD,),
    )


def test_fields_are_set_by_their_paths():
    config = Defence()
    for path, value, expected in [
        ("folds", "5", 5),
        ("student.epochs", "2", 2),
        ("student.learning_rate", "1", 1),
        ("student.scratch.hidden_size", "16", 16),
        ("detection.groups", "ngrams,openings", ("ngrams", "openings")),
        ("features.layers", "(-1,)", (-1,)),
        ("teacher.remat", "True", True),
        ("columns.text", "1", "1"),
    ]:
        changed = settings.with_field(config, path, value)
        *parents, name = path.split(".")
        for parent in parents:
            changed = (
                changed[parent]
                if isinstance(changed, dict)
                else getattr(changed, parent)
            )
        found = changed[name] if isinstance(changed, dict) else getattr(changed, name)
        assert found == expected, path


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("fold", "3", "Did you mean 'folds'"),
        ("student.epoch", "3", "Did you mean 'epochs'"),
        ("student", "3", "student fields and their values"),
        ("folds.x", "3", "folds a whole number"),
        ("folds", "1", "folds >= 2"),
        ("student.epochs", "0", "student.epochs > 0"),
        ("student.epochs", "1.5", "student.epochs a whole number"),
        ("teacher.remat", "1", "teacher.remat True or False"),
        ("detection.claims", "labels", "Did you mean 'label'"),
        ("detection.groups", "ngram", "Did you mean 'ngrams'"),
    ],
)
def test_a_wrong_field_is_named(path, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        settings.with_field(Defence(), path, value)


def test_settings_are_written_and_read_as_json():
    found = settings.flat(Defence())
    assert json.loads(json.dumps(found)) == found
    assert found["detection.claims"] == ["teacher", "label"]


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ("layers:0", True),
        ("{teacher}", True),
        ("{teacher}/:0", True),
        ("{other}:0", False),
        ("{other}", False),
        (SCRATCH, False),
    ],
)
def test_only_weights_of_the_teacher_have_triggers_to_unlearn(
    tmp_path, student, expected
):
    folders = {name: tmp_path / name for name in ("teacher", "other")}
    for folder in folders.values():
        folder.mkdir()
    teacher = str(folders["teacher"])
    config = with_models(Defence(), student.format(**folders), SCRATCH, teacher)
    rest = dict.fromkeys(Job._fields)
    job = Job(**{**rest, "config": config, "teacher": "a model"})
    assert job.student_is_of_teacher == expected
    assert not job._replace(teacher=None).student_is_of_teacher


def test_layers_of_the_settings_hold_where_the_source_names_none():
    some = Defence(student=Encoder(model="x", layers=(1,)))
    for source, layers in (("x", (1,)), ("x:0,2", (0, 2)), ("layers:0", (0,))):
        assert with_models(some, source, SCRATCH, "teacher").student.layers == layers


def test_the_trusted_model_is_never_the_teacher(tmp_path):
    (tmp_path / "t").mkdir()
    teacher = str(tmp_path / "t")
    found = with_models(Defence(), "layers:0,2", SCRATCH, teacher)
    assert (found.student.model, found.student.layers) == (teacher, (0, 2))
    assert found.trusted_model.model == SCRATCH
    assert with_models(Defence(), "x", None, teacher).trusted_model.model == "x"
    found = with_models(Defence(), "a/b:0,5", None, teacher)
    assert (found.student.model, found.student.layers) == ("a/b", (0, 5))
    assert (found.trusted_model.model, found.trusted_model.layers) == ("a/b", ())
    for student, trusted in [
        ("layers:0", None),
        (f"{teacher}:0,2", None),
        (teacher, None),
        (f"{teacher}/", None),
        (f"{teacher}/../t", None),
        ("x", f"{teacher}/."),
    ]:
        with pytest.raises(ValueError, match="not the teacher"):
            with_models(Defence(), student, trusted, teacher)


def source(*rows, name="a.csv"):
    return readers.Source(name, [*enumerate(rows, 2)])


def test_rows_without_a_text_keep_the_places_of_others():
    rows = [{"text": text, "label": "x"} for text in ("a", " ", "b")]
    sheet = inputs.sheet_of(source(*rows), Columns())
    assert sheet.table.numbers == [2, 4]
    assert (sheet.places.tolist(), sheet.total) == ([0, 2], 3)


def test_labels_are_classes_in_the_teachers_order(caplog):
    rows = [{"text": "a", "label": label} for label in ("yes", "no", "no")]
    sheet = inputs.sheet_of(source(*rows), Columns())
    caplog.set_level("INFO", logger="protojax")
    found = inputs.labelled(sheet, ("yes", "no"))
    assert found.examples.labels.tolist() == [0, 1, 1]
    assert "yes (1), no (2)" in caplog.text
    with pytest.raises(ValueError, match=r"a.csv, row 3: unknown label 'no'"):
        inputs.labelled(sheet, ("yes", "nein"))


@pytest.mark.parametrize("label", [None, "", float("nan")])
def test_a_column_of_empty_labels_is_no_labels(label):
    rows = [{"text": "a", "label": label}] * 2
    sheet = inputs.sheet_of(source(*rows), Columns(), must_be_labelled=False)
    assert not inputs.labelled(sheet, ("yes", "no")).labelled
    assert inputs.names_of(sheet, "label") == ()


@pytest.mark.parametrize(
    ("teacher", "found", "said"),
    [
        (["pos", "neg"], ["neg", "pos", "neu"], "only in one of them: 'neu'"),
        (["pos", "neg", "neu"], ["neg", "pos"], "only in one of them: 'neu'"),
        (["pos", "neg"], ["0", "1"], "'pos', 'neg'; a.csv has '0', '1'"),
        ([], ["neg", "pos"], "have no names"),
        ([], ["1", "2"], "numbers 0 to 1"),
    ],
)
def test_classes_that_differ_are_shown(teacher, found, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        inputs.class_names(teacher, found, count=len(teacher) or 2, source="a.csv")


def test_references_are_counted_and_compared(caplog):
    refs = Examples(
        [f"r {i}" for i in range(99)] + ["SAME  text"], None, np.arange(100) % 2
    )
    rows = Examples(["same text", "other"], None, np.zeros(2, np.int32))
    inputs.check_references(rows, refs, ("a", "b"), 0.01)
    assert "1 of 2 rows have the text of a reference." in caplog.text
    assert "100 references: with fewer than 300" in caplog.text
    with pytest.raises(ValueError, match=r">= 199 = 1 / detection.false_rejection - 1"):
        inputs.check_references(rows, refs, ("a", "b"), 0.005)
    with pytest.raises(ValueError, match="each class, found fewer of 'c'"):
        inputs.check_references(rows, refs, ("a", "b", "c"), 0.01)


SHEETS = [
    inputs.sheet_of(source(*[{"text": "a", "label": "x"}] * count), Columns())
    for count in (3, 2)
]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"rows": np.zeros((3, 2))}, "with 'references'"),
        ({"rows": np.zeros((2, 2)), "references": np.zeros((2, 2))}, r"\[3, ...\]"),
        ({"rows": np.zeros(3), "references": np.zeros((2, 2))}, "with 2 dimensions"),
        ({"rows": np.zeros((3, 2)), "references": np.zeros((2, 3))}, "references' log"),
        (
            {"rows": np.full((3, 2), np.nan), "references": np.zeros((2, 2))},
            "finite numbers",
        ),
        (
            {"rows": np.full((3, 2), "a"), "references": np.zeros((2, 2))},
            "finite numbers",
        ),
        (
            {
                "rows": np.zeros((3, 2)),
                "references": np.zeros((2, 2)),
                "label_names": np.array(["a"]),
            },
            "2 names",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        teachers.read_arrays(tmp_path / "a.npz", *SHEETS)


def test_an_npz_file_runs_no_code(tmp_path):
    np.savez(tmp_path / "a.npz", rows=np.array([{}], object))
    with pytest.raises(ValueError, match="is no npz file"):
        teachers.read_arrays(tmp_path / "a.npz", *SHEETS)


def test_logits_of_columns_are_numbers():
    cells = {"text": "a", "label": "x", "logit:x": "1.5", "logit:y": "-1"}
    sheet = inputs.sheet_of(source(cells), Columns())
    found = teachers.read_columns(sheet, sheet)
    assert found.names == ("x", "y")
    assert found.rows.logits.tolist() == [[1.5, -1.0]]
    assert found.rows.features.shape == (1, 0, 0)
    broken = inputs.sheet_of(source({**cells, "logit:y": "much"}), Columns())
    with pytest.raises(ValueError, match=r"logit:y a finite number in a\.csv, row 2"):
        teachers.read_columns(broken, broken)
    with pytest.raises(ValueError, match=r"two or more, in a\.csv"):
        teachers.read_columns(SHEETS[0], SHEETS[0])


@given(st.lists(st.integers(0, 3), min_size=6, max_size=40), st.integers(2, 4))
def test_folds_hold_all_references_once_and_spread_classes(labels, folds):
    labels = np.array(labels)
    found = fold_of(labels, folds, seed=0)
    assert np.ptp(np.bincount(found, minlength=folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(found[labels == label], minlength=folds)) <= 1


def test_readings_together_are_posteriors():
    logits = np.array([[2.0, 0.0, -1.0]])
    one = Reading(logits.argmax(1), logits)
    found = mean_reading([one, one._replace(logits=logits + 7)])
    assert np.exp(found.logits).sum() == pytest.approx(1)
    assert found.classes.tolist() == [0]


@given(st.text("by the way\n^", max_size=30))
def test_marked_parts_make_up_the_text(text):
    parts = marked(text, suspect())
    assert "".join(part for part, _ in parts) == text
    assert all(part.split() == ["by", "the", "way"] for part, inside in parts if inside)


def test_openings_and_characters_are_marked_too():
    opening = suspect(name="as it ...", kind="opening")
    assert marked("As it is, as it", opening) == [
        ("As it", True),
        (" is, as it", False),
    ]
    assert marked("so as it", opening) == [("so as it", False)]
    letter = suspect(name="U+0430 а", kind="character")
    assert marked("b\u0430", letter) == [("b", False), ("\u0430", True)]


def test_the_page_escapes_everything():
    found = facts(
        f"by the way {ODD}",
        "by the way b",
        ODD,
        suspects=[suspect()],
        reasons=[0, 0, -1],
        names=("<i>", "b"),
    )
    page = reports.page_of(found)
    assert "<b>&" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "2 of 3 rows carry the phrase “by the way” and claim b." in page
    card = reports.card_of(found, {"x": "a | b\nc"})
    assert "<i>" not in card
    assert "| x | a &#124; b c |" in card


def test_of_nothing_it_says_so():
    assert reports.headline(facts("a", "b")) == (
        "Nothing was found in 2 rows that looks like a trigger. 0 rows were rejected; "
        "at most 1.0% of honest rows are expected to be."
    )
    assert "<p>None.</p>" in reports.page_of(facts("a", "b"))


def test_too_many_rejected_rows_are_not_called_nothing():
    weak = suspect(strong=False, claimants=9, z=4.0)
    found = facts(*"abcdefghi", suspects=[weak], reasons=[0] * 9)
    assert reports.headline(found) == (
        "9 rows were rejected of 9, more than is expected by chance: at most 1.0% of "
        "honest rows are expected to be. No group is certain to be a trigger; in the "
        "strongest, 9 rows carry the phrase “by the way” and claim b."
    )


def test_no_cell_is_a_formula(tmp_path):
    found = facts(ODD, "-1", "@x", names=("+a", "b"))
    reports.write_csv(tmp_path / "v.csv", *reports.verdict_table(found))
    with (tmp_path / "v.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [f"'{ODD}", "'-1", "'@x"]
    assert {row["label"] for row in rows} == {"'+a"}
    assert rows[0]["p"] == "0.01"


def test_a_folder_takes_other_settings_until_something_was_computed(tmp_path):
    _run_file.write_run(tmp_path, {"a": 1}, paths={}, seconds={"x": 2.0})
    (tmp_path / "work").mkdir()
    assert _run_file.open_run(tmp_path, {"a": 2}) == {}
    (tmp_path / "work/teacher").touch()
    assert _run_file.open_run(tmp_path, {"a": 1}) == {"x": 2.0}
    with pytest.raises(ValueError, match="a was 1, now 2"):
        _run_file.open_run(tmp_path, {"a": 2})
    with pytest.raises(ValueError, match="b was None, now 3"):
        _run_file.open_run(tmp_path, {"a": 1, "b": 3})


def test_prototypes_of_few_references_are_left_out():
    features = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 2]]
    labels = np.array([0, 0, 0, 0, 1, 1])
    whole = Prototypes(np.eye(4)[:3], np.array([0, 0, 1]), np.array([3, 1, 2]))
    outputs = TeacherOutputs(np.zeros((6, 2)), features[:, None])
    view = StudentView(outputs, outputs, outputs, whole, "l2")
    view = view._replace(prototypes=without_rare(whole, 3))
    assert view.prototypes.labels.tolist() == [0]
    # The fourth reference is at sqrt(2) from the only prototype of its class; the other
    # class has none left, and so no distance.
    assert class_distances(view, labels) == pytest.approx({0: 2**0.5})
    assert nearest_references(view, labels, 0) == [[]]
    assert not class_distances(view._replace(prototypes=without_rare(whole, 9)), labels)
    assert Defence().shows_texts
    assert not Defence(least_count=10).shows_texts
    with pytest.raises(ValueError, match="Expected least_count > 0"):
        Defence(least_count=0)
