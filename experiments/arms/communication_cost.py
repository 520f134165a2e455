"""The communication of a federation: exact bytes, and the error of a precision."""

import numpy as np

from experiments.arms.base import Recipe
from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax.federated import communication


def count_bytes(
    context: Context,
    scenario: Scenario,
    recipe: Recipe,
    *,
    links: int,
    params_bytes: int,
) -> dict[str, int]:
    """The exact bytes that one node sends, counted from the arrays themselves.

    A node receives over the same links: as many bytes again of parameters and of
    prototypes that are merged.

    Args:
        context: the study.
        scenario: a scenario with its federation.
        recipe: an honest node's.
        links: the number of others to which a node sends its parameters.
        params_bytes: of one student.

    Returns: `parameters_per_round`; `prototypes_per_round`, where nodes merge theirs;
        `prototypes_once` and `trusted_model_once`, which the server sends to each node;
        and `total`, sent and received over the whole run.
    """
    section = context.config.federations[scenario.federation]
    held, reading = 0, 0
    if recipe.prototypes is not None:
        message = communication.encode(
            recipe.prototypes, precision=section.prototype_precision
        )
        held = communication.num_bytes(message.arrays)
    # Other authors' detectors have a verdict but no trusted model, so send none.
    judged = recipe.verdict is not None and recipe.verdict.trusted_classes is not None
    if judged and section.trusted_model == "references":
        reading = communication.text_bytes(
            scenarios.references(context.config, scenario)
        )
    elif judged:
        models = trusted_model.folds(context, scenario).models
        reading = sum(communication.num_bytes(model.params) for model in models)
    local = section.prototypes == "local"
    merges = section.rounds // section.merge_prototypes_every if local else 0
    found = {
        "parameters_per_round": links * params_bytes,
        "prototypes_per_round": held if local else 0,
        "prototypes_once": 0 if local else held,
        "trusted_model_once": reading,
    }
    # Twice: sent and received. The server's messages at the start go one way only.
    total = 2 * (section.rounds * links * params_bytes + merges * held)
    return {**found, "total": total + found["prototypes_once"] + reading}


def prototype_error(context: Context, scenario: Scenario) -> float:
    """The relative error of prototypes as they are received.

    ‖received − sent‖ / ‖sent‖ over all of them, for the precision of the config.
    """
    section = context.config.federations[scenario.federation]
    owner = scenario.whole if section.prototypes == "server" else scenario
    held = artifacts.constraint_prototypes(context, owner)
    received = communication.decode(
        communication.encode(held, precision=section.prototype_precision)
    )
    gap = np.linalg.norm(received.vectors - np.asarray(held.vectors))
    return float(gap / np.linalg.norm(held.vectors))
