"""Contracts that every family of models keeps; parity with PyTorch is in test_hf.py."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import models
from protojax.base import Batch
from protojax.models import MODELS, mpnet
from protojax.models.config import ACTIVATIONS
from protojax.models.layers import Attention, bfloat16_product
from tests.tiny import ALIASES, FAMILIES, encoder_config

families = pytest.mark.parametrize("family", FAMILIES)


tiny = functools.partial(
    encoder_config,
    hidden_size=16,
    intermediate_size=24,
    max_positions=20,
    pad_id=1,
    num_labels=3,
)


def make_batch(lengths=(5, 8, 2), length=8, pad_id=1, seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
    ids = rng.integers(2, 30, size=(len(lengths), max(8, *lengths)))
    ids = np.pad(ids, ((0, 0), (0, length)))[:, :length]
    return Batch(
        input_ids=jnp.asarray(np.where(mask, ids, pad_id), jnp.int32),
        attention_mask=jnp.asarray(mask),
        token_type_ids=jnp.asarray(mask * (np.arange(length) >= 3), jnp.int32),
        labels=jnp.zeros(len(lengths), jnp.int32),
        where=jnp.ones(len(lengths), bool),
    )


@functools.cache
def random_model(config, seed=0):
    """A model whose weights are large enough for every part to have an effect."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), jnp.float32)

    shapes = models.param_shapes(config)
    return models.Model(config, jax.tree.map_with_path(draw, shapes))


def run(model, batch, **options):
    """The output, operation by operation: those of one shape are compiled once."""
    return models.apply_fn(model.config)(model.params, batch, **options)


@functools.cache
def output_of(family, num_layers=2):
    """What most tests compare with: the output of one batch, with all states."""
    model = random_model(tiny(family, num_layers=num_layers))
    return run(model, make_batch(), hidden_states=True)


def run_once(model, batch):
    """The output with all states, as one program: for what no other test computes."""
    apply = functools.partial(models.apply_fn(model.config), hidden_states=True)
    return jax.jit(apply)(model.params, batch)


def test_aliases_differ_in_names_alone():
    for alias, name in ALIASES.items():
        architecture = MODELS[name].architecture
        assert MODELS[alias] != MODELS[name]
        assert MODELS[alias]._replace(architecture=architecture) == MODELS[name]
        models.apply_fn(tiny(alias))


@families
def test_shapes_and_dtypes(family):
    model = random_model(tiny(family))
    output = output_of(family)
    assert output.logits.shape == (3, 3)
    assert output.logits.dtype == jnp.float32
    assert [x.shape for x in output.hidden_states] == [(3, 8, 16)] * 3
    assert run(model, make_batch()).hidden_states == ()
    dtypes = {x.dtype for x in jax.tree.leaves(model.params)}
    assert dtypes == {jnp.dtype("float32")}


@families
def test_regression_has_one_logit(family):
    config = tiny(family, num_labels=1, problem="regression")
    assert run(random_model(config), make_batch()).logits.shape == (3, 1)


@families
def test_jit_equals_eager(family):
    model = random_model(tiny(family, num_layers=1))
    jitted = jax.jit(models.apply_fn(model.config), static_argnames="hidden_states")
    chex.assert_trees_all_close(
        jitted(model.params, make_batch(), hidden_states=True),
        output_of(family, 1),
        atol=1e-5,
    )


@families
def test_padding_changes_nothing(family):
    model = random_model(tiny(family, num_layers=1))
    short = output_of(family, 1)
    long = run_once(model, make_batch(length=13))
    np.testing.assert_allclose(long.logits, short.logits, atol=1e-5)
    mask = make_batch(length=8).attention_mask[..., None]
    for x, y in zip(short.hidden_states, long.hidden_states, strict=True):
        np.testing.assert_allclose(x * mask, y[:, :8] * mask, atol=1e-5)


@families
def test_what_is_masked_is_not_read(family):
    model, batch = random_model(tiny(family)), make_batch()
    garbage = jnp.where(batch.attention_mask == 1, batch.input_ids, 7)
    np.testing.assert_allclose(
        run(model, batch._replace(input_ids=garbage)).logits,
        output_of(family).logits,
        atol=1e-6,
    )


