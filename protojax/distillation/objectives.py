"""Losses of whole models: a student's objective before any defence is added.

Each builder takes a model's apply function and returns a `LossFn`. The aux dictionary
carries the values that a defence may need, which saves a second forward pass: the row's
`logits` and its `features`, the pooled hidden states of the chosen layers in the
teacher's space. The compiler removes features that no loss reads.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from protojax import validate
from protojax.base import (
    PROBLEMS,
    ApplyFn,
    Array,
    LossFn,
    ModelOutput,
    PyTree,
    SequenceOutput,
)
from protojax.distillation import losses


def student_params(params: PyTree, projection: Array | None = None) -> PyTree:
    """The tree of parameters that the losses of this module take.

    Args:
        params: the model's parameters.
        projection: `[student_dim, teacher_dim]`, learned with the student where its
            width differs from the teacher's, else None.

    Returns:
        `{"model": params}`, with `"projection"` beside it where one is given.

    >>> sorted(student_params({"w": jnp.ones(2)}, jnp.eye(2)))
    ['model', 'projection']
    """
    if projection is None:
        return {"model": params}
    return {"model": params, "projection": projection}


def features(
    output: ModelOutput | SequenceOutput,
    attention_mask: Array,
    *,
    layers: Sequence[int] = (-1,),
    pooling: str = "mean",
    projection: Array | None = None,
) -> Array:
    """The pooled hidden states of some layers, one vector per layer.

    Args:
        output: a model's output with its `hidden_states`.
        attention_mask: `[batch, length]`.
        layers: indices of hidden states; 0 is the embeddings and -1 the last layer.
        pooling: `"mean"` or `"cls"`.
        projection: `[dim, out_dim]` applied to each pooled vector, or None.

    Returns:
        `[batch, layers, dim]`, float32.

    >>> output = ModelOutput(jnp.zeros((1, 2)), (jnp.array([[[1.0], [3.0], [9.0]]]),))
    >>> features(output, jnp.array([[1, 1, 0]])).tolist()
    [[[2.0]]]
    """
    pooled = jnp.stack(
        [
            losses.pool(output.hidden_states[layer], attention_mask, mode=pooling)
            for layer in layers
        ],
        axis=1,
    )
    return pooled if projection is None else pooled @ projection


def hard_loss(logits: Array, labels: Array, *, problem: str) -> Array:
    """The cross-entropy with the given class, or half the squared error of a score.

    Args:
        logits: `[batch, num_labels]`; `[batch, 1]` for regression.
        labels: `[batch]`, int32 classes or float32 scores.
        problem: `"classification"` or `"regression"`.

    Returns:
        `[batch]`.

    Raises:
        ValueError: the problem is unknown, or there is not one label per row.

    >>> hard_loss(jnp.array([[3.0]]), jnp.array([1.0]), problem="regression").tolist()
    [2.0]
    """
    validate.one_of(PROBLEMS, problem=problem)
    validate.shape(logits.shape[:1], labels=labels)
    if problem == "regression":
        return optax.losses.l2_loss(logits[:, 0], labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def supervised_loss(apply: ApplyFn, *, problem: str = "classification") -> LossFn:
    """The loss on the given labels alone, by which teachers and trusted models learn.

    Args:
        apply: the model.
        problem: `"classification"` or `"regression"`.

    Returns:
        A `LossFn` of `student_params`.
    """
    validate.one_of(PROBLEMS, problem=problem)

    def loss_fn(params, batch, prototypes, step, key):
        del prototypes, step
        output = apply(params["model"], batch, key=key)
        loss = hard_loss(output.logits, batch.labels, problem=problem)
        return loss, {"logits": output.logits}

    return loss_fn


def attention(output: ModelOutput, attention_mask: Array) -> Array:
    """The activity of each token in each layer after the embeddings.

    a_i = √(mean_d h_id²), 0 on padding

    Args:
        output: a model's output with its `hidden_states`.
        attention_mask: `[batch, length]`.

    Returns:
        `[batch, layers, length]`, float32.

    >>> states = (jnp.zeros((1, 2, 1)), jnp.array([[[3.0], [5.0]]]))
    >>> attention(ModelOutput(jnp.zeros((1, 2)), states), jnp.array([[1, 0]])).tolist()
    [[[3.0, 0.0]]]
    """
    states = jnp.stack(output.hidden_states[1:], axis=1).astype(jnp.float32)
    # A root, because attention transfer squares it again; of a frozen copy only, since
    # the gradient of a root at 0 is not finite.
    active = jnp.sqrt(jnp.mean(jnp.square(states), axis=-1))
    return jnp.where(attention_mask[:, None] > 0, active, 0.0)


def attention_loss(
    apply: ApplyFn, *, weight: float, problem: str = "classification"
) -> LossFn:
    """The loss on the given labels plus attention transfer from a trusted copy.

    loss = cross-entropy + weight · mean_layers attention transfer(student, copy)

    Args:
        apply: the student, as deep as the copy whose `attention` the batch carries.
        weight: the weight of the attention transfer, >= 0.
        problem: `"classification"` or `"regression"`.

    Returns:
        A `LossFn` of `student_params` that reads `batch.teacher_attention`, with aux
        `logits` and `attention_loss`.

    References:
        Li et al., 2021 (NAD, arXiv:2101.05930), who align the maps of convolutions;
        here tokens replace pixels, and all layers have the same weight.
    """
    validate.non_negative(weight=weight)
    validate.one_of(PROBLEMS, problem=problem)

    def loss_fn(params, batch, prototypes, step, key):
        del prototypes, step
        output = apply(params["model"], batch, key=key, hidden_states=True)
        loss = hard_loss(output.logits, batch.labels, problem=problem)
        tokens = batch.attention_mask > 0
        # Stored at the full length; a batch may be padded to less.
        wanted = batch.teacher_attention[:, :, : tokens.shape[1], None]
        distance = jnp.mean(
            jnp.stack(
                [
                    losses.attention_transfer(state, wanted[:, layer], where=tokens)
                    for layer, state in enumerate(output.hidden_states[1:])
                ]
            ),
            axis=0,
        )
        aux = {"logits": output.logits, "attention_loss": distance}
        return loss + weight * distance, aux

    return loss_fn


def distillation_loss(
    apply: ApplyFn,
    *,
    problem: str = "classification",
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    hidden_weight: float = 0.0,
    layers: Sequence[int] = (-1,),
    pooling: str = "mean",
) -> LossFn:
    """The loss on the teacher's outputs, which the batch carries.

    loss = (1 − hard_weight) · D(teacher, student) + hard_weight · hard loss
           + hidden_weight · Σ_layers (1 − cos(h_teacher, h_student)) / layers

    Args:
        apply: the student.
        problem: `"classification"` or `"regression"`; the latter compares the scores
            by their squared error, whatever the divergence.
        divergence: a name in `losses.DIVERGENCES`.
        temperature: softens both distributions, in units of logits.
        hard_weight: share of the given labels in the loss. At 0, the default, the
            student sees only the teacher, so that a flipped label can reach it only
            through a poisoned teacher.
        hidden_weight: weight of the distance to `batch.teacher_features`.
        layers: the student's layers that are compared with the teacher's features, in
            the order of the latter.
        pooling: `"mean"` or `"cls"`, see `losses.pool`.

    Returns:
        A `LossFn` of `student_params`, with aux `logits` and `features`.

    References:
        Hinton, Vinyals and Dean, 2015, arXiv:1503.02531.
    """
    validate.one_of(PROBLEMS, problem=problem)
    validate.one_of(losses.DIVERGENCES, divergence=divergence)
    validate.positive(temperature=temperature)
    validate.fraction(hard_weight=hard_weight)
    validate.non_negative(hidden_weight=hidden_weight)
    # A single score has no distribution to soften.
    name = "logit_mse" if problem == "regression" else divergence

    def loss_fn(params, batch, prototypes, step, key):
        del prototypes, step
        output = apply(params["model"], batch, key=key, hidden_states=True)
        loss = (1 - hard_weight) * losses.DIVERGENCES[name](
            output.logits, batch.teacher_logits, temperature=temperature
        )
        # Left out at weight 0, because 0 times an infinite loss is NaN.
        if hard_weight:
            loss += hard_weight * hard_loss(
                output.logits, batch.labels, problem=problem
            )
        pooled = features(
            output,
            batch.attention_mask,
            layers=layers,
            pooling=pooling,
            projection=params.get("projection"),
        )
        if hidden_weight:
            distance = losses.hidden_state_loss(pooled, batch.teacher_features)
            loss += hidden_weight * distance
        return loss, {"logits": output.logits, "features": pooled}

    return loss_fn
