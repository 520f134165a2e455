"""Students with another tokenizer than their teacher's, against loops over texts."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from protojax.base import SequenceBatch, Texts
from protojax.distillability.rewards import product_of_experts
from protojax.models import hf, language
from protojax.models.language import apply_fn, head_fn
from protojax.pipelines.distillability import (
    Experts,
    Query,
    StudentSettings,
    across,
    decoding,
    token_texts,
    train_student,
)
from protojax.pipelines.distillability.decoding import Shape
from protojax.pipelines.distillability.holding import tokens_of
from tests import tiny_job
from tests.test_diagnose import decoder

PROMPTS = ["one and", "two is", "red and blue", "one is", "one"]
OUTPUTS = ["purple", "two and  4", "", "x blue is one", "café, is\nred"]
TEXTS = Texts(PROMPTS, OUTPUTS)
SHAPE = Shape(16, 16, 4, 8)
SETTINGS = StudentSettings(
    learning_rate=1e-2, steps=3, batch_size=4, max_length=8, max_new=6, top_k=200
)


def speaker(kind, seed, words, *, vocab=300, trim=False, **changes):
    """A decoder with a tokenizer of byte pairs, or of pieces that begin with "▁"."""
    made = tokenizers.Tokenizer(BPE(unk_token="<unk>"))
    special = ["<pad>", "<unk>", "<end>", "<stop>"]
    alphabet = []
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # With it, offsets leave out the spaces that tokens begin with.
        made.post_processor = processors.ByteLevel(trim_offsets=trim)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([*words, *OUTPUTS] * 2, trainer)
    tokenizer = hf.wrap_tokenizer(
        made, max_length=64, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    config = dataclasses.replace(
        tiny_job.decoder(PROMPTS).config,
        # Rows of embeddings without a token.
        vocab_size=len(tokenizer) + 3,
        end_ids=(2, 3),
        **changes,
    )
    model = language.init_model(config, seed=seed, tokenizer=tokenizer)
    return model._replace(params=jax.tree.map(lambda x: 20 * x, model.params))


STUDENT = decoder(1)
TEACHER = decoder(2, 180, ["twofold is bluest", "purples", *PROMPTS])
BYTES = speaker("bytes", 3, ["blue and red", "one is two"])
FEWER = speaker("bytes", 4, ["is red blue"], vocab=270, trim=True)
PIECES = speaker("pieces", 5, ["two and two is red", "blue, purple"], vocab=90)
PAIRS = {
    "word pieces": (STUDENT, TEACHER),
    "byte pairs": (BYTES, FEWER),
    "pieces of byte pairs": (PIECES, BYTES),
    "byte pairs of word pieces": (FEWER, TEACHER),
}


def cuts(model, text):
    """The tokens of a text with its end, and the character where each begins.

    None where a token begins inside of a character.
    """
    found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets, begun = found["offset_mapping"], []
    for token in range(len(offsets)):
        before = max((end for _, end in offsets[:token]), default=0)
        inside = any(min(pair) < before for pair in offsets[token:])
        begun.append(None if inside else before)
    return [*found["input_ids"], model.config.end_ids[0]], begun


def next_probs(model, prompt, ids, experts=None):
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
    both = [model] if experts is None else [model, experts.proxy]
    logits = []
    for one in both:
        states = apply_fn(one.config)(one.params, batch).states[0, len(ids)]
        logits.append(head_fn(one.config)(one.params, states))
    mixed = logits[0] if experts is None else product_of_experts(*logits, experts.gamma)
    probs = np.asarray(jax.nn.softmax(mixed[: decoding.vocabulary_of(model)]))
    first, *more = model.config.end_ids
    probs = probs.copy()
    probs[first] += probs[more].sum()
    probs[more] = 0
    return probs


@pytest.mark.parametrize("pair", PAIRS)
def test_tokens_that_both_have_are_one_text(pair):
    models = PAIRS[pair]
    ours, theirs = across.matched_of(*models)
    assert (ours[0], theirs[0]) == tuple(m.config.end_ids[0] for m in models)
    assert len({*ours}) == len({*theirs}) == len(ours) > 10
    starts = [
        model.tokenizer("o", add_special_tokens=False)["input_ids"] for model in models
    ]
    special = [{*model.tokenizer.all_special_ids} for model in models]
    for pair in zip(ours[1:].tolist(), theirs[1:].tolist(), strict=True):
        known = [one in some for one, some in zip(pair, special, strict=True)]
        assert known[0] == known[1]
        said = [
            model.tokenizer.convert_ids_to_tokens(number)
            if known[0]
            else model.tokenizer.decode([*start, number])
            for model, start, number in zip(models, starts, pair, strict=True)
        ]
        assert said[0] == said[1]
    for model, ids in zip(models, (ours, theirs), strict=True):
        assert ids.max() < len(model.tokenizer)
        assert not {*ids[1:]} & {*model.config.end_ids}


def test_spellings_of_one_text():
    words, pairs, marked = (token_texts(m.tokenizer) for m in (STUDENT, BYTES, PIECES))
    # A word piece begins a word, or goes on with "##".
    assert {" is", "s"} <= words.keys()
    assert " ##s" not in words
    # Bytes are no characters; parts of one are no text.
    assert {" is", "é", "\n"} <= pairs.keys()
    assert " is" in marked
    for found in (words, pairs, marked):
        assert not any("\ufffd" in text for text in found)
    assert token_texts(BYTES.tokenizer) == pairs


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("k", [2, 400])
def test_a_teacher_is_read_where_both_have_the_same_token(pair, k):
    student, teacher = PAIRS[pair]
    matched = across.matched_of(student, teacher)
    along = across.read_along(student, Query(teacher), TEXTS, matched, SHAPE, k=k)
    begins, targets = along.batch(None, np.arange(len(PROMPTS)))[1:]
    names = dict(zip(*(ids.tolist() for ids in reversed(matched)), strict=True))
    kept, left_out = 0, 0
    for row, (prompt, text) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        (ids, starts), (read, places) = (cuts(model, text) for model in PAIRS[pair])
        wanted = [None] * SHAPE.max_new
        for token, start in enumerate(starts):
            for place, other in enumerate(places):
                same = start is not None and start == other
                if same and names.get(read[place]) == ids[token]:
                    wanted[token] = place
        # The end of a text, which has tokens in both or in none.
        wanted[len(starts)] = len(places) if bool(starts) == bool(places) else None
        assert begins[row].tolist() == [place is not None for place in wanted]
        left_out += wanted[: len(starts)].count(None)
        for token, place in enumerate(wanted):
            if place is None:
                continue
            kept += 1
            probs = next_probs(teacher, prompt, read[:place])
            both = sorted(((probs[t], names[t]) for t in names), reverse=True)[:k]
            at = row, token
            top = targets.top_ids[at].tolist(), np.exp(targets.top_log_probs[at])
            got = dict(zip(*top, strict=True))
            assert sorted(got.values()) == pytest.approx(
                sorted(p for p, _ in both), abs=1e-4
            )
            assert {number: p for p, number in both if p > 0.05}.keys() <= got.keys()
            rest = 1 - sum(p for p, _ in both)
            assert np.exp(targets.rest_log_prob[at]) == pytest.approx(rest, abs=1e-4)
            others = np.sort(np.delete(probs, matched.teacher))[::-1][:k]
            others = np.pad(others, (0, k - len(others)))
            np.testing.assert_allclose(targets.others[at], others, atol=1e-4)
    # There is something to compare, and something to leave out.
    assert kept > 8
    assert left_out > 2


def test_of_long_texts_the_beginnings_count():
    """Those of the student's tokens, and those for which the teacher has positions."""
    long = Texts(PROMPTS[:2], ["one is two and red " * 3, "red"])
    matched = across.matched_of(BYTES, FEWER)
    whole, short, few = (
        across.read_along(BYTES, Query(teacher), long, matched, shape, k=3)
        for teacher, shape in (
            (FEWER, SHAPE._replace(max_new=64)),
            (FEWER, SHAPE),
            (
                FEWER._replace(
                    config=dataclasses.replace(FEWER.config, max_positions=24)
                ),
                SHAPE._replace(max_new=64),
            ),
        )
    )
    assert whole.begins[0, 16:].any()
    np.testing.assert_array_equal(short.begins, whole.begins[:, :16])
    # 24 positions: 16 of the prompt, and nine tokens of which the last is not read.
    assert few.said.rest_log_prob.shape[1] == 9
    seen = whole.begins & (whole.places < 9)
    np.testing.assert_array_equal(few.begins, seen)
    assert few.begins[0].sum() < whole.begins[0].sum()


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


