"""The prototype margin loss: the distance of rows to the balls around prototypes.

There is one value per row; averaging and weighting are left to the caller. Inputs that
are not finite give a loss that is not finite, never a small one.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from protojax import validate
from protojax.base import Array, Prototypes
from protojax.prototypes import nearest_prototype

ASSIGNMENTS = ("nearest", "label", "assigned")


def prototype_margin_loss(
    embeddings: Array,
    prototypes: Prototypes,
    margin: float | Array,
    *,
    assignment: str = "nearest",
    labels: Array | None = None,
    assigned_class: Array | None = None,
    metric: str = "cosine",
) -> Array:
    """The distance of each row beyond the ball around its nearest prototype.

    max(0, minₖ d(x, pₖ) − margin)

    The minimum is over all prototypes ("nearest"), or over those of the row's class:
    the class that it claims ("label"), or the class that a trusted encoder assigns to
    it ("assigned"). "nearest" does not resist a flipped label: a row with a trigger
    lies on the target class's own prototype, where this loss is zero.

    Guarantees:
        - a row whose class has no prototype, such as class -1, has zero loss; a row
          whose distance is not finite has a loss of NaN or infinity instead;
        - a prototype with zero counts is never nearest;
        - a row within the margin has zero loss and zero gradient;
        - the order of the prototypes does not matter.

    Args:
        embeddings: `[batch, dim]`.
        prototypes: vectors `[num_prototypes, dim]`.
        margin: the distance that costs nothing, a scalar; may be traced.
        assignment: "nearest", "label" or "assigned".
        labels: `[batch]`, int32, for "label".
        assigned_class: `[batch]`, int32, for "assigned".
        metric: "cosine" or "l2".

    Returns:
        `[batch]`, float32.

    Raises:
        ValueError: the widths differ, the margin is not a scalar, an option is unknown,
            or the classes that the assignment needs are missing.

    >>> corners = Prototypes(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2))
    >>> rows = jnp.array([[2.0, 0.0]])
    >>> float(prototype_margin_loss(rows, corners, 0.25)[0])
    0.0
    >>> flipped = jnp.array([1])
    >>> prototype_margin_loss(
    ...     rows, corners, 0.25, assignment="label", labels=flipped
    ... ).tolist()
    [0.75]
    """
    validate.one_of(ASSIGNMENTS, assignment=assignment)
    validate.shape((), margin=margin)
    where = (jnp.asarray(prototypes.counts) > 0)[None]
    where = jnp.broadcast_to(where, (len(embeddings), where.shape[1]))
    if assignment != "nearest":
        name = "labels" if assignment == "label" else "assigned_class"
        classes = labels if assignment == "label" else assigned_class
        validate.require(
            classes is not None, name, classes, f"for assignment={assignment!r}"
        )
        chex.assert_shape(classes, (len(embeddings),))
        own = classes[:, None] == prototypes.labels
        where &= own & (classes[:, None] >= 0)  # -1 means no class on either side
    _, distance = nearest_prototype(embeddings, prototypes, metric=metric, where=where)
    return jnp.where(jnp.any(where, axis=1), jax.nn.relu(distance - margin), 0)


def layerwise_margin_loss(
    embeddings: Array,
    prototypes: Prototypes,
    margin: float | Array,
    *,
    layer_weights: Sequence[float] | Array,
    assignment: str = "nearest",
    labels: Array | None = None,
    assigned_class: Array | None = None,
    metric: str = "cosine",
) -> Array:
    """The weighted sum of `prototype_margin_loss` over several layers.

    Σ_l w_l · max(0, minₖ d(x_l, p_lk) − margin)

    Args:
        embeddings: `[batch, layers, dim]`.
        prototypes: vectors `[layers, num_prototypes, dim]`, labels and counts
            `[layers, num_prototypes]`.
        margin: a scalar, the same at every layer; may be traced.
        layer_weights: `[layers]`; may be traced.
        assignment: as in `prototype_margin_loss`, like all arguments that follow.
        labels: `[batch]`.
        assigned_class: `[batch]`.
        metric: "cosine" or "l2".

    Returns:
        `[batch]`, float32.

    Raises:
        ValueError: the numbers of layers differ, or as in `prototype_margin_loss`.

    >>> one_each = jnp.ones((2, 1), int)
    >>> layers = Prototypes(jnp.eye(2)[:, None], one_each, one_each)
    >>> rows = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    >>> float(layerwise_margin_loss(rows, layers, 0.5, layer_weights=[1.0, 4.0])[0])
    2.0
    """
    chex.assert_rank([embeddings, prototypes.vectors], 3)
    weights = jnp.asarray(layer_weights, jnp.float32)
    layers = embeddings.shape[1]
    if weights.shape != (layers,) or len(prototypes.vectors) != layers:
        raise ValueError(
            f"Expected the same number of layers, found {embeddings.shape=}, "
            f"{prototypes.vectors.shape=}, {weights.shape=}."
        )

    def one_layer(rows: Array, of_layer: Prototypes) -> Array:
        return prototype_margin_loss(
            rows,
            of_layer,
            margin,
            assignment=assignment,
            labels=labels,
            assigned_class=assigned_class,
            metric=metric,
        )

    losses = jax.vmap(one_layer, in_axes=(1, 0), out_axes=1)(embeddings, prototypes)
    return jnp.sum(losses * weights, axis=1)
