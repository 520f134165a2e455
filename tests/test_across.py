"""Students with another tokenizer than their teacher's, against loops over bytes."""

import dataclasses

import jax
import numpy as np
import pytest

from protojax.base import SequenceBatch, Texts
from protojax.models.language import apply_fn, head_fn
from protojax.pipelines.distillability import (
    Experts,
    Query,
    StudentSettings,
    across,
    decoding,
    train_student,
)
from protojax.pipelines.distillability.decoding import Shape
from protojax.pipelines.distillability.holding import tokens_of
from tests.test_diagnose import decoder

PROMPTS = ["one and", "two is", "red and blue", "one is"]
OUTPUTS = ["purple", "two and 4", "", "x blue is one"]
TEXTS = Texts(PROMPTS, OUTPUTS)
SHAPE = Shape(16, 12, 4, 8)
STUDENT = decoder(1)
TEACHER = decoder(2, 180, ["twofold is bluest", "purples", *PROMPTS])
SETTINGS = StudentSettings(
    learning_rate=1e-2, steps=3, batch_size=4, max_length=8, max_new=6, top_k=200
)


def pieces(model, text):
    """The tokens of a text and the number of characters before each."""
    found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [start for start, _ in found["offset_mapping"]]


def next_probs(model, prompt, ids):
    """What a model says of the token behind a prompt and some tokens."""
    start = model.tokenizer([prompt])["input_ids"][0]
    output = np.array([[*ids, 0]], np.int32)
    batch = SequenceBatch(
        np.array([start], np.int32),
        np.ones((1, len(start)), np.int32),
        output,
        np.ones(output.shape, np.float32),
        np.ones(1, bool),
    )
    states = apply_fn(model.config)(model.params, batch).states[0, len(ids)]
    logits = head_fn(model.config)(model.params, states)
    return np.asarray(jax.nn.softmax(logits[: decoding.vocabulary_of(model)]))


def test_tokens_that_both_have_are_one_text():
    ours, theirs = across.matched_of(STUDENT, TEACHER)
    names = [
        [model.tokenizer.convert_ids_to_tokens(int(number)) for number in ids]
        for model, ids in ((STUDENT, ours), (TEACHER, theirs))
    ]
    assert names[0][1:] == names[1][1:]
    assert (ours[0], theirs[0]) == (
        STUDENT.config.end_ids[0],
        TEACHER.config.end_ids[0],
    )
    assert len({*ours}) == len({*theirs}) == len(ours)
    assert not np.array_equal(ours, theirs)
    # Each token of one that is in the other is there.
    vocabs = [model.tokenizer.get_vocab() for model in (STUDENT, TEACHER)]
    assert len(ours) == len(vocabs[0].keys() & vocabs[1].keys())


@pytest.mark.parametrize("k", [1, 300])
def test_columns_are_what_the_teacher_says_at_each_common_cut(k):
    _, written = tokens_of(STUDENT, TEXTS, SHAPE)
    begins, targets = across.across_columns(
        STUDENT, Query(TEACHER), TEXTS, written, SHAPE, k=k
    )
    ours, theirs = across.matched_of(STUDENT, TEACHER)
    names = dict(zip(theirs.tolist(), ours.tolist(), strict=True))
    cuts, several = 0, 0
    for row, (prompt, text) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        (ids, starts), (read, places) = (pieces(m, text) for m in (STUDENT, TEACHER))
        starts, places = [*starts, len(text)], [*places, len(text)]
        several += len(ids) != len(read)
        for token, start in enumerate(starts):
            assert begins[row, token] == (start in places), (row, token)
            if start not in places:
                continue
            cuts += 1
            probs = next_probs(TEACHER, prompt, read[: places.index(start)])
            both = sorted(((probs[t], names[t]) for t in names), reverse=True)[:k]
            at = row, token
            found = dict(
                zip(
                    targets.top_ids[at].tolist(),
                    np.exp(targets.top_log_probs[at]),
                    strict=True,
                )
            )
            assert found == pytest.approx({i: p for p, i in both}, abs=1e-5)
            rest = 1 - sum(p for p, _ in both)
            assert np.exp(targets.rest_log_prob[at]) == pytest.approx(rest, abs=1e-5)
            others = np.sort(np.delete(probs, theirs))[::-1][:k]
            wanted = np.pad(others, (0, k - len(others)))
            np.testing.assert_allclose(targets.others[at], wanted, atol=1e-5)
        assert not begins[row, len(starts) :].any()
    # The texts are such that there is something to align.
    assert several >= 2
    assert cuts > 8
    assert not begins[written.where].all()


def test_with_the_same_tokens_it_is_the_divergence_along_texts():
    teacher = decoder(0)
    plain, across_tokens = (
        train_student(name, STUDENT, Query(teacher), PROMPTS, SETTINGS)
        for name in ("forward_kl", "other_tokens")
    )
    assert plain.budget == across_tokens.budget
    for one, other in zip(
        jax.tree.leaves(plain.model.params),
        jax.tree.leaves(across_tokens.model.params),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


def test_a_student_with_other_tokens_comes_to_write_as_the_teacher():
    settings = dataclasses.replace(SETTINGS, steps=40)
    query = Query(TEACHER)
    found = train_student("other_tokens", STUDENT, query, PROMPTS, settings)
    assert found.budget.queries == len(PROMPTS)
    shape = Shape(8, 6, 4, 64)
    ids = decoding.read_prompts(TEACHER, PROMPTS, max_length=8)
    drawn = decoding.draw(TEACHER, ids, shape, key=jax.random.key(7))
    texts = [decoding.text_of(TEACHER, drawn.tokens(row)) for row in range(4)]
    own_ids, written = tokens_of(STUDENT, Texts(PROMPTS, texts), shape)
    before, after = (
        decoding.read_own(model, own_ids, written, shape, k=1)[0][written.where].mean()
        for model in (STUDENT, found.model)
    )
    assert after > before + 1


def test_who_is_taught_by_probabilities_of_other_tokens():
    query = Query(TEACHER)
    with pytest.raises(ValueError, match="same tokenizer"):
        train_student("forward_kl", STUDENT, query, PROMPTS, SETTINGS)
    with pytest.raises(ValueError, match="shown None, as other_tokens learns from log"):
        train_student(
            "other_tokens", STUDENT, query._replace(shown=str), PROMPTS, SETTINGS
        )
    # A teacher that writes together with a proxy is read together with it.
    experts = Experts(TEACHER, 0.0)
    found = [
        train_student("other_tokens", STUDENT, one, PROMPTS, SETTINGS).model.params
        for one in (query, query._replace(experts=experts))
    ]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
