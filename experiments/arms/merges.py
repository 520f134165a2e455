"""The merges that end a round of a federation: of parameters, and of prototypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.arms.base import Recipe
from experiments.world import artifacts, scenarios
from experiments.world.scenarios import Scenario
from protojax import attacks, prototypes
from protojax.base import Prototypes, PyTree
from protojax.federated import aggregation, communication, federation, gossip, nodes
from protojax.federated.federation import Federation
from protojax.federated.settings import Federation as FederationSettings
from protojax.prototypes import matching
from protojax.training import programs


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
    # By column, the nodes that give weight to a node; less one, since it has itself.
    return int((mixing > 0).sum(0).max()) - 1


@functools.cache
def _compiled_end(
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
        # The mean uses the matrix's weights, for which its convergence is known.
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
        # Counted, so that the time of a compilation is not taken for step time.
        on_trace=lambda: programs.TRACES.update(
            {(f"merge/{section.topology}", rows): 1}
        ),
    )


def end_of_round(
    context, scenario: Scenario, mesh: Mesh, tokens, hostile, recipe: Recipe
):
    """The end of a round, `federation -> federation`: the merge of all nodes."""
    section = context.config.federations[scenario.federation]
    end = _compiled_end(
        section,
        mesh,
        # Tuples, because the arguments are the key of a cache.
        tuple(len(rows.lengths) for rows in tokens),
        tuple(hostile.tolist()),
        scenario.seed,
    )
    if recipe.prototypes is None or section.prototypes != "local":
        return end
    return lambda state: merge_prototypes(
        context, scenario, section, mesh, hostile, end(state)
    )


def merge_prototypes(context, scenario, section, mesh, hostile, state) -> Federation:
    """The federation after nodes merged their prototypes and adapted them."""
    if int(state.round) % section.merge_prototypes_every:
        return state
    config = context.config.prototypes
    # On the host, where messages are encoded and hashed.
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
            # Drawn by round and node, so that a resumed run repeats each lie.
            mine = attacks.PROTOTYPE_ATTACKS[section.prototype_attack](
                mine, scenarios.key(scenario, f"lie{int(state.round)}/{node}"), target
            )
        message = communication.encode(mine, precision=section.prototype_precision)
        # Encoded and decoded, so that the merge sees what the precision leaves.
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
