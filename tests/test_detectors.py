"""Detectors as functions of evidence: what all keep to, and what each rejects."""

import inspect

import jax
import numpy as np
import pytest

from protojax.base import Examples, TeacherOutputs
from protojax.detection import DETECTORS, Evidence, Reading, Verdict, abl, cube
from protojax.detection import sample_test as conformal_test

EVERY = sorted(DETECTORS)
# Options under which each has something to reject of few rows.
OPTIONS = {
    "abl": {"isolated_share": 0.1},
    "cube": {"min_cluster_rows": 4, "components": 3},
    "sample_test": {"false_rejection": 0.2},
}


def examples(rows):
    return Examples([f"row {row}" for row in range(rows)], None, np.zeros(rows, int))


def arrived(features, claims, num_labels=2, student=None):
    """Evidence of rows with these features and claims."""
    logits = (5.0 * np.eye(num_labels)[claims]).astype(np.float32)
    features = np.asarray(features, np.float32)[:, None]
    return Evidence(
        transfer=examples(len(claims)),
        teacher=TeacherOutputs(logits, features),
        references=examples(0),
        teacher_on_references=TeacherOutputs(logits[:0], features[:0]),
        student=student,
    )


def told(logits):
    return TeacherOutputs(logits, np.zeros((len(logits), 1, 2), np.float32))


def complete(rows=60, references=20, classes=3, seed=0):
    """Evidence of which every field is given; rows lie about two places a claim."""
    rng = np.random.default_rng(seed)

    def logits(count):
        return rng.normal(scale=2, size=(count, classes)).astype(np.float32)

    def outputs(count):
        places = 5.0 * (rng.random((count, 1, 1)) < 0.4)
        noise = rng.normal(scale=0.3, size=(count, 2, 6))
        return TeacherOutputs(logits(count), (places + noise).astype(np.float32))

    def reading(count):
        said = logits(count)
        return Reading(said.argmax(1), said)

    held_out = np.arange(references)[::2]
    return Evidence(
        transfer=examples(rows),
        teacher=outputs(rows),
        references=examples(references),
        teacher_on_references=outputs(references),
        held_out=held_out,
        trusted_on_transfer=reading(rows),
        trusted_on_held_out=reading(len(held_out)),
        student=outputs(rows),
    )


def detect(name, evidence, seed=0):
    return DETECTORS[name](evidence, seed=seed, **OPTIONS[name])


def assert_same(found, expected):
    for field, one, other in zip(Verdict._fields, found, expected, strict=True):
        assert (one is None) == (other is None), field
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=field)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("rows", "classes"), [(60, 3), (60, 1), (1, 2), (0, 2)])
def test_a_verdict_holds_each_row_in_order_and_a_p_value(name, rows, classes):
    evidence = complete(rows=rows, classes=classes)
    found = detect(name, evidence)
    assert isinstance(found, Verdict)
    assert found.rejected.shape == found.p_values.shape == (rows,)
    assert found.rejected.dtype == bool
    assert ((found.p_values >= 0) & (found.p_values <= 1)).all()
    if found.rejected.any() and not found.rejected.all():
        kept = found.p_values[~found.rejected]
        assert found.p_values[found.rejected].max() < kept.min()
    if found.trusted_classes is not None:
        assert found.trusted_classes is evidence.trusted_on_transfer.classes
        assert found.trusted_logits is evidence.trusted_on_transfer.logits


@pytest.mark.parametrize("name", EVERY)
def test_some_but_not_all_rows_are_rejected(name):
    """Else the tests of this file would say little."""
    assert 0 < detect(name, complete()).rejected.sum() < 60


@pytest.mark.parametrize("name", EVERY)
def test_a_detector_is_a_function_of_evidence_and_seed(name):
    assert inspect.signature(DETECTORS[name]).parameters["seed"].kind is (
        inspect.Parameter.KEYWORD_ONLY
    )
    assert_same(detect(name, complete(), seed=3), detect(name, complete(), seed=3))


