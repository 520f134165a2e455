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
from protojax import training, validate
from protojax.base import Batch, Prototypes, PyTree
from protojax.data import batches
from protojax.federated import (
    communication,
    federation,
    nodes,
    replicas,
)
from protojax.federated.federation import Federation
from protojax.models import Model
from protojax.training import processes, trainer
from protojax.training.predict import Lengths
from protojax.training.trainer import Run

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
    student, tokens = runs[0].train, [run.tokens for run in runs]
    rounds = federation.plan_rounds(
        [found.lengths for found in tokens],
        num_rounds=section.rounds,
        epochs=student.epochs,
        batch_size=student.batch_size,
        buckets=tuple(config.data.buckets),
        steps_per_dispatch=config.steps_per_dispatch,
        seed=scenario.seed,
    )
    plan = [item for turn in rounds for item in turn]
    mesh = nodes.make_mesh(section.nodes)
    local, optimizer = replicas.local_of(
        model.config,
        recipes[0].objective,
        student.optimizer,
        mesh,
        section.nodes_at_once,
    )
    state = _start(context, scenario, section, model, recipes, plan, mesh, optimizer)
    end = merges.end_of_round(context, scenario, mesh, tokens, hostile, recipes[0])
    load = _loader(plan, rounds, runs, mesh)

    def dispatch(state: Federation, loaded: tuple[Batch, bool]):
        stacked, ends_round = loaded
        states, metrics = local(state.nodes, stacked)
        state = state._replace(nodes=states)
        return end(state) if ends_round else state, metrics

    state, seconds = replicas.fit_nodes(
        name,
        plan,
        load,
        dispatch,
        lambda metrics: nodes.gather(metrics, mesh),
        state,
        around=context.around,
        cost=trainer.row_cost(model.config),
        finite=not hostile.any(),
        identity=_identity(section, runs, config.lengths),
    )
    params = _students(section, state, mesh)
    total = seconds * batches.num_steps(replicas.of_all(plan))
    facts = {
        "step_seconds": seconds,
        "rounds": section.rounds,
        "round_seconds": total / section.rounds,
        **_sent(context, scenario, recipes[0], params[0]),
    }
    held = _prototypes(section, state, recipes, mesh)
    return Distilled(params, recipes, held, hostile, facts)


def _identity(section, runs: list[Run], lengths: Lengths) -> str:
    """The identity of a federation's checkpoints: what its result depends on."""
    model = runs[0].model
    # All start from one model, whose weights count once.
    others = [run._replace(model=model._replace(params={})) for run in runs[1:]]
    words, more = np.arange(model.config.vocab_size), repr((section, model.config))
    return trainer.identity_of([runs[0], *others], words, lengths, more)


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


def _loader(plan, rounds, runs: list[Run], mesh: Mesh):
    """A loader: number of a dispatch -> its batches, and whether it ends a round."""
    # From the plan alone, so that a resumed run merges after the same dispatches.
    last_of_round = set(np.cumsum([len(turn) for turn in rounds]) - 1)

    def load(number: int) -> tuple[Batch, bool]:
        ends_round = number in last_of_round
        return replicas.batches_of(runs, plan[number], mesh), ends_round

    return load


def _start(
    context, scenario, section, model, recipes, plan, mesh, optimizer
) -> Federation:
    """The federation before its first step."""
    # One start for all nodes, which updates at a server are relative to.
    params = trainer.initial_params(model, recipes[0].columns, scenario.seed)
    states = [
        training.init_state(
            params,
            optimizer,
            # Its own batches alone: it skips the steps in which only others have one.
            num_steps=max(1, batches.num_steps(replicas.of_node(plan, node))),
            # No two nodes of any two seeds have the same dropout.
            seed=scenario.seed * section.nodes + node,
            prototypes=recipe.prototypes,
        )
        for node, recipe in enumerate(recipes)
    ]
    return federation.init_federation(
        states, mesh, server=merges.mixing_of(section) is None
    )
