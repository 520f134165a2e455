"""Tokens of sources and of the outputs that a model shall write for them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Examples, SequenceOutputs
from protojax.data.tokens import Tokens, check_ids, encode, tokenize


class Sequences(NamedTuple):
    """Tokenised rows of a source and an output each.

    Attributes:
        sources: the sources or prompts, with the tokenizer's special tokens.
        outputs: the outputs, with the end token and with 0 as padding.
    """

    sources: Tokens
    outputs: Tokens

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of source and output, `[rows, 2]`."""
        return np.stack([self.sources.lengths, self.outputs.lengths], axis=1)


def tokenize_sequences(
    tokenizer: Any,
    sources: Sequence[str],
    outputs: Sequence[str],
    *,
    max_length: int,
    max_output: int,
    end_id: int,
    begin_id: int | None = None,
    vocab_size: int | None = None,
) -> Sequences:
    """Tokens of all sources and outputs, each truncated to its length.

    Args:
        tokenizer: a fast tokenizer of transformers.
        sources: `[rows]`, texts.
        outputs: `[rows]`, texts; they get no special tokens but the following.
        max_length: the most tokens of a source.
        max_output: the most tokens of an output; one that is longer keeps its beginning
            and the end token.
        end_id: the token at the end of each output.
        begin_id: the token at the beginning of each output, for models that write one
            (BART), or None.
        vocab_size: rows of the word embedding, see `tokenize`.

    Raises:
        ValueError: as many sources as outputs are not given, a length leaves no room
            for text, a source has no token, or an id is beyond `vocab_size`.
    """
    validate.same_length(sources=sources, outputs=outputs)
    first = () if begin_id is None else (begin_id,)
    room = max_output - len(first) - 1
    bound = f"> {len(first) + 1}, the special tokens of an output"
    validate.require(room > 0, "max_output", max_output, bound)
    examples = Examples(sources, None, np.zeros(len(sources), np.int32))
    read = tokenize(tokenizer, examples, max_length=max_length, vocab_size=vocab_size)
    for row in np.flatnonzero(read.lengths == 0):
        validate.require(False, f"sources[{row}]", sources[row], "with a token")

    written = encode(tokenizer, outputs, max_length=room, pad_id=0, special=False)
    ids = np.zeros((len(outputs), max_output), np.int32)
    ids[:, : len(first)] = first
    ids[:, len(first) : -1] = written.input_ids
    lengths = written.lengths + np.int32(len(first) + 1)
    ids[np.arange(len(ids)), lengths - 1] = end_id
    found = Tokens(ids, np.zeros_like(ids), lengths, 0)
    if vocab_size is not None:
        check_ids(found, vocab_size)
    return Sequences(read, found)


def with_outputs(sources: Tokens, outputs: SequenceOutputs) -> Sequences:
    """The sources with the outputs that a teacher wrote for them."""
    empty = np.zeros_like(outputs.ids)
    return Sequences(sources, Tokens(outputs.ids, empty, outputs.lengths, 0))


def check_same_tokens(teacher: Any, student: Any) -> None:
    """Raises where a teacher's probabilities of tokens would be of other tokens.

    Args:
        teacher: the tokenizer of the teacher.
        student: the tokenizer of the student; it may have further tokens.

    Raises:
        ValueError: a token of the teacher's has another id in the student's, or none.
    """
    if teacher is student or teacher.get_vocab().items() <= student.get_vocab().items():
        return
    named = [
        f"{one.name_or_path!r} with {len(one)} tokens" for one in (teacher, student)
    ]
    raise ValueError(
        "Expected teacher and student with the same tokenizer, because probabilities "
        f"of tokens teach, found {named[0]} of the teacher and {named[1]} of the "
        "student. Texts that the teacher wrote need none: hard_weight=1."
    )
