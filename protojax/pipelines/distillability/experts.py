"""A teacher whose logits are moved towards a proxy's while it writes and is read."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from protojax import validate
from protojax.base import Array, PyTree, SequenceBatch
from protojax.data.sequences import check_same_tokens
from protojax.distillability import product_of_experts
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    split_layers,
    start_fn,
    step_fn,
)


class Experts(NamedTuple):
    """A product of experts: a defence that trains nothing.

    Attributes:
        proxy: a decoder with the teacher's tokens.
        gamma: its share, in [0, 1], see `distillability.product_of_experts`.
    """

    proxy: LanguageModel
    gamma: float

    def checked(self, teacher: LanguageModel) -> "Experts":
        """The same, if it fits a teacher.

        Args:
            teacher: with its tokenizer.

        Raises:
            ValueError: other tokens or rows of embeddings, or a share out of bounds.
        """
        validate.fraction(gamma=self.gamma)
        check_same_tokens(teacher.tokenizer, self.proxy.tokenizer)
        rows, most = self.proxy.config.vocab_size, teacher.config.vocab_size
        bound = f"the teacher's {most}"
        validate.require(rows == most, "vocab_size of the proxy", rows, bound)
        return self


def writer_of(
    model: LanguageModel, experts: Experts | None
) -> tuple[Callable, Callable, PyTree]:
    """The functions and parameters that `generation.generate` writes with.

    Args:
        model: the teacher.
        experts: that it writes together with, or None.
    """
    if experts is None:
        config = model.config
        return start_fn(config), step_fn(config), split_layers(model.params)
    params = split_layers(model.params), split_layers(experts.proxy.params)
    configs = model.config, experts.proxy.config
    return *_writer_fns(*configs, float(experts.gamma)), params


@functools.cache
def _writer_fns(
    config: LanguageConfig, proxy: LanguageConfig, gamma: float
) -> tuple[Callable, Callable]:
    """`start` and `step` of both models; parameters and caches are pairs."""
    starts, steps = zip(
        *((start_fn(one), step_fn(one)) for one in (config, proxy)), strict=True
    )

    def start(params: PyTree, *given: Array, max_new: int) -> tuple[PyTree, Array]:
        parts = [
            one(own, *given, max_new=max_new)
            for one, own in zip(starts, params, strict=True)
        ]
        return joined(parts)

    def step(params: PyTree, cache: PyTree, tokens: Array) -> tuple[PyTree, Array]:
        parts = [
            one(own, held, tokens)
            for one, own, held in zip(steps, params, cache, strict=True)
        ]
        return joined(parts)

    def joined(parts: list) -> tuple[PyTree, Array]:
        caches, logits = zip(*parts, strict=True)
        return caches, product_of_experts(*logits, gamma)

    return start, step


def reader_of(
    config: LanguageConfig, experts: Experts | None
) -> tuple[Callable[[PyTree, SequenceBatch], Any], Callable[[PyTree, Any], Array]]:
    """The functions that read a batch: states of tokens, and logits from some of them.

    Args:
        config: of the teacher.
        experts: that it is read together with, or None.

    Returns:
        `(params, batch) -> states`, a tuple of `[batch, length, hidden]`, and
        `(params, *states) -> logits`; parameters are those of `params_of`.
    """
    if experts is None:
        return _reader_fns(config, None, 0.0)
    return _reader_fns(config, experts.proxy.config, float(experts.gamma))


def params_of(model: LanguageModel, experts: Experts | None) -> tuple[PyTree, ...]:
    """The parameters of a teacher and of the proxy that it is read with."""
    return (model.params,) if experts is None else (model.params, experts.proxy.params)


@functools.cache
def _reader_fns(config: LanguageConfig, proxy: LanguageConfig | None, gamma: float):
    """`reader_of` of configs."""
    configs = (config,) if proxy is None else (config, proxy)

    def states_of(params: PyTree, batch: SequenceBatch) -> tuple[Array, ...]:
        pairs = zip(configs, params, strict=True)
        return tuple(apply_fn(one)(own, batch).states for one, own in pairs)

    def logits_of(params: PyTree, *states: Array) -> Array:
        rows = zip(configs, params, states, strict=True)
        logits = [head_fn(one)(own, part) for one, own, part in rows]
        return logits[0] if proxy is None else product_of_experts(*logits, gamma)

    return states_of, logits_of