@pytest.mark.parametrize("name", EVERY)
def test_evidence_is_not_changed(name):
    evidence, copy = complete(), complete()
    for leaf in jax.tree.leaves(evidence):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
    detect(name, evidence)
    for leaf, other in zip(*map(jax.tree.leaves, (evidence, copy)), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("name", ["abl", "sample_test"])
def test_rows_in_another_order_get_the_same_verdict(name):
    evidence = complete()
    order = np.random.default_rng(4).permutation(60)
    found, whole = detect(name, evidence.take(order)), detect(name, evidence)
    for one, other in zip(found, whole, strict=True):
        if one is not None:
            np.testing.assert_array_equal(one, other[order])


@pytest.mark.parametrize("name", EVERY)
def test_labels_of_transfer_rows_are_not_read(name):
    evidence = complete()
    others = np.random.default_rng(2).integers(0, 3, 60)
    relabelled = evidence._replace(transfer=evidence.transfer._replace(labels=others))
    assert_same(detect(name, relabelled), detect(name, evidence))


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("abl", "student", "student_logits"),
        ("cube", "teacher", "teacher_features"),
        ("sample_test", "trusted_on_transfer", "scores"),
    ],
)
def test_what_is_not_finite_is_refused(name, field, message):
    evidence = complete()
    for array in getattr(evidence, field):
        if array.dtype == np.float32 and (name, array.ndim) != ("cube", 2):
            array[5] = np.nan
    with pytest.raises(ValueError, match=f"number of non-finite {message}"):
        detect(name, evidence)


@pytest.mark.parametrize("name", EVERY)
def test_evidence_that_does_not_fit_is_refused(name):
    evidence = complete()
    more = complete(rows=61)
    parts = {field: getattr(more, field) for field in ("teacher", "student")}
    with pytest.raises(ValueError, match="same number of rows"):
        detect(name, evidence._replace(**parts))


# -- cube -------------------------------------------------------------------------


def blob(rows, place, seed):
    return np.random.default_rng(seed).normal(place, 0.1, (rows, 12))


def clusters(evidence, **options):
    return cube(evidence, components=10, **{"min_cluster_rows": 20, **options}, seed=0)


def test_the_smaller_cluster_of_a_claim_is_rejected():
    features = np.concatenate([blob(100, 0, 0), blob(100, 1, 1), blob(40, 2, 2)])
    found = clusters(arrived(features, np.repeat([0, 1, 1], [100, 100, 40])))
    assert not found.rejected[:200].any()
    # A few at the border are of no cluster.
    assert found.rejected[200:].sum() >= 36
    np.testing.assert_array_equal(found.rejected, found.p_values < 1)
    assert found.p_values.min() == pytest.approx(0.4, abs=0.05)


def test_one_cluster_or_few_rows_lose_nothing():
    features = np.concatenate([blob(100, 0, 0), blob(6, 2, 1), blob(6, 9, 2)])
    assert not clusters(arrived(features, np.repeat([0, 1], [100, 12]))).rejected.any()


def test_a_class_is_left_as_it_is_below_two_clusters_of_rows():
    features = np.concatenate([blob(30, 0, 0), blob(20, 3, 1)])
    evidence = arrived(features, np.zeros(50, int))
    assert clusters(evidence, min_cluster_rows=20).rejected[30:].any()
    assert not clusters(evidence, min_cluster_rows=26).rejected.any()


def test_the_last_layer_is_clustered():
    features = np.concatenate([blob(60, 0, 0), blob(30, 3, 1)])
    evidence = arrived(features, np.zeros(90, int))
    expected = clusters(evidence)
    layers = np.concatenate([blob(90, 0, 5)[:, None], features[:, None]], axis=1)
    teacher = evidence.teacher._replace(features=layers.astype(np.float32))
    assert_same(clusters(evidence._replace(teacher=teacher)), expected)
    assert expected.rejected[60:].sum() >= 26


@pytest.mark.parametrize(
    "options", [{"components": 0}, {"min_cluster_rows": 1}], ids=str
)
def test_options_of_cube_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cube(complete(), **options, seed=0)


