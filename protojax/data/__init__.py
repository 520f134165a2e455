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

__all__ = [
    "Splits",
    "concatenate",
    "fingerprint",
    "held_out",
    "rows_to_hold_out",
    "sample_rows",
    "split",
    "take",
]
