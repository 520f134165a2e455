"""Models whose word embedding holds only the words of the given rows.

A few thousand texts use a fraction of the tens of thousands of rows of a word
embedding. The others have no gradient, yet an optimiser keeps and moves all of them,
which is a large part of a small encoder's step. Training can leave them out and restore
them at the end: `used_ids` selects rows, `narrow` removes the others, `renumber` adapts
the ids and `widen` restores all rows. Training is the same except that unused words
have no weight decay.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree
from protojax.models.encoder import Model

# Sizes are multiples of this, so that a program compiled for one set of rows fits
# others.
MULTIPLE = 4096


def used_ids(input_ids: np.ndarray, vocab_size: int, *, pad_id: int = 0) -> np.ndarray:
    """The ids that the rows use, and others up to a multiple of 4096.

    Args:
        input_ids: `[rows, length]`, of all rows that the model will see.
        vocab_size: rows of the word embedding.
        pad_id: kept where it is, with all ids below it.

    Returns:
        `[kept]`, int64, ascending; all ids where few would be left out.

    Raises:
        ValueError: an id beyond the vocabulary.

    >>> used_ids(np.array([[5, 9000]]), 20_000)[[0, 5, -1]].tolist()
    [0, 5, 9000]
    """
    largest = int(np.max(input_ids, initial=0))
    validate.require(largest < vocab_size, "input_ids", largest, f"< {vocab_size}")
    used = np.zeros(vocab_size, bool)
    # Ids up to the padding keep their numbers, and with them `config.pad_id`.
    used[: pad_id + 1] = True
    used[input_ids] = True
    size = min(vocab_size, -(-int(used.sum()) // MULTIPLE) * MULTIPLE)
    # Filled up with the first unused ones, so that equal rows give equal ids.
    spare = np.flatnonzero(~used)[: size - int(used.sum())]
    used[spare] = True
    return np.flatnonzero(used)


def renumber(input_ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The ids in the numbering of a model narrowed to `kept`.

    >>> renumber(np.array([[0, 7]]), np.array([0, 3, 7])).tolist()
    [[0, 2]]

    Args:
        input_ids: `[rows, length]`, each among `kept`.
        kept: `[kept]`, ascending.

    Raises:
        ValueError: an id that is not among `kept`.
    """
    ids, kept = np.asarray(input_ids), np.asarray(kept)
    # An id above all kept ones would have a place beyond the end.
    places = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
    lost = ids[kept[places] != ids]
    first = int(lost[0]) if lost.size else None
    validate.require(first is None, "input_ids", first, "among those kept")
    return places.astype(ids.dtype)


def narrow(model: Model, kept: np.ndarray) -> Model:
    """A model with some rows of its word embedding, in their order.

    Args:
        model: the model; its tokenizer does not fit the result.
        kept: `[kept]`, from `used_ids`.
    """
    config = dataclasses.replace(model.config, vocab_size=len(kept))
    return model._replace(
        config=config, params=_with_words(model.params, words(model.params)[kept])
    )


def widen(params: PyTree, trained: PyTree, kept: np.ndarray) -> PyTree:
    """The trained parameters with all rows of the word embedding.

    Args:
        params: those of the full model, the source of the rows that were left out.
        trained: those of the model that `narrow` returned.
        kept: the ids given to `narrow`.
    """
    whole = jnp.asarray(words(params)).at[kept].set(words(trained))
    return _with_words(trained, whole)


def words(params: PyTree) -> Array:
    """The word embedding `[vocab_size, dim]` of any family."""
    return params["embeddings"]["word"]["embedding"]


def _with_words(params: PyTree, table: Array) -> PyTree:
    """The parameters with another word embedding."""
    return {
        **params,
        "embeddings": {**params["embeddings"], "word": {"embedding": table}},
    }
