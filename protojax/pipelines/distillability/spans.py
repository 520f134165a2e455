"""Texts as tokens of a model, and the part of a text that each token stands for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from protojax.distillability.alignment import byte_spans
from protojax.models.language import LanguageModel
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Ids, Written


def token_texts(tokenizer: Any) -> dict[str, int]:
    """The text of each token behind another one, in which spaces are spaces.

    Special tokens are left out, and parts of a character. Of tokens of one text the
    one with the lowest id counts.

    Args:
        tokenizer: of transformers.

    Returns:
        Text -> id.
    """
    special = {*tokenizer.all_special_ids}
    ids = sorted({*tokenizer.get_vocab().values()} - special)

    def decoded(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)

    alone = decoded([[number] for number in ids])
    whole = [
        n for n, text in zip(ids, alone, strict=True) if text and "\ufffd" not in text
    ]
    if not whole:
        return {}
    # At the beginning of a text a space may be left out.
    (before,) = decoded([whole[:1]])
    found: dict[str, int] = {}
    for number, text in zip(ids, decoded([[whole[0], n] for n in ids]), strict=True):
        piece = text.removeprefix(before)
        if text.startswith(before) and piece and "\ufffd" not in piece:
            found.setdefault(piece, number)
    return found


def read_again(
    model: LanguageModel, texts: Sequence[str], ended: Sequence[bool], width: int
) -> tuple[Written, list[np.ndarray]]:
    """Texts of another model as a model's tokens, and the bytes that these stand for.

    Args:
        model: with its tokenizer.
        texts: `[rows]`.
        ended: `[rows]`, whether a text has an end.
        width: tokens of the prompts before them; what the model has no positions for is
            left out.

    Returns:
        The tokens, and `[rows]` spans, see `byte_spans`; of all tokens but the end.
    """
    found = model.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True
    )
    rows = found["input_ids"]
    spans = [*map(byte_spans, texts, found["offset_mapping"])]
    # A power of two, so that few programs are compiled.
    longest = max(map(len, rows)) + 1
    room = 1 << (longest - 1).bit_length()
    if model.config.max_positions:
        room = min(room, max(1, model.config.max_positions - width + 1))
    return decoding.outputs_of(rows, ended, model.config.end_ids[0], room), spans


def written_spans(model: LanguageModel, ids: Ids, text: str) -> np.ndarray:
    """The bytes that tokens which a model wrote stand for, `[tokens, 2]`.

    From the beginnings of the tokens as text: tokenised again, the text might have
    others. A character of several tokens ends with the last of them.

    Args:
        model: that wrote them.
        ids: `[tokens]`.
        text: what they are as text.
    """
    offsets, end = [], 0
    for size in range(1, len(ids) + 1):
        begun = decoding.text_of(model, ids[:size])
        same = next(
            (
                place
                for place, (a, b) in enumerate(zip(begun, text, strict=False))
                if a != b
            ),
            min(len(begun), len(text)),
        )
        offsets.append((end, max(same, end)))
        end = max(same, end)
    return byte_spans(text, offsets)
