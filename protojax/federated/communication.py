"""What nodes send, byte by byte.

Prototypes travel as a `Message`: arrays in the precision that was chosen, and the hash
of what was sent, which the receiver checks before it uses them. Everything else is
counted as it lies in memory, or as UTF-8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import data, validate
from protojax.base import Examples, Prototypes, PyTree


class Message(NamedTuple):
    """Prototypes on their way.

    Attributes:
        arrays: name -> array, as sent.
        precision: a name in `PRECISIONS`.
        sha256: of the precision and the arrays.
    """

    arrays: dict[str, np.ndarray]
    precision: str
    sha256: str


def _float32(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Sends vectors as they are."""
    return {"vectors": vectors}


def _bfloat16(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Sends half of the bits; 8 of them are the significand."""
    return {"vectors": vectors.astype(jnp.bfloat16)}


def _int8(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Sends a quarter of the bits and one scale a vector."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    scales = (largest / 127).astype(np.float32)
    # Of the least numbers 127 steps fall short of the largest if the scale was rounded
    # down, and a scale may be rounded to 0.
    short = (largest > 0) & (np.float64(scales) * 127.5 <= largest)
    scales = np.where(short, np.nextafter(scales, np.float32(1)), scales)
    # 0 times infinity would warn, and say no more.
    scales = np.where(np.isfinite(largest), scales, np.float32(np.nan))
    steps = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
    return {"vectors": np.rint(steps).astype(np.int8), "scales": scales}


PRECISIONS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "float32": _float32,
    "bfloat16": _bfloat16,
    "int8": _int8,
}


def encode(prototypes: Prototypes, *, precision: str = "float32") -> Message:
    """Makes prototypes ready to be sent.

    Args:
        prototypes: vectors `[..., num_prototypes, dim]`.
        precision: `"float32"`; `"bfloat16"`, half the bytes, relative error up to
            2⁻⁸ a number, of sizes from 1.2e-38 to 3.3e38; `"int8"`, a quarter, error up
            to 1/254 of the vector's largest number plus 1.4e-45, the least there is,
            and a vector that is not finite arrives as NaN.

    Returns:
        The message; its hash should also be known by another way than the message.

    Raises:
        ValueError: another precision.

    >>> sent = encode(Prototypes(jnp.eye(2), jnp.arange(2), jnp.ones(2)))
    >>> num_bytes(sent.arrays), len(sent.sha256)
    (32, 64)
    """
    validate.one_of(PRECISIONS, precision=precision)
    vectors, labels, counts = jax.device_get(prototypes)
    arrays = {
        **PRECISIONS[precision](np.asarray(vectors, np.float32)),
        "labels": np.asarray(labels, np.int32),
        "counts": np.asarray(counts, np.float32),
    }
    return Message(arrays, precision, _hash(precision, arrays))


def decode(message: Message, *, expected_hash: str | None = None) -> Prototypes:
    """Returns the prototypes of a message, once its hash is found right.

    Args:
        message: as it arrived.
        expected_hash: known by another way; that of the message by default, which finds
            damage but no forger.

    Raises:
        ValueError: the arrays or their precision are not those that were sent.

    >>> held = Prototypes(jnp.eye(2), jnp.arange(2), jnp.ones(2))
    >>> decode(encode(held, precision="int8")).vectors.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    expected = message.sha256 if expected_hash is None else expected_hash
    found = _hash(message.precision, message.arrays)
    if found != expected:
        raise ValueError(f"Expected prototypes with sha256={expected}, found {found}.")
    vectors = message.arrays["vectors"].astype(np.float32)
    if message.precision == "int8":
        vectors = vectors * message.arrays["scales"]
    return Prototypes(vectors, message.arrays["labels"], message.arrays["counts"])


def num_bytes(tree: PyTree) -> int:
    """Returns the bytes of all arrays of a tree, concrete or abstract.

    >>> num_bytes({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.int8)})
    26
    """
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def text_bytes(examples: Examples) -> int:
    """Returns the bytes of rows: texts in UTF-8 and labels of 4 bytes.

    >>> text_bytes(Examples(["né", "a"], None, np.array([0, 1])))
    12
    """
    texts = [*examples.texts, *(examples.pairs or ())]
    return sum(len(text.encode()) for text in texts) + 4 * len(examples.labels)


def _hash(precision: str, arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of a precision and named arrays."""
    parts = [part for name in sorted(arrays) for part in (name, arrays[name])]
    return data.fingerprint(precision, *parts)
