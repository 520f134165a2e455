"""The prototype constraint: keep a student's features near those of clean text.

A few vectors, the centres of a model's hidden states on trusted text, represent each
class. The constraint adds a hinge on the distance of a row's features to them. It
matters to which prototypes the distance is taken: with the nearest of all, as
published, a triggered row can lie on the target class's own prototype at no cost.
"""

import optax

from protojax import validate
from protojax.base import Batch, LossFn, SequenceBatch
from protojax.distillation.margin import ASSIGNMENTS, layerwise_margin_loss


def prototype_constraint(
    loss_fn: LossFn,
    *,
    weight: optax.Schedule,
    margin: optax.Schedule,
    assignment: str = "assigned",
    metric: str = "cosine",
    layer_weights: tuple[float, ...] = (1.0,),
) -> LossFn:
    """The sum of a loss and the weighted prototype margin loss.

    L(x) = loss(x) + weight(t) · Σ_l w_l · relu(min_k d(h_l(x), p_{l,k}) − margin(t))

    Args:
        loss_fn: a loss whose aux has `features`, `[batch, layers, dim]`.
        weight: the constraint's weight at a step.
        margin: the distance that costs nothing at a step, in units of `metric`.
        assignment: the prototypes that a row is compared with: all of them
            (`"nearest"`), those of its `"label"`, or those of its class in
            `batch.assigned_class` (`"assigned"`).
        metric: `"cosine"` or `"l2"`.
        layer_weights: a weight for each layer of `features`.

    Returns:
        A `LossFn` that reads its `prototypes` argument, whose vectors are
        `[layers, num_prototypes, dim]`. Its aux gains `margin_loss`, `[batch]`.

    Guarantees:
        * With weight 0, every loss is unchanged.
        * Rows do not mix: a row's loss depends on that row only.
    """
    validate.one_of(ASSIGNMENTS, assignment=assignment)

    def constrained(params, batch: Batch | SequenceBatch, prototypes, step, key):
        loss, aux = loss_fn(params, batch, prototypes, step, key)
        if "features" not in aux:
            raise ValueError(
                "Expected a loss whose aux has 'features' under the prototype "
                f"constraint, found {', '.join(sorted(aux))} in it."
            )
        # Only the classes that the assignment reads: a batch may lack the others.
        distance = layerwise_margin_loss(
            aux["features"],
            prototypes,
            margin(step),
            layer_weights=layer_weights,
            assignment=assignment,
            # A batch of outputs to write has none, which the loss then says.
            labels=getattr(batch, "labels", None) if assignment == "label" else None,
            assigned_class=batch.assigned_class if assignment == "assigned" else None,
            metric=metric,
        )
        return loss + weight(step) * distance, {**aux, "margin_loss": distance}

    return constrained
