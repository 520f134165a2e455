"""The types that every part of protojax shares.

A model is a pure function of parameters and a `Batch`; a loss is a pure function that
returns one value per row; a defence turns one loss into another; a gradient rule turns
a loss into gradients. Nothing here computes anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PyTree = Any

# The output of a model: one of several classes, or one score.
PROBLEMS = ("classification", "regression")


class Prototypes(NamedTuple):
    """A few vectors that represent many rows.

    Attributes:
        vectors: `[num_prototypes, dim]`, float32.
        labels: `[num_prototypes]`, int32, the class of each prototype, -1 for none.
        counts: `[num_prototypes]`, float32, how many rows each one represents.
    """

    vectors: Array
    labels: Array
    counts: Array


class Examples(NamedTuple):
    """Raw rows of a task, on the host.

    Attributes:
        texts: `[rows]`, the first (or only) text of each row.
        pairs: `[rows]`, the second text of each row, or None for one-text tasks.
        labels: `[rows]`, int32 classes, or float32 scores of a regression task.
        sources: `[rows]`, the origin of each row (a site, a user), or None.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: np.ndarray
    sources: Sequence[str] | None = None


class Texts(NamedTuple):
    """Raw rows of a task whose output is text, on the host.

    Attributes:
        sources: `[rows]`, the text that is given.
        outputs: `[rows]`, the text that is wanted.
    """

    sources: Sequence[str]
    outputs: Sequence[str]

    def take(self, rows: np.ndarray) -> "Texts":
        """Some of the rows.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        places = np.arange(len(self.sources))[rows]
        return Texts(*([column[place] for place in places] for column in self))

    def join(self, other: "Texts") -> "Texts":
        """The rows, and behind them those of others.

        Args:
            other: further rows.
        """
        return Texts([*self.sources, *other.sources], [*self.outputs, *other.outputs])


class Batch(NamedTuple):
    """Rows of one step, padded to one length. Never says which rows are poisoned.

    Attributes:
        input_ids: `[batch, length]`, int32.
        attention_mask: `[batch, length]`, int32, 1 on tokens and 0 on padding.
        token_type_ids: `[batch, length]`, int32, 1 on the second text of a pair.
        labels: `[batch]`, int32 classes or float32 scores.
        where: `[batch]`, bool, False on rows that are padding.
        teacher_logits: `[batch, num_labels]`, float32, or None.
        teacher_features: `[batch, layers, dim]`, float32, pooled states, or None.
        assigned_class: `[batch]`, int32, the class whose prototypes constrain the row,
            or None.
        teacher_attention: `[batch, layers, max_length]`, float32, how active each token
            is, see `distillation.attention`, or None.
        perturbation: `[batch, length, dim]`, added to the embeddings, or None.
    """

    input_ids: Array
    attention_mask: Array
    token_type_ids: Array
    labels: Array
    where: Array
    teacher_logits: Array | None = None
    teacher_features: Array | None = None
    assigned_class: Array | None = None
    teacher_attention: Array | None = None
    perturbation: Array | None = None


class ModelOutput(NamedTuple):
    """The outputs of a model for a batch.

    Attributes:
        logits: `[batch, num_labels]`, float32.
        hidden_states: `num_layers + 1` arrays `[batch, length, dim]`, the embeddings
            first; empty unless requested.
    """

    logits: Array
    hidden_states: tuple[Array, ...] = ()


class SequenceBatch(NamedTuple):
    """Rows of one step of a model that writes: sources, and what is to be written.

    Attributes:
        input_ids: `[batch, length]`, int32, the source or the prompt.
        attention_mask: `[batch, length]`, int32, 1 on tokens and 0 on padding.
        output_ids: `[batch, output_length]`, int32, the end token included, 0 beyond.
        output_weights: `[batch, output_length]`, float32, how much each output token
            teaches: 0 on padding, and on tokens that shall not be taught.
        where: `[batch]`, bool, False on rows that are padding.
        top_ids: `[batch, output_length, k]`, int32, the teacher's k most probable
            tokens, or None.
        top_log_probs: `[batch, output_length, k]`, float32 or float16, their log
            probabilities, or None.
        rest_log_prob: `[batch, output_length]`, float32, the log probability of all
            other tokens together, or None.
        teacher_features: `[batch, layers, dim]`, float32, pooled states of the source,
            or None.
        assigned_class: `[batch]`, int32, the class whose prototypes constrain the row,
            or None.
        perturbation: `[batch, length, dim]`, added to the source's embeddings, or None.
    """

    input_ids: Array
    attention_mask: Array
    output_ids: Array
    output_weights: Array
    where: Array
    top_ids: Array | None = None
    top_log_probs: Array | None = None
    rest_log_prob: Array | None = None
    teacher_features: Array | None = None
    assigned_class: Array | None = None
    perturbation: Array | None = None


class SequenceOutput(NamedTuple):
    """The states of a model that writes, for a batch, before the head.

    Attributes:
        states: `[batch, output_length, dim]`: the head maps state `t`, which has seen
            the source and `output_ids[:, :t]`, to the logits of `output_ids[:, t]`.
        hidden_states: arrays `[batch, length, dim]` of the source, the embeddings
            first; empty unless requested.
    """

    states: Array
    hidden_states: tuple[Array, ...] = ()


class TeacherOutputs(NamedTuple):
    """The outputs of a model for given rows, on the host.

    Attributes:
        logits: `[rows, num_labels]`, float32.
        features: `[rows, layers, dim]`, float32, pooled hidden states.
    """

    logits: np.ndarray
    features: np.ndarray

    def take(self, rows: np.ndarray) -> "TeacherOutputs":
        """The outputs for the given rows.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        return TeacherOutputs(self.logits[rows], self.features[rows])


