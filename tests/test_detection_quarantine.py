"""What a student learns from, against a loop over rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.detection import Evidence, Verdict
from protojax.detection.quarantine import (
    TrainingRows,
    as_they_arrived,
    training_rows,
    with_references,
)

ROWS, REFERENCES, CLASSES, LAYERS, DIM = 12, 30, 3, 2, 4


def outputs(rng, rows, classes=CLASSES, bias=0.0):
    logits = rng.normal(size=(rows, classes)) + bias * np.arange(classes)
    return TeacherOutputs(
        logits.astype(np.float32),
        rng.normal(size=(rows, LAYERS, DIM)).astype(np.float32),
    )


def make(rejected, rows=ROWS, classes=CLASSES):
    """Evidence, a verdict of the first `rejected` rows, and prototypes."""
    rng = np.random.default_rng(0)
    texts = [f"row {row}" for row in range(rows)]
    references = rng.integers(0, classes, REFERENCES).astype(np.int32)
    evidence = Evidence(
        Examples(texts, None, rng.integers(0, classes, rows).astype(np.int32)),
        outputs(rng, rows, classes),
        Examples([f"reference {row}" for row in range(REFERENCES)], None, references),
        outputs(rng, REFERENCES, classes, bias=1.0),
    )
    # The teacher knows something of the references.
    evidence.teacher_on_references.logits[np.arange(REFERENCES), references] += 2
    verdict = Verdict(
        rejected=np.arange(rows) < rejected,
        p_values=rng.random(rows),
        trusted_classes=rng.integers(0, classes, rows).astype(np.int32),
        trusted_logits=rng.normal(size=(rows, classes)).astype(np.float32),
    )
    # The last has no class and no rows, and is far away.
    vectors = rng.normal(size=(LAYERS, 7, DIM)).astype(np.float32)
    vectors[:, -1] = 1e3
    prototypes = Prototypes(
        vectors,
        np.tile(np.append(np.arange(6) % classes, -1), (LAYERS, 1)),
        np.concatenate([rng.integers(1, 9, (LAYERS, 6)), np.zeros((LAYERS, 1))], 1),
    )
    return evidence, verdict, prototypes


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean_prototype(prototypes, layer, label):
    """The mean of a class's prototypes, each with the weight of its rows."""
    total, count = np.zeros(DIM), 0.0
    for place, own in enumerate(prototypes.labels[layer]):
        if own == label:
            weight = prototypes.counts[layer][place]
            total = total + weight * np.float64(prototypes.vectors[layer][place])
            count += weight
    return total / count if count else total


def bias_of(evidence):
    """What is added to the teacher's logits, as rows that are not rejected show it."""
    _, verdict, prototypes = make(0)
    kept = training_rows(evidence, verdict, prototypes)
    added = kept.columns["teacher_logits"] - evidence.teacher.logits
    np.testing.assert_allclose(added, np.tile(added[0], (ROWS, 1)), atol=1e-6)
    return added[0]


@pytest.mark.parametrize("action", ["replace", "drop"])
@pytest.mark.parametrize("rejected", [0, 5, ROWS], ids=["none", "some", "all"])
def test_rows_equal_a_loop(action, rejected):
    evidence, verdict, prototypes = make(rejected)
    found = training_rows(evidence, verdict, prototypes, action=action)
    texts, labels, logits, features, assigned_class = [], [], [], [], []
    for row in range(ROWS):
        given, trusted = evidence.transfer.labels[row], verdict.trusted_classes[row]
        if not verdict.rejected[row]:
            labels.append(given)
            assigned_class.append(given)
            logits.append(evidence.teacher.logits[row] + bias_of(evidence))
            features.append(evidence.teacher.features[row])
        elif action == "replace":
            labels.append(verdict.trusted_logits[row].argmax())
            assigned_class.append(trusted)
            logits.append(log_softmax(verdict.trusted_logits[row]))
            features.append(
                [mean_prototype(prototypes, layer, trusted) for layer in range(LAYERS)]
            )
        else:
            continue
        texts.append(f"row {row}")
    assert found.examples.texts == texts
    assert found.examples.labels.tolist() == labels
    assert set(found.columns) == {
        "teacher_logits",
        "teacher_features",
        "assigned_class",
    }
    assert found.columns["assigned_class"].tolist() == assigned_class
    shaped = np.reshape(logits, (-1, CLASSES))
    np.testing.assert_allclose(found.columns["teacher_logits"], shaped, atol=1e-5)
    shaped = np.reshape(features, (-1, LAYERS, DIM))
    np.testing.assert_allclose(found.columns["teacher_features"], shaped, atol=1e-5)


