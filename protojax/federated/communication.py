"""Messages between nodes, and their sizes in bytes.

Prototypes are sent as a `Message`: arrays in a chosen precision, and a hash of them
that the receiver checks before it uses them. The size of everything else is counted as
stored in memory, or as UTF-8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import data, validate
from protojax.base import Examples, Prototypes, PyTree


class Message(NamedTuple):
    """Encoded prototypes.

    Attributes:
        arrays: name -> array, as sent.
        precision: a name in `PRECISIONS`.
        sha256: the hash of the precision and the arrays.
    """

    arrays: dict[str, np.ndarray]
    precision: str
    sha256: str


def _float32(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors unchanged."""
    return {"vectors": vectors}


def _bfloat16(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors in half of the bits, with a significand of 8 bits."""
    return {"vectors": vectors.astype(jnp.bfloat16)}


def _int8(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors in a quarter of the bits, and one scale per vector."""
    # A scale for each vector, so that a long one costs the others no precision.
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    scales = (largest / 127).astype(np.float32)
    # For the smallest numbers a scale may be rounded down so far that 127 steps do not
    # reach the largest entry, or even to 0.
    short = (largest > 0) & (np.float64(scales) * 127.5 <= largest)
    scales = np.where(short, np.nextafter(scales, np.float32(1)), scales)
    # NaN marks the vector for the receiver; 0 times infinity would only add a warning.
    scales = np.where(np.isfinite(largest), scales, np.float32(np.nan))
    steps = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
    return {"vectors": np.rint(steps).astype(np.int8), "scales": scales}


PRECISIONS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "float32": _float32,
    "bfloat16": _bfloat16,
    "int8": _int8,
}


def encode(prototypes: Prototypes, *, precision: str = "float32") -> Message:
    """A message that holds prototypes.

    Args:
        prototypes: vectors `[..., num_prototypes, dim]`.
        precision: `"float32"`; `"bfloat16"`, half the bytes, with a relative error of
            up to 2⁻⁸ for numbers between 1.2e-38 and 3.3e38; or `"int8"`, a quarter of
            the bytes, with an error of up to 1/254 of the vector's largest number plus
            1.4e-45, the smallest float32. A vector that is not finite is decoded as NaN
            from `"int8"`.

    Returns:
        The message; the receiver should also get its hash by a separate channel.

    Raises:
        ValueError: an unknown precision.

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
    """The prototypes of a message whose hash has been verified.

    Args:
        message: the message as received.
        expected_hash: the hash from a separate channel; by default the message's own,
            which detects damage but not forgery.

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
    """The number of bytes of all arrays of a tree, concrete or abstract.

    >>> num_bytes({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.int8)})
    26
    """
    return sum(
        leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def text_bytes(examples: Examples) -> int:
    """The number of bytes of rows: texts in UTF-8 and labels of 4 bytes.

    >>> text_bytes(Examples(["né", "a"], None, np.array([0, 1])))
    12
    """
    texts = [*examples.texts, *(examples.pairs or ())]
    return sum(len(text.encode()) for text in texts) + 4 * len(examples.labels)


def _hash(precision: str, arrays: dict[str, np.ndarray]) -> str:
    """The SHA-256 of a precision and named arrays."""
    parts = [part for name in sorted(arrays) for part in (name, arrays[name])]
    return data.fingerprint(precision, *parts)