@families
def test_rows_do_not_mix(family):
    model, batch = random_model(tiny(family)), make_batch()
    changed = batch._replace(input_ids=batch.input_ids.at[1].set(9))
    before, after = output_of(family).logits, run(model, changed).logits
    np.testing.assert_allclose(after[::2], before[::2], atol=1e-6)
    assert np.abs(after[1] - before[1]).max() > 1e-3


def training_grad(model, batch):
    """Gradients as in training: with dropout, of a sum that weighs the labels apart."""
    return gradient_of(model.config)(model.params, batch)


def learner(family):
    """A model that drops attention, which then is computed by other code."""
    return random_model(tiny(family, num_layers=1, attention_dropout=0.1))


@functools.cache
def gradient_of(config):
    """The gradient's program, which several tests run."""

    def total(params, batch):
        output = models.apply_fn(config)(params, batch, key=jax.random.key(3))
        return (output.logits * jnp.array([1.0, -2.0, 0.5])).sum()

    return jax.jit(jax.grad(total))


@families
def test_a_fully_masked_row_is_finite(family):
    model, batch = learner(family), make_batch(lengths=(5, 0, 8))
    assert np.isfinite(run(model, batch).logits).all()
    chex.assert_tree_all_finite(training_grad(model, batch))


@families
def test_every_parameter_matters(family):
    grads = training_grad(learner(family), make_batch())
    grads = jax.tree.leaves_with_path(grads)
    # A bias of the keys shifts all scores of a query alike, which softmax undoes.
    still = [jax.tree_util.keystr(p) for p, g in grads if np.abs(g).max() < 1e-5]
    assert still == ["['layers_0']['attention']['key']['bias']"]


@families
def test_bfloat16_is_close_and_its_logits_are_float32(family):
    model = random_model(tiny(family, num_layers=1))
    low = model._replace(config=dataclasses.replace(model.config, dtype="bfloat16"))
    output = run_once(low, make_batch())
    assert output.logits.dtype == jnp.float32
    assert {x.dtype for x in output.hidden_states} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(output.logits, output_of(family, 1).logits, atol=0.1)


def test_bfloat16_is_what_the_body_multiplies_in():
    model = random_model(tiny("bert", dtype="bfloat16"))
    apply = functools.partial(models.apply_fn(model.config), model.params)
    lines = str(jax.make_jaxpr(apply)(make_batch())).split("\n")
    products = [line for line in lines if "dot_general" in line]
    kinds = [re.search(r":(\w+\[[\d,]+\])", line)[1] for line in products]
    linear = [kind for kind in kinds if kind.count(",") < 3]  # without attention's
    layer = [*["bf16[3,8,16]"] * 4, "bf16[3,8,24]", "bf16[3,8,16]"]
    assert linear == [*layer, *layer, "f32[3,16]", "f32[3,3]"]  # the head comes last


def rounded(array):
    """Returns an array rounded to bfloat16, in float64."""
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("jitted", [False, True])
def test_bfloat16_product_and_its_gradient_round_factors_only(shape, jitted):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in (shape, (7, 5)))
    g = rng.normal(size=(*shape[:-1], 5)).astype(np.float32)

    def both(x, kernel, g):
        product, pull = jax.vjp(bfloat16_product, x, kernel)
        return product, *pull(g)

    found = (jax.jit(both) if jitted else both)(x, kernel, g)
    a, w, c = rounded(x), rounded(kernel), rounded(g)
    flat = a.reshape(-1, 7).T @ c.reshape(-1, 5)
    for value, expected in zip(found, (a @ w, c @ w.T, flat), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_products_of_single_rows_are_a_loop():
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((4, 3, 7), (7, 5)))

    def gradient(row):
        return jax.grad(lambda w: jnp.sum(bfloat16_product(row, w) ** 2))(kernel)

    expected = np.stack([gradient(row) for row in x])
    np.testing.assert_allclose(jax.vmap(gradient)(x), expected, rtol=1e-2, atol=1e-2)


def with_low_products(model):
    return model._replace(config=dataclasses.replace(model.config, products="bfloat16"))