# -- abl --------------------------------------------------------------------------


def test_the_rows_of_least_loss_are_rejected():
    rng = np.random.default_rng(0)
    claims = rng.integers(0, 3, 40)
    logits = rng.normal(size=(40, 3)).astype(np.float32)
    found = abl(arrived(np.zeros((40, 2)), claims, 3, student=told(logits)))
    losses = []
    for row, claim in enumerate(claims):
        exps = np.exp(logits[row].astype(np.float64))
        losses.append(-np.log(exps[claim] / exps.sum()))
    assert set(np.flatnonzero(found.rejected)) == set(np.argsort(losses)[:2])
    np.testing.assert_array_equal(np.argsort(found.p_values), np.argsort(losses))


def test_no_row_is_infinitely_surprising():
    logits = np.array([[0.0, 200.0], [200.0, 0.0]], np.float32)
    evidence = arrived(np.zeros((2, 2)), np.array([0, 0]), student=told(logits))
    assert abl(evidence).p_values.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("share", "rejected"), [(0.01, 0), (0.1, 1), (0.19, 1), (0.2, 2), (0.999, 9)]
)
def test_a_share_of_the_rows_is_rejected(share, rejected):
    rng = np.random.default_rng(0)
    student = told(rng.normal(size=(10, 2)).astype(np.float32))
    evidence = arrived(np.zeros((10, 2)), rng.integers(0, 2, 10), student=student)
    assert abl(evidence, isolated_share=share).rejected.sum() == rejected


@pytest.mark.parametrize("share", [0, 1, np.nan])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match="isolated_share in"):
        abl(complete(), isolated_share=share)


def test_without_a_student_there_is_no_loss():
    with pytest.raises(ValueError, match="student outputs of a briefly trained"):
        abl(complete()._replace(student=None))


# -- sample_test ------------------------------------------------------------------


def test_p_values_equal_a_loop_over_rows():
    evidence = complete(rows=30, references=40)
    found = conformal_test(evidence, false_rejection=0.2)

    def improbability(logits, claim):
        exps = np.exp(logits.astype(np.float64))
        return 1 - exps[claim] / exps.sum()

    def scored(reading, claims):
        return [improbability(*row) for row in zip(reading.logits, claims, strict=True)]

    claims = evidence.teacher.logits.argmax(1)
    held = evidence.teacher_on_references.logits[evidence.held_out].argmax(1)
    scores = scored(evidence.trusted_on_transfer, claims)
    scores_held = np.array(scored(evidence.trusted_on_held_out, held))
    for row, (score, claim) in enumerate(zip(scores, claims, strict=True)):
        peers = scores_held[held == claim]
        if 1 / (1 + len(peers)) > 0.2:  # too few to reject anything
            peers = scores_held
        p_value = (1 + np.sum(peers >= score)) / (1 + len(peers))
        assert found.p_values[row] == pytest.approx(p_value)
        assert found.rejected[row] == (p_value <= 0.2)


@pytest.mark.parametrize(("denied", "rejected"), [(True, True), (False, False)])
def test_all_or_none_may_be_rejected(denied, rejected):
    sure = np.tile([[6.0, -6.0]], (20, 1)).astype(np.float32)
    evidence = complete(classes=2)._replace(
        teacher=told(np.tile(sure[:1], (60, 1))),
        teacher_on_references=told(sure),
        trusted_on_held_out=Reading(np.zeros(10, int), sure[:10]),
        trusted_on_transfer=Reading(
            np.full(60, int(denied)),
            np.tile(-sure[:1] if denied else sure[:1], (60, 1)),
        ),
    )
    found = conformal_test(evidence, false_rejection=0.2)
    assert (found.rejected == rejected).all()


def test_without_a_trusted_model_there_is_no_test():
    trusted = ("held_out", "trusted_on_transfer", "trusted_on_held_out")
    with pytest.raises(ValueError, match="trusted_on_transfer the trusted model"):
        conformal_test(complete()._replace(**dict.fromkeys(trusted)))