def test_the_bias_is_what_references_say_against_the_teacher():
    evidence, *_ = make(0)
    logits = evidence.teacher_on_references.logits
    labels = evidence.references.labels
    truth, rows = np.eye(CLASSES)[labels], np.arange(REFERENCES)

    def loss(temperature):
        return -log_softmax(logits / temperature)[rows, labels].mean()

    temperature = min(np.geomspace(1 / 20, 20, 4001), key=loss)
    scaled = bias_of(evidence) / temperature
    assert scaled.sum() == pytest.approx(0, abs=1e-5)
    # Where the penalised cross-entropy is least, its slope is zero.
    posterior = np.exp(log_softmax(logits / temperature + scaled))
    np.testing.assert_allclose((posterior - truth).sum(0) + scaled, 0, atol=0.02)
    # The teacher leans towards the last class.
    assert scaled[-1] < scaled[0]


def test_one_row_by_hand():
    evidence, verdict, _ = make(1, rows=1, classes=2)
    evidence = evidence._replace(
        transfer=Examples(["a row"], None, np.array([0], np.int32)),
        teacher=TeacherOutputs(np.array([[5.0, 0.0]]), np.full((1, 1, 2), 9.0)),
    )
    verdict = verdict._replace(
        trusted_classes=np.array([1]), trusted_logits=np.array([[0.0, np.log(3)]])
    )
    prototypes = Prototypes(
        np.array([[[7.0, 7], [1, 0], [0, 2]]]),
        np.array([[0, 1, 1]]),
        np.array([[9.0, 1, 3]]),
    )
    found = training_rows(evidence, verdict, prototypes)
    assert found.examples.labels.tolist() == [1]
    assert found.columns["assigned_class"].tolist() == [1]
    expected = np.log([[0.25, 0.75]])
    np.testing.assert_allclose(found.columns["teacher_logits"], expected, rtol=1e-6)
    assert found.columns["teacher_features"].tolist() == [[[0.25, 1.5]]]


def test_features_of_a_class_without_a_prototype_are_nothing():
    evidence, verdict, prototypes = make(ROWS)
    lone = prototypes._replace(labels=np.where(prototypes.labels == 2, 0, 1))
    verdict = verdict._replace(trusted_classes=np.full(ROWS, 2, np.int32))
    found = training_rows(evidence, verdict, lone)
    assert not found.columns["teacher_features"].any()


def test_neither_evidence_nor_verdict_is_changed():
    evidence, verdict, prototypes = make(5)
    features = evidence.teacher.features.copy()
    evidence.transfer.labels.flags.writeable = False
    evidence.teacher.logits.flags.writeable = False
    training_rows(evidence, verdict, prototypes)
    np.testing.assert_array_equal(evidence.teacher.features, features)


def test_arrays_of_jax_do_too():
    evidence, verdict, prototypes = make(5)
    teacher = TeacherOutputs(*map(jnp.asarray, evidence.teacher))
    found = training_rows(evidence._replace(teacher=teacher), verdict, prototypes)
    expected = training_rows(evidence, verdict, prototypes)
    for name, column in expected.columns.items():
        np.testing.assert_allclose(found.columns[name], column, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "classes", "rejected"), [(0, CLASSES, 0), (ROWS, 1, 5), (ROWS, 1, 0)]
)
@pytest.mark.parametrize("action", ["replace", "drop"])
def test_no_row_and_one_class(rows, classes, rejected, action):
    found = training_rows(*make(rejected, rows=rows, classes=classes), action=action)
    left = rows - rejected * (action == "drop")
    assert len(found.examples.texts) == len(found.examples.labels) == left
    assert found.columns["teacher_logits"].shape == (left, classes)
    assert found.columns["teacher_features"].shape == (left, LAYERS, DIM)
    assert all(np.isfinite(column).all() for column in found.columns.values())


@pytest.mark.parametrize("field", ["trusted_classes", "trusted_logits"])
def test_a_verdict_without_a_trusted_model_is_refused(field):
    evidence, verdict, prototypes = make(5)
    bare = verdict._replace(**{field: None})
    with pytest.raises(ValueError, match=f"{field} the trusted model's"):
        training_rows(evidence, bare, prototypes)


