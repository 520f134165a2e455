"""Settings of the source of a model that writes, and the model that they make."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protojax import validate
from protojax.models import language
from protojax.models.config import DTYPES
from protojax.models.language.config import LanguageConfig
from protojax.models.language.model import LanguageModel, init_model, select_layers
from protojax.models.settings import SCRATCH

# What `scratch` gives.
SIZES = ("hidden_size", "num_layers", "encoder_layers", "num_heads")
SIZES += ("intermediate_size",)
SOURCE, CHAT = "{source}", "chat"


@dataclasses.dataclass(frozen=True)
class WriterSettings:
    """A pretrained language model, or the sizes of a fresh T5, and how it computes.

    Attributes:
        model: a hub id, a local folder, or "scratch" for fresh weights of the sizes in
            `scratch` and a tokenizer trained on the given texts.
        layers: keep these layers of the decoder; () keeps all.
        encoder_layers: keep these layers of the encoder; () keeps all.
        scratch: sizes of a fresh model, fields of `LanguageConfig`.
        prompt: the form in which the model reads a source: a text with "{source}" in
            it, such as "summarize: {source}", or "chat" for a message in the
            tokenizer's chat template.
        dropout: of embeddings, attention weights and what each layer adds.
        dtype: of the computation; parameters are float32.
        remat: whether activations are computed again in the backward pass.
    """

    model: str = SCRATCH
    layers: tuple[int, ...] = ()
    encoder_layers: tuple[int, ...] = ()
    scratch: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "hidden_size": 128,
            "num_layers": 2,
            "encoder_layers": 2,
            "num_heads": 4,
            "intermediate_size": 512,
        },
        # A dict has no hash; equality still compares it.
        hash=False,
    )
    prompt: str = SOURCE
    dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for field in ("layers", "encoder_layers"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            if self.model == SCRATCH:
                found = getattr(self, field)
                validate.require(not found, field, found, "() from scratch")
        fits = self.prompt == CHAT or self.prompt.count(SOURCE) == 1
        bound = f'"{CHAT}", or a text with {SOURCE} once'
        validate.require(fits, "prompt", self.prompt, bound)
        validate.one_of(
            SIZES, **{f"scratch.{n}": n for n in self.scratch if n not in SIZES}
        )
        bound = "in [0, 1)"
        validate.require(0 <= self.dropout < 1, "dropout", self.dropout, bound)
        validate.one_of(DTYPES, dtype=self.dtype)


def build_writer(
    settings: WriterSettings, *, seed: int, tokenizer: Callable[[], Any]
) -> LanguageModel:
    """An untrained or pretrained language model.

    A fresh one is a T5 1.0 (Raffel et al., 2019, arXiv:1910.10683), whose positions
    have no end.

    Args:
        settings: the source of the model.
        seed: the seed of fresh weights.
        tokenizer: makes the tokenizer of a model from scratch; not called for others.
    """
    if settings.model != SCRATCH:
        model = language.load_language_model(
            settings.model, dtype=settings.dtype, remat=settings.remat
        )
        if settings.layers or settings.encoder_layers:
            layers = settings.layers or tuple(range(model.config.num_layers))
            model = select_layers(
                model, layers, encoder_layers=settings.encoder_layers or None
            )
        config = dataclasses.replace(model.config, dropout=settings.dropout)
        return model._replace(config=config)
    words = tokenizer()
    heads = settings.scratch["num_heads"]
    config = LanguageConfig(
        family="t5",
        vocab_size=len(words),
        num_kv_heads=heads,
        head_dim=settings.scratch["hidden_size"] // heads,
        positions="relative",
        activation="relu",
        gated=False,
        float32_down=True,
        scale_attention=False,
        scale_head=True,
        pad_id=words.pad_token_id,
        start_id=words.pad_token_id,
        end_ids=(words.sep_token_id,),
        dropout=settings.dropout,
        dtype=settings.dtype,
        remat=settings.remat,
        **settings.scratch,
    )
    return init_model(config, seed=seed, tokenizer=words)


def prompts_of(tokenizer: Any, prompt: str, sources: Sequence[str]) -> list[str]:
    """The texts that a model reads for sources.

    Args:
        tokenizer: of the model; only its chat template is read.
        prompt: see `WriterSettings`.
        sources: `[rows]`, texts.

    Raises:
        ValueError: "chat" and a tokenizer without a chat template.

    >>> prompts_of(None, "summarize: {source}", ["A {b}."])
    ['summarize: A {b}.']
    """
    if prompt != CHAT:
        return [prompt.replace(SOURCE, source) for source in sources]
    if getattr(tokenizer, "chat_template", None) is None:
        bound = "another form: the tokenizer has no chat template"
        validate.require(False, "prompt", prompt, bound)
    found = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": source}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for source in sources
    ]
    # Some templates write the first token, which the tokenizer adds to each text too.
    first = tokenizer.bos_token
    if first and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        found = [text.removeprefix(first) for text in found]
    return found
