"""Checkpoints of language models in and out, against tiny ones made by PyTorch.

data/make_language_golden.py makes them. What encoders share is in test_hf.py.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import chex
import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protojax.base import SequenceBatch
from protojax.models import _tensors, hf, language
from protojax.models.language import load_language_model, save_language_model

DATA = Path(__file__).parent / "data" / "golden_language"
VARIANTS = sorted(path.name for path in DATA.iterdir())
variants = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def golden(variant):
    return load_language_model(DATA / variant)


def copied(tmp_path, variant, change=lambda tensors: tensors, **fields):
    """A copy of a golden checkpoint with other tensors and fields of config.json."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(DATA / variant, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")
    edit(folder / "config.json", **fields)
    return folder


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder):
    """Returns what `load_language_model` says of a folder, with its path."""
    with pytest.raises((OSError, ValueError)) as error:
        load_language_model(folder)
    assert type(error.value) in (OSError, ValueError, FileNotFoundError)
    assert str(folder) in str(error.value)
    return str(error.value)


@functools.cache
def logits_fn(config):
    """The logits of the output's tokens, compiled once for equal computations."""

    def run(params, batch):
        states = language.apply_fn(config)(params, batch).states
        return language.head_fn(config)(params, states)

    return jax.jit(run)


@variants
def test_equals_pytorch(variant):
    model, found = golden(variant), load_file(DATA / variant / "golden.safetensors")
    written = found["output_ids"]
    batch = SequenceBatch(
        found["input_ids"],
        found["attention_mask"],
        written,
        output_weights=np.ones(written.shape, np.float32),
        where=np.ones(len(written), bool),
    )
    run = logits_fn(dataclasses.replace(model.config, family="any"))
    logits = run(model.params, batch)
    np.testing.assert_allclose(logits[:, :8], found["logits"], atol=1e-5)
    # Each token is the most probable one behind those that PyTorch wrote before it, so
    # all that is written without sampling is the same.
    assert written.shape == (3, 32)
    np.testing.assert_array_equal(logits.argmax(-1), written)


