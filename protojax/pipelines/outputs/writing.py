"""Texts that models write, kept in files, and vectors of texts."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from protojax import generation, storage
from protojax.base import Examples, Texts
from protojax.detection.outputs import Vectors
from protojax.distillation.teacher import cache_key
from protojax.models import Model
from protojax.models.language import LanguageModel, prompts_of
from protojax.pipelines.outputs.settings import Decoding
from protojax.training import predict
from protojax.training.predict import Features, Lengths, SequenceLengths

_logger = logging.getLogger("protojax")
# Rows after which the file is written, so that a killed run goes on from there.
CHUNK = 2048


def write(
    folder: Path,
    name: str,
    model: LanguageModel,
    sources: Sequence[str],
    lengths: SequenceLengths,
    decoding: Decoding,
    describe: Callable[[str], None] = lambda text: None,
    *,
    prompt: str = "{source}",
) -> list[str]:
    """The texts that a model writes for sources, kept in a file.

    A file that was made from something else, or is damaged, is written anew. A killed
    run goes on at a multiple of `CHUNK` rows.

    Args:
        folder: of the file.
        name: the beginning of the file's name, and of the work in the progress bar.
        model: the model with its tokenizer.
        sources: `[rows]`, texts.
        lengths: the most tokens of a source and of an output.
        decoding: how the model writes.
        describe: called with a description of the current work.
        prompt: the form in which the model reads a source, see `WriterSettings`.
    """
    sources = prompts_of(model.tokenizer, prompt, sources)
    settings = (model.config, decoding, lengths.max_length, lengths.max_output)
    digest = storage.hash_json(sources)
    key = cache_key(model.params, digest, repr(settings))
    path = folder / f"{name}_{key[:16]}.json"
    texts, shown = _held(path, key), name.replace("_", " ")
    path.parent.mkdir(parents=True, exist_ok=True)
    while len(texts) < len(sources):
        first = len(texts)

        def progress(done: int, total: int, first: int = first) -> None:
            describe(f"{shown}: {first + done:,} of {len(sources):,} rows")

        texts += generation.write_texts(
            model,
            sources[first : first + CHUNK],
            max_new=lengths.max_output,
            max_length=lengths.max_length,
            batch_size=decoding.batch_size,
            beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            progress=progress,
        )
        storage.write_json(path, {"key": key, "texts": texts})
    return texts


def _held(path: Path, key: str) -> list[str]:
    """The texts that a file holds so far, [] where it is of something else."""
    if not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["key"] == key:
            return list(held["texts"])
    except (ValueError, KeyError, TypeError):
        _logger.warning("%s is damaged: it is written again.", path)
    return []


def vectors_of(encoder: Model, texts: Texts, lengths: Lengths) -> Vectors:
    """The vectors of sources and outputs: means of an encoder's last hidden states.

    Args:
        encoder: the model; its head is not read.
        texts: the rows.
        lengths: how they are padded.
    """

    def read(column: Sequence[str]) -> np.ndarray:
        # A model may write nothing, which has no tokens.
        column = [text if text.strip() else "." for text in column]
        examples = Examples(column, None, np.zeros(len(column), np.int32))
        return predict.ask(encoder, examples, lengths, Features()).features[:, -1]

    return Vectors(*map(read, texts))
