"""Checkpoints of strangers: each that is not plainly one model is refused in a line."""

import json
import logging
import struct

import numpy as np
import pytest
import safetensors.flax
from safetensors.numpy import load_file, save_file

from protojax import models
from protojax.base import Examples
from protojax.data import tokens as tokens_lib
from protojax.models import hf
from tests.test_hf import copied, drop, edit_config, families, golden

WORDS = "bert.embeddings.word_embeddings.weight"


def refused(folder, *, num_labels=3, **options):
    """Returns what `load_hf` says of a folder, in one line with the path."""
    with pytest.raises((OSError, ValueError)) as error:
        hf.load_hf(folder, num_labels=num_labels, **options)
    # Its subclasses say what a library met, not what a user does.
    assert type(error.value) in (OSError, ValueError, FileNotFoundError)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def added(name, tensor):
    return lambda tensors: {**tensors, name: tensor(tensors)}


def sharded(folder, parts):
    """Writes the tensors of a checkpoint anew, in shards."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, part in enumerate(parts):
        save_file(part, folder / f"shard{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"shard{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("embeddings.word_embeddings.weight", WORDS),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
    ],
)
def test_two_names_of_one_tensor(tmp_path, name, twin):
    folder = copied(tmp_path, "bert", added(name, lambda t: t[twin] * 0 + 1))
    said = refused(folder)
    assert "found two" in said
    assert f" {name} in model.safetensors" in said
    assert f" {twin} in model.safetensors" in said


def test_one_tensor_in_two_shards(tmp_path):
    folder = copied(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    sharded(folder, [tensors, {WORDS: tensors[WORDS] + 1}])
    said = refused(folder)
    assert f"{WORDS} in shard0.safetensors and {WORDS} in shard1.safetensors" in said


@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.int64, np.uint8])
def test_weights_that_are_no_floats(tmp_path, dtype):
    folder = copied(tmp_path, "bert", added(WORDS, lambda t: t[WORDS].astype(dtype)))
    with pytest.raises(ValueError, match="of another type than F64, F32") as error:
        hf.load_hf(folder, num_labels=3)
    assert "1 of another type" in str(error.value)
    assert "embeddings.word_embeddings.weight" in str(error.value)


def test_weights_of_eight_bits_are_no_floats_either(tmp_path):
    folder = copied(tmp_path, "bert")
    tensors = safetensors.flax.load_file(folder / "model.safetensors")
    tensors[WORDS] = tensors[WORDS].astype("float8_e4m3fn")
    safetensors.flax.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"word_embeddings\.weight F8_E4M3"):
        hf.load_hf(folder, num_labels=3)


def test_double_precision_becomes_float32(tmp_path):
    folder = copied(tmp_path, "bert", added(WORDS, lambda t: t[WORDS].astype(float)))
    found = hf.load_hf(folder, num_labels=3).params["embeddings"]["word"]["embedding"]
    expected = load_file(golden("bert") / "model.safetensors")[WORDS]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite(tmp_path, value):
    name = "bert.encoder.layer.2.output.dense.weight"

    def change(tensors):
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name][3, 5] = value

    said = refused(copied(tmp_path, "bert", change))
    assert f"found 1 of 448 NaN or infinite in {name} of " in said
    assert "model.safetensors" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_hidden_layers", 10**5, "<= 3, the layers of the tensors"),
        ("num_hidden_layers", 4, "<= 3, the layers of the tensors"),
        ("num_hidden_layers", 0, "num_layers > 0"),
        ("num_hidden_layers", True, "num_hidden_layers"),
        ("vocab_size", 10**12, "vocab_size <= 28"),
        ("hidden_size", 10**9, "hidden_size <= 28"),
        ("hidden_size", -16, "hidden_size > 0"),
        ("hidden_size", "16", "hidden_size"),
        ("hidden_size", [16], "hidden_size"),
        ("intermediate_size", 2.0, "intermediate_size"),
        ("max_position_embeddings", 10**15, "max_position_embeddings <= 28"),
        ("type_vocab_size", 10**6, "type_vocab_size <= 28"),
        ("num_attention_heads", 0, "num_heads > 0"),
        ("num_attention_heads", 10**9, "num_heads a divisor"),
        ("layer_norm_eps", "nan", "layer_norm_eps"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps a finite number"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps a finite number"),
        ("hidden_dropout_prob", float("nan"), "hidden_dropout_prob a finite number"),
        ("hidden_act", ["gelu"], "hidden_act"),
        ("pad_token_id", -1, "pad_id >= 0"),
        ("pad_token_id", 10**6, "pad_token_id < vocab_size=24"),
        ("model_type", ["bert"], "model_type"),
        ("model_type", None, "model_type"),
        ("position_embedding_type", ["absolute"], "position_embedding_type"),
        ("id2label", [], "is no config"),
        ("id2label", {"a": "bad", "b": "fair", "c": "good"}, "is no config"),
    ],
)
def test_values_that_the_tensors_contradict(tmp_path, name, value, said):
    folder = copied(tmp_path, "bert")
    edit_config(folder, **{name: value})
    assert said in refused(folder)


def test_thousands_of_tiny_layers_are_not_traced(tmp_path):
    def change(tensors):
        name = "bert.encoder.layer.{}.output.dense.bias"
        return tensors | {name.format(i): np.zeros(1, "f4") for i in range(20_000)}

    folder = copied(tmp_path, "bert", change)
    edit_config(folder, num_hidden_layers=20_000)
    with pytest.raises(ValueError, match="299955 missing") as error:
        hf.load_hf(folder, num_labels=3)
    assert len(str(error.value)) < 20_000


def test_empty_tensors_bound_nothing(tmp_path):
    folder = copied(tmp_path, "bert", added("cls.x", lambda _: np.zeros((0, 10**9))))
    edit_config(folder, vocab_size=10**9)
    assert "vocab_size <= 28" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"bert"', "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_no_object(tmp_path, name, text):
    folder = copied(tmp_path, "bert")
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    assert name in refused(folder)


def test_json_that_is_nested_within_an_object(tmp_path):
    folder = copied(tmp_path, "bert")
    (folder / "config.json").write_text('{"model_type": ' + "[" * 10**5)
    refused(folder)
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')
    refused(folder)


@pytest.mark.parametrize("shards", [[], None, {"a": 1}, {"a": ["b"]}, {"a": None}])
def test_an_index_of_another_form(tmp_path, shards):
    folder = copied(tmp_path, "bert")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert "weight_map" in refused(folder)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "mpnet"])
def test_no_padding_token(family, tmp_path):
    folder = copied(tmp_path, family)
    edit_config(folder, pad_token_id=None)
    model = hf.load_hf(folder, num_labels=3)
    assert model.config.pad_id == model.tokenizer.pad_token_id


def test_roberta_has_no_positions_without_a_padding_token(tmp_path):
    folder = copied(tmp_path, "roberta")
    edit_config(folder, pad_token_id=None)
    assert "pad_token_id an integer" in refused(folder)


def test_mpnet_knows_its_padding_token(tmp_path):
    folder = copied(tmp_path, "mpnet")
    edit_config(folder, pad_token_id=0)
    assert "pad_token_id 1, as in any mpnet" in refused(folder)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (16, "unexpected: embeddings_project"),
        (11, "instead of"),
        (-12, "embedding_size >= 0"),
        (10**6, "embedding_size <= 28"),
    ],
)
def test_embeddings_of_another_width(tmp_path, size, said):
    folder = copied(tmp_path, "electra")
    edit_config(folder, embedding_size=size)
    with pytest.raises(ValueError, match=said) as error:
        hf.load_hf(folder, num_labels=3)
    assert str(folder) in str(error.value)


def test_a_bias_of_other_distances(tmp_path):
    name = "mpnet.encoder.relative_attention_bias.weight"
    folder = copied(tmp_path, "mpnet", added(name, lambda t: t[name][:16]))
    edit_config(folder, relative_attention_num_buckets=16)
    with pytest.raises(
        ValueError, match=r"bias\.weight \(16, 2\) instead of \(32, 2\)"
    ):
        hf.load_hf(folder, num_labels=3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "not all of one"),
        (b"\x80\x04pickle", "not all of one"),
        (struct.pack("<Q", 2**62) + b"{}", "not all of one"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path, data, said):
    folder = copied(tmp_path, "bert")
    (folder / "model.safetensors").write_bytes(data)
    message = refused(folder)
    assert said in message
    assert "model.safetensors" in message


def test_a_truncated_file(tmp_path):
    folder = copied(tmp_path, "bert")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert "Get it anew" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_pointers_of_other_files(tmp_path, name):
    folder = copied(tmp_path, "bert")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    assert f"{name} is an LFS pointer" in refused(folder)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    folder = copied(tmp_path, "bert")
    (folder / "tokenizer.json").write_text("{")
    assert "make no tokenizer" in refused(folder)


def test_a_tokenizer_that_another_package_reads(tmp_path):
    folder = copied(tmp_path, "xlm-roberta")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"no protobuf")
    assert "pip install sentencepiece protobuf" in refused(folder)


def test_a_tokenizer_with_more_tokens_than_the_embedding(tmp_path):
    folder = copied(tmp_path, "bert")
    model = hf.load_hf(folder, num_labels=3)
    before = max(model.tokenizer.get_vocab().values())
    model.tokenizer.add_tokens([f"extra{i}" for i in range(before + 1, 24)])
    model.tokenizer.save_pretrained(folder)
    hf.load_hf(folder, num_labels=3)
    model.tokenizer.add_tokens(["gnu"])
    model.tokenizer.save_pretrained(folder)
    said = refused(folder)
    assert "ids < 24, the rows of the word embedding" in said
    assert "of token 'gnu'" in said
    assert "resize_token_embeddings" in said


def test_no_tokenizer(tmp_path, caplog):
    folder = copied(tmp_path, "bert")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    model = hf.load_hf(folder, num_labels=3)
    assert f"{folder} holds no tokenizer" in caplog.text
    rows = Examples(["a film"], None, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="Expected a tokenizer, found None"):
        tokens_lib.tokenize(model.tokenizer, rows, max_length=8)


def test_the_home_folder(tmp_path, monkeypatch):
    copied(tmp_path, "bert").rename(tmp_path / "teacher")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = hf.load_hf("~/teacher", num_labels=3)
    hf.save_hf("~/saved", model)
    assert hf.load_tokenizer("~/saved") is not None
    assert (tmp_path / "saved" / "config.json").is_file()
    with pytest.raises(OSError, match="~nobody-of-that-name"):
        hf.load_hf("~nobody-of-that-name/teacher", num_labels=3)


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter(tmp_path, whole):
    folder = copied(tmp_path, "bert")
    (folder / "adapter_config.json").write_text("{}")
    if not whole:
        (folder / "config.json").unlink()
    assert "an adapter: merge it first" in refused(folder)


@pytest.mark.parametrize("family", ["albert", "mobilebert", "xlm-robert", "gpt2"])
def test_unknown_families_are_not_guessed(tmp_path, family):
    folder = copied(tmp_path, "bert")
    edit_config(folder, model_type=family)
    said = refused(folder)
    assert f"one of {', '.join(models.MODELS)}, the families" in said
    assert f"model_type={family!r}" in said
    assert "Did you mean" not in said


@families
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_heads_of_another_problem(tmp_path, family, problem):
    folder = copied(tmp_path, family)
    edit_config(folder, problem_type=problem)
    said = refused(folder)
    assert "problem_type 'single_label_classification' or null" in said
    assert repr(problem) in said


def test_a_fresh_head_has_the_problem_that_is_asked_for(tmp_path):
    folder = copied(tmp_path, "bert", drop("classifier."))
    edit_config(folder, problem_type="multi_label_classification")
    model = hf.load_hf(folder, num_labels=2)
    assert (model.config.problem, model.label_names) == ("classification", ())


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({"0": "zebra", "1": "ape", "2": "cow"}, ("zebra", "ape", "cow")),
        ({"2": "cow", "0": "zebra", "1": "ape"}, ("zebra", "ape", "cow")),
        ({"0": 0, "1": 1, "2": 2}, ("0", "1", "2")),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ()),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        (None, ()),
    ],
)
def test_names_of_classes(tmp_path, found, names):
    folder = copied(tmp_path, "bert")
    edit_config(folder, id2label=found)
    assert hf.load_hf(folder, num_labels=3).label_names == names


@pytest.mark.parametrize(
    "found",
    [
        {"0": "zebra", "1": "ape"},
        {"0": "zebra", "1": "ape", "2": "cow", "3": "emu"},
        {"0": "zebra", "1": "ape", "3": "cow"},
        {"0": "zebra", "1": "ape", "2": "ape"},
        {"0": "zebra", "1": "ape", "2": ["cow"]},
        {"0": "zebra", "1": "ape", "2": None},
    ],
)
def test_names_that_are_not_one_for_each_class(tmp_path, found):
    folder = copied(tmp_path, "bert")
    edit_config(folder, id2label=found)
    assert "id2label" in refused(folder)


def test_two_orders_of_the_same_names(tmp_path):
    folder = copied(tmp_path, "bert")
    edit_config(folder, label2id={"bad": 2, "fair": 1, "good": 0})
    assert "label2id['bad'] 0, as id2label says" in refused(folder)
    edit_config(folder, label2id={"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2})
    assert hf.load_hf(folder, num_labels=3).label_names == ("bad", "fair", "good")


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b"), tuple("abcd")])
def test_saving_names_that_are_not_one_for_each_class(tmp_path, names):
    model = hf.load_hf(golden("bert"), num_labels=3)
    with pytest.raises(ValueError, match="label_names 3 different ones, or none"):
        hf.save_hf(tmp_path / "saved", model._replace(label_names=names))
    assert not list(tmp_path.iterdir())


def test_nothing_is_warned_of_a_sound_checkpoint(caplog):
    with caplog.at_level(logging.INFO, "protojax"):
        model = hf.load_hf(golden("bert"), num_labels=3)
    assert not caplog.records
    assert isinstance(model, models.Model)
