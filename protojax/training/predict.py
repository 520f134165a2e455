"""The outputs of a trained model over rows: logits, features and attention."""

import dataclasses
import itertools
import operator
from collections.abc import Callable

import jax
import numpy as np

from protojax import validate
from protojax.base import Examples, PyTree, TeacherOutputs
from protojax.data import batches
from protojax.data import tokens as tokens_lib
from protojax.data.sequences import Sequences
from protojax.models import MODELS, Model
from protojax.training import programs


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The maximum length of rows, and the lengths to which they are padded.

    Attributes:
        max_length: tokens of a row, including special tokens; longer rows are cut.
        buckets: ascending lengths; a program is compiled for each.
        steps_per_dispatch: steps of one compiled call.
        evaluation_rows: rows of an evaluation batch.
    """

    max_length: int = 128
    buckets: tuple[int, ...] = (16, 32, 48, 64, 96, 128)
    steps_per_dispatch: int = 8
    evaluation_rows: int = 64

    def __post_init__(self):
        object.__setattr__(self, "buckets", tuple(self.buckets))
        validate.positive(
            max_length=self.max_length,
            steps_per_dispatch=self.steps_per_dispatch,
            evaluation_rows=self.evaluation_rows,
        )
        ascending = bool(self.buckets) and list(self.buckets) == sorted({*self.buckets})
        validate.require(
            ascending and self.buckets[-1] >= self.max_length,
            "buckets",
            self.buckets,
            f"ascending, the last >= max_length={self.max_length}",
        )


@dataclasses.dataclass(frozen=True)
class SequenceLengths:
    """The maximum lengths of sources and outputs, and those they are padded to.

    Attributes:
        max_length: tokens of a source, including special tokens; longer ones are cut.
        max_output: tokens of an output, including the end token, likewise.
        buckets: ascending pairs of both lengths, neither of which may fall; a program
            is compiled for each.
        steps_per_dispatch: steps of one compiled call.
        evaluation_rows: rows of an evaluation batch.
    """

    max_length: int = 512
    max_output: int = 64
    buckets: tuple[tuple[int, int], ...] = ((128, 32), (512, 32), (512, 64))
    steps_per_dispatch: int = 8
    evaluation_rows: int = 32

    def __post_init__(self):
        object.__setattr__(self, "buckets", tuple(map(tuple, self.buckets)))
        validate.positive(
            max_length=self.max_length,
            max_output=self.max_output,
            steps_per_dispatch=self.steps_per_dispatch,
            evaluation_rows=self.evaluation_rows,
        )
        pairs = bool(self.buckets) and all(len(pair) == 2 for pair in self.buckets)
        validate.require(pairs, "buckets", self.buckets, "pairs of two lengths")
        need = self.max_length, self.max_output
        holds = all(map(operator.ge, self.buckets[-1], need))
        bound = f"whose last holds (max_length, max_output)={need}"
        validate.require(holds, "buckets", self.buckets, bound)
        rising = all(
            low != high and all(map(operator.le, low, high))
            for low, high in itertools.pairwise(self.buckets)
        )
        bound = "ascending, neither of both lengths falling"
        validate.require(rising, "buckets", self.buckets, bound)


AnyLengths = Lengths | SequenceLengths


@dataclasses.dataclass(frozen=True)
class Features:
    """The hidden states that are used as a row's features.

    Attributes:
        layers: 0 is the embeddings and -1 the last layer.
        pooling: how the hidden states of a row become one vector, "mean" or "cls".
    """

    layers: tuple[int, ...] = (-1,)
    pooling: str = "mean"

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        distinct = 0 < len(self.layers) == len({*self.layers})
        bound = "not empty and without repetition"
        validate.require(distinct, "layers", self.layers, bound)
        validate.one_of(("mean", "cls"), pooling=self.pooling)


def tokenize(model: Model, examples: Examples, lengths: Lengths) -> tokens_lib.Tokens:
    """The rows as a model's tokens, cut to the length that the model allows.

    Args:
        model: the model with its tokenizer.
        examples: the rows.
        lengths: the maximum length.
    """
    limit = MODELS[model.config.family].max_length(model.config)
    return tokens_lib.tokenize(
        model.tokenizer,
        examples,
        max_length=min(lengths.max_length, limit),
        vocab_size=model.config.vocab_size,
    )


def predict(
    model: Model, tokens: tokens_lib.Tokens, lengths: Lengths, features: Features
) -> TeacherOutputs:
    """A model's outputs over rows, in the order of the rows.

    Args:
        model: the model.
        tokens: the rows as the model's tokens.
        lengths: how rows are padded.
        features: the hidden states to return.

    Raises:
        ValueError: a token id outside the model's word embedding.
    """
    # JAX would give NaN, or another token's row, without an error.
    tokens_lib.check_ids(tokens, model.config.vocab_size)
    forward = programs.forward_of(model.config, features.layers, features.pooling)
    return TeacherOutputs(*over_rows(forward, model.params, tokens, lengths))


def ask(
    model: Model, examples: Examples, lengths: Lengths, features: Features
) -> TeacherOutputs:
    """A model's outputs over rows of text."""
    return predict(model, tokenize(model, examples, lengths), lengths, features)


def predict_attention(
    model: Model, tokens: tokens_lib.Tokens, lengths: Lengths
) -> np.ndarray:
    """The activity of each token in each layer, `[rows, layers, longest bucket]`."""
    tokens_lib.check_ids(tokens, model.config.vocab_size)
    forward = programs.attention_of(model.config, lengths.buckets[-1])
    return over_rows(forward, model.params, tokens, lengths)[0]


def over_rows(
    forward: Callable[..., tuple],
    params: PyTree,
    tokens: tokens_lib.Tokens | Sequences,
    lengths: AnyLengths,
    *,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """The outputs of a compiled function over all rows, in the order of the rows.

    Args:
        forward: `(params, batch) -> outputs`, a tuple of `[batch, ...]`.
        params: the first argument of `forward`.
        tokens: the rows.
        lengths: how rows are padded.
        labels: `[rows, ...]`, the labels in the batches; zeros by default, and none
            for `Sequences`.
    """
    plan = batches.plan_evaluation(
        tokens.lengths, batch_size=lengths.evaluation_rows, buckets=lengths.buckets
    )
    if labels is None and isinstance(tokens, tokens_lib.Tokens):
        labels = np.zeros(len(tokens.lengths), np.int32)
    # On the device once, instead of a transfer with every batch.
    params = jax.device_put(params)
    outputs = []
    for item in plan:
        stacked = batches.make_batch(tokens, labels, item)
        # A plan of evaluation has one step per dispatch.
        batch = jax.tree.map(lambda leaf: leaf[0], stacked)
        # Not read yet: the device works on while the host gathers the next batch.
        outputs.append(forward(params, batch))
    outputs = [jax.tree.map(lambda leaf: np.asarray(leaf)[None], o) for o in outputs]
    rows = len(tokens.lengths)
    return tuple(
        batches.collect(plan, list(part), rows) for part in zip(*outputs, strict=True)
    )
