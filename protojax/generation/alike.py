"""Texts that a language model writes after the pattern of others."""

from collections.abc import Callable, Sequence

import numpy as np

from protojax import validate
from protojax.generation.texts import write_texts
from protojax.models.language import LanguageModel

# Rounds in which texts that were empty or there already are written anew.
_ROUNDS = 4


def write_alike(
    model: LanguageModel,
    texts: Sequence[str],
    number: int,
    *,
    shown: int = 4,
    max_new: int = 48,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """New texts that a model writes after some that it is shown, each once.

    A prompt is some of the texts, drawn anew for each row, one a line; what the model
    writes up to the end of the line is a text. One that is empty, that is among those
    that it could be shown, or that was written before, is written again.

    Args:
        model: with its tokenizer. It should never have seen what the texts must not
            tell; what it knows, it may write.
        texts: to show; not read where none is shown.
        number: of texts to write.
        shown: texts in a prompt; 0 writes from nothing, by a model that learned such
            texts and whose tokenizer begins a text with a token.
        max_new: the most tokens of a text.
        temperature: of the sampling, > 0.
        batch_size: rows that are written together.
        seed: of the texts that are shown and of the sampling.
        progress: as of `write_texts`, of each round.

    Raises:
        ValueError: on numbers out of range, too few texts to show, or a model that
            writes the same again and again.
    """
    validate.positive(number=number, temperature=temperature)
    bound = f"in [0, {len(texts)}], the texts there are"
    validate.require(0 <= shown <= len(texts), "shown", shown, bound)
    # On one line each, as the model shall write them.
    known = [" ".join(text.split()) for text in texts]
    old, rng = {*known}, np.random.default_rng(seed)
    found: dict[str, None] = {}
    for turn in range(_ROUNDS):
        missing = number - len(found)
        if not missing:
            break
        prompts = [""] * missing
        if shown:
            drawn = [rng.permutation(len(known))[:shown] for _ in prompts]
            prompts = ["".join(f"{known[row]}\n" for row in rows) for rows in drawn]
        written = write_texts(
            model,
            prompts,
            max_new=max_new,
            batch_size=batch_size,
            seed=int(np.random.default_rng((seed, turn)).integers(2**31)),
            temperature=temperature,
            progress=progress,
        )
        lines = (text.strip().partition("\n")[0].strip() for text in written)
        found |= dict.fromkeys(line for line in lines if line and line not in old)
    bound = f"at most {len(found)}, the different texts that the model wrote"
    validate.require(len(found) == number, "number", number, bound)
    return list(found)
