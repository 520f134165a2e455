"""What language models write against a loop over their teacher-forced logits."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.base import SequenceBatch
from protojax.data.wordpiece import train_wordpiece
from protojax.generation import (
    Generated,
    beam_search,
    generate,
    sampling,
    texts,
    write_texts,
)
from protojax.models import wrap_tokenizer
from protojax.models.language import (
    LanguageConfig,
    apply_fn,
    head_fn,
    init_model,
    split_layers,
    start_fn,
    step_fn,
)

# Prompts of at most 32 tokens, and 5 of the 6 that are written.
MAX_NEW, LENGTH = 6, 32
SIZES = {"vocab_size": 160, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
SIZES |= {"head_dim": 4, "intermediate_size": 8, "end_ids": (7, 9)}
DECODER = LanguageConfig(
    family="llama", **SIZES, num_kv_heads=1, positions="rotary", max_positions=37
)
TRANSLATOR = LanguageConfig(
    family="t5", **SIZES, num_kv_heads=2, positions="relative", encoder_layers=1,
    scale_attention=False,
)  # fmt: skip
TEXTS = ["play music", "weather", "a table for two", "what is the table"]


@functools.cache
def model_of(config):
    tokenizer = wrap_tokenizer(train_wordpiece(TEXTS, vocab_size=160))
    model = init_model(config, seed=3, tokenizer=tokenizer)
    # Fresh models hardly tell tokens apart.
    return model._replace(params=jax.tree.map(lambda leaf: 6 * leaf, model.params))


def sources(config, some=TEXTS[1:3]):
    """Rows padded on the side that the model reads."""
    ids = np.zeros((len(some), LENGTH), np.int32)
    mask = np.zeros_like(ids)
    for row, text in enumerate(some):
        found = model_of(config).tokenizer(text)["input_ids"]
        place = slice(-len(found), None) if config is DECODER else slice(len(found))
        ids[row, place], mask[row, place] = found, 1
    return ids, mask


def functions(config):
    """What `generate` needs first; as in `write_texts`, whose programs are shared."""
    return start_fn(config), step_fn(config), split_layers(model_of(config).params)


@functools.cache
def forced(config):
    @jax.jit
    def log_probs(params, ids, mask, output):
        ones = jnp.ones(output.shape, jnp.float32)
        batch = SequenceBatch(ids, mask, output, ones, jnp.ones(len(ids), bool))
        states = apply_fn(config)(params, batch).states
        return jax.nn.log_softmax(head_fn(config)(params, states))

    return functools.partial(log_probs, model_of(config).params)


def decoded(config, written):
    """The texts without padding and stop tokens."""
    return [
        model_of(config).tokenizer.decode([i for i in row if i not in (0, 7, 9)])
        for row in written.ids.tolist()
    ]


both = pytest.mark.parametrize(
    "config", [DECODER, TRANSLATOR], ids=lambda config: config.family
)


@both
def test_greedy_equals_a_loop_over_teacher_forcing(config):
    ids, mask = sources(config)
    output, scores = np.zeros((2, MAX_NEW), np.int32), np.zeros((2, MAX_NEW))
    for t in range(MAX_NEW):
        found = np.asarray(forced(config)(ids, mask, output)[:, t])
        output[:, t], scores[:, t] = found.argmax(-1), found.max(-1)
    written = generate(
        *functions(config), ids, mask,
        max_new=MAX_NEW, stop_ids=config.end_ids, pad_id=0,
    )  # fmt: skip
    ended = np.isin(output, config.end_ids)
    where = ended.cumsum(1) - ended == 0
    np.testing.assert_array_equal(written.where, where)
    np.testing.assert_array_equal(written.ids, np.where(where, output, 0))
    np.testing.assert_allclose(written.log_probs, np.where(where, scores, 0), atol=1e-4)


def test_beams_are_scored_as_by_teacher_forcing():
    ids, mask = sources(TRANSLATOR)
    options = {"beams": 3, "length_penalty": 0.0}
    written = beam_search(
        *functions(TRANSLATOR), ids, mask,
        max_new=MAX_NEW, stop_ids=TRANSLATOR.end_ids, pad_id=0, **options,
    )  # fmt: skip
    expected = forced(TRANSLATOR)(ids, mask, np.asarray(written.ids))
    expected = jnp.take_along_axis(expected, written.ids[..., None], axis=-1)[..., 0]
    expected = jnp.where(written.where, expected, 0)
    np.testing.assert_allclose(written.log_probs, expected, atol=1e-4)
    assert write(TRANSLATOR, TEXTS[1:3], **options) == decoded(TRANSLATOR, written)


# Texts


def write(config, some, **options):
    options = {"max_new": MAX_NEW, "batch_size": 2} | options
    return write_texts(model_of(config), some, **options)


@both
def test_texts_are_in_order(config):
    calls = []
    found = write(config, TEXTS, progress=lambda *counts: calls.append(counts))
    assert calls == [(2, 4), (4, 4)]
    for rows in ([0, 3], [1, 2]):
        some = sources(config, [TEXTS[row] for row in rows])
        written = generate(
            *functions(config), *some,
            max_new=MAX_NEW, stop_ids=config.end_ids, pad_id=0,
        )  # fmt: skip
        assert [found[row] for row in rows] == decoded(config, written)


def test_few_shapes_are_compiled():
    write(DECODER, TEXTS)
    before = sampling._generate._cache_size()
    write(DECODER, [*TEXTS, *TEXTS, "play"])
    assert sampling._generate._cache_size() == before


def test_what_is_drawn_for_a_text_depends_on_seed_and_place_only(monkeypatch):
    def draw(*given, max_new, key, temperature, **options):
        assert (temperature, options["top_k"]) == (0.5, 9)
        ids = np.asarray(jax.random.key_data(key))[:, :1] % 140 + 10
        return Generated(ids, ids, ids > 0, np.zeros(len(ids), bool))

    monkeypatch.setattr(texts, "generate", draw)
    options = {"temperature": 0.5, "top_k": 9}
    found = write(DECODER, TEXTS, **options)
    assert found == write(DECODER, TEXTS[::-1], **options)
    assert found == write(DECODER, [*TEXTS, "weather"], batch_size=3, **options)[:4]
    assert found != write(DECODER, TEXTS, seed=1, **options)
    assert len({*found}) == 4


def test_a_long_text_is_cut_and_said_once(caplog):
    whole = " ".join(["a"] * (LENGTH - 2))  # between [CLS] and [SEP]
    with caplog.at_level(logging.WARNING, "protojax"):
        found = write(DECODER, [whole + " b b b", whole, "a"])
    assert [record.getMessage() for record in caplog.records] == [
        "Cut 1 of 3 texts to 32 tokens, the most that is read."
    ]
    assert found[0] == found[1]


def test_nothing_is_cut_where_nothing_limits():
    tokenizer = wrap_tokenizer(
        train_wordpiece(TEXTS, vocab_size=160), max_length=int(1e30)
    )
    model = model_of(TRANSLATOR)._replace(tokenizer=tokenizer)
    limit = texts._limit(model, ["a", "a " * 40], MAX_NEW, None)
    assert texts._tokens(model, ["a", "a " * 40], limit).lengths.tolist() == [3, 42]
    assert texts._limit(model, ["a"], MAX_NEW, 20) == 20
    assert texts._limit(model_of(DECODER), ["a"], MAX_NEW, 100) == LENGTH


def test_what_write_texts_refuses():
    assert write(DECODER, []) == []
    with pytest.raises(ValueError, match="max_new <= 37"):
        write(DECODER, TEXTS, max_new=38)
    with pytest.raises(ValueError, match="temperature 0 with beams > 1"):
        write(DECODER, TEXTS, beams=2, temperature=1.0)
    model = model_of(DECODER)
    with pytest.raises(ValueError, match="a tokenizer"):
        write_texts(model._replace(tokenizer=None), TEXTS, max_new=1)
    bare = train_wordpiece(["a"], vocab_size=160)
    bare.post_processor = None
    bare = model._replace(tokenizer=wrap_tokenizer(bare))
    with pytest.raises(ValueError, match="text 1 with none: ''"):
        write_texts(bare, ["a", ""], max_new=1)