@families
def test_bfloat16_products_leave_everything_else_in_float32(family):
    model = random_model(tiny(family, num_layers=1))
    output = run_once(with_low_products(model), make_batch())
    assert {x.dtype for x in output.hidden_states} == {jnp.dtype("float32")}
    exact = output_of(family, 1).logits
    assert not np.array_equal(output.logits, exact)
    np.testing.assert_allclose(output.logits, exact, atol=0.1)


def test_gradients_of_bfloat16_products_are_close():
    # It widens its embeddings by a product as well; all others are of the body.
    model = learner("electra")
    found, expected = (
        training_grad(m, make_batch()) for m in (with_low_products(model), model)
    )
    cosine = optax.tree.vdot(found, expected) / (
        optax.tree.norm(found) * optax.tree.norm(expected)
    )
    assert cosine > 0.999


def test_remat_changes_no_gradient():
    model = learner("bert")
    remat = model._replace(config=dataclasses.replace(model.config, remat=True))
    apply = models.apply_fn(remat.config)
    assert "remat" in str(jax.make_jaxpr(apply)(remat.params, make_batch()))
    chex.assert_trees_all_close(
        training_grad(remat, make_batch()),
        training_grad(model, make_batch()),
        rtol=1e-4,
        atol=1e-5,
    )


@families
def test_xla_attention_is_the_default(family):
    model = random_model(tiny(family))
    xla = model._replace(config=dataclasses.replace(model.config, attention="xla"))
    np.testing.assert_array_equal(
        run(xla, make_batch()).logits, output_of(family).logits
    )


# Attention is the body's, with a bias in one family; each runs under dropout below.
SITES = [
    *itertools.product(FAMILIES, ["dropout", "classifier_dropout"]),
    *itertools.product(["bert", "mpnet"], ["attention_dropout"]),
]


@pytest.mark.parametrize(("family", "site"), SITES)
def test_dropout_acts_with_a_key_only(family, site):
    model = random_model(tiny(family, num_layers=1, **{site: 0.5}))
    batch = make_batch()
    with_key = [run(model, batch, key=jax.random.key(i)).logits for i in (0, 0, 1)]
    np.testing.assert_array_equal(with_key[0], with_key[1])
    assert np.abs(with_key[0] - with_key[2]).max() > 1e-3
    np.testing.assert_array_equal(run(model, batch).logits, output_of(family, 1).logits)


@families
def test_a_key_without_dropout_changes_nothing(family):
    model = random_model(tiny(family, num_layers=1))
    found = run(model, make_batch(), key=jax.random.key(0)).logits
    np.testing.assert_array_equal(found, output_of(family, 1).logits)


@families
def test_attention_with_dropout_is_the_same_attention(family):
    model = random_model(tiny(family, num_layers=1, attention_dropout=1e-9))
    np.testing.assert_allclose(
        run(model, make_batch(), key=jax.random.key(0)).logits,
        output_of(family, 1).logits,
        atol=1e-5,
    )


@families
def test_runs_over_a_nodes_axis(family):
    config = tiny(family, num_layers=1)
    nodes = [random_model(config, seed).params for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *nodes)
    apply = models.apply_fn(config)

    @jax.jit
    @jax.vmap
    def together(params):
        return apply(params, make_batch()).logits

    for params, logits in zip(nodes, together(stacked), strict=True):
        np.testing.assert_allclose(
            logits, apply(params, make_batch()).logits, atol=1e-5
        )


@families
def test_initial_parameters(family):
    model = models.init_model(tiny(family, vocab_size=500), seed=0)
    again = models.init_model(model.config, seed=0)
    other = models.init_model(model.config, seed=1)
    chex.assert_trees_all_equal(model.params, again.params)
    word = model.params["embeddings"]["word"]["embedding"]
    assert 0.018 < np.std(word) < 0.022
    assert np.abs(word - other.params["embeddings"]["word"]["embedding"]).max() > 0.01
    first, second = (model.params[f"layers_{i}"]["up"]["kernel"] for i in (0, 1))
    assert np.abs(first - second).max() > 0.01
    assert not model.params["classifier"]["bias"].any()
    assert (model.params["embeddings"]["norm"]["scale"] == 1).all()