class SequenceOutputs(NamedTuple):
    """Outputs that a teacher wrote or read, with its probabilities, on the host.

    A token takes 8 + 6 k bytes: 104 at k = 16.

    Attributes:
        ids: `[rows, output_length]`, int32, the end token included, 0 beyond.
        lengths: `[rows]`, int32, how many of the ids are tokens.
        top_ids: `[rows, output_length, k]`, int32, the most probable tokens.
        top_log_probs: `[rows, output_length, k]`, float16, whose digits are finer than
            bfloat16's and whose range suffices.
        rest_log_prob: `[rows, output_length]`, float32, of all other tokens together.
        features: `[rows, layers, dim]`, float32, pooled hidden states of the source.
    """

    ids: np.ndarray
    lengths: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray
    rest_log_prob: np.ndarray
    features: np.ndarray

    def take(self, rows: np.ndarray) -> "SequenceOutputs":
        """The outputs for the given rows.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        return SequenceOutputs(*(array[rows] for array in self))


class TrainState(NamedTuple):
    """The training state of one node.

    Attributes:
        params: the student's parameters.
        opt_state: the optimiser's state.
        prototypes: the prototypes that constrain the student, or None.
        step: scalar int32, optimiser steps taken.
        key: the node's PRNG key.
    """

    params: PyTree
    opt_state: PyTree
    prototypes: Prototypes | None
    step: Array
    key: Array


class ApplyFn(Protocol):
    """`(params, batch) -> ModelOutput`; dropout acts only where a key is given."""

    def __call__(
        self,
        params: PyTree,
        batch: Batch,
        *,
        key: Array | None = None,
        hidden_states: bool = False,
    ) -> ModelOutput:
        """The logits and, if requested, all hidden states."""
        ...


class SequenceApplyFn(Protocol):
    """`(params, batch) -> SequenceOutput`; dropout acts only where a key is given."""

    def __call__(
        self,
        params: PyTree,
        batch: SequenceBatch,
        *,
        key: Array | None = None,
        hidden_states: bool = False,
    ) -> SequenceOutput:
        """The states before the head and, if requested, the source's hidden states."""
        ...


# (params, batch, prototypes, step, key) -> (loss of each row [batch], aux).
# A LossFn never mixes rows: the sensitivity of a clipped gradient depends on it.
LossFn = Callable[
    [PyTree, Batch, Prototypes | None, Array, Array], tuple[Array, dict[str, Array]]
]

# (params, batch, prototypes, step, key) -> (gradients, scalar metrics).
GradFn = Callable[
    [PyTree, Batch, Prototypes | None, Array, Array], tuple[PyTree, dict[str, Array]]
]
