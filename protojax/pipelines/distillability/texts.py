"""Texts that a teacher draws for prompts, kept on disk where a folder is given."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from protojax import storage
from protojax.base import Array
from protojax.distillation.teacher import cache_key
from protojax.models.language import LanguageModel
from protojax.pipelines.distillability import decoding
from protojax.pipelines.distillability.decoding import Shape
from protojax.pipelines.distillability.experts import Experts

_logger = logging.getLogger("protojax")


class DrawnTexts(NamedTuple):
    """Texts of a model for prompts.

    Attributes:
        texts: `[prompts][draws]`.
        tokens: how many they have together, the stop tokens included.
        ended: `[prompts][draws]`, whether a text ended by itself.
    """

    texts: list[list[str]]
    tokens: int
    ended: list[list[bool]]


def drawn_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    shape: Shape,
    *,
    draws: int,
    key: Array,
    temperature: float = 1.0,
    experts: Experts | None = None,
    folder: Path | None = None,
) -> DrawnTexts:
    """Texts of each prompt, read from a file where the same were drawn before.

    Whether they are read or drawn, they are the same. A file that was made from
    something else, or is damaged, is written anew.

    Args:
        model: a decoder.
        prompts: `[prompts]`.
        shape: of the programs.
        draws: texts of each prompt.
        key: of the draws.
        temperature: 0 for the most probable text.
        experts: that the model writes together with, or None.
        folder: of the files, or None for none.
    """

    def draw() -> DrawnTexts:
        ids = decoding.read_prompts(model, prompts, max_length=shape.width)
        ids = [row for row in ids for _ in range(draws)]
        written = decoding.draw(
            model, ids, shape, key=key, temperature=temperature, experts=experts
        )
        texts = [
            decoding.text_of(model, written.tokens(row)) for row in range(len(ids))
        ]
        texts, ended = (
            [column[i : i + draws] for i in range(0, len(column), draws)]
            for column in (texts, written.ended.tolist())
        )
        return DrawnTexts(texts, int(written.where.sum()), ended)

    if folder is None:
        return draw()
    asked = draws, float(temperature), shape.width, shape.max_new, shape.rows
    known = _identity(model, prompts, key, repr(asked), experts)
    path = Path(folder) / f"texts_{known[:16]}.json"
    held = _held(path, known)
    if held is None:
        held = draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, {"key": known, **held._asdict()})
    return held


def _identity(
    model: LanguageModel,
    prompts: Sequence[str],
    key: Array,
    asked: str,
    experts: Experts | None,
) -> str:
    """The SHA-256 of all that texts depend on."""
    words = np.asarray(jax.random.key_data(key)).tolist()
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    hashed = map(storage.hash_json, (list(prompts), words, vocabulary))
    parts = [asked, repr(model.config), *hashed]
    if experts is None:
        return cache_key(model.params, *parts)
    parts += [repr(experts.proxy.config), repr(float(experts.gamma))]
    return cache_key((model.params, experts.proxy.params), *parts)


def _held(path: Path, known: str) -> DrawnTexts | None:
    """The texts of a file, None where there are none or of something else."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("key") == known:
            return DrawnTexts(**found)
    except (ValueError, KeyError, TypeError, AttributeError):
        _logger.warning("%s is damaged: it is written again.", path)
    return None