def test_equal_configs_share_one_function():
    first, second = tiny("bert"), tiny("bert")
    assert first is not second
    assert models.apply_fn(first) is models.apply_fn(second)
    assert models.apply_fn(first) is not models.apply_fn(tiny("bert", num_labels=2))
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def call(apply, params):
        traces.append(apply)
        return apply(params, make_batch()).logits

    for config in (first, second):
        call(models.apply_fn(config), random_model(config).params)
    assert len(traces) == 1


@families
def test_select_layers(family):
    model = random_model(tiny(family, num_layers=3))._replace(tokenizer="tokenizer")
    student = models.select_layers(model, [0, 2])
    assert student.config == dataclasses.replace(model.config, num_layers=2)
    assert student.tokenizer == "tokenizer"
    for mine, source in [("layers_0", "layers_0"), ("layers_1", "layers_2")]:
        chex.assert_trees_all_equal(student.params[mine], model.params[source])
    assert student.params.keys() == model.params.keys() - {"layers_2"}
    states = run(student, make_batch(), hidden_states=True).hidden_states
    teacher = run(model, make_batch(), hidden_states=True).hidden_states
    assert len(states) == 3
    for i in range(2):  # embeddings and the first layer are the teacher's
        np.testing.assert_array_equal(states[i], teacher[i])


@pytest.mark.parametrize("layers", [(), (0, 0), (1, 0), (0, 3), (-1, 0)])
def test_select_layers_refuses(layers):
    with pytest.raises(ValueError, match=r"layers rising and in \[0, 3\)"):
        models.select_layers(random_model(tiny("bert", num_layers=3)), layers)


def counts(family):
    """Whether positions count what is not padding, from behind the padding's id on."""
    return MODELS[family].embed is MODELS["roberta"].embed


@families
def test_max_length(family):
    model = random_model(tiny(family, max_positions=10 if counts(family) else 8))
    assert models.max_length(model.config) == 8
    assert np.isfinite(run(model, make_batch()).logits).all()
    with pytest.raises(ValueError, match=r"length <= 8, .* found length=9"):
        run(model, make_batch(length=9))


