"""Distillation over the nodes of a federation, in rounds.

An arm gives the recipe of one node (`experiments.arms`); this module gives every node
its rows, runs the rounds, applies the attack of the hostile nodes, and counts the bytes
sent. Hostile nodes hold the poison, distil plainly, and may send something else than
they learned.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.arms import communication_cost
from experiments.arms.base import Arm, Recipe
from experiments.arms.registry import ARMS, name_of
from experiments.runtime import Context
from experiments.world import artifacts, scenarios
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax import attacks, prototypes, training, validate
from protojax.base import Batch, Prototypes, PyTree
from protojax.data import batches
from protojax.federated import (
    aggregation,
    communication,
    federation,
    gossip,
    nodes,
    replicas,
)
from protojax.federated.federation import Federation
from protojax.federated.settings import Federation as FederationSettings
from protojax.models import Model
from protojax.prototypes import matching
from protojax.training import predict, processes, programs, trainer

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
    student = dataclasses.replace(config.student, **recipes[0].train)
    context.describe(name)
    tokens = [
        predict.tokenize(model, recipe.examples, config.lengths) for recipe in recipes
    ]
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
    end = _end_of_round(context, scenario, mesh, tokens, hostile, recipes[0])
    load = _loader(plan, rounds, tokens, recipes, mesh)

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
    )
    params = _students(section, state, mesh)
    steps = batches.num_steps(replicas.of_all(plan))
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
            links=links_of(section),
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


def _end_of_round(
    context, scenario: Scenario, mesh: Mesh, tokens, hostile, recipe: Recipe
):
    """The end of a round, `federation -> federation`: the merge of all nodes."""
    section = context.config.federations[scenario.federation]
    end = compiled_end(
        section,
        mesh,
        tuple(len(rows.lengths) for rows in tokens),
        tuple(hostile.tolist()),
        scenario.seed,
    )
    if recipe.prototypes is None or section.prototypes != "local":
        return end
    return lambda state: _merge_prototypes(
        context, scenario, section, mesh, hostile, end(state)
    )


def _loader(plan, rounds, tokens, recipes: list[Recipe], mesh: Mesh):
    """A loader: number of a dispatch -> its batches, and whether it ends a round."""
    last_of_round = set(np.cumsum([len(turn) for turn in rounds]) - 1)

    def load(number: int) -> tuple[Batch, bool]:
        length, rows = plan[number]
        stacked = [
            batches.make_batch(
                own,
                recipe.examples.labels,
                batches.Dispatch(length, chosen),
                **recipe.columns,
            )
            for own, recipe, chosen in zip(tokens, recipes, rows, strict=True)
        ]
        return nodes.shard(nodes.stack(stacked), mesh), number in last_of_round

    return load


@functools.cache
def rule_of(section: FederationSettings, *, weighted: bool = True) -> functools.partial:
    """The aggregation rule that a federation's section names.

    Args:
        section: the federation's.
        weighted: whether it may use the weights that the nodes state.
    """
    rule = functools.partial(
        aggregation.AGGREGATORS[section.aggregator], **section.aggregator_args
    )
    return rule if weighted else functools.partial(_equal_weights, rule)


def _equal_weights(rule, updates: PyTree, *, weights=None, where=None) -> PyTree:
    """The update by a rule that is not given the weights."""
    del weights
    return rule(updates, where=where)


def mixing_of(section) -> np.ndarray | None:
    """The mixing matrix, or None with a server or without any exchange."""
    if section.topology in ("server", "local"):
        return None
    if section.topology == "given":
        return gossip.check_mixing(np.array(section.mixing))
    return gossip.TOPOLOGIES[section.topology](section.nodes)


def links_of(section) -> int:
    """The number of others to which a node sends its parameters."""
    mixing = mixing_of(section)
    if mixing is None:
        return int(section.topology == "server")
    return int((mixing > 0).sum(0).max()) - 1


@functools.cache
def compiled_end(
    section: FederationSettings, mesh: Mesh, rows: tuple, hostile: tuple, seed: int
):
    """The compiled end of a round."""
    mixing, rule = mixing_of(section), rule_of(section)
    if section.topology == "local":
        merge = federation.keep_local()
    elif mixing is None:
        merge = federation.merge_at_server(rule)
    else:
        plain = section.aggregator == "mean"
        merge = federation.merge_by_gossip(mixing, None if plain else rule, mesh=mesh)
    attack = None
    if section.update_attack and any(hostile):
        attack = functools.partial(
            attacks.UPDATE_ATTACKS[section.update_attack], **section.update_attack_args
        )
    return federation.make_merge(
        merge,
        mesh,
        weights=np.array(rows),
        attack=attack,
        hostile=np.array(hostile) if attack else None,
        seed=seed,
        on_trace=lambda: programs.TRACES.update(
            {(f"merge/{section.topology}", rows): 1}
        ),
    )


def _start(
    context, scenario, section, model, recipes, plan, mesh, optimizer
) -> Federation:
    """The federation before its first step."""
    params = trainer.initial_params(model, recipes[0].columns, scenario.seed)
    states = [
        training.init_state(
            params,
            optimizer,
            num_steps=max(1, batches.num_steps(replicas.of_node(plan, node))),
            seed=scenario.seed * section.nodes + node,
            prototypes=recipe.prototypes,
        )
        for node, recipe in enumerate(recipes)
    ]
    return federation.init_federation(states, mesh, server=mixing_of(section) is None)


def _merge_prototypes(context, scenario, section, mesh, hostile, state) -> Federation:
    """The federation after nodes merged their prototypes and adapted them."""
    if int(state.round) % section.merge_prototypes_every:
        return state
    config = context.config.prototypes
    held = nodes.gather(state.nodes.prototypes, mesh)
    # Hostile nodes may state any counts, so only the mean, no defence, uses them.
    believed = section.aggregator == "mean"
    byzantine = 0 if believed else section.aggregator_args.get("num_byzantine")
    rule = rule_of(section, weighted=believed)
    target = scenario.attack and context.config.attacks[scenario.attack].target
    sent = []
    for node, liar in enumerate(hostile):
        mine = nodes.unstack(held, node)
        if liar and section.prototype_attack:
            mine = attacks.PROTOTYPE_ATTACKS[section.prototype_attack](
                mine, scenarios.key(scenario, f"lie{int(state.round)}/{node}"), target
            )
        message = communication.encode(mine, precision=section.prototype_precision)
        sent.append(communication.decode(message))
    # The layer axis first: each layer is merged by itself.
    layers = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), nodes.stack(sent))
    features = artifacts.reference_outputs(context, scenario).features
    merged = [
        matching.merge_prototypes(
            nodes.unstack(layers, layer),
            rule,
            metric=config.metric,
            num_byzantine=byzantine,
        )
        for layer in range(features.shape[1])
    ]
    adapted = []
    for node in range(section.nodes):
        own = features[
            scenarios.own_references(context.config, scenario._replace(node=node))
        ]
        moved = [
            prototypes.update_prototypes(
                held,
                jnp.asarray(own[:, layer]),
                decay=section.prototype_decay,
                metric=config.metric,
            )
            for layer, held in enumerate(merged)
        ]
        adapted.append(nodes.stack(jax.device_get(moved)))
    placed = nodes.shard(nodes.stack(adapted), mesh)
    return state._replace(nodes=state.nodes._replace(prototypes=Prototypes(*placed)))
