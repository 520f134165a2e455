"""Checkpoints in and out, against tiny ones made by PyTorch (data/make_golden.py)."""

import dataclasses
import functools
import json
import logging
import shutil
from pathlib import Path

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from protojax import models, storage
from protojax.base import Batch, Examples
from protojax.data import tokens as tokens_lib
from protojax.models import MODELS, hf
from tests.tiny import encoder_config

DATA = Path(__file__).parent / "data"
TEXTS = ["a warm film", "dull", "the plot is thin and the end is cold", ""]
PAIRS = ["a cold film", "the end", "is it", "dull"]
families = pytest.mark.parametrize("family", MODELS)


def golden(family):
    return DATA / f"golden_{family}"


def golden_batch(family):
    tensors = load_file(golden(family) / "golden.safetensors")
    names = ("input_ids", "attention_mask", "token_type_ids")
    rows = len(tensors["logits"])
    fields = [jnp.asarray(tensors[name]) for name in names]
    return Batch(*fields, jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool)), tensors


def copied(tmp_path, family, change=lambda tensors: tensors):
    """A copy of a golden checkpoint whose tensors went through a function."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden(family), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(*starts):
    def change(tensors):
        return {k: v for k, v in tensors.items() if not k.startswith(starts)}

    return change


@families
def test_equals_pytorch(family):
    model = hf.load_hf(golden(family), num_labels=3)
    batch, expected = golden_batch(family)
    apply = functools.partial(models.apply_fn(model.config), hidden_states=True)
    output = jax.jit(apply)(model.params, batch)
    np.testing.assert_allclose(output.logits, expected["logits"], atol=1e-5)
    assert len(output.hidden_states) == len(expected["hidden_states"]) == 4
    for found, wanted in zip(
        output.hidden_states, expected["hidden_states"], strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@families
def test_tokenizer_equals_the_golden_one(family):
    model = hf.load_hf(golden(family), num_labels=3)
    _, expected = golden_batch(family)
    found = model.tokenizer(
        TEXTS, PAIRS, padding=True, return_token_type_ids=True, return_tensors="np"
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert model.tokenizer.pad_token_id == model.config.pad_id


def test_config_of_a_checkpoint():
    config = hf.load_hf(
        golden("roberta"),
        num_labels=3,
        dtype="bfloat16",
        products="bfloat16",
        attention="xla",
        remat=True,
    ).config
    assert config == models.EncoderConfig(
        family="roberta",
        vocab_size=24,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        intermediate_size=28,
        max_positions=20,
        type_vocab_size=1,
        pad_id=1,
        layer_norm_eps=1e-2,
        activation="gelu",
        dropout=0.2,
        attention_dropout=0.15,
        classifier_dropout=0.3,
        num_labels=3,
        dtype="bfloat16",
        products="bfloat16",
        attention="xla",
        remat=True,
    )


def test_classifier_dropout_is_by_default_the_other():
    config = hf.load_hf(golden("bert"), num_labels=3).config
    assert config.classifier_dropout == config.dropout == 0.2


def test_settings_that_config_json_omits_are_the_defaults(tmp_path):
    folder = copied(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    del config["layer_norm_eps"], config["hidden_act"]
    (folder / "config.json").write_text(json.dumps(config))
    found = hf.load_hf(folder, num_labels=3).config
    assert (found.layer_norm_eps, found.activation) == (1e-12, "gelu")


@families
def test_round_trip_is_exact(family, tmp_path):
    model = hf.load_hf(golden(family), num_labels=3)
    hf.save_hf(tmp_path / "deep" / "saved", model)
    again = hf.load_hf(tmp_path / "deep" / "saved", num_labels=3)
    assert again.config == model.config
    chex.assert_trees_all_equal(again.params, model.params)
    assert again.label_names == model.label_names == ("bad", "fair", "good")
    assert again.tokenizer(TEXTS, PAIRS) == model.tokenizer(TEXTS, PAIRS)
    ours = load_file(tmp_path / "deep" / "saved" / "model.safetensors")
    theirs = load_file(golden(family) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("bert", [2, 5, 15, 10, 3, 8, 3, 0]),
        ("electra", [2, 5, 15, 10, 3, 8, 3, 0]),
        ("roberta", [0, 5, 15, 10, 2, 2, 8, 2, 1]),
        # Their mask comes behind the words; CamemBERT's <s> and </s> are 5 and 6.
        ("xlm-roberta", [0, 4, 14, 9, 2, 2, 7, 2, 1]),
        ("camembert", [5, 7, 17, 12, 6, 6, 10, 6, 1]),
        ("mpnet", [0, 4, 14, 9, 2, 2, 7, 2, 1]),
    ],
)
def test_ids_of_special_tokens(family, ids, tmp_path):
    model = hf.load_hf(golden(family), num_labels=3)
    hf.save_hf(tmp_path / "saved", model)
    for tokenizer in (model.tokenizer, hf.load_tokenizer(tmp_path / "saved")):
        rows = Examples(["a warm film"], ["dull"], None)
        found = tokens_lib.tokenize(tokenizer, rows, max_length=len(ids))
        assert found.input_ids.tolist() == [ids]
        assert found.pad_id == model.config.pad_id == ids[-1]
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    # What those of published checkpoints say.
    expected = {"bert": (None, None), "electra": (None, None), "camembert": (5, 6)}
    found = saved["bos_token_id"], saved["eos_token_id"]
    assert found == expected.get(family, (0, 2))


@pytest.mark.parametrize("size", [0, 8])
def test_embeddings_as_wide_as_the_layers(size, tmp_path):
    config = encoder_config("electra", embedding_size=size)
    model = models.init_model(config, seed=0)
    hf.save_hf(tmp_path / "saved", model)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["embedding_size"] == saved["hidden_size"] == 8
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert not [name for name in names if "project" in name]
    again = hf.load_hf(tmp_path / "saved", num_labels=2)
    assert again.config == dataclasses.replace(config, embedding_size=0)
    chex.assert_trees_all_equal(again.params, model.params)


@families
def test_saved_config(family, tmp_path):
    model = hf.load_hf(golden(family), num_labels=3)
    hf.save_hf(tmp_path / "saved", model)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == family
    assert saved["architectures"] == [MODELS[family].architecture]
    assert saved["problem_type"] == "single_label_classification"
    assert saved["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert saved["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert "auto_map" not in saved


def test_regression_round_trip(tmp_path):
    folder = copied(tmp_path, "bert", drop("classifier."))
    model = hf.load_hf(folder, num_labels=1, problem="regression")
    hf.save_hf(tmp_path / "saved", model)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["problem_type"] == "regression"
    # The head is fresh: it has nothing of the classes that config.json names.
    assert saved["id2label"] == {"0": "LABEL_0"}
    again = hf.load_hf(tmp_path / "saved", num_labels=1, problem="regression")
    chex.assert_trees_all_equal(again.params, model.params)
    hf.save_hf(tmp_path / "named", again._replace(label_names=("score",)))
    again = hf.load_hf(tmp_path / "named", num_labels=1, problem="regression")
    assert again.label_names == ("score",)
    saved = json.loads((tmp_path / "named" / "config.json").read_text())
    assert saved["id2label"] == {"0": "score"}


def test_student_of_some_layers():
    teacher = hf.load_hf(golden("bert"), num_labels=3)
    student = hf.load_hf(golden("bert"), num_labels=3, layers=(0, 2))
    expected = models.select_layers(teacher, (0, 2))
    assert student.label_names == expected.label_names == teacher.label_names
    assert student.config == expected.config
    chex.assert_trees_all_equal(student.params, expected.params)


def test_a_base_checkpoint_gets_a_fresh_head(tmp_path, caplog):
    def bare(tensors):
        kept = drop("classifier.")(tensors)
        return {name.removeprefix("bert."): value for name, value in kept.items()}

    folder = copied(tmp_path, "bert", bare)
    with caplog.at_level(logging.INFO, "protojax"):
        model = hf.load_hf(folder, num_labels=5)
    assert f"{folder} has no classifier: drawn from seed 0." in caplog.messages
    kernel = model.params["classifier"]["kernel"]
    assert kernel.shape == (16, 5)
    assert 0.01 < np.std(kernel) < 0.03
    assert not model.params["classifier"]["bias"].any()
    whole = hf.load_hf(golden("bert"), num_labels=3)
    for name in whole.params.keys() - {"classifier"}:
        chex.assert_trees_all_equal(model.params[name], whole.params[name])
    other = hf.load_hf(folder, num_labels=5, seed=1)
    assert np.abs(kernel - other.params["classifier"]["kernel"]).max() > 1e-3
    fresh = models.init_model(model.config, seed=0).params["classifier"]
    chex.assert_trees_all_equal(model.params["classifier"], fresh)


@families
def test_a_masked_language_model_gets_a_fresh_head(family, tmp_path, caplog):
    prefix = MODELS[family].prefix
    head = {
        "bert.": ["cls.predictions.bias", "cls.seq_relationship.weight"],
        "roberta.": ["lm_head.dense.weight", "pooler.dense.weight"],
        "distilbert.": ["vocab_transform.weight", "vocab_layer_norm.bias"],
        "electra.": ["discriminator_predictions.dense.bias", "generator_lm_head.bias"],
        "mpnet.": ["lm_head.dense.weight", "pooler.dense.weight"],
    }[prefix]
    ids = f"{prefix}embeddings.position_ids"

    def change(tensors):
        tensors = drop("classifier", "pre_classifier", "bert.pooler")(tensors)
        extra = {name: np.zeros((2, 2), np.float32) for name in head}
        return {**tensors, **extra, ids: np.arange(20)}

    folder = copied(tmp_path, family, change)
    with caplog.at_level(logging.INFO, "protojax"):
        model = hf.load_hf(folder, num_labels=2)
    assert f"{folder} has no pooler and no classifier: drawn from seed 0." in (
        caplog.messages
    )
    ignored = ", ".join(sorted([*head, "embeddings.position_ids"]))
    assert f"{folder}: ignored {ignored}." in caplog.messages
    fresh = models.init_model(model.config, seed=0).params
    for name in ("pooler", "classifier"):
        chex.assert_trees_all_equal(model.params[name], fresh[name])


def test_old_names_of_layer_norm(tmp_path):
    def old(tensors):
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }

    model = hf.load_hf(copied(tmp_path, "bert", old), num_labels=3)
    expected = hf.load_hf(golden("bert"), num_labels=3)
    chex.assert_trees_all_equal(model.params, expected.params)


def test_half_precision_checkpoints_become_float32(tmp_path):
    folder = copied(tmp_path, "bert")
    tensors = safetensors.flax.load_file(folder / "model.safetensors")
    low = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    safetensors.flax.save_file(low, folder / "model.safetensors")
    word = hf.load_hf(folder, num_labels=3).params["embeddings"]["word"]["embedding"]
    expected = low["bert.embeddings.word_embeddings.weight"].astype(jnp.float32)
    assert word.dtype == jnp.float32
    np.testing.assert_array_equal(word, expected)


def test_shards(tmp_path):
    folder = copied(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:9], names[9:])):
        shard = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model = hf.load_hf(folder, num_labels=3)
    expected = hf.load_hf(golden("bert"), num_labels=3)
    chex.assert_trees_all_equal(model.params, expected.params)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002"):
        hf.load_hf(folder, num_labels=3)


def test_one_error_lists_every_tensor(tmp_path):
    def change(tensors):
        tensors = drop("bert.pooler.dense.bias", "bert.encoder.layer.1.output")(tensors)
        tensors["bert.encoder.layer.3.odd"] = np.zeros(1, np.float32)
        tensors["bert.embeddings.LayerNorm.bias"] = np.zeros(7, np.float32)
        return tensors

    with pytest.raises(ValueError, match="do not fit bert") as error:
        hf.load_hf(copied(tmp_path, "bert", change), num_labels=3)
    layer = "encoder.layer.1.output"
    assert str(error.value).split("\n")[1:] == [
        f"  5 missing: {layer}.LayerNorm.bias, {layer}.LayerNorm.weight, "
        f"{layer}.dense.bias, {layer}.dense.weight, pooler.dense.bias",
        "  1 unexpected: encoder.layer.3.odd",
        "  1 mis-shaped: embeddings.LayerNorm.bias (7,) instead of (16,)",
    ]


@families
def test_a_classifier_of_other_labels_is_an_error(family):
    with pytest.raises(ValueError, match="classifier has 3 labels, found num_labels=2"):
        hf.load_hf(golden(family), num_labels=2)


def test_a_pickle_is_not_opened(tmp_path):
    folder = copied(tmp_path, "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickle.*save_pretrained\(NEW\)"):
        hf.load_hf(folder, num_labels=3)


def test_families_it_does_not_know(tmp_path):
    folder = copied(tmp_path, "bert")
    edit_config(folder, model_type="gpt2")
    with pytest.raises(ValueError, match=r"one of bert, camembert, .*'gpt2'"):
        hf.load_hf(folder, num_labels=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("position_embedding_type", "relative_key"), ("is_decoder", True)],
)
def test_variants_it_does_not_know(name, value, tmp_path):
    folder = copied(tmp_path, "bert")
    edit_config(folder, **{name: value})
    with pytest.raises(ValueError, match=name):
        hf.load_hf(folder, num_labels=3)


def test_remote_code_is_not_run(tmp_path):
    folder = copied(tmp_path, "bert")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit_config(
        folder, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    )
    assert hf.load_hf(folder, num_labels=3).config.family == "bert"


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config\.json"):
        hf.load_hf(tmp_path, num_labels=2)


def test_hub_failures_say_what_to_do(monkeypatch):
    message = r"'org/name' .*\(LocalEntryNotFoundError: offline\).* HF_HUB_OFFLINE=1"

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match=message):
        hf.load_hf("org/name", num_labels=2)


def test_a_path_that_is_not_there():
    with pytest.raises(OSError, match="no local folder"):
        hf.load_hf("./no/such/folder", num_labels=2)


def test_hub_downloads_no_pickles(monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(golden("bert"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hf.load_hf("org/name", num_labels=3, revision="v1")
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert set(asked["allow_patterns"]) == {
        "*.json",
        "*.txt",
        "*.safetensors",
        "*.model",
    }


def test_saving_replaces_an_older_checkpoint(tmp_path):
    model = hf.load_hf(golden("bert"), num_labels=3)
    folder = tmp_path / "saved"
    hf.save_hf(folder, model)
    hf.save_hf(folder, models.select_layers(model, (1,)))
    assert hf.load_hf(folder, num_labels=3).config.num_layers == 1
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    modes = {oct(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_saving_spares_what_it_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        hf.save_hf(tmp_path, hf.load_hf(golden("bert"), num_labels=3))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_save_leaves_the_older_checkpoint(tmp_path):
    model = hf.load_hf(golden("bert"), num_labels=3)
    hf.save_hf(tmp_path / "saved", model)
    broken = model._replace(params={**model.params, "classifier": {}})
    with pytest.raises(KeyError):
        hf.save_hf(tmp_path / "saved", broken)
    again = hf.load_hf(tmp_path / "saved", num_labels=3)
    chex.assert_trees_all_equal(again.params, model.params)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_rename_that_fails_puts_the_older_checkpoint_back(tmp_path, monkeypatch):
    model = hf.load_hf(golden("bert"), num_labels=3)
    hf.save_hf(tmp_path / "saved", model)
    rename = Path.rename

    def failing(self, target):
        if self.suffix == ".new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        hf.save_hf(tmp_path / "saved", models.select_layers(model, (1,)))
    assert hf.load_hf(tmp_path / "saved", num_labels=3).config == model.config
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_model_set_aside_by_a_killed_process_is_put_back(tmp_path):
    model = hf.load_hf(golden("bert"), num_labels=3)
    hf.save_hf(tmp_path / "saved", model)
    mark = "protojax-" + "0" * 32
    (tmp_path / "saved").rename(tmp_path / f".saved.{mark}.old")
    (tmp_path / f".saved.{mark}.new").mkdir()
    storage.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert hf.load_hf(tmp_path / "saved", num_labels=3).config == model.config


def test_without_a_tokenizer(tmp_path):
    model = hf.load_hf(golden("bert"), num_labels=3)._replace(tokenizer=None)
    hf.save_hf(tmp_path / "saved", model)
    assert hf.load_tokenizer(tmp_path / "saved") is None
    assert hf.load_hf(tmp_path / "saved", num_labels=3).tokenizer is None


def test_a_wrapped_tokenizer_survives(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"]
    vocab = {word: i for i, word in enumerate(words)}
    trained = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    trained.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    wrapped = hf.wrap_tokenizer(trained, max_length=9)
    assert len(wrapped) == len(words)
    config = dataclasses.replace(
        hf.load_hf(golden("bert"), num_labels=3).config, vocab_size=len(words)
    )
    model = models.init_model(config, seed=0, tokenizer=wrapped)
    hf.save_hf(tmp_path / "saved", model)
    again = hf.load_hf(tmp_path / "saved", num_labels=3).tokenizer
    expected = {
        "input_ids": [[2, 4, 3, 1, 3, 0], [2, 5, 3, 5, 3, 0]],
        "token_type_ids": [[0, 0, 0, 1, 1, 0]] * 2,
        "attention_mask": [[1, 1, 1, 1, 1, 0]] * 2,
    }
    for tokenizer in (wrapped, again):
        found = tokenizer(
            ["good", "bad"], ["ugly", "bad"], padding="max_length", max_length=6
        )
        assert dict(found) == expected
        assert tokenizer.model_max_length == 9
        assert tokenizer.cls_token == "[CLS]"
        assert tokenizer.mask_token is None


def test_special_tokens_must_be_words():
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    assert hf.wrap_tokenizer(words, pad_token="<pad>").pad_token_id == 0
    with pytest.raises(ValueError, match="pad_token in the vocabulary"):
        hf.wrap_tokenizer(words, pad_token="[PAD]")


def test_models_offers_these_functions():
    assert models.load_hf is hf.load_hf
    assert models.save_hf is hf.save_hf
    assert models.load_tokenizer is hf.load_tokenizer
    assert models.wrap_tokenizer is hf.wrap_tokenizer
