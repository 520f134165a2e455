"""The prototype constraint: keep a student's meaning near what clean text means.

A few vectors, the centres of a model's hidden states on trusted text, say where each
class lives. The constraint adds a hinge on the distance of a row's representation to
them. Which of them may hold the row is the whole question: the nearest of all, as
published, lets a triggered row sit on the target's own prototype at no cost.
"""

import optax

from protojax import validate
from protojax.base import Batch, LossFn
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
    """Adds the prototype margin loss to a loss.

    L(x) = loss(x) + weight(t) · Σ_l w_l · relu(min_k d(h_l(x), p_{l,k}) − margin(t))

    Args:
        loss_fn: a loss whose aux has `features`, `[batch, layers, dim]`.
        weight: the constraint's weight at a step.
        margin: the distance that costs nothing at a step, in units of `metric`.
        assignment: which prototypes may hold a row: `"nearest"` of all of them,
            those of its `"label"`, or those of the class `batch.assigned_class` names.
        metric: `"cosine"` or `"l2"`.
        layer_weights: a weight for each layer of `features`.

    Returns:
        A `LossFn` that reads its `prototypes` argument, whose vectors are
        `[layers, num_prototypes, dim]`. Its aux gains `margin_loss`, `[batch]`.

    Guarantees:
        * weight 0 leaves every loss as it was.
        * Rows do not mix: a row's loss is a function of that row only.
    """
    validate.one_of(ASSIGNMENTS, assignment=assignment)

    def constrained(params, batch: Batch, prototypes, step, key):
        loss, aux = loss_fn(params, batch, prototypes, step, key)
        if "features" not in aux:
            raise ValueError(
                "Expected a loss whose aux has 'features' under the prototype "
                f"constraint, found {', '.join(sorted(aux))} in it."
            )
        distance = layerwise_margin_loss(
            aux["features"],
            prototypes,
            margin(step),
            layer_weights=layer_weights,
            assignment=assignment,
            labels=batch.labels if assignment == "label" else None,
            assigned_class=batch.assigned_class if assignment == "assigned" else None,
            metric=metric,
        )
        return loss + weight(step) * distance, {**aux, "margin_loss": distance}

    return constrained
