"""The body of language models: what a token sees, and a cache that changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.base import SequenceBatch
from protojax.models._distances import distance_buckets
from protojax.models.language import (
    Cache,
    LanguageConfig,
    RopeScaling,
    apply_fn,
    head_fn,
    init_model,
    param_shapes,
    select_layers,
    split_layers,
    start_fn,
    step_fn,
    take_rows,
)
from protojax.models.language.layers import (
    Attention,
    normalisation,
    rotary_frequencies,
    rotate,
    rotation,
)

VOCABULARY, SOURCE, PADDED, WRITTEN = 23, 4, 6, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 4,
    "intermediate_size": 24,
}
BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
T5 = LanguageConfig(
    **{**SIZES, "head_dim": 6},
    family="t5",
    encoder_layers=3,
    positions="relative",
    relative_buckets=8,
    relative_distance=12,
    activation="relu",
    gated=False,
    scale_attention=False,
    scale_head=True,
    float32_down=True,
)
GPT2 = LanguageConfig(
    **SIZES,
    **BIASES,
    family="gpt2",
    positions="learned",
    max_positions=PADDED + WRITTEN - 1,
    norm="layer",
    activation="gelu_new",
    gated=False,
)
LLAMA = LanguageConfig(
    **{**SIZES, "num_kv_heads": 2},
    family="llama",
    positions="rotary",
    rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original_positions=16),
    query_key_norm=True,
    tied=False,
)
BART = LanguageConfig(
    **SIZES,
    **BIASES,
    family="bart",
    encoder_layers=1,
    positions="learned",
    max_positions=8,
    position_offset=2,
    norm="layer",
    pre_norm=False,
    activation="gelu",
    gated=False,
    embedding_norm=True,
    head_bias=True,
    start_id=2,
)
every = pytest.mark.parametrize(
    "config", [T5, GPT2, LLAMA, BART], ids=lambda config: config.family
)


def draw(rng, shape):
    return jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)


@functools.cache
def random_params(config):
    # Biases and scales too: fresh ones would hide where they are missing.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw(rng, leaf.shape), param_shapes(config))


def make_batch(side="right"):
    """Four tokens a row in six places; the last row has none at all."""
    rng = np.random.default_rng(1)
    ids = rng.integers(3, VOCABULARY, (3, SOURCE))
    padding = ((0, 0), (2, 0) if side == "left" else (0, 2))
    mask = np.pad(np.ones((3, SOURCE), int), padding)
    mask[2] = 0
    outputs = rng.integers(3, VOCABULARY, (3, WRITTEN))
    return SequenceBatch(
        jnp.asarray(np.pad(ids, padding, constant_values=7), jnp.int32),
        jnp.asarray(mask, jnp.int32),
        jnp.asarray(outputs, jnp.int32),
        output_weights=jnp.ones((3, WRITTEN)),
        where=jnp.array([True, True, False]),
    )


@functools.cache
def forward(config):
    def run(params, batch):
        output = apply_fn(config)(params, batch, hidden_states=True)
        return output, head_fn(config)(params, output.states)

    return functools.partial(jax.jit(run), random_params(config))


@every
def test_a_token_is_seen_by_later_ones_only(config):
    batch = make_batch()
    for place in (0, 3):
        changed = batch.output_ids.at[:, place].set(2)
        before = forward(config)(batch)[0]
        after = forward(config)(batch._replace(output_ids=changed))[0]
        seen = np.abs(before.states - after.states).max((0, 2)) > 0
        assert seen.tolist() == [t > place for t in range(WRITTEN)]
        for one, other in zip(before.hidden_states, after.hidden_states, strict=True):
            np.testing.assert_array_equal(one, other)


@every
def test_padding_changes_nothing(config):
    batch = make_batch()
    output, logits = forward(config)(batch)
    depth = config.encoder_layers or config.num_layers
    assert len(output.hidden_states) == depth + 1
    for states in (*output.hidden_states, output.states, logits):
        assert states.dtype == jnp.float32
        assert np.isfinite(states).all()
    other = batch._replace(input_ids=batch.input_ids.at[:, SOURCE:].set(9))
    np.testing.assert_array_equal(forward(config)(other)[1][:2], logits[:2])
    found, left = forward(config)(make_batch("left"))
    np.testing.assert_allclose(left[:2], logits[:2], atol=1e-6)
    for one, two in zip(output.hidden_states, found.hidden_states, strict=True):
        np.testing.assert_allclose(one[:2, :SOURCE], two[:2, -SOURCE:], atol=1e-6)


@every
def test_cached_steps_are_the_forward_pass(config):
    batch, params = make_batch(), random_params(config)

    @jax.jit
    def write(params, ids, mask, outputs):
        cache, first = start_fn(config)(params, ids, mask, max_new=WRITTEN)
        step = functools.partial(step_fn(config), params)
        cache, rest = jax.lax.scan(step, cache, outputs[:, :-1].T)
        return cache, jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    # An encoder's source without padding, a prompt with padding on the other side.
    cut = slice(SOURCE if config.encoder_layers else None)
    given = make_batch("right" if config.encoder_layers else "left")
    ids, mask = given.input_ids[:, cut], given.attention_mask[:, cut]
    cache, logits = write(split_layers(params), ids, mask, batch.output_ids)
    np.testing.assert_allclose(logits[:2], forward(config)(batch)[1][:2], atol=1e-5)
    assert np.isfinite(logits).all()
    read = WRITTEN if config.encoder_layers else SOURCE + WRITTEN - 1
    assert cache.positions.tolist()[:2] == [read, read]
    slots = WRITTEN if config.encoder_layers else PADDED + WRITTEN - 1
    assert cache.length == slots == cache.keys[0].shape[2]


def test_a_step_writes_the_cache_in_place():
    params, ids = split_layers(random_params(LLAMA)), jnp.ones((3, SOURCE), jnp.int32)
    start = functools.partial(start_fn(LLAMA), max_new=3)
    cache, _ = jax.eval_shape(start, params, ids, ids)
    step = jax.jit(step_fn(LLAMA), donate_argnums=1)
    compiled = step.lower(params, cache, ids[:, 0]).compile()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes == held
    shape = "f32[" + ",".join(map(str, cache.keys[0].shape)) + "]"
    copies = [row for row in compiled.as_text().splitlines() if " copy(" in row]
    assert not [row for row in copies if shape in row]


def test_rows_are_taken_of_all_but_the_slot():
    rows = jnp.arange(3)
    part = rows[:, None, None, None] * jnp.ones((3, 2, 4, 1))
    cache = Cache((part,), (part,), rows[:, None] > 0, rows, jnp.int32(2))
    cache = cache._replace(cross_keys=(part,), cross_values=(part,), cross_mask=rows)
    taken = take_rows(cache, jnp.array([2, 2, 0]))
    assert taken.positions.tolist() == taken.cross_mask.tolist() == [2, 2, 0]
    assert taken.keys[0][:, 0, 0, 0].tolist() == [2, 2, 0]
    assert taken.length == 2
    kept = take_rows(cache, jnp.array([2, 2, 0]), same_sources=True)
    assert kept.positions.tolist() == [2, 2, 0]
    assert kept.cross_keys[0] is cache.cross_keys[0]


def bucket_by_hand(forward, bidirectional, buckets, max_distance):
    first, distance = 0, max(-forward, 0)
    if bidirectional:
        buckets //= 2
        first, distance = buckets * (forward > 0), abs(forward)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # Borders grow by equal factors, so that the last bucket begins before the longest.
    share = np.log(distance / exact) / np.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("sizes", [(32, 128), (8, 12)])
def test_buckets_of_distances(bidirectional, sizes):
    forward = np.arange(-130, 131)
    found = distance_buckets(
        forward,
        bidirectional=bidirectional,
        buckets=sizes[0],
        max_distance=sizes[1],
    )
    expected = [bucket_by_hand(int(d), bidirectional, *sizes) for d in forward]
    assert found.tolist() == expected


def test_norms():
    x = np.random.default_rng(0).normal(1, 2, (3, 16)).astype(np.float32)
    scale = np.linspace(0.5, 2, 16, dtype=np.float32)
    params = {"params": {"scale": scale}}
    expected = scale * x / np.sqrt((x**2).mean(1, keepdims=True) + LLAMA.norm_eps)
    found = jax.jit(normalisation(LLAMA).apply)(params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rotary_positions():
    config = dataclasses.replace(LLAMA, head_dim=6, rope_scaling=None)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 6)).astype(np.float32)
    positions = jnp.array([[0, 1, 5]])
    found = jax.jit(lambda x: rotate(x, rotation(config, positions)))(x)
    for token, position in enumerate([0, 1, 5]):
        for head in range(2):
            for i in range(3):
                # A pair as a complex number, turned by its angle.
                pair = complex(x[0, token, head, i], x[0, token, head, i + 3])
                pair *= np.exp(1j * position * 10000.0 ** (-2 * i / 6))
                parts = found[0, token, head, i], found[0, token, head, i + 3]
                np.testing.assert_allclose(parts, (pair.real, pair.imag), atol=1e-6)


def test_scaled_frequencies():
    scaling = RopeScaling(factor=8.0, low=1.0, high=4.0, original_positions=8192)
    config = dataclasses.replace(LLAMA, head_dim=64, rope_theta=5e5)
    plain = rotary_frequencies(dataclasses.replace(config, rope_scaling=None))
    found = rotary_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    expected = []
    for frequency in plain.astype(float):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found == plain).any()
    assert len(set(np.round(plain / found, 3))) > 2


def test_shared_keys_are_repeated_keys():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(LLAMA, query_key_norm=False)
    x, mask = draw(rng, (2, 3, 16)), jnp.tri(3, dtype=bool)[None]
    params = {
        name: {"kernel": draw(rng, (16, width))}
        for name, width in {"query": 16, "key": 8, "value": 8, "output": 16}.items()
    }

    @functools.partial(jax.jit, static_argnums=0)
    def attend(config, params):
        attention, params = Attention(config, True), {"params": params}
        keys, values = attention.apply(params, x, method="keys_values")
        return attention.apply(params, x, keys, values, mask)

    repeated = dict(params)
    for name in ("key", "value"):
        heads = params[name]["kernel"].reshape(16, 2, 4)
        repeated[name] = {"kernel": jnp.repeat(heads, 2, axis=1).reshape(16, 16)}
    full = dataclasses.replace(config, num_kv_heads=4)
    np.testing.assert_allclose(
        attend(config, params), attend(full, repeated), atol=1e-6
    )


def test_bfloat16_is_close():
    half = dataclasses.replace(T5, dtype="bfloat16")
    batch = make_batch()
    output, logits = forward(half)(batch)
    assert (output.states.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert output.hidden_states[0].dtype == jnp.float32  # T5's residual stream
    expected = forward(T5)(batch)[1]
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())


def test_gradients():
    config = dataclasses.replace(LLAMA, dropout=0.2, num_layers=1)
    batch, key = make_batch(), jax.random.key(0)
    zeros = jnp.zeros((3, PADDED, 16))

    def loss(config, params, perturbation, key):
        read = batch._replace(perturbation=perturbation)
        return (apply_fn(config)(params, read, key=key).states ** 2).sum()

    def gradients(config):
        run = jax.jit(jax.value_and_grad(functools.partial(loss, config), (0, 1)))
        return functools.partial(run, random_params(config), zeros)

    value, (params, perturbation) = gradients(config)(key)
    repeated = gradients(dataclasses.replace(config, remat=True))
    again = repeated(key)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        (value, (params, perturbation)),
        again,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(again))
    moved = np.abs(perturbation).max(2) > 0
    assert moved[:2].tolist() == [[True] * SOURCE + [False] * 2] * 2
    head = params["head"]["kernel"]
    assert (head == 0).all()  # states come before the head
    assert abs(repeated(jax.random.key(1))[0] - value) > 1e-3


def test_fresh_parameters():
    config = dataclasses.replace(T5, vocab_size=500, hidden_size=64, num_heads=8)
    params = init_model(config, seed=0).params
    layers = params["decoder"]["layers"]
    deviations = {
        "embedding": (params["embedding"]["embedding"], 1.0),
        "query": (layers["attention"]["query"]["kernel"], (64 * 6) ** -0.5),
        "key": (layers["cross"]["key"]["kernel"], 64**-0.5),
        "output": (layers["cross"]["output"]["kernel"], 48**-0.5),
        "down": (layers["mlp"]["down"]["kernel"], 24**-0.5),
        "relative": (params["encoder"]["relative"]["embedding"], 64**-0.5),
    }
    for name, (values, expected) in deviations.items():
        close = 0.3 if name == "relative" else 0.05
        assert np.std(values) == pytest.approx(expected, rel=close), name
    assert (layers["mlp_norm"]["scale"] == 1).all()
    gpt2 = init_model(GPT2, seed=0).params["decoder"]["layers"]
    assert np.std(gpt2["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.std(gpt2["mlp"]["down"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    assert (gpt2["mlp"]["up"]["bias"] == 0).all()


def test_students_have_some_layers_of_a_teacher():
    teacher = init_model(T5, seed=0)
    student = select_layers(teacher, (1,), encoder_layers=(0, 2))
    assert (student.config.num_layers, student.config.encoder_layers) == (1, 2)
    for stack, rows in (("decoder", [1]), ("encoder", [0, 2])):
        found = student.params[stack]["layers"]["attention"]["key"]["kernel"]
        given = teacher.params[stack]["layers"]["attention"]["key"]["kernel"]
        np.testing.assert_array_equal(found, given[np.array(rows)])
    shapes = jax.tree.map(jnp.shape, student.params)
    assert shapes == jax.tree.map(lambda s: s.shape, param_shapes(student.config))
    for name, given in (("layers", (1, 0)), ("layers", ()), ("layers", (2,))):
        with pytest.raises(ValueError, match=f"Expected {name} rising"):
            select_layers(teacher, given)
    with pytest.raises(ValueError, match="Expected encoder_layers rising"):
        select_layers(teacher, (0,), encoder_layers=(3,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"positions": "sinusoidal"},
        {"norm": "batch"},
        {"activation": "softplus"},
        {"dtype": "float16"},
        {"num_kv_heads": 3},
        {"head_dim": 5},
        {"dropout": 1.5},
        {"norm_eps": 0.0},
        {"encoder_layers": -1},
        {"end_ids": (VOCABULARY,)},
        {"pad_id": -1},
        {"max_positions": 0, "positions": "learned"},
        {"relative_buckets": 2, "positions": "relative"},
        {"relative_distance": 16, "positions": "relative"},
    ],
)
def test_wrong_fields_are_named(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"Expected {name} "):
        dataclasses.replace(LLAMA, **wrong)


def test_rows_that_are_too_long_are_refused():
    batch = make_batch()
    longer = batch._replace(output_ids=jnp.ones((3, WRITTEN + 1), jnp.int32))
    with pytest.raises(ValueError, match="input_ids and output_ids <= 10 tokens"):
        apply_fn(GPT2)(random_params(GPT2), longer)
    start, params = start_fn(GPT2), random_params(GPT2)
    with pytest.raises(ValueError, match="input_ids and max_new <= 10 tokens"):
        start(params, batch.input_ids, batch.attention_mask, max_new=6)
    with pytest.raises(ValueError, match=r"attention_mask\.shape"):
        apply_fn(T5)({}, batch._replace(attention_mask=batch.attention_mask[:, 1:]))
