"""Tokens of two tokenizers, matched and compared, against loops and values by hand."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from protojax.distillability import alignment
from protojax.distillability.across import (
    OtherTokens,
    Targets,
    across_divergence,
    across_loss,
    cross_tokenizer_loss,
    matched_targets,
    matched_tokens,
    sorted_l1,
)
from protojax.distillability.alignment import (
    byte_spans,
    common_boundaries,
    span_log_probs,
)
from protojax.distillation.token_losses import SPARSE_DIVERGENCES


@pytest.mark.parametrize(
    ("text", "offsets", "spans"),
    [
        ("", [], []),
        ("", [(0, 0), (0, 0)], [[0, 0], [0, 0]]),
        # What offsets leave out belongs to the later token, but not behind the last.
        ("a  b ", [(0, 1), (3, 4)], [[0, 1], [1, 4]]),
        (" a", [(1, 2)], [[0, 2]]),
        # A special token between two others stands where it is.
        ("ab", [(0, 1), (0, 0), (1, 2)], [[0, 1], [1, 1], [1, 2]]),
        # A space of its own whose offset leaves it out.
        ("a  b", [(0, 1), (2, 2), (3, 4)], [[0, 1], [1, 2], [2, 4]]),
        # A letter of four bytes, as two tokens of one offset each.
        ("a😀b", [(0, 1), (1, 2), (1, 2), (2, 3)], [[0, 1], [1, 5], [1, 5], [5, 6]]),
        # Half of a pair of surrogates has bytes as well.
        ("\ud83d", [(0, 1)], [[0, 3]]),
    ],
)
def test_tokens_stand_for_bytes(text, offsets, spans):
    found = byte_spans(text, offsets)
    assert found.shape == (len(offsets), 2)
    assert found.tolist() == spans


@pytest.mark.parametrize("offset", [(1, 0), (-1, 1), (2, 3)])
def test_an_offset_outside_of_the_text_is_named(offset):
    with pytest.raises(ValueError, match=r"offsets\[1\] ascending, in 0\.\.2"):
        byte_spans("ab", [(0, 1), offset])


def test_texts_without_a_token_have_no_groups():
    for first, second, name in (([], [(0, 1)], "first"), ([(0, 1)], [], "second")):
        with pytest.raises(ValueError, match=f"Expected {name} > 0"):
            common_boundaries(first, second)
    # Of nothing but tokens that stand for nothing there is one group.
    (group,) = common_boundaries([(0, 0), (0, 0)], [(0, 0)])
    assert group == alignment.Group([0, 1], [0])


def test_groups_add_up_to_the_probability_of_the_text():
    log_probs = np.log([0.5, 0.25, 0.125, 0.8])
    groups = [[0], [1, 2], [], [3]]
    found = span_log_probs(log_probs, groups)
    np.testing.assert_allclose(found, np.log([0.5, 0.25 * 0.125, 1, 0.8]))
    assert found.sum() == pytest.approx(log_probs.sum())
    assert span_log_probs(log_probs, []).tolist() == []
    assert found.dtype == np.float64


def test_tokens_of_the_same_text_are_matched():
    student = {" the": 3, "the": 1, "cat": 0, "dog": 2}
    teacher = {" the": 7, "cat": 5, "Dog": 6, "the": 9}
    ours, theirs = matched_tokens(student, teacher)
    assert ours.tolist() == [0, 1, 3]
    assert theirs.tolist() == [5, 9, 7]
    back = matched_tokens(teacher, student)
    assert {*zip(*back, strict=True)} == {*zip(theirs, ours, strict=True)}
    assert ours.dtype == theirs.dtype == np.int32
    none = matched_tokens({"a": 0}, {"b": 0})
    assert [part.shape for part in none] == [(0,), (0,)]


def logits_of(size, seed, *lead):
    return np.float32(np.random.default_rng(seed).normal(size=(*lead, size)))


DISTANCE = jax.jit(sorted_l1)
LOSS = jax.jit(cross_tokenizer_loss, static_argnames=("divergence", "unmatched_weight"))


def test_sorted_distances_are_a_loop_over_ranks():
    student, teacher = logits_of(4, 0, 3), logits_of(6, 1, 3)
    found = DISTANCE(student, teacher)
    for row in range(3):
        q, p = (np.exp(x[row]) / np.exp(x[row]).sum() for x in (student, teacher))
        q, p = np.sort(q)[::-1], np.sort(p)[::-1]
        total = sum(abs(p[i] - (q[i] if i < 4 else 0)) for i in range(6))
        assert found[row] == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(found, DISTANCE(teacher, student), rtol=1e-6)
    with pytest.raises(ValueError, match=r"Expected teacher_logits\.shape \(3,\)"):
        sorted_l1(student, teacher[:2])


def test_sorted_distances_are_at_most_two():
    sure = np.where(np.arange(1000) == 0, 0, -np.inf).astype(np.float32)
    found, gradient = jax.jit(jax.value_and_grad(sorted_l1))(
        sure, 0 * logits_of(1000, 0)
    )
    assert found == pytest.approx(2 * 0.999, rel=1e-5)
    assert np.isfinite(gradient).all()


STUDENT, TEACHER = logits_of(5, 2), logits_of(6, 3)
IDS = np.array([0, 3]), np.array([4, 1])


@pytest.mark.parametrize("divergence", SPARSE_DIVERGENCES)
def test_the_matched_part_is_the_divergence_of_three_outcomes(divergence):
    q, p = (
        np.exp(np.float64(x)) / np.exp(np.float64(x)).sum() for x in (STUDENT, TEACHER)
    )
    q = np.append(q[[0, 3]], q[[1, 2, 4]].sum())
    p = np.append(p[[4, 1]], p[[0, 2, 3, 5]].sum())

    def kl(one, other):
        return (one * np.log(one / other)).sum()

    middle = (p + q) / 2
    wanted = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jensen_shannon": (kl(p, middle) + kl(q, middle)) / 2,
    }
    given = {"divergence": divergence, "unmatched_weight": 0.0}
    found = LOSS(STUDENT, TEACHER, *IDS, **given)
    assert found == pytest.approx(wanted[divergence], rel=1e-4)


def test_names_of_unmatched_tokens_do_not_matter():
    renamed = STUDENT[[0, 4, 1, 3, 2]]
    found = [LOSS(logits, TEACHER, *IDS) for logits in (STUDENT, renamed)]
    assert found[0] == pytest.approx(float(found[1]), rel=1e-5)


def test_a_student_cannot_leave_the_matched_tokens():
    """Without an outcome for the rest, more mass outside would cost nothing."""

    away = np.float32([0, 20, 20, 0, 20])
    for weight in (0.0, 1.0):
        stayed, left = (
            LOSS(logits, TEACHER, *IDS, unmatched_weight=weight)
            for logits in (STUDENT, STUDENT + away)
        )
        assert left > stayed + 0.5


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (IDS, {"divergence": "forward"}, "Did you mean 'forward_kl'"),
        (IDS, {"unmatched_weight": -1.0}, "unmatched_weight >= 0"),
        ((IDS[0], IDS[1][:1]), {}, r"teacher_ids\.shape \(2,\)"),
        ((np.zeros(0, int),) * 2, {}, "student_ids > 0"),
    ],
)
def test_losses_across_tokenizers_that_make_no_sense(ids, options, message):
    with pytest.raises(ValueError, match=message):
        cross_tokenizer_loss(STUDENT, TEACHER, *ids, **options)


def test_kept_tokens_and_the_rest_are_outcomes_by_hand():
    teacher = np.log([0.4, 0.3, 0.2, 0.1])  # a b c and one that is its own
    student = np.log([0.5, 0.1, 0.25, 0.1, 0.05])  # two of its own, c b a
    both = np.array([4, 3, 2]), np.array([0, 1, 2])
    targets = matched_targets(teacher, *both, k=2, width=2)
    assert targets.top_ids.tolist() == [4, 3]
    np.testing.assert_allclose(np.exp(targets.top_log_probs), [0.4, 0.3], rtol=1e-5)
    np.testing.assert_allclose(np.exp(targets.rest_log_prob), 0.3, rtol=1e-5)
    np.testing.assert_allclose(targets.others, [0.1, 0], atol=1e-6)
    found = across_divergence(np.float32(student), targets, both[0])
    kl = 0.4 * np.log(0.4 / 0.05) + 0.3 * np.log(0.3 / 0.1) + 0.3 * np.log(0.3 / 0.85)
    assert found == pytest.approx(kl + abs(0.5 - 0.1) + 0.1, rel=1e-4)
    # Of tokens that the teacher does not have, the largest count alone.
    narrow = matched_targets(teacher, *both, k=2, width=1)
    found = across_divergence(np.float32(student), narrow, both[0])
    assert found == pytest.approx(kl + 0.4, rel=1e-4)


@pytest.mark.parametrize("divergence", SPARSE_DIVERGENCES)
def test_tokens_of_the_student_alone_cost_no_more_than_they_are(divergence):
    """The teacher has no rest, and the student has."""
    student, teacher = logits_of(3, 6), logits_of(2, 7)
    ids = np.array([0, 2]), np.array([1, 0])
    found, slope = jax.value_and_grad(cross_tokenizer_loss)(
        student, teacher, *ids, divergence=divergence
    )
    assert 0 < found < 25
    assert np.abs(slope).max() < 25
    # Nor is there a rest where both have all tokens.
    same = cross_tokenizer_loss(
        student[:2], teacher[:2], np.arange(2), np.arange(2), divergence=divergence
    )
    assert 0 < same < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 3}, "k in 1..2"), ({"k": 0}, "k in 1..2"), ({"width": 0}, "width > 0")],
)
def test_targets_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        matched_targets(TEACHER, *IDS, **{"k": 1, "width": 1, **options})


def test_between_cuts_of_one_model_the_text_teaches():
    """The loss of a text is a loop over its tokens."""
    logits = logits_of(5, 4, 1, 3)
    targets = matched_targets(logits_of(6, 5, 1, 3), *IDS, k=2, width=4)
    begins, ids = np.array([[True, False, True]]), np.array([[1, 2, 0]])

    def apply(params, batch, *, key):
        return SimpleNamespace(states=params)

    loss_fn = across_loss(
        apply, lambda _, states: states, student_ids=(0, 3), length=4, chunk=2
    )
    weights = np.ones((1, 3), np.float32)
    batch = SimpleNamespace(output_ids=ids, output_weights=weights)
    given = OtherTokens(batch, begins, targets)
    (found,), _ = loss_fn({"model": logits}, given, None, 0, None)
    known = [
        float(
            across_divergence(
                logits[0, t], Targets(*(x[0, t] for x in targets)), (0, 3)
            )
        )
        for t in (0, 2)
    ]
    text = np.log(np.exp(np.float64(logits[0, 1])).sum()) - logits[0, 1, 2]
    assert found == pytest.approx((sum(known) + text) / 4, rel=1e-5)
    with pytest.raises(ValueError, match="student_ids > 0"):
        across_loss(apply, lambda *x: x, student_ids=())
