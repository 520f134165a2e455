"""Language models as a config, a tree of parameters and a tokenizer."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax.base import PyTree
from protojax.models.config import check_layers
from protojax.models.language.body import param_shapes
from protojax.models.language.config import LanguageConfig


class LanguageModel(NamedTuple):
    """A language model with its parameters and tokenizer.

    Attributes:
        config: the settings of the computation; `apply_fn(config)` performs it.
        params: nested dict of float32 arrays; those of the layers, such as
            `params["decoder"]["layers"]["mlp"]["up"]["kernel"]`, hold all layers of a
            stack on their first axis.
        tokenizer: a transformers tokenizer, or None.
    """

    config: LanguageConfig
    params: PyTree
    tokenizer: Any = None


def _deviation(config: LanguageConfig, path: tuple[str, ...]) -> float:
    """The standard deviation of a fresh kernel or embedding."""
    if config.scale_attention:
        if config.family == "gpt2" and path[-2] in ("output", "down"):
            # What layers add grows with their number (Radford et al., 2019).
            return 0.02 / (2 * config.num_layers) ** 0.5
        return 0.02
    # T5: the missing division of the scores by √head_dim is in the queries.
    width = config.hidden_size
    return {
        "embedding": 1.0,
        "query": (width * config.head_dim) ** -0.5,
        "output": (config.num_heads * config.head_dim) ** -0.5,
        "down": config.intermediate_size**-0.5,
    }.get(path[-2], width**-0.5)


def init_model(
    config: LanguageConfig, *, seed: int, tokenizer: Any = None
) -> LanguageModel:
    """A model with fresh parameters: normal kernels, zero biases, unit scales.

    The deviation is 0.02, in GPT-2 0.02 / √(2 layers) for what is added to the residual
    stream (Radford et al., 2019); in models that do not scale attention that of T5
    (Raffel et al., 2019, arXiv:1910.10683): 1 for the word embedding,
    (dim · head_dim)^−½ for queries, else 1 / √inputs. An untied head has 1 / √dim,
    where transformers has 1, as its states are not scaled.

    Args:
        config: the model.
        seed: the seed of the parameters, >= 0; a tensor's values depend on it and on
            the tensor's path.
        tokenizer: a transformers tokenizer, or None.
    """

    def draw(keys, leaf):
        path = tuple(key.key for key in keys)
        if path[-1] in ("kernel", "embedding"):
            # NumPy compiles nothing; `hash` differs between processes.
            rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
            values = rng.standard_normal(leaf.shape, np.float32)
            values *= np.float32(_deviation(config, path))
        else:
            values = np.full(leaf.shape, path[-1] == "scale", np.float32)
        # Not `jnp.asarray`, which compiles a program for every shape.
        return jax.device_put(values)

    params = jax.tree.map_with_path(draw, param_shapes(config))
    return LanguageModel(config, params, tokenizer)


def _taken(params: PyTree, stack: str, layers: Sequence[int], depth: int) -> PyTree:
    """The parameters with the given layers of a stack only."""
    name = "layers" if stack == "decoder" else "encoder_layers"
    check_layers(depth, **{name: tuple(layers)})
    rows = np.array(layers)
    kept = jax.tree.map(lambda leaf: leaf[rows], params[stack]["layers"])
    return {**params, stack: {**params[stack], "layers": kept}}


def select_layers(
    model: LanguageModel,
    layers: Sequence[int],
    *,
    encoder_layers: Sequence[int] | None = None,
) -> LanguageModel:
    """A shallower model that starts from some layers of a deeper one.

    All else is kept (Shleifer and Rush, 2020, arXiv:2010.13002, start students from
    every other layer of the decoder).

    >>> config = LanguageConfig(family="llama", vocab_size=9, hidden_size=8,
    ...     num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4,
    ...     intermediate_size=8, positions="rotary")
    >>> student = select_layers(init_model(config, seed=0), (0, 2))
    >>> student.params["decoder"]["layers"]["mlp"]["up"]["kernel"].shape
    (2, 8, 8)

    Args:
        model: the deeper model.
        layers: the decoder's layers to keep, ascending.
        encoder_layers: the encoder's, ascending; all by default.
    """
    config = model.config
    params = _taken(model.params, "decoder", layers, config.num_layers)
    depth = config.encoder_layers
    if encoder_layers is not None:
        params = _taken(params, "encoder", encoder_layers, depth)
        depth = len(encoder_layers)
    config = dataclasses.replace(config, num_layers=len(layers), encoder_layers=depth)
    return model._replace(config=config, params=params)
