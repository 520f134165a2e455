"""Tokenised texts: token ids made once, on the host, in NumPy."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Examples

_logger = logging.getLogger("protojax")

# Generous: in most texts far fewer characters make up a token.
_CHARS_PER_TOKEN = 20
_TOKENIZE_ROWS = 1024


class Tokens(NamedTuple):
    """Tokenised rows, padded to `max_length`.

    Attributes:
        input_ids: `[rows, max_length]`, int32.
        token_type_ids: `[rows, max_length]`, int32, 1 on the second text of a pair.
        lengths: `[rows]`, int32, how many of the ids are tokens.
        pad_id: the id that fills the rest.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray
    pad_id: int


def tokenize(
    tokenizer: Any,
    examples: Examples,
    *,
    max_length: int,
    vocab_size: int | None = None,
) -> Tokens:
    """Tokens of all rows, truncated and padded to `max_length`.

    Texts beyond `20 * max_length` characters are first clipped where the rest has no
    effect, so a text of a megabyte costs no more than a page. The number of clipped
    texts is logged.

    Args:
        tokenizer: a fast tokenizer of transformers.
        examples: the rows.
        max_length: the most tokens a row may have, special tokens included.
        vocab_size: rows of the word embedding that the tokens are for; None where it
            is not known; see `check_ids`.

    Returns:
        The tokens of each row.

    Raises:
        ValueError: without a tokenizer, if `max_length` leaves no room for more than
            the special tokens, or if an id is beyond `vocab_size`.
    """
    if tokenizer is None:
        raise ValueError(
            "Expected a tokenizer, found None. To read text the folder of a checkpoint "
            "needs tokenizer.json or vocab.txt, as tokenizer.save_pretrained(FOLDER) "
            "of transformers writes them."
        )
    special = tokenizer.num_special_tokens_to_add(examples.pairs is not None)
    bound = f"> {special}, the special tokens of a row"
    validate.require(max_length > special, "max_length", max_length, bound)
    # Decoders have no padding token; masked positions may hold any id.
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens = encode(
        tokenizer, examples.texts, examples.pairs, max_length=max_length, pad_id=pad_id
    )
    if vocab_size is not None:
        check_ids(tokens, vocab_size)
    return tokens


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    pad_id: int,
    special: bool = True,
) -> Tokens:
    """Tokens of texts or pairs, truncated and padded to `max_length`; see `tokenize`.

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: `[rows]`.
        pairs: `[rows]`, the second text of each row, or None.
        max_length: the most tokens of a row.
        pad_id: the id that fills the rest.
        special: whether rows get the tokenizer's special tokens.
    """
    texts = _clip(tokenizer, texts, max_length)
    pairs = pairs and _clip(tokenizer, pairs, max_length)
    input_ids = np.full((len(texts), max_length), pad_id, np.int32)
    token_type_ids = np.zeros_like(input_ids)
    lengths = np.zeros(len(texts), np.int32)
    # In chunks, so that the Python lists of all ids never exist at once.
    for start in range(0, len(texts), _TOKENIZE_ROWS):
        rows = slice(start, start + _TOKENIZE_ROWS)
        encoded = tokenizer(
            texts[rows],
            pairs[rows] if pairs else None,
            add_special_tokens=special,
            truncation=True,
            max_length=max_length,
            # The mask follows from the lengths.
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        lengths[rows] = [len(ids) for ids in encoded["input_ids"]]
        filled = np.arange(max_length) < lengths[rows, None]
        chain = itertools.chain.from_iterable
        # A slice is a view, so the masked assignment reaches the array itself.
        input_ids[rows][filled] = list(chain(encoded["input_ids"]))
        token_type_ids[rows][filled] = list(chain(encoded["token_type_ids"]))
    return Tokens(input_ids, token_type_ids, lengths, pad_id)


def check_ids(tokens: Tokens, vocab_size: int) -> None:
    """Raises on a token id that a word embedding has no row for.

    JAX would return NaN for such a token, or another token's row for a negative id. The
    prediction for a row with NaN would then be class 0.

    Args:
        tokens: the rows.
        vocab_size: rows of the word embedding.

    Raises:
        ValueError: on an id below 0 or beyond the last row.

    >>> tokens = Tokens(np.array([[5], [9]]), np.zeros((2, 1)), np.array([1, 1]), 0)
    >>> check_ids(tokens, 10)
    >>> check_ids(tokens, 9)
    Traceback (most recent call last):
    ValueError: Expected token ids in [0, 9), the rows of the word embedding, found ...
    """
    ids = np.asarray(tokens.input_ids)
    found = {"the padding": tokens.pad_id}
    # The extremes suffice, and name a row for the message.
    for place in (ids.argmin(), ids.argmax()) if ids.size else ():
        found[f"row {place // ids.shape[1]}"] = int(ids.flat[place])
    for place, number in found.items():
        if not 0 <= number < vocab_size:
            raise ValueError(
                f"Expected token ids in [0, {vocab_size}), the rows of the word "
                f"embedding, found id {number} in {place}. Give the model the "
                "tokenizer it was trained with, or resize its embedding to the "
                "tokenizer's length."
            )


def _clip(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[str]:
    """The texts, clipped where the rest has no effect; logs how many were clipped."""
    texts, clipped, most = list(texts), 0, _CHARS_PER_TOKEN * max_length
    for row, text in enumerate(texts):
        if len(text) > most:
            texts[row] = _beginning(tokenizer, text, max_length)
            clipped += texts[row] != text
    if clipped:
        _logger.warning(
            "Clipped %d texts to %d characters, or to as many as fill a row.",
            clipped,
            most,
        )
    return texts


def _beginning(tokenizer: Any, text: str, max_length: int) -> str:
    """The beginning of a text that fills `max_length` tokens, or the whole text.

    The number of characters needed depends on the tokenizer and the text: white space,
    control characters and accents may make no token, and a very long word just one.
    """
    size = _CHARS_PER_TOKEN * max_length
    while size < len(text):
        found = text[:size]
        if not (found[-1].isspace() or text[size].isspace()):
            # A part of a word would give other tokens than the word.
            found = found[: len(found) - len(found.split()[-1])] or found
        encoded = tokenizer(
            [found], add_special_tokens=False, truncation=True, max_length=max_length
        )
        if len(encoded["input_ids"][0]) >= max_length:
            return found
        # Doubling bounds the work on a long text by a constant times its final length.
        size *= 2
    return text


def take(tokens: Tokens, rows: np.ndarray) -> Tokens:
    """The tokens of the given rows, in the given order.

    >>> tokens = Tokens(np.array([[5], [6]]), np.zeros((2, 1)), np.array([1, 1]), 0)
    >>> take(tokens, np.array([1])).input_ids.tolist()
    [[6]]
    """
    first, second, lengths, pad_id = tokens
    return Tokens(first[rows], second[rows], lengths[rows], pad_id)


def without(tokens: Tokens, hidden: np.ndarray) -> Tokens:
    """Rows without some of their tokens; later tokens move forward.

    Args:
        tokens: the rows.
        hidden: `[rows, max_length]`, bool, the tokens to leave out.

    Returns:
        The rows without the hidden tokens, padded at the end.

    Raises:
        ValueError: `hidden` of another shape.

    >>> tokens = Tokens(np.array([[5, 6, 7, 0]]), np.zeros((1, 4)), np.array([3]), 0)
    >>> left = without(tokens, np.array([[False, True, False, False]]))
    >>> left.input_ids.tolist(), left.lengths.tolist()
    ([[5, 7, 0, 0]], [2])
    """
    shape = tokens.input_ids.shape
    validate.require(hidden.shape == shape, "hidden.shape", hidden.shape, f"{shape}")
    kept = ~hidden & (np.arange(shape[1]) < tokens.lengths[:, None])
    # A stable sort of the flags puts remaining tokens first and keeps their order.
    order = np.argsort(~kept, axis=1, kind="stable")
    lengths = kept.sum(1).astype(np.int32)
    filled = np.arange(shape[1]) < lengths[:, None]

    def move(column: np.ndarray, empty: int) -> np.ndarray:
        moved = np.take_along_axis(column, order, axis=1)
        return np.where(filled, moved, empty).astype(column.dtype)

    return Tokens(
        move(tokens.input_ids, tokens.pad_id),
        move(tokens.token_type_ids, 0),
        lengths,
        tokens.pad_id,
    )