@variants
def test_round_trip(variant, tmp_path):
    model = golden(variant)
    save_language_model(tmp_path / "saved", model)
    again = load_language_model(tmp_path / "saved")
    assert again.config == model.config
    chex.assert_trees_all_equal(again.params, model.params)
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert again.tokenizer.chat_template == model.tokenizer.chat_template
    # Files hold what transformers wrote, under the same names.
    saved, first = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "saved", DATA / variant)
    )
    chex.assert_trees_all_equal(saved, first)
    modes = {oct(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1


def test_config_of_llama():
    assert golden("llama").config == language.LanguageConfig(
        family="llama",
        vocab_size=24,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        intermediate_size=20,
        positions="rotary",
        max_positions=64,
        rope_theta=500.0,
        rope_scaling=language.RopeScaling(
            factor=4.0, low=1.0, high=4.0, original_positions=32
        ),
        norm="rms",
        norm_eps=1e-3,
        activation="silu",
        gated=True,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=False,
        pad_id=0,
        end_ids=(1, 2),
    )


def test_config_of_t5():
    assert golden("t5").config == language.LanguageConfig(
        family="t5",
        vocab_size=24,
        hidden_size=12,
        num_layers=3,
        encoder_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        intermediate_size=20,
        positions="relative",
        relative_buckets=8,
        relative_distance=16,
        norm="rms",
        norm_eps=1e-3,
        activation="relu",
        gated=False,
        float32_down=True,
        scale_attention=False,
        tied=True,
        scale_head=True,
        start_id=3,
        pad_id=0,
        end_ids=(1,),
        dropout=0.2,
    )


def test_settings_of_other_families():
    bart, gpt2 = golden("bart").config, golden("gpt2").config
    assert (bart.embedding_scale, bart.position_offset) == (12**0.5, 2)
    assert (bart.start_id, bart.pad_id, bart.end_ids) == (2, 0, (1,))
    assert (gpt2.head_dim, gpt2.intermediate_size, gpt2.dropout) == (4, 20, 0.2)
    for name in ("t5-gated", "mt5"):
        assert (golden(name).config.tied, golden(name).config.scale_head) == (0, 0)
    assert golden("qwen3").config.query_key_norm
    assert golden("llama-tied").config.dropout == 0.2
    # Rows for more tokens than the tokenizer has.
    assert len(golden("t5").tokenizer) < bart.vocab_size == 24
    assert golden("t5").params["embedding"]["embedding"].shape == (24, 12)


def test_arguments():
    model = load_language_model(
        DATA / "llama-tied", dtype="bfloat16", remat=True, layers=(1,)
    )
    assert (model.config.dtype, model.config.remat) == ("bfloat16", True)
    whole = golden("llama-tied").params["decoder"]["layers"]
    kept = jax.tree.map(lambda leaf: leaf[1:], whole)
    chex.assert_trees_all_equal(model.params["decoder"]["layers"], kept)


def test_the_fused_tensor_of_gpt2():
    tensors = load_file(DATA / "gpt2" / "model.safetensors")
    fused = tensors["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (12, 36)
    attention = golden("gpt2").params["decoder"]["layers"]["attention"]
    for i, name in enumerate(("query", "key", "value")):
        columns = fused[:, 12 * i : 12 * (i + 1)]
        np.testing.assert_array_equal(attention[name]["kernel"][1], columns)


def test_shards(tmp_path, monkeypatch):
    model = golden("llama")
    small = functools.partial(_tensors.write, shard_bytes=4000)
    monkeypatch.setattr(_tensors, "write", small)
    save_language_model(tmp_path / "saved", model)
    names = sorted(path.name for path in (tmp_path / "saved").glob("model*"))
    index = json.loads((tmp_path / "saved" / names[-1]).read_text())
    assert names[-1] == "model.safetensors.index.json"
    assert sorted(set(index["weight_map"].values())) == names[:-1]
    assert names[0] == f"model-00001-of-{len(names) - 1:05}.safetensors"
    assert len(names) > 3
    sizes = [
        sum(tensor.nbytes for tensor in load_file(tmp_path / "saved" / name).values())
        for name in names[:-1]
    ]
    assert max(sizes) <= 4000
    assert index["metadata"]["total_size"] == sum(sizes)
    again = load_language_model(tmp_path / "saved")
    chex.assert_trees_all_equal(again.params, model.params)
    monkeypatch.undo()
    save_language_model(tmp_path / "saved", model)
    assert len(list((tmp_path / "saved").glob("model*"))) == 1


TIED = {
    "t5": ("shared.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    "bart": ("model.shared.weight", "model.encoder.embed_tokens.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "llama-tied": ("model.embed_tokens.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("variant", TIED)
def test_tied_tensors_that_a_file_holds_too(variant, tmp_path):
    own, *twins = TIED[variant]
    model = golden(variant)
    folder = copied(tmp_path, variant, lambda t: t | dict.fromkeys(twins, t[own]))
    chex.assert_trees_all_equal(load_language_model(folder).params, model.params)

    def other(tensors):
        tensors = tensors | dict.fromkeys(twins, tensors[own])
        return tensors | {twins[0]: tensors[own] + 1}

    said = refused(copied(tmp_path / "other", variant, other))
    assert f"Expected {twins[0]} of " in said
    assert f"equal to {own} of model.safetensors" in said

    # transformers reads the word embedding from any of its names.
    def moved(tensors):
        return {twins[0] if n == own else n: value for n, value in tensors.items()}

    folder = copied(tmp_path / "moved", variant, moved)
    chex.assert_trees_all_equal(load_language_model(folder).params, model.params)


def test_a_head_that_config_json_denies(tmp_path):
    # So far transformers has tied the two, and since 5.0 it does not.
    def head(tensors):
        return tensors | {"lm_head.weight": tensors["shared.weight"] * 2}

    folder = copied(tmp_path, "t5", head)
    values = json.loads((folder / "config.json").read_text())
    del values["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "lm_head.weight" in refused(folder)
    folder = copied(tmp_path / "llama", "llama-tied", tie_word_embeddings=False)
    assert "1 missing: lm_head.weight" in refused(folder)
    folder = copied(tmp_path / "old", "t5", tie_word_embeddings=False)
    assert "1 missing: lm_head.weight" in refused(folder)


@pytest.mark.parametrize("is_old", [True, False])
def test_an_untied_t5_of_old_and_new_releases(is_old, tmp_path):
    folder = copied(tmp_path, "t5-gated")
    values = json.loads((folder / "config.json").read_text())
    assert (values["tie_word_embeddings"], values["scale_decoder_outputs"]) == (1, 0)
    if is_old:
        del values["scale_decoder_outputs"]
        values["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(values))
    model = load_language_model(folder)
    assert model.config == golden("t5-gated").config
    chex.assert_trees_all_equal(model.params, golden("t5-gated").params)


def test_the_head_of_mt5(tmp_path):
    # config.json says nothing of it since transformers 5.0, and before it said false.
    for tie in (True, False):
        folder = copied(tmp_path / str(tie), "mt5", tie_word_embeddings=tie)
        model = load_language_model(folder)
        assert model.config == golden("mt5").config
        head = load_file(folder / "model.safetensors")["lm_head.weight"]
        np.testing.assert_array_equal(model.params["head"]["kernel"], head.T)

    def drop(tensors):
        del tensors["lm_head.weight"]

    config = load_language_model(copied(tmp_path, "mt5", drop)).config
    assert (config.tied, config.scale_head) == (True, False)
    edit(tmp_path / "checkpoint" / "config.json", tie_word_embeddings=False)
    assert "1 missing: lm_head.weight" in refused(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "h.1.attn.masked_bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        (
            "t5",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ),
        ("bart", "model.encoder.version"),
    ],
)
def test_buffers_are_ignored(variant, name, tmp_path):
    buffer = np.zeros((1, 1, 2, 2), np.uint8)
    folder = copied(tmp_path, variant, lambda tensors: tensors | {name: buffer})
    model = load_language_model(folder)
    chex.assert_trees_all_equal(model.params, golden(variant).params)
    folder = copied(tmp_path / "x", variant, lambda tensors: tensors | {"odd": buffer})
    assert "1 unexpected: odd" in refused(folder)


def test_the_bias_of_the_logits_may_be_absent(tmp_path):
    def change(tensors):
        assert tensors.pop("final_logits_bias").shape == (1, 24)

    model = load_language_model(copied(tmp_path, "bart", change))
    assert golden("bart").params["head"]["bias"].any()
    np.testing.assert_array_equal(model.params["head"]["bias"], np.zeros(24))


def test_names_without_prefix(tmp_path):
    def bare(tensors):
        return {n.removeprefix("transformer."): value for n, value in tensors.items()}

    model = load_language_model(copied(tmp_path, "gpt2", bare))
    chex.assert_trees_all_equal(model.params, golden("gpt2").params)


def test_one_error_lists_every_tensor(tmp_path):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.odd"] = np.zeros(1, np.float32)
        tensors["model.norm.weight"] = np.zeros(7, np.float32)
        name = "model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name].astype(np.int8)

    kind = "of another type than F64, F32, F16, BF16"
    assert refused(copied(tmp_path, "llama", change)).split("\n")[1:] == [
        "  1 missing: layers.1.mlp.up_proj.weight",
        "  1 unexpected: layers.2.odd",
        "  1 mis-shaped: norm.weight (7,) instead of (16,)",
        f"  1 {kind}: layers.0.mlp.down_proj.weight I8",
    ]


# As in the checkpoint, but for one factor.
ROPE = json.loads((DATA / "llama" / "config.json").read_text())["rope_parameters"]
del ROPE["low_freq_factor"]
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "layer_types": None}


@pytest.mark.parametrize(
    ("variant", "fields", "said"),
    [
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}, "'yarn'"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "odd"}}, "'odd'"),
        ("llama", {"rope_parameters": ROPE}, "low_freq_factor"),
        ("llama", {"rope_parameters": {**ROPE, "low_freq_factor": 9.0}}, "high > low"),
        ("llama", {"rope_parameters": {"rope_theta": "9"}}, "rope_theta"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 1.0",
        ),
        ("llama", {"hidden_act": "gelu_python"}, "'gelu_python'"),
        ("llama", {"model_type": "mistral"}, "model_type one of bart, gpt2"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config null"),
        ("llama", {"hidden_size": 10**9}, "hidden_size <= 24, the largest dimension"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads a divisor"),
        ("llama", {"num_key_value_heads": 0}, "num_kv_heads > 0"),
        ("llama", {"head_dim": 10**9}, "head_dim <= 24"),
        ("llama", {"attention_bias": 1}, "attention_bias"),
        ("qwen2", {"num_hidden_layers": 10**9}, "<= 2, the layers of the tensors"),
        (
            "qwen2",
            {**WINDOW, "max_window_layers": 1},
            "layer_types 'full_attention' in every layer",
        ),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention False"),
        ("gpt2", {"n_head": 5}, "n_head a divisor of n_embd=12"),
        ("gpt2", {"n_positions": 10**9}, "n_positions <= 64"),
        ("gpt2", {"n_inner": 10**9}, "intermediate_size <= 64"),
        ("t5", {"num_decoder_layers": 10**9}, "num_decoder_layers <= 3"),
        ("t5", {"num_layers": 10**9}, "num_layers <= 2"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder True"),
        ("t5", {"relative_attention_num_buckets": 10**9}, "buckets <= 24"),
        ("t5", {"dense_act_fn": ["relu"]}, "activation"),
        ("t5", {"feed_forward_proj": "odd-relu"}, "is no config"),
        (
            "bart",
            {"encoder_ffn_dim": 24},
            "decoder_ffn_dim equal to encoder_ffn_dim=24",
        ),
        ("bart", {"encoder_attention_heads": 2}, "decoder_attention_heads equal"),
        ("bart", {"normalize_before": True}, "normalize_before False"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings True"),
        ("bart", {"encoder_layers": None}, "encoder_layers an integer"),
    ],
)
def test_what_is_not_computed(variant, fields, said, tmp_path):
    message = refused(copied(tmp_path, variant, **fields))
    assert said in message
    assert "\n" not in message


def test_layers_without_a_window(tmp_path):
    # The window is that of layers which the model does not have.
    folder = copied(tmp_path, "qwen2", **WINDOW, max_window_layers=2)
    assert load_language_model(folder).config == golden("qwen2").config


def test_rotary_positions_of_old_releases(tmp_path):
    folder = copied(tmp_path, "llama")
    values = json.loads((folder / "config.json").read_text())
    scaling = values.pop("rope_parameters")
    values["rope_theta"] = scaling.pop("rope_theta")
    values["rope_scaling"] = scaling
    (folder / "config.json").write_text(json.dumps(values))
    assert load_language_model(folder).config == golden("llama").config
    edit(folder / "config.json", rope_scaling={"type": "linear", "factor": 2.0})
    assert "rope_scaling.rope_type one of ['default', 'llama3']" in refused(folder)


@pytest.mark.parametrize(
    ("generation", "config", "tokens"),
    [
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 1}, (3, 0, (5, 6))),
        ({}, {"eos_token_id": 7, "pad_token_id": None}, (3, 7, (7,))),
        ({"pad_token_id": 9, "decoder_start_token_id": 8}, {}, (8, 9, (1,))),
        ({}, {"eos_token_id": None, "pad_token_id": None}, (3, 0, ())),
    ],
)
def test_tokens_of_generation(generation, config, tokens, tmp_path):
    folder = copied(tmp_path, "t5", **config)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = load_language_model(folder).config
    assert (found.start_id, found.pad_id, found.end_ids) == tokens
    (folder / "generation_config.json").unlink()
    if not generation:
        assert load_language_model(folder).config == found


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ("[", "generation_config.json is not JSON"),
        ('{"eos_token_id": "a"}', "eos_token_id an integer, or several"),
        ('{"eos_token_id": [1, true]}', "eos_token_id an integer, or several"),
        ('{"eos_token_id": 24}', "end_ids in [0, vocab_size=24)"),
        ('{"pad_token_id": -1}', "pad_id in [0, vocab_size=24)"),
        ('{"decoder_start_token_id": [1, 2]}', "decoder_start_token_id an integer"),
    ],
)
def test_tokens_that_are_none(generation, said, tmp_path):
    folder = copied(tmp_path, "t5")
    (folder / "generation_config.json").write_text(generation)
    assert said in refused(folder)


def test_no_start(tmp_path):
    folder = copied(tmp_path, "t5", decoder_start_token_id=None)
    (folder / "generation_config.json").unlink()
    assert "decoder_start_token_id an integer" in refused(folder)


def test_models_that_a_family_cannot_express(tmp_path):
    model = golden("llama")
    odd = model._replace(config=dataclasses.replace(model.config, norm="layer"))
    with pytest.raises(ValueError, match="norm 'rms', all that config"):
        save_language_model(tmp_path / "saved", odd)
    assert not list(tmp_path.iterdir())


def test_saving_spares_what_it_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        save_language_model(tmp_path, golden("llama"))


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_language_model("~/saved", golden("gpt2")._replace(tokenizer=None))
    assert load_language_model("~/saved").tokenizer is None


def test_hub_downloads_templates_and_no_pickles(monkeypatch):
    def download(name, **options):
        asked.append((name, options["revision"], options["allow_patterns"]))
        return str(DATA / "gpt2")

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_language_model("org/name", revision="v1")
    files = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
    assert asked == [("org/name", "v1", files)]


def test_a_tokenizer_of_bytes(tmp_path):
    folder = copied(tmp_path, "t5")
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        path.unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0})
    )
    assert hf.load_tokenizer(folder)("a").input_ids == [100, 1]
    # Its 259 tokens are more than the rows of this embedding.
    assert "Expected ids < 24" in refused(folder)


def test_a_missing_module():
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = language.load
