"""A model whose word embedding holds only the words of the rows at hand.

A few thousand texts use a fraction of the tens of thousands of rows of a word
embedding. The others have no gradient, yet an optimiser keeps and moves all of them,
which is a good part of a small encoder's step. Training may leave them out and put them
back at its end: `used_ids` chooses, `narrow` cuts, `renumber` follows, `widen` puts
back. What is trained is the same up to the weight decay of unused words, which is gone.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree
from protojax.models.encoder import Model

# Sizes are multiples of it, so that what is compiled for one set of rows fits others.
MULTIPLE = 4096


def used_ids(input_ids: np.ndarray, vocab_size: int, *, pad_id: int = 0) -> np.ndarray:
    """Returns the ids that some rows use, and others up to a multiple of 4096.

    Args:
        input_ids: `[rows, length]`, of all rows that the model is going to see.
        vocab_size: rows of the word embedding.
        pad_id: kept where it is, with all ids below it.

    Returns:
        `[kept]`, int64, rising; all ids where few would be left out.

    Raises:
        ValueError: an id beyond the vocabulary.

    >>> used_ids(np.array([[5, 9000]]), 20_000)[[0, 5, -1]].tolist()
    [0, 5, 9000]
    """
    largest = int(np.max(input_ids, initial=0))
    validate.require(largest < vocab_size, "input_ids", largest, f"< {vocab_size}")
    used = np.zeros(vocab_size, bool)
    used[: pad_id + 1] = True
    used[input_ids] = True
    size = min(vocab_size, -(-int(used.sum()) // MULTIPLE) * MULTIPLE)
    spare = np.flatnonzero(~used)[: size - int(used.sum())]
    used[spare] = True
    return np.flatnonzero(used)


def renumber(input_ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the ids as a model that was cut down to `kept` knows them.

    >>> renumber(np.array([[0, 7]]), np.array([0, 3, 7])).tolist()
    [[0, 2]]

    Args:
        input_ids: `[rows, length]`, each among `kept`.
        kept: `[kept]`, rising.

    Raises:
        ValueError: an id that is not among `kept`.
    """
    ids, kept = np.asarray(input_ids), np.asarray(kept)
    places = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
    lost = ids[kept[places] != ids]
    first = int(lost[0]) if lost.size else None
    validate.require(first is None, "input_ids", first, "among those kept")
    return places.astype(ids.dtype)


def narrow(model: Model, kept: np.ndarray) -> Model:
    """Returns a model with some rows of its word embedding, in their order.

    Args:
        model: the model; its tokenizer no longer fits what is returned.
        kept: `[kept]`, from `used_ids`.
    """
    config = dataclasses.replace(model.config, vocab_size=len(kept))
    return model._replace(
        config=config, params=_with_words(model.params, words(model.params)[kept])
    )


def widen(params: PyTree, trained: PyTree, kept: np.ndarray) -> PyTree:
    """Returns trained parameters with all rows of the word embedding.

    Args:
        params: the whole model's, from before; rows that were left out are its.
        trained: of the model that `narrow` returned.
        kept: what that was given.
    """
    whole = jnp.asarray(words(params)).at[kept].set(words(trained))
    return _with_words(trained, whole)


def words(params: PyTree) -> Array:
    """Returns the word embedding `[vocab_size, dim]` of any family."""
    return params["embeddings"]["word"]["embedding"]


def _with_words(params: PyTree, table: Array) -> PyTree:
    """Returns the parameters with another word embedding."""
    return {
        **params,
        "embeddings": {**params["embeddings"], "word": {"embedding": table}},
    }
