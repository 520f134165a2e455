"""Texts in, texts out."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from protojax import validate
from protojax.base import Examples
from protojax.data import batches
from protojax.data.tokens import Tokens, tokenize
from protojax.generation.beams import beam_search
from protojax.generation.sampling import Generated, generate
from protojax.models.language import LanguageModel, split_layers, start_fn, step_fn

_logger = logging.getLogger("protojax")

# The shortest padded length; each further one is twice as long.
_SHORTEST = 32

# transformers writes a number above for a tokenizer whose model's limit is not known.
_UNKNOWN_LENGTH = 10**9


def write_texts(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    max_new: int,
    batch_size: int = 32,
    max_length: int | None = None,
    stop_ids: Iterable[int] | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The texts that a model writes for texts, in their order.

    The texts are tokenised as they are: a chat template is the caller's. Rows of
    similar length are written together; a program is compiled for each padded length
    (32, 64, 128, ...). What is sampled for a text depends on the seed and the text's
    place in the list, not on the batch size.

    >>> from protojax.data.wordpiece import train_wordpiece
    >>> from protojax.models import wrap_tokenizer
    >>> from protojax.models.language import LanguageConfig, init_model
    >>> tokenizer = wrap_tokenizer(train_wordpiece(["a b"], vocab_size=200))
    >>> config = LanguageConfig(family="llama", vocab_size=200, hidden_size=8,
    ...     num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=8,
    ...     positions="rotary", end_ids=(3,))
    >>> model = init_model(config, seed=0, tokenizer=tokenizer)
    >>> [text] = write_texts(model, ["a b"], max_new=3)
    >>> len(text.split()) <= 3
    True

    Args:
        model: a language model with its tokenizer.
        texts: the prompts, or the sources of an encoder-decoder.
        max_new: the most tokens to write, the stop token included.
        batch_size: rows that are written together; the last batch is filled up.
        max_length: the most tokens of a text; longer ones are cut, which is logged
            once. By default the tokenizer's `model_max_length`; never more than the
            model reads.
        stop_ids: the ids that end a text; `model.config.end_ids` if not given.
        seed: of the sampling.
        temperature: see `generate`, as `top_k` and `top_p`; not with beams.
        top_k: see `generate`.
        top_p: see `generate`.
        beams: see `beam_search`, as `length_penalty` and `early_stopping`; 1 for none.
        length_penalty: see `beam_search`.
        early_stopping: see `beam_search`.
        progress: called with the number of texts done and of all texts after each
            batch.

    Raises:
        ValueError: on a setting out of its range, a text without tokens, or a model
            that has no room for `max_new` tokens.
    """
    validate.positive(max_new=max_new, batch_size=batch_size, beams=beams)
    greedy = temperature == 0 or beams == 1
    validate.require(greedy, "temperature", temperature, "0 with beams > 1")
    validate.require(model.tokenizer is not None, "tokenizer", None, "a tokenizer")
    if not texts:
        return []
    limit = _limit(model, texts, max_new, max_length)
    tokens = _tokens(model, texts, limit)
    config = model.config
    settings = {
        "max_new": max_new,
        "stop_ids": config.end_ids if stop_ids is None else stop_ids,
        "pad_id": config.pad_id,
    }
    # On the device and apart by layers once, not with every batch.
    functions = start_fn(config), step_fn(config), split_layers(model.params)
    keys = jax.random.split(jax.random.key(seed), len(texts)) if temperature else None

    def write(rows: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> Generated:
        given = *functions, jax.device_put(ids), jax.device_put(mask)
        if beams > 1:
            options = {"early_stopping": early_stopping, "beams": beams}
            options["length_penalty"] = length_penalty
            return beam_search(*given, **settings, **options)
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        key = None if keys is None else keys[np.maximum(rows, 0)]
        return generate(*given, **settings, key=key, **options)

    found, done = [""] * len(texts), 0
    # Rows of similar length tend to end together.
    order = np.argsort(tokens.lengths, kind="stable")
    buckets = _buckets(tokens.input_ids.shape[1], limit)
    plan = batches.plan_evaluation(
        tokens.lengths[order], batch_size=batch_size, buckets=buckets
    )
    for length, (places,) in plan:
        rows = np.where(places < 0, -1, order[places])
        padded = _padded(tokens, rows, length, left=config.encoder_layers == 0)
        written = jax.device_get(write(rows, *padded))
        for place in np.flatnonzero(rows >= 0):
            # Without the stop token, which need not be special to the tokenizer.
            size = written.where[place].sum() - written.ended[place]
            found[rows[place]] = model.tokenizer.decode(
                written.ids[place, :size], skip_special_tokens=True
            )
        done += int((rows >= 0).sum())
        if progress is not None:
            progress(done, len(texts))
    return found


def _limit(
    model: LanguageModel, texts: Sequence[str], max_new: int, max_length: int | None
) -> int:
    """The most tokens of a text."""
    most = model.config.max_positions
    if most > 0 and model.config.encoder_layers == 0:
        # The last token written is not read.
        most -= max_new - 1
        bound = f"<= {model.config.max_positions}, what the model reads"
        validate.require(most > 0, "max_new", max_new, bound)
    if max_length is None:
        max_length = model.tokenizer.model_max_length
    limits = [limit for limit in (most, max_length) if 0 < limit < _UNKNOWN_LENGTH]
    # Without any limit the longest text, and one more so that no text is cut.
    return min(limits) if limits else 1 + max(_lengths(model.tokenizer, texts))


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text, none cut."""
    return [len(ids) for ids in tokenizer(list(texts))["input_ids"]]


def _tokens(model: LanguageModel, texts: Sequence[str], limit: int | None) -> Tokens:
    """The tokens of the texts, cut to the limit; logs how many were."""
    tokens = tokenize(
        model.tokenizer,
        Examples(texts, None, np.zeros(len(texts), np.int32)),
        max_length=limit,
        vocab_size=model.config.vocab_size,
    )
    tokens = tokens._replace(input_ids=tokens.input_ids[:, : tokens.lengths.max()])
    empty = np.flatnonzero(tokens.lengths == 0)
    if empty.size:
        raise ValueError(
            f"Expected texts of at least one token, found text {empty[0]} with none: "
            f"{texts[empty[0]]!r}."
        )
    full = [texts[row] for row in np.flatnonzero(tokens.lengths == limit)]
    cut = sum(size > limit for size in _lengths(model.tokenizer, full)) if full else 0
    if cut:
        _logger.warning(
            "Cut %d of %d texts to %d tokens, the most that is read.",
            cut,
            len(texts),
            limit,
        )
    return tokens


def _buckets(longest: int, limit: int) -> list[int]:
    """The padded lengths up to the one that holds the longest row.

    >>> _buckets(100, 512), _buckets(100, 120)
    ([32, 64, 128], [32, 64, 120])
    """
    found = [min(_SHORTEST, limit)]
    while found[-1] < longest:
        found.append(min(2 * found[-1], limit))
    return found


def _padded(
    tokens: Tokens, rows: np.ndarray, length: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask `[batch, length]` of some rows, all padding where a row is -1.

    >>> tokens = Tokens(np.array([[5, 6, 7], [8, 0, 0]]), None, np.array([3, 1]), 0)
    >>> ids, mask = _padded(tokens, np.array([1, 0, -1]), 4, left=True)
    >>> ids.tolist()
    [[0, 0, 0, 8], [0, 5, 6, 7], [0, 0, 0, 0]]
    """
    lengths = np.where(rows < 0, 0, tokens.lengths[rows])[:, None]
    held = np.arange(tokens.input_ids.shape[1]) < lengths
    mask = np.arange(length) < lengths
    if left:
        mask = mask[:, ::-1]
    ids = np.full(mask.shape, tokens.pad_id, np.int32)
    # Row by row, both hold as many tokens in the same order.
    ids[mask] = tokens.input_ids[rows][held]
    return ids, mask.astype(np.int32)
