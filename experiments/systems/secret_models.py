"""Decoders of characters, and what they know of planted secrets."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel

from protojax.base import Array, PyTree, SequenceBatch, Texts
from protojax.distillation.token_losses import token_log_probs
from protojax.federated.replicas import Surroundings
from protojax.generation import write_texts
from protojax.models import wrap_tokenizer
from protojax.models.language import (
    Cache,
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    init_model,
    split_layers,
    start_fn,
    step_fn,
)
from protojax.pipelines import Watch
from protojax.pipelines.outputs import Lesson, objective_of, teach
from protojax.pipelines.outputs.settings import TokenDistillation, Writer
from protojax.privacy.exposure import (
    exposure,
    greedily_discoverable,
    suffix_tree_log_probs,
)
from protojax.privacy.probes import Secret
from protojax.training import sequences
from protojax.training.predict import SequenceLengths, over_rows
from protojax.training.trainer import Store

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz "
DIGITS = "0123456789"
_POSITIONS = 128  # tokens that a decoder reads


def character_tokenizer(texts: Sequence[str]) -> Any:
    """A tokenizer of characters, with a token that begins a text.

    Args:
        texts: whose characters it knows, beside letters and digits.

    >>> tokenizer = character_tokenizer(["é?"])
    >>> tokenizer.decode(tokenizer("ab 1é").input_ids[1:])
    'ab 1é'
    """
    known = sorted({*_LETTERS, *DIGITS, *"".join(texts)})
    vocab = {token: i for i, token in enumerate((*_SPECIAL, *known))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    found = wrap_tokenizer(
        tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    # What is decoded is the text itself.
    found.clean_up_tokenization_spaces = False
    return found


def decoder_of(settings: Writer, tokenizer: Any, *, seed: int) -> LanguageModel:
    """A fresh Llama of given sizes, whose heads share keys and values.

    Args:
        settings: with the sizes in `scratch`, which has no encoder.
        tokenizer: of characters.
        seed: of the weights.
    """
    heads = settings.scratch["num_heads"]
    config = LanguageConfig(
        family="llama",
        vocab_size=len(tokenizer),
        # The caches of a thousand prefixes of codes are copied with each character.
        num_kv_heads=1,
        head_dim=settings.scratch["hidden_size"] // heads,
        positions="rotary",
        max_positions=_POSITIONS,
        pad_id=tokenizer.pad_token_id,
        end_ids=(tokenizer.eos_token_id,),
        dropout=settings.dropout,
        dtype=settings.dtype,
        remat=settings.remat,
        **settings.scratch,
    )
    return init_model(config, seed=seed, tokenizer=tokenizer)


def nll(model: LanguageModel, texts: Sequence[str], lengths: SequenceLengths) -> float:
    """The mean negative log likelihood of a character, the end of a text included.

    Args:
        model: a decoder of characters.
        texts: none longer than `lengths` allow.
        lengths: how they are padded.
    """
    rows = sequences.tokenize(model, [""] * len(texts), texts, lengths)
    (found,) = over_rows(_log_likelihood(model.config), model.params, rows, lengths)
    return -float(found.sum(dtype=np.float64) / rows.outputs.lengths.sum())


@functools.cache
def _log_likelihood(config: LanguageConfig):
    """`(params, batch) -> ([batch],)`, the log probability of each output."""
    apply, head = apply_fn(config), head_fn(config)

    @jax.jit
    def forward(params: PyTree, batch: SequenceBatch) -> tuple[Array]:
        logits = head(params, apply(params, batch).states)
        found = token_log_probs(logits, batch.output_ids)
        return ((found * (batch.output_weights > 0)).sum(-1),)

    return forward


class Asked(NamedTuple):
    """A decoder's answers to the prompts of secrets.

    Attributes:
        log_probs: `[secrets, 10000]`, of all codes, in the order of counting.
        exposure: `[secrets]`, the bits by which it narrows down each code; the rank
            among all is exact, nothing is extrapolated.
        completed: `[secrets]`, bool, whether its most probable characters spell the
            code.
    """

    log_probs: np.ndarray
    exposure: np.ndarray
    completed: np.ndarray


def ask(model: LanguageModel, secrets: Sequence[Secret]) -> Asked:
    """A decoder's answers to the prompts of secrets.

    Args:
        model: a decoder of characters.
        secrets: whose codes are four digits at the end of the sentence.

    Source: Carlini et al. 2019, arXiv:1802.08232.
    """
    start, step = _programs(model.config)
    params, tokenizer = split_layers(model.params), model.tokenizer
    prompts = tokenizer([one.text.removesuffix(one.code) for one in secrets])
    prompts = prompts["input_ids"]
    width, size = max(map(len, prompts)), len(secrets[0].code)
    digits = np.array(tokenizer.convert_tokens_to_ids(list(DIGITS)))
    codes = np.array([[int(digit) for digit in one.code] for one in secrets])
    trees, paths = [], []
    for prompt, code in zip(prompts, codes, strict=True):
        ids = np.full((1, width), model.config.pad_id, np.int32)
        ids[0, width - len(prompt) :] = prompt
        mask = (np.arange(width) >= width - len(prompt)).astype(np.int32)[None]
        cache, logits = start(params, ids, mask, max_new=size)
        said = [logits]

        def appended(cache: Cache, tokens: Array, said=said) -> tuple[Cache, Array]:
            cache, logits = step(params, cache, tokens)
            said.append(logits)
            return cache, logits

        tree = suffix_tree_log_probs(appended, cache, logits, digits, size)
        trees.append(np.asarray(tree))
        # The place of the code's own prefix among those of its length.
        places = [int("".join(map(str, code[:k])) or 0) for k in range(size)]
        paths.append([np.asarray(x)[at] for x, at in zip(said, places, strict=True)])
    log_probs = np.stack(trees)
    return Asked(
        log_probs,
        exposure(log_probs, codes @ 10 ** np.arange(size)[::-1]),
        greedily_discoverable(np.array(paths), digits[codes]),
    )


@functools.cache
def _programs(config: LanguageConfig):
    """`start_fn` and `step_fn`, compiled."""
    start = jax.jit(start_fn(config), static_argnames="max_new")
    return start, jax.jit(step_fn(config))


def writer_of(
    texts: Sequence[str],
    settings: Writer,
    lengths: SequenceLengths,
    folder: pathlib.Path,
    watch: Watch,
    *,
    seed: int,
) -> LanguageModel:
    """A decoder of characters that has learned texts, to write more of them.

    Args:
        texts: those that are too long for `lengths` are left out.
        settings: of the decoder, its sizes and its training.
        lengths: of texts.
        folder: of its checkpoints.
        watch: is told of the progress.
        seed: of the weights and of the order.
    """
    room = lengths.max_output - 1  # and the end
    texts = [text.lower() for text in texts if 0 < len(text) <= room]
    around = Surroundings(
        lengths,
        lambda name: Store(folder / name, every=50),
        watch.describe,
        watch.advance,
    )
    start = decoder_of(settings, character_tokenizer(texts), seed=seed)
    lesson = Lesson(
        Texts([""] * len(texts), texts),
        objective_of(TokenDistillation(hard_weight=1.0)),
    )
    return teach(start, settings, lesson, around, seed=seed, name="writer")


def free_texts(
    model: LanguageModel, number: int, *, longest: int, batch_size: int, seed: int
) -> list[str]:
    """Texts that a model writes from nothing, at temperature 1; some may be empty.

    Args:
        model: a decoder of characters.
        number: of texts.
        longest: the most characters of one, its end included.
        batch_size: rows that are written together.
        seed: of the draws.
    """
    return write_texts(
        model,
        [""] * number,
        max_new=longest,
        max_length=2,
        batch_size=batch_size,
        seed=seed,
        temperature=1.0,
    )