@pytest.mark.parametrize("family", [f for f in FAMILIES if counts(f)])
def test_positions_skip_padding(family):
    model = random_model(tiny(family))
    left = make_batch(lengths=(5, 5, 5))
    right = left._replace(
        **{
            name: jnp.roll(getattr(left, name), 3, axis=1)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
    )
    first = run(model, left, hidden_states=True).hidden_states
    second = run(model, right, hidden_states=True).hidden_states
    for x, y in zip(first, second, strict=True):
        np.testing.assert_allclose(x[:, :5], y[:, 3:], atol=1e-5)


def test_one_token_type_is_everybodys():
    model, batch = random_model(tiny("bert", type_vocab_size=1)), make_batch()
    zeros = batch._replace(token_type_ids=batch.token_type_ids * 0)
    logits = run(model, batch).logits
    np.testing.assert_array_equal(logits, run(model, zeros).logits)
    assert np.isfinite(logits).all()


def test_token_types_matter_to_bert():
    model, batch = random_model(tiny("bert")), make_batch()
    zeros = batch._replace(token_type_ids=batch.token_type_ids * 0)
    difference = run(model, batch).logits - run(model, zeros).logits
    assert np.abs(difference).max() > 1e-3


def test_buckets_of_distances():
    place = np.arange(200)
    buckets = mpnet.distance_buckets(place[None] - place[:, None])
    # Sixteen for either direction, of which eight hold one distance each; the others
    # begin at 8 · 16^(k/8): 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5.
    borders = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    backward = np.searchsorted(borders, np.arange(200), side="right") - 1
    np.testing.assert_array_equal(buckets[:, 0], backward)
    forward = np.where(np.arange(200) > 0, 16 + backward, 0)
    np.testing.assert_array_equal(buckets[0], forward)
    for shift in (1, 70):
        np.testing.assert_array_equal(
            buckets[shift:, shift:], buckets[:-shift, :-shift]
        )
    assert mpnet.distance_buckets(place[:0]).shape == (0,)


def test_attention_with_a_bias_is_attention_with_a_bias():
    config = tiny("mpnet", num_heads=2)
    rng = np.random.default_rng(0)
    x, bias = rng.normal(size=(1, 4, 16)), 3 * rng.normal(size=(1, 2, 4, 4))
    mask = np.array([True, True, False, True])
    module = Attention(config, deterministic=True)
    params = random_model(config).params["layers_0"]["attention"]
    found = module.apply({"params": params}, x, mask[None, None, None], bias)
    query, key, value = (
        (x[0] @ params[name]["kernel"] + params[name]["bias"]).reshape(4, 2, 8)
        for name in ("query", "key", "value")
    )
    expected = np.zeros((4, 2, 8))
    for head in range(2):
        scores = query[:, head] @ key[:, head].T / np.sqrt(8) + bias[0, head]
        weights = np.exp(scores) * mask
        weights /= weights.sum(1, keepdims=True)
        expected[:, head] = weights @ value[:, head]
    output = params["output"]
    expected = expected.reshape(4, 16) @ output["kernel"] + output["bias"]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_narrow_embeddings_are_widened():
    params = random_model(tiny("electra")).params["embeddings"]
    assert params["word"]["embedding"].shape == (30, 6)
    assert params["norm"]["scale"].shape == (6,)
    assert params["projection"]["kernel"].shape == (6, 16)
    for size in (0, 16):
        params = models.param_shapes(tiny("electra", embedding_size=size))
        assert params["embeddings"]["word"]["embedding"].shape == (30, 16)
        assert "projection" not in params["embeddings"]


def test_shapes_must_agree():
    model, batch = random_model(tiny("bert")), make_batch()
    with pytest.raises(ValueError, match=r"attention_mask .* \(3, 8\), found \(3, 7\)"):
        run(model, batch._replace(attention_mask=batch.attention_mask[:, :7]))
    with pytest.raises(ValueError, match=r"input_ids \[batch, length\].*\(8,\)"):
        run(model, batch._replace(input_ids=batch.input_ids[0]))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_transformers(name):
    x = np.array([-2.0, -0.5, 0.0, 1.0])
    erf = np.array([-0.95449974, -0.38292492, 0.0, 0.68268949])  # of x / √2
    cubic = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    expected = {
        "gelu": x / 2 * (1 + erf),
        "gelu_new": x / 2 * (1 + cubic),
        "gelu_pytorch_tanh": x / 2 * (1 + cubic),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
        "tanh": np.tanh(x),
    }
    found = ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers > 0"),
        ({"num_heads": 3}, "num_heads a divisor of hidden_size=16"),
        ({"dropout": 1.5}, r"dropout in \[0, 1\]"),
        ({"activation": "gelo"}, "Did you mean 'gelu'"),
        ({"dtype": "float16"}, "dtype one of float32, bfloat16"),
        ({"problem": "ranking"}, "problem one of classification, regression"),
        ({"attention": "flash"}, "attention one of xla, cudnn"),
        ({"attention": "cudnn"}, "dtype 'bfloat16' with attention='cudnn'"),
        ({"num_labels": 1}, "num_labels >= 2 for classification"),
        ({"problem": "regression"}, "num_labels 1 for regression"),
        ({"pad_id": -1}, "pad_id >= 0"),
        ({"embedding_size": -1}, "embedding_size >= 0"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny("bert", **changes)


def test_family_is_checked():
    with pytest.raises(ValueError, match=r"family one of .* Did you mean 'roberta'"):
        models.apply_fn(dataclasses.replace(tiny("bert"), family="robert"))
    with pytest.raises(ValueError, match="type_vocab_size 0 in distilbert"):
        models.init_model(tiny("distilbert", type_vocab_size=2), seed=0)
    with pytest.raises(ValueError, match="pad_id 1 in mpnet"):
        models.init_model(tiny("mpnet", pad_id=0), seed=0)


@pytest.mark.parametrize("family", [f for f in MODELS if f != "electra"])
def test_only_electra_has_narrow_embeddings(family):
    with pytest.raises(ValueError, match=f"embedding_size 0 in {family}"):
        models.init_model(tiny(family, embedding_size=4), seed=0)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="load_torch"):
        models.load_torch  # noqa: B018 (looking it up is the test)


def test_importing_models_does_not_import_transformers():
    code = "import sys, protojax; assert 'protojax.models' not in sys.modules; "
    code += "import protojax.models; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