def test_a_rejected_row_without_a_class_is_refused():
    evidence, verdict, prototypes = make(5)
    verdict.trusted_classes[-1] = -1  # was not rejected
    training_rows(evidence, verdict, prototypes)
    verdict.trusted_classes[2:4] = -1
    with pytest.raises(ValueError, match="rejected rows without trusted model class=2"):
        training_rows(evidence, verdict, prototypes)


def test_references_that_are_not_finite_are_refused():
    evidence, verdict, prototypes = make(5)
    evidence.teacher_on_references.logits[3, 1] = np.nan
    with pytest.raises(ValueError, match="non-finite logits"):
        training_rows(evidence, verdict, prototypes)


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action one of replace, drop"):
        training_rows(*make(5), action="keep")


def test_rows_as_they_arrived_are_believed():
    evidence, *_ = make(0)
    found = as_they_arrived(evidence.transfer, evidence.teacher)
    assert found.examples is evidence.transfer
    assert set(found.columns) == {"teacher_logits", "teacher_features"}
    assert found.columns["teacher_logits"] is evidence.teacher.logits
    assert found.columns["teacher_features"] is evidence.teacher.features


@pytest.mark.parametrize("quarantined", [True, False])
def test_references_follow_and_say_their_true_class(quarantined):
    evidence, verdict, prototypes = make(5)
    rows = as_they_arrived(evidence.transfer, evidence.teacher)
    if quarantined:
        rows = training_rows(evidence, verdict, prototypes, action="drop")
    count = len(rows.examples.texts)
    known = evidence.teacher_on_references
    found = with_references(rows, evidence.references, known)
    assert found.examples.texts == rows.examples.texts + evidence.references.texts
    labels = [*rows.examples.labels, *evidence.references.labels]
    assert found.examples.labels.tolist() == labels
    assert set(found.columns) == set(rows.columns)
    for name, column in rows.columns.items():
        assert found.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(found.columns[name][:count], column)
    np.testing.assert_array_equal(
        found.columns["teacher_features"][count:], known.features
    )
    for row, label in enumerate(evidence.references.labels):
        said = np.exp(log_softmax(found.columns["teacher_logits"][count + row]))
        # Log-odds of 4, whatever the number of classes.
        assert np.log(said[label] / (1 - said[label])) == pytest.approx(4, abs=1e-5)
        if quarantined:
            assert found.columns["assigned_class"][count + row] == label


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_logits_of_references_by_hand(classes):
    rng = np.random.default_rng(0)
    rows = as_they_arrived(
        Examples(["a"], None, np.zeros(1, int)), outputs(rng, 1, classes)
    )
    reference = Examples(["b"], None, np.array([classes - 1]))
    found = with_references(rows, reference, outputs(rng, 1, classes))
    expected = np.zeros(classes)
    expected[-1] = 4 + {1: 0, 2: 0, 7: np.log(6)}[classes]
    np.testing.assert_allclose(found.columns["teacher_logits"][1], expected, rtol=1e-6)


def test_no_reference_adds_nothing():
    evidence, *_ = make(0)
    rows = as_they_arrived(evidence.transfer, evidence.teacher)
    none = Examples([], None, np.zeros(0, np.int32))
    teacher = evidence.teacher_on_references.take(np.zeros(0, int))
    found = with_references(rows, none, teacher)
    assert found.examples.texts == evidence.transfer.texts
    for name, column in rows.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)


@pytest.mark.parametrize(
    "rows",
    [np.array([2, 0, 2]), np.zeros(0, int), np.array([True, False, True])],
    ids=str,
)
def test_training_rows_are_taken_by_row(rows):
    whole = TrainingRows(
        Examples(["a", "b", "c"], ["d", "e", "f"], np.arange(3)),
        {"one": np.arange(3), "two": np.arange(6).reshape(3, 2)},
    )
    part = whole.take(rows)
    places = list(np.arange(3)[rows])
    assert part.examples.texts == ["abc"[place] for place in places]
    assert part.examples.pairs == ["def"[place] for place in places]
    assert part.examples.labels.tolist() == places
    assert part.columns["one"].tolist() == places
    assert part.columns["two"].tolist() == [[2 * p, 2 * p + 1] for p in places]
