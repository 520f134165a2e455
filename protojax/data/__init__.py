"""Rows of text: files, splits, tokens and batches of one shape."""

from protojax.data.examples import (
    Splits,
    concatenate,
    fingerprint,
    held_out,
    rows_to_hold_out,
    sample_rows,
    split,
    take,
)
from protojax.data.partition import PARTITIONS
from protojax.data.sequences import Sequences, tokenize_sequences
from protojax.data.tokens import Tokens, tokenize

__all__ = [
    "PARTITIONS",
    "Sequences",
    "Splits",
    "Tokens",
    "concatenate",
    "fingerprint",
    "held_out",
    "rows_to_hold_out",
    "sample_rows",
    "split",
    "take",
    "tokenize",
    "tokenize_sequences",
]
