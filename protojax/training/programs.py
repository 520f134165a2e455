"""Compiled programs, cached by the settings that determine them.

A step is compiled at most once per model, objective, optimiser and bucket shape in the
life of a process; `TRACES` counts the compilations.
"""

import collections
import functools
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from protojax import distillation, models
from protojax.base import Batch, PyTree, SequenceBatch
from protojax.models import EncoderConfig
from protojax.models.language import LanguageConfig
from protojax.training import objective as objectives
from protojax.training.objective import Objective
from protojax.training.step import AdamW, Step, make_dispatch, make_step

logger = logging.getLogger("protojax")

# (function, shape) -> the number of times it was traced, hence compiled.
TRACES: collections.Counter[tuple[str, tuple[int, ...]]] = collections.Counter()


def clear_caches_near_limit(*, fraction: float = 0.5) -> None:
    """Clears JAX's compilation caches when memory maps approach vm.max_map_count.

    Each CPU program holds dozens of memory mappings, and the compiler crashes when none
    is left. A study with many arms and lengths reaches the limit within hours.

    Args:
        fraction: the share of the limit at which the caches are cleared.
    """
    try:
        limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
        used = pathlib.Path("/proc/self/maps").read_text().count("\n")
    except OSError:  # not Linux: no such limit
        return
    if used > fraction * limit:
        logger.info("Compiled programs are cleared: %d of %d mappings.", used, limit)
        jax.clear_caches()


def shape_of(batch: Batch | SequenceBatch) -> tuple[int, ...]:
    """The shape that a program is compiled for: of source ids and output tokens."""
    written = getattr(batch, "output_ids", None)
    return batch.input_ids.shape + (() if written is None else written.shape[-1:])


def step_of(
    config: EncoderConfig | LanguageConfig, objective: Objective, optimizer: AdamW
) -> tuple[Step, AdamW, Callable[[Batch], None]]:
    """One optimiser step, its optimiser, and a function that counts compilations.

    Args:
        config: the model's config.
        objective: the objective to minimise.
        optimizer: the optimiser's settings.
    """
    name = f"{objective}/{config.num_layers}x{config.hidden_size}"
    name += f"/{optimizer.learning_rate:g}"

    def count(stacked: Batch | SequenceBatch) -> None:
        TRACES[name, shape_of(stacked)] += 1

    transformation = optimizer.build()
    grad_fn = objectives.build(objective, config)
    return make_step(grad_fn, transformation), transformation, count


@functools.cache
def dispatch_of(
    config: EncoderConfig | LanguageConfig, objective: Objective, optimizer: AdamW
):
    """The compiled dispatch of `step_of`'s step, and its optimiser."""
    step, transformation, count = step_of(config, objective, optimizer)
    return make_dispatch(step, on_trace=count), transformation


@functools.cache
def forward_of(config: EncoderConfig, layers: tuple[int, ...], pooling: str):
    """`(params, batch) -> (logits, features)`, compiled once per shape."""
    apply = models.apply_fn(config)
    name = f"forward/{config.num_layers}x{config.hidden_size}/{layers}"

    @jax.jit
    def forward(params: PyTree, batch: Batch):
        # Runs when the function is traced only, hence once per compilation.
        TRACES[name, batch.input_ids.shape] += 1
        output = apply(params, batch, hidden_states=True)
        pooled = distillation.features(
            output, batch.attention_mask, layers=layers, pooling=pooling
        )
        return output.logits, pooled

    return forward


@functools.cache
def attention_of(config: EncoderConfig, max_length: int):
    """`(params, batch) -> (attention,)`, padded to one length."""
    apply = models.apply_fn(config)

    @jax.jit
    def forward(params: PyTree, batch: Batch):
        output = apply(params, batch, hidden_states=True)
        found = distillation.attention(output, batch.attention_mask)
        # All buckets return one width, so that rows of different lengths can be joined.
        return (jnp.pad(found, ((0, 0), (0, 0), (0, max_length - found.shape[2]))),)

    return forward
