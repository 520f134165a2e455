"""Texts of a teacher: kept on disk, written together with a proxy, shown in part."""

import json
import logging

import jax
import numpy as np
import pytest

from protojax.base import Texts
from protojax.distillability.students import Budget
from protojax.models.language import apply_fn, head_fn
from protojax.pipelines.distillability import (
    Experts,
    Query,
    StudentSettings,
    decoding,
    drawn_texts,
    learn_texts,
    train_student,
)
from protojax.pipelines.distillability.decoding import Shape
from tests.test_diagnose import decoder

PROMPTS = ["one and", "two is", "red and blue", "one is"]
SETTINGS = StudentSettings(
    steps=2, batch_size=4, max_length=8, max_new=4, draws=2, own_draws=2, chunk=8
)
SHAPE = Shape(8, 4, 4, 8)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def models():
    return [decoder(seed) for seed in range(3)]


def parameters(trained):
    return jax.tree.leaves(trained.model.params)


def test_kept_texts_are_those_that_are_drawn(models, tmp_path, caplog):
    def ask(model=models[0], key=KEY, folder=tmp_path, **changes):
        given = {"draws": 2, "temperature": 1.0, **changes}
        return drawn_texts(model, PROMPTS, SHAPE, key=key, folder=folder, **given)

    fresh = ask(folder=None)
    assert [len(several) for several in fresh.texts] == [2] * 4
    assert ask() == fresh
    [path] = tmp_path.iterdir()
    # Read again: what the file says is what comes back.
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "tokens": 7}))
    assert ask() == fresh._replace(tokens=7)
    # Anything else that texts depend on is another file.
    for changes in (
        {"model": models[1]},
        {"key": jax.random.key(4)},
        {"draws": 1},
        {"temperature": 0.0},
        {"experts": Experts(models[1], 0.5)},
        {"experts": Experts(models[2], 0.5)},
    ):
        before = len([*tmp_path.iterdir()])
        ask(**changes)
        assert len([*tmp_path.iterdir()]) == before + 1, changes
    path.write_text("{")
    with caplog.at_level(logging.WARNING, "protojax"):
        assert ask() == fresh
    assert "damaged" in caplog.text
    path.write_text(json.dumps({**held, "key": "another"}))
    assert ask() == fresh


def test_students_of_kept_texts_are_bitwise_the_same(models, tmp_path):
    query = Query(models[0], answer_of=lambda text: text[:0])
    for name in ("sft", "answers_only"):
        runs = [
            train_student(
                name, models[1], query._replace(folder=folder), PROMPTS, SETTINGS
            )
            for folder in (None, tmp_path, tmp_path)
        ]
        assert len({run.budget for run in runs}) == 1
        for several in zip(*map(parameters, runs), strict=True):
            for other in several[1:]:
                np.testing.assert_array_equal(several[0], other)
    # The teacher's texts and answers, and the student's own texts.
    assert len([*tmp_path.iterdir()]) == 3


def test_a_product_of_experts_writes_from_both(models):
    teacher, proxy = models[:2]

    def write(experts):
        ids = decoding.read_prompts(teacher, PROMPTS, max_length=8)
        given = {"key": KEY, "temperature": 0.0, "experts": experts}
        return ids, decoding.draw(teacher, ids, SHAPE, **given)

    ids, found = write(Experts(proxy, 0.4))
    # The most probable token at each prefix, by forward passes of both over the texts.
    batch = decoding.sequence_batch(ids, found, SHAPE)
    logits = 0.0
    for share, one in ((0.6, teacher), (0.4, proxy)):
        states = apply_fn(one.config)(one.params, batch).states
        logits += share * head_fn(one.config)(one.params, states)
    where = found.where
    np.testing.assert_array_equal(np.argmax(logits, -1)[where], found.ids[where])
    assert (found.ids != write(None)[1].ids).any()


def test_students_read_the_probabilities_of_a_product_of_experts(models):
    teacher, proxy, student = models

    def trained(**changes):
        query = Query(teacher)._replace(**changes)
        return parameters(train_student("gkd", student, query, PROMPTS, SETTINGS))

    both = trained(experts=Experts(proxy, 1.0)), trained(model=proxy)
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (lambda: Experts(decoder(0), 1.5), r"gamma in \[0, 1\]"),
        (lambda: Experts(decoder(0, 180, ["other", *PROMPTS]), 0.5), "same tokenizer"),
    ],
)
def test_experts_that_do_not_fit_are_named(models, experts, message):
    query = Query(models[0], experts=experts())
    with pytest.raises(ValueError, match=message):
        train_student("sft", models[1], query, PROMPTS, SETTINGS)


def test_a_student_sees_what_is_shown(models):
    teacher, student, _ = models
    query = Query(teacher, shown=lambda text: "is")
    found = train_student("sft", student, query, PROMPTS, SETTINGS)
    tokens = len(teacher.tokenizer("is", add_special_tokens=False).input_ids)
    assert found.budget == Budget(4, 4 * tokens)
    # The same without a teacher: nothing else was learned from.
    alone = learn_texts(student, Texts(PROMPTS, ["is"] * 4), SETTINGS)
    for one, other in zip(
        parameters(found), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="shown None, as gkd learns from log prob"):
        train_student("gkd", student, query, PROMPTS, SETTINGS)
