"""What a defender holds: parts of it fit each other, and none is ground truth."""

import re

import numpy as np
import pytest

from protojax.base import Examples, TeacherOutputs
from protojax.detection import Evidence, Reading, Verdict
from protojax.detection.evidence import (
    check,
    require_reading,
    require_student,
    require_trusted,
)

ROWS, REFERENCES, CLASSES = 7, 5, 3


def outputs(rng, rows, classes=CLASSES):
    return TeacherOutputs(
        rng.normal(size=(rows, classes)).astype(np.float32),
        rng.normal(size=(rows, 2, 4)).astype(np.float32),
    )


def reading(rng, rows, classes=CLASSES):
    logits = outputs(rng, rows, classes).logits
    return Reading(rng.integers(0, classes, rows), logits)


def examples(rng, rows, word):
    texts = [f"{word} {row}" for row in range(rows)]
    pairs = [f"pair of {text}" for text in texts]
    return Examples(texts, pairs, rng.integers(0, CLASSES, rows))


def make(rows=ROWS, references=REFERENCES):
    """Evidence of which every field is given."""
    rng = np.random.default_rng(0)
    return Evidence(
        transfer=examples(rng, rows, "row"),
        teacher=outputs(rng, rows),
        references=examples(rng, references, "reference"),
        teacher_on_references=outputs(rng, references),
        held_out=np.arange(references)[1::2],
        trusted_on_transfer=reading(rng, rows),
        trusted_on_held_out=reading(rng, len(range(references)[1::2])),
        student=outputs(rng, rows),
    )


OPTIONAL = list(Evidence._field_defaults)
OF_ROWS = ("teacher", "trusted_on_transfer", "student")
ANY_ROWS = [
    np.array([4, 0, 4]),
    np.zeros(0, int),
    np.arange(ROWS),
    np.arange(ROWS) % 2 == 0,
    np.array([True] + [False] * (ROWS - 1)),
    np.zeros(ROWS, bool),
]


@pytest.mark.parametrize("rows", ANY_ROWS, ids=str)
def test_a_nodes_evidence_is_a_take_of_rows(rows):
    whole = make()
    part = whole.take(rows)
    places = list(np.arange(ROWS)[rows])
    assert part.transfer.texts == [whole.transfer.texts[place] for place in places]
    assert part.transfer.pairs == [whole.transfer.pairs[place] for place in places]
    for place, row in enumerate(places):
        assert part.transfer.labels[place] == whole.transfer.labels[row]
    for name in OF_ROWS:
        for taken, given in zip(getattr(part, name), getattr(whole, name), strict=True):
            assert taken.shape == (len(places), *given.shape[1:])
            for place, row in enumerate(places):
                np.testing.assert_array_equal(taken[place], given[row])
    # All nodes have the same references, and hear the same of them.
    for name in set(Evidence._fields) - {"transfer", *OF_ROWS}:
        assert getattr(part, name) is getattr(whole, name)
    assert check(part) is part


def test_what_is_not_held_is_not_taken():
    part = Evidence(*make()[:4]).take(np.array([1]))
    assert all(getattr(part, name) is None for name in OPTIONAL)


@pytest.mark.parametrize("kind", [Reading, TeacherOutputs])
def test_readings_and_outputs_are_taken_by_row(kind):
    given = kind(np.arange(4), np.arange(8).reshape(4, 2))
    assert given.take(np.array([2, 0]))[0].tolist() == [2, 0]
    assert given.take(np.array([2, 0]))[1].tolist() == [[4, 5], [0, 1]]
    assert isinstance(given.take(np.arange(4) == 3), kind)
    assert given.take(np.arange(4) == 3)[1].tolist() == [[6, 7]]


def test_classes_are_those_of_the_teacher():
    assert make().num_labels == CLASSES


@pytest.mark.parametrize(
    "held",
    [make(), Evidence(*make()[:4]), make(rows=0), make(references=0), make(0, 0)],
    ids=["all", "least", "no row", "no reference", "nothing"],
)
def test_evidence_that_fits_is_returned_as_it_is(held):
    assert check(held) is held


RNG = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher": outputs(RNG, ROWS + 1)}, "len(teacher.logits)=8"),
        (
            {"teacher": make().teacher._replace(features=np.zeros((2, 1, 4)))},
            "len(teacher.features)=2",
        ),
        (
            {"transfer": make().transfer._replace(labels=np.zeros(3))},
            "len(transfer.labels)=3",
        ),
        (
            {"references": make().references._replace(labels=np.zeros(1))},
            "len(references.labels)=1",
        ),
        (
            {"teacher_on_references": outputs(RNG, REFERENCES - 1)},
            "len(teacher_on_references.logits)=4",
        ),
        (
            {"trusted_on_transfer": reading(RNG, 2)},
            "len(trusted_on_transfer.classes)=2",
        ),
        (
            {"trusted_on_held_out": reading(RNG, 9)},
            "len(trusted_on_held_out.classes)=9",
        ),
        ({"student": outputs(RNG, ROWS - 1)}, "len(student.logits)=6"),
        (
            {"teacher_on_references": outputs(RNG, REFERENCES, 2)},
            "classes of teacher_on_references 3, as the teacher's logits have",
        ),
        (
            {"trusted_on_transfer": reading(RNG, ROWS, 4)},
            "classes of trusted_on_transfer",
        ),
        ({"trusted_on_held_out": reading(RNG, 2, 2)}, "classes of trusted_on_held_out"),
        ({"student": outputs(RNG, ROWS, 2)}, "classes of student 3"),
        ({"held_out": np.array([0, REFERENCES])}, "held_out rows in [0, 5)"),
        ({"held_out": np.array([-1, 0])}, "held_out=-1"),
        ({"held_out": None}, "found evidence=['trusted_on_transfer', 'trusted_on_held"),
        (
            {"trusted_on_transfer": None},
            "all of held_out, trusted_on_transfer, trusted",
        ),
        ({"trusted_on_held_out": None}, "found evidence=['held_out', 'trusted_on_tran"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_fit_is_named(changes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        check(make()._replace(**changes))


def test_what_a_detector_needs_is_required():
    least = Evidence(*make()[:4])
    require_trusted(make())
    require_student(make())
    with pytest.raises(ValueError, match="trusted_on_transfer the trusted model"):
        require_trusted(least)
    with pytest.raises(ValueError, match="student outputs of a briefly trained"):
        require_student(least)


def test_a_verdict_without_a_reading_is_named():
    said = Verdict(np.ones(1, bool), np.ones(1), np.zeros(1, int), np.zeros((1, 2)))
    require_reading(said)
    for field in ("trusted_classes", "trusted_logits"):
        with pytest.raises(ValueError, match=f"verdict.{field}"):
            require_reading(said._replace(**{field: None}))


# What experiments call ground truth of rows: which are poisoned, and what they were.
TRUTH = re.compile("poison|trigger|attack|clean|truth|true|backdoor|target|oracle|flip")


@pytest.mark.parametrize("kind", [Evidence, Verdict, Reading, TeacherOutputs, Examples])
def test_no_field_could_hold_ground_truth(kind):
    assert [field for field in kind._fields if TRUTH.search(field)] == []
