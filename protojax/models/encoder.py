"""Encoders as pure functions: a config, a tree of parameters, an `ApplyFn`.

`MODELS` lists the families; one more is one more file and one more line here.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import ApplyFn, Array, Batch, ModelOutput, PyTree
from protojax.models.bert import BERT
from protojax.models.config import EncoderConfig, Family, check_layers
from protojax.models.distilbert import DISTILBERT
from protojax.models.electra import ELECTRA
from protojax.models.layers import Encoder, check_batch
from protojax.models.mpnet import MPNET
from protojax.models.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

MODELS: dict[str, Family] = {
    "bert": BERT,
    "camembert": CAMEMBERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
}


class Model(NamedTuple):
    """An encoder with its parameters, tokenizer and label names.

    Attributes:
        config: the settings of the computation; `apply_fn(config)` performs it.
        params: nested dict of float32 arrays, such as
            `params["layers_0"]["attention"]["query"]["kernel"]`.
        tokenizer: a transformers tokenizer, or None.
        label_names: the name of each class, in the order of the logits; empty where
            they have none.
    """

    config: EncoderConfig
    params: PyTree
    tokenizer: Any = None
    label_names: tuple[str, ...] = ()


def _encoder(config: EncoderConfig) -> Encoder:
    """The Flax module of a config, checked against its family."""
    validate.one_of(MODELS, family=config.family)
    family = MODELS[config.family]
    for name, value in family.fixed.items():
        found = getattr(config, name)
        validate.require(found == value, name, found, f"{value} in {config.family}")
    return Encoder(config, family.embed, family.head, family.attention_bias)


def max_length(config: EncoderConfig) -> int:
    """The largest number of tokens of a row, special tokens included.

    Args:
        config: the encoder.
    """
    validate.one_of(MODELS, family=config.family)
    return MODELS[config.family].max_length(config)


@functools.cache
def apply_fn(config: EncoderConfig) -> ApplyFn:
    """The function `(params, batch, *, key, hidden_states) -> ModelOutput`.

    Equal configs give the same function object, so functions jitted around it are
    compiled once. Dropout acts only where a key is given. Hidden states are in
    `config.dtype`, logits in float32; padding changes neither.

    >>> config = EncoderConfig(family="bert", vocab_size=9, hidden_size=8,
    ...     num_layers=1, num_heads=2, intermediate_size=8, max_positions=4)
    >>> ids = jnp.array([[1, 2, 3]])
    >>> batch = Batch(ids, ids * 0 + 1, ids * 0, jnp.array([0]), jnp.array([True]))
    >>> model = init_model(config, seed=0)
    >>> apply_fn(config)(model.params, batch).logits.shape
    (1, 2)

    Args:
        config: the encoder.

    Raises:
        ValueError: on a family that is not in `MODELS`, and when the function is
            called, on shapes that disagree or rows longer than the model reads.
    """
    encoder = _encoder(config)

    def apply(
        params: PyTree,
        batch: Batch,
        *,
        key: Array | None = None,
        hidden_states: bool = False,
    ) -> ModelOutput:
        # Shapes only, so that it costs nothing under jit.
        check_batch(batch, max_length(config))
        return encoder.apply(
            {"params": params},
            batch,
            deterministic=key is None,
            hidden_states=hidden_states,
            rngs=None if key is None else {"dropout": key},
        )

    return apply


@functools.cache
def param_shapes(config: EncoderConfig) -> PyTree:
    """The tree of parameters as `jax.ShapeDtypeStruct`s.

    Args:
        config: the encoder.
    """
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = Batch(ids, ids, ids, labels=None, where=None)
    init = _encoder(config).init
    # Shapes alone: nothing is compiled and nothing allocated.
    return jax.eval_shape(init, jax.random.key(0), batch)["params"]


def init_params(shapes: PyTree, *, seed: int) -> PyTree:
    """Fresh parameters: normal with deviation 0.02, zero biases, unit scales.

    Drawn with NumPy: Flax's own `init` compiles the forward pass first, and
    `jax.random` a program for every shape, which takes seconds.

    Args:
        shapes: the result of `param_shapes`, or a part of it.
        seed: a tensor's values depend on it and on the tensor's path.
    """

    def draw(path, leaf):
        if path[-1].key in ("kernel", "embedding"):
            name = jax.tree_util.keystr(path).encode()
            # By the path, so that a tensor is the same whatever others the model has;
            # not by `hash`, which differs between processes.
            rng = np.random.default_rng([seed, zlib.crc32(name)])
            values = rng.normal(0, 0.02, leaf.shape)
        else:
            values = np.full(leaf.shape, path[-1].key == "scale")
        # Not `jnp.asarray`, which compiles a program for every shape.
        return jax.device_put(values.astype(np.float32))

    return jax.tree.map_with_path(draw, shapes)


def init_model(config: EncoderConfig, *, seed: int, tokenizer: Any = None) -> Model:
    """A model with fresh parameters.

    Args:
        config: the encoder.
        seed: the seed of the parameters, >= 0.
        tokenizer: a transformers tokenizer, or None.
    """
    params = init_params(param_shapes(config), seed=seed)
    return Model(config, params, tokenizer)


def select_layers(model: Model, layers: Sequence[int]) -> Model:
    """A shallower model that starts from some layers of a deeper one.

    Embeddings and head are kept (Sanh et al., 2019, arXiv:1910.01108, start a student
    from every other layer of its teacher).

    >>> config = EncoderConfig(family="bert", vocab_size=9, hidden_size=8,
    ...     num_layers=3, num_heads=2, intermediate_size=8, max_positions=4)
    >>> student = select_layers(init_model(config, seed=0), (0, 2))
    >>> student.config.num_layers, sorted(student.params)
    (2, ['classifier', 'embeddings', 'layers_0', 'layers_1', 'pooler'])

    Args:
        model: the deeper model.
        layers: the layers to keep, ascending.
    """
    layers, depth = tuple(layers), model.config.num_layers
    check_layers(depth, layers=layers)
    params = {k: v for k, v in model.params.items() if not k.startswith("layers_")}
    for i, layer in enumerate(layers):
        params[f"layers_{i}"] = model.params[f"layers_{layer}"]
    config = dataclasses.replace(model.config, num_layers=len(layers))
    return model._replace(config=config, params=params)
