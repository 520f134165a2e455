"""Distillation over the nodes of a federation, in rounds.

An arm gives the recipe of one node (`experiments.arms`); this module gives every node
its rows, runs the rounds, applies the attack of the hostile nodes, and counts the bytes
sent. Hostile nodes hold the poison, distil plainly, and may send something else than
they learned.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.arms import communication_cost, merges
from experiments.arms.base import Arm, Recipe
from experiments.arms.registry import ARMS, name_of
from experiments.runtime import Context
from experiments.world import artifacts
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax import validate
from protojax.base import Prototypes, PyTree
from protojax.federated import communication, nodes, rounds
from protojax.federated.federation import Federation
from protojax.models import Model
from protojax.training import processes

# The file that marks that teacher, trusted model and their outputs are on disk.
READY = "ready"


class Distilled(NamedTuple):
    """The students of a federation, and the facts of their training.

    Attributes:
        params: of each student: one where a server merges, else one per node.
        recipes: of each node.
        prototypes: those that constrain students at the end of training: one set where
            all nodes hold the same, else one per node, none without a constraint.
        hostile: `[nodes]`, bool.
        facts: figures of the run, for the results.
    """

    params: list[PyTree]
    recipes: list[Recipe]
    prototypes: list[Prototypes]
    hostile: np.ndarray
    facts: dict[str, Any]


def hostile_nodes(section, scenario: Scenario) -> np.ndarray:
    """The nodes that are hostile, `[nodes]`, bool: the last ones, under an attack."""
    number = section.hostile if scenario.attack else 0
    return np.arange(section.nodes) >= section.nodes - number


def node_recipes(context: Context, scenario: Scenario, arm: Arm) -> list[Recipe]:
    """The recipe of each node of a scenario's federation.

    Args:
        context: the study.
        scenario: a scenario with its federation.
        arm: of honest nodes; hostile ones distil plainly from the rows they hold.
    """
    section = context.config.federations[scenario.federation]
    hostile, undefended = hostile_nodes(section, scenario), ARMS[name_of("undefended")]
    recipes = [
        (undefended if liar else arm).recipe(
            World(context, scenario._replace(node=node))
        )
        for node, liar in enumerate(hostile)
    ]
    # The hostile nodes are the last ones.
    honest = recipes[0]
    for node in np.flatnonzero(hostile):
        # The same program runs on all nodes: a hostile one differs in its columns only.
        mine, held = recipes[node], honest.prototypes
        if held is not None:
            held = artifacts.held_prototypes(context, scenario._replace(node=int(node)))
        recipes[node] = mine._replace(
            columns={
                name: mine.columns[name]
                if name in mine.columns
                else _claimed(mine, name)
                for name in honest.columns
            },
            objective=honest.objective,
            train=honest.train,
            prototypes=held,
        )
    return recipes


def _claimed(recipe: Recipe, column: str) -> np.ndarray:
    """The values of a plain recipe in a column that a defence has.

    Raises:
        ValueError: a column for which a node that does not defend has no value.
    """
    # A constraint to the prototypes of the claimed class is no defence.
    known = {"assigned_class": recipe.examples.labels}
    validate.one_of(known, **{"columns of a hostile node": column})
    return known[column]


def distil(context: Context, name: str, scenario: Scenario, arm: Arm, model: Model):
    """The students of a federation after training, resumed where a killed run stopped.

    The first process writes the models and outputs that the others then read. Where
    nodes are hostile, infinite losses are no error of the run.

    Args:
        context: the study.
        name: the run's folder below the workdir.
        scenario: a scenario with its federation.
        arm: of honest nodes.
        model: where all students start.

    Returns:
        A `Distilled`.
    """
    config = context.config
    section = config.federations[scenario.federation]
    with processes.leader_first(context.workdir / name / READY):
        recipes = node_recipes(context, scenario, arm)
    processes.meet(name)
    hostile = hostile_nodes(section, scenario)
    context.describe(name)
    runs = [recipe.run(name, model, config, scenario.seed) for recipe in recipes]
    mesh, tokens = nodes.make_mesh(section.nodes), [run.tokens for run in runs]
    state, seconds, steps = rounds.fit_rounds(
        runs,
        context.around,
        merges.end_of_round(context, scenario, mesh, tokens, hostile, recipes[0]),
        mesh,
        rounds=section.rounds,
        at_once=section.nodes_at_once,
        server=merges.mixing_of(section) is None,
        finite=not hostile.any(),
        more=repr(section),
    )
    params = _students(section, state, mesh)
    facts = {
        "step_seconds": seconds,
        "rounds": section.rounds,
        "round_seconds": seconds * steps / section.rounds,
        **_sent(context, scenario, recipes[0], params[0]),
    }
    held = _prototypes(section, state, recipes, mesh)
    return Distilled(params, recipes, held, hostile, facts)


def _sent(
    context: Context, scenario: Scenario, recipe: Recipe, params: PyTree
) -> dict[str, Any]:
    """The bytes that a node sends, and the error of the prototypes that it receives."""
    section = context.config.federations[scenario.federation]
    return {
        "traffic": communication_cost.count_bytes(
            context,
            scenario,
            recipe,
            links=merges.links_of(section),
            params_bytes=communication.num_bytes(params),
        ),
        "prototype_error": None
        if recipe.prototypes is None
        else communication_cost.prototype_error(context, scenario),
    }


def _prototypes(
    section, state: Federation, recipes: list[Recipe], mesh: Mesh
) -> list[Prototypes]:
    """The prototypes at the end: one set if all nodes hold the same, else one each."""
    if recipes[0].prototypes is None:
        return []
    if section.prototypes != "local":
        return [recipes[0].prototypes]
    # Since they were fitted they were merged, and adapted to each node's references.
    everyone = nodes.gather(state.nodes.prototypes, mesh)
    return [nodes.unstack(everyone, node) for node in range(section.nodes)]


def _students(section, state: Federation, mesh: Mesh) -> list[PyTree]:
    """The parameters of the server's student, or of each node's."""
    if section.topology == "server":
        return [jax.device_get(state.origin)]
    everyone = nodes.gather(state.nodes.params, mesh)
    return [nodes.unstack(everyone, node) for node in range(section.nodes)]
