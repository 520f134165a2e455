"""The diagnosis of a pair of decoders: from files to figures, and to a page."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from protojax import cli
from protojax.models import language
from protojax.pipelines import distillability
from protojax.pipelines.distillability import DiagnosisSettings, comparing, decoding
from protojax.pipelines.distillability.decoding import Shape, Written
from tests import tiny_job

TEXTS = ["two and two is 4", "red and blue is purple", "one and one is 2"]
ROWS = [("one and two is", "3"), ("red and", "blue"), ("two and two", "4")]
CONFIG = DiagnosisSettings(max_new=4, starts=(1, 2), batch_size=4, top_k=3)


def decoder(seed, vocab=150, words=TEXTS):
    model = tiny_job.decoder(words, seed, vocab)
    # Fresh heads are nearly uniform; these have preferences.
    return model._replace(params=jax.tree.map(lambda x: 20 * x, model.params))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for name, model in {
        "teacher": decoder(0),
        "student": decoder(1),
        "stranger": decoder(
            2, words=[*TEXTS, "twofold is bluest", "purples"], vocab=180
        ),
    }.items():
        language.save_language_model(folder / name, model)
    with (folder / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "answer"), *ROWS])
    return folder


@pytest.fixture(scope="module")
def diagnosed(job):
    arguments = ["diagnose", "--teacher", job / "teacher", "--student", job / "student"]
    arguments += ["--prompts", job / "prompts.csv", "--answers", "answer"]
    arguments += ["--out", job / "out", "--max-new", "4", "--set", "starts=1,2"]
    arguments += ["--set", "batch_size=4", "--set", "top_k=3"]
    assert cli.main(list(map(str, arguments))) == 0
    return json.loads((job / "out/diagnosis.json").read_text())


def test_everything_is_measured_of_models_with_the_same_tokens(job, diagnosed):
    figures = diagnosed["figures"]
    assert figures["same_tokens"]
    assert (figures["prompts"], figures["texts"], figures["k"]) == (3, 3, 3)
    assert [name for name, value in figures.items() if value is None] in (
        [],
        ["faithfulness"],
    )
    assert figures["starts"] == [0, 1, 2]
    shares = ("teacher_overlap", "student_overlap", "tail_mass", "tail_share")
    assert all(0 < figures[name] < 1 for name in shares)
    assert figures["gap"] > 0
    assert figures["own_gap"] > 0
    assert diagnosed["settings"]["top_k"] == 3
    page = (job / "out/report.html").read_text()
    assert diagnosed["headline"].split(".")[0] in page.replace("&#39;", "'")
    assert page.count("<polyline") == 3
    texts = json.loads((job / "out/texts.json").read_text())
    assert [one["prompt"] for one in texts] == [prompt for prompt, _ in ROWS]
    assert [one["line"] for one in texts] == [2, 3, 4]
    assert {"text", "ended", "right", "nats_to_the_other"} == {*texts[0]["teacher"]}


def test_a_model_is_no_trap_to_itself(job):
    config = dataclasses.replace(CONFIG, answers="answer")
    found = distillability.diagnose(
        job / "teacher", job / "teacher", job / "prompts.csv", out=job / "self",
        config=config,
    )  # fmt: skip
    np.testing.assert_allclose(found.figures.gap, 0, atol=1e-5)
    np.testing.assert_allclose(found.figures.teacher_overlap, 1, atol=1e-5)
    assert found.headline.endswith("No trap stands out for this pair.")


def logits_of(model, prompt, output):
    """Logits `[tokens, vocabulary]` along an output, by a plain pass of one row."""
    batch = decoding.sequence_batch(
        [prompt], Written(np.array([output]), np.ones((1, len(output)), bool), [False]),
        Shape(len(prompt), len(output), 1),
    )  # fmt: skip
    return np.asarray(plain(model.params, batch))[0].astype(np.float64)


@jax.jit
def plain(params, batch):
    config = decoder(0).config
    states = language.apply_fn(config)(params, batch).states
    return language.head_fn(config)(params, states)


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def test_readings_are_sums_over_the_vocabulary():
    teacher, student = decoder(0), decoder(1)
    prompts, outputs = [[5, 6, 7], [4, 8, 9]], np.array([[10, 11, 3, 0], [12, 3, 0, 0]])
    where = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    found = decoding.read_pair(
        teacher, student, prompts, Written(outputs, where, np.ones(2, bool)),
        Shape(16, 4, 4, chunk=3), k=2, vocabulary=60,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        for place in range(where[row].sum()):
            p, q = (
                softmax(logits_of(model, prompt, outputs[row])[place, :60])
                for model in (teacher, student)
            )
            top = np.argsort(-p)[:2]
            slope = q - p
            tail = np.delete(slope, top)
            expected = {
                "teacher_log_prob": np.log(p[outputs[row, place]]),
                "student_log_prob": np.log(q[outputs[row, place]]),
                "forward_kl": (p * np.log(p / q)).sum(),
                "reverse_kl": (q * np.log(q / p)).sum(),
                "overlap": np.minimum(p, q).sum(),
                "tail_mass": 1 - p[top].sum(),
                "tail_share": (tail**2).sum() / (slope**2).sum(),
            }
            for name, value in expected.items():
                part = getattr(found, name)[row, place]
                np.testing.assert_allclose(part, value, rtol=1e-4, atol=1e-5)


def test_a_text_does_not_depend_on_its_batch():
    model, shape = decoder(0), Shape(16, 4, 4)
    prompts = [[5, 6, 7], [8, 9], [6], [9, 9, 9, 9], [7, 5]]
    key = jax.random.key(3)
    found = decoding.draw(model, prompts, shape, key=key)
    keys = jax.random.split(key, 5)
    log_probs, _ = decoding.read_own(model, prompts, found, shape, k=1)
    alone, _ = decoding.read_own(
        model, prompts[4:], Written(*(x[4:] for x in found)), Shape(16, 4, 4), k=1
    )
    np.testing.assert_allclose(alone[0], log_probs[4], atol=1e-5)
    assert len(keys) == len(found.ended)
    assert (found.ids[~found.where] == 0).all()
    assert not (found.where[:, 1:] & ~found.where[:, :-1]).any()


def test_models_with_other_tokens_are_compared_between_common_cuts(job):
    config = dataclasses.replace(CONFIG, answers="answer", draws=2)
    found = distillability.diagnose(
        job / "teacher", job / "stranger", job / "prompts.csv", out=job / "other",
        config=config,
    )  # fmt: skip
    figures = found.figures
    assert not figures.same_tokens
    assert figures.texts == 6
    assert figures.tail_share is None
    assert 0 < figures.tail_mass < 1
    assert 0 <= figures.teacher_overlap <= 1
    assert np.isfinite([figures.gap, figures.own_gap, figures.gap_per_byte]).all()
    # The parts between cuts are the whole.
    texts = json.loads((job / "other/texts.json").read_text())
    gaps = [one["teacher"]["nats_to_the_other"] for one in texts]
    np.testing.assert_allclose(np.mean(gaps), figures.gap, atol=1e-3)
    assert (
        "Their tokenizers or prompts differ" in (job / "other/report.html").read_text()
    )


def test_parts_between_cuts_add_to_the_text(job):
    models = [
        language.load_language_model(job / name) for name in ("teacher", "stranger")
    ]
    sides = [
        comparing.side_of(model, [r[0] for r in ROWS], Shape(61, 4, 4), key, room=4)
        for model, key in zip(models, jax.random.split(jax.random.key(0)), strict=True)
    ]
    assert not comparing.share_tokens(*sides)
    for on_teacher in (True, False):
        found = comparing.compare(*sides, on_teacher=on_teacher, same=False, k=3)
        parts = np.where(found.where, found.positions, 0).sum(1)
        np.testing.assert_allclose(parts, found.gaps, rtol=1e-5, atol=1e-5)
        assert (found.tail_mass is None) == (not on_teacher)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-new", "0"], "max_new"),
        (["--text", "question"], "question"),
        (["--set", "starts=5,2"], "starts"),
        (["--max-new", "4", "--set", "prompt=chat"], "chat template"),
        ([], "max_new small enough for 64 tokens"),
        (["--set", "least=2"], "least"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(job, tmp_path, capsys, more, message):
    arguments = ["diagnose", "--teacher", job / "teacher", "--student", job / "student"]
    arguments += ["--prompts", job / "prompts.csv", "--out", tmp_path / "out", *more]
    assert cli.main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert not (tmp_path / "out").exists()