@pytest.mark.parametrize("pair", PAIRS)
def test_a_student_with_other_tokens_comes_to_write_as_the_teacher(pair):
    student, teacher = PAIRS[pair]
    settings = dataclasses.replace(SETTINGS, steps=40)
    found = train_student("other_tokens", student, Query(teacher), PROMPTS, settings)
    assert found.budget.queries == len(PROMPTS)
    shape = Shape(8, 6, 4, 64)
    ids = decoding.read_prompts(teacher, PROMPTS, max_length=8)
    drawn = decoding.draw(teacher, ids, shape, key=jax.random.key(7))
    texts = [decoding.text_of(teacher, drawn.tokens(row)) for row in range(len(ids))]
    own_ids, written = tokens_of(student, Texts(PROMPTS, texts), shape)
    before, after = (
        decoding.read_own(model, own_ids, written, shape, k=1)[0][written.where].mean()
        for model in (student, found.model)
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
    end = len(BYTES.tokenizer)
    lost = BYTES._replace(config=dataclasses.replace(BYTES.config, end_ids=(2, end)))
    with pytest.raises(ValueError, match=f"the tokens, found end_ids={end}"):
        across.matched_of(lost, TEACHER)


def test_a_teacher_that_writes_with_a_proxy_is_read_with_it():
    proxy = decoder(6, 180, ["twofold is bluest", "purples", *PROMPTS])
    experts = Experts(proxy, 0.5)
    query = Query(TEACHER, experts=experts)
    matched = across.matched_of(STUDENT, TEACHER)
    texts = Texts(["one and"], [""])
    found = across.read_along(STUDENT, query, texts, matched, SHAPE, k=1)
    probs = next_probs(TEACHER, "one and", [], experts)
    best = matched.teacher[probs[matched.teacher].argmax()]
    assert np.exp(found.said.top_log_probs[0, 0, 0]) == pytest.approx(
        probs[best], abs=1e-5
    )
    alone = next_probs(TEACHER, "one and", [])
    assert np.abs(probs - alone).max() > 0.05
