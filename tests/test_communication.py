"""Messages: what they weigh, what they lose, and that nobody changed them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.base import Examples, Prototypes
from protojax.federated import communication


def make_prototypes(num=50, dim=768):
    rng = np.random.default_rng(0)
    return Prototypes(
        jnp.float32(rng.normal(size=(num, dim))),
        jnp.int32(rng.integers(0, 4, num)),
        jnp.float32(rng.integers(1, 30, num)),
    )


@pytest.mark.parametrize(
    ("precision", "vectors"),
    [("float32", 153_600), ("bfloat16", 76_800), ("int8", 38_400 + 50 * 4)],
)
def test_fifty_prototypes_weigh_what_the_arrays_do(precision, vectors):
    message = communication.encode(make_prototypes(), precision=precision)
    # Labels and counts are 4 bytes each.
    assert communication.num_bytes(message.arrays) == vectors + 50 * 8


@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 1 / 254)]
)
def test_messages_lose_no_more_than_they_say(precision, bound):
    held = make_prototypes()
    found = communication.decode(communication.encode(held, precision=precision))
    error = np.abs(np.asarray(held.vectors) - found.vectors)
    scale = np.abs(np.asarray(held.vectors))
    if precision == "int8":
        scale = scale.max(axis=1, keepdims=True)
    assert (error <= bound * scale * (1 + 1e-5)).all()
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.labels, held.labels)
    np.testing.assert_array_equal(found.counts, held.counts)


@pytest.mark.parametrize("precision", communication.PRECISIONS)
def test_zero_vectors_stay_zero(precision):
    held = jax.tree.map(jnp.zeros_like, make_prototypes(3, 4))
    found = communication.decode(communication.encode(held, precision=precision))
    np.testing.assert_array_equal(found.vectors, 0)


@pytest.mark.parametrize("precision", communication.PRECISIONS)
@pytest.mark.parametrize("name", ["vectors", "labels", "counts"])
def test_a_changed_message_is_refused(precision, name):
    message = communication.encode(make_prototypes(3, 4), precision=precision)
    array = message.arrays[name].copy()
    array.view(np.uint8).reshape(-1)[0] ^= 1
    changed = message._replace(arrays={**message.arrays, name: array})
    with pytest.raises(ValueError, match="sha256"):
        communication.decode(changed)


@pytest.mark.parametrize("sent", communication.PRECISIONS)
@pytest.mark.parametrize("said", communication.PRECISIONS)
def test_a_changed_precision_is_refused(sent, said):
    message = communication.encode(make_prototypes(3, 4), precision=sent)
    changed = message._replace(precision=said)
    if said == sent:
        communication.decode(changed)
        return
    with pytest.raises(ValueError, match="sha256"):
        communication.decode(changed, expected_hash=message.sha256)


def test_int8_keeps_numbers_of_every_size():
    rng = np.random.default_rng(0)
    # From the least number there is to the greatest, and each step of the least.
    sizes = [*np.logspace(-45, 38.5, 500), *(1.4e-45 * np.arange(1, 1500))]
    vectors = np.float32(rng.uniform(-1, 1, (len(sizes), 4)) * np.array(sizes)[:, None])
    vectors[:, 0] = np.float32(sizes)
    held = Prototypes(vectors, np.zeros(len(sizes)), np.ones(len(sizes)))
    found = communication.decode(communication.encode(held, precision="int8"))
    error = np.abs(np.float64(found.vectors) - vectors).max(1)
    bound = np.abs(np.float64(vectors)).max(1) / 254 * (1 + 1e-5) + 1.4e-45
    assert (error <= bound).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_says_what_is_not_finite(bad):
    held = Prototypes(np.float32([[bad, 1.0], [2.0, 1.0]]), np.zeros(2), np.ones(2))
    found = communication.decode(communication.encode(held, precision="int8"))
    assert np.isnan(found.vectors[0]).all()
    assert np.isfinite(found.vectors[1]).all()


def test_a_forged_message_is_refused():
    honest = communication.encode(make_prototypes(3, 4))
    forged = communication.encode(make_prototypes(4, 4))
    with pytest.raises(ValueError, match=honest.sha256):
        communication.decode(forged, expected_hash=honest.sha256)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="'int8'"):
        communication.encode(make_prototypes(3, 4), precision="int9")


def test_pairs_are_counted():
    examples = Examples(["ab"], ["cde"], np.array([1]))
    assert communication.text_bytes(examples) == 2 + 3 + 4


def test_abstract_arrays_are_counted():
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((3, 5)), "n": jnp.zeros((), bool)})
    assert communication.num_bytes(shapes) == 61
