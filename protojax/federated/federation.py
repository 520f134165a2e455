"""Federated training: nodes train locally, then merge their parameters.

A round consists of local steps on every node, an optional attack, in which hostile
nodes replace their updates, and a merge: by a server (`merge_at_server`), among
neighbours (`merge_by_gossip`) or none (`keep_local`). Everything is a function of
stacked values (`protojax.federated.nodes`); the caller chooses the rule, the attack and
the step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from protojax import validate
from protojax.base import Array, Batch, PyTree, TrainState
from protojax.data import batches
from protojax.federated import gossip, nodes

# (updates [nodes, ...], key) -> the updates that arrive.
UpdateAttack = Callable[[PyTree, Array], PyTree]
# (params [nodes, ...], origin, weights [nodes], attack or None) -> (params, origin).
Merge = Callable[[PyTree, PyTree, Array, UpdateAttack | None], tuple[PyTree, PyTree]]


class Federation(NamedTuple):
    """The state of all nodes between two rounds.

    Attributes:
        nodes: `TrainState` with a leading `[nodes]` axis in each leaf.
        origin: the parameters to which updates are relative: the server's, without a
            `[nodes]` axis, or each node's own, with it, if there is no server.
        round: scalar int32, the number of rounds done.
    """

    nodes: TrainState
    origin: PyTree
    round: Array


def plan_rounds(
    lengths: Sequence[np.ndarray],
    *,
    num_rounds: int,
    epochs: int,
    batch_size: int,
    buckets: Sequence[int],
    steps_per_dispatch: int,
    seed: int | Sequence[int],
) -> list[list[batches.Dispatch]]:
    """The dispatches of each round: the batches in which each node sees its rows.

    Each node passes `epochs` times over its own rows in its own order. It does the same
    share of its batches in each round, whatever its number of rows; no row is dropped.
    In a round all nodes go through the lengths together, and a node that has no batch
    left of a length gets empty ones.

    Args:
        lengths: for each node `[rows]`, the number of tokens of each row.
        num_rounds: the number of rounds, each of which ends with a merge.
        epochs: the total passes of each node over its rows.
        batch_size: rows per batch.
        buckets: the lengths that batches may have, ascending.
        steps_per_dispatch: batches per dispatch.
        seed: determines all orders; a sequence gives one seed per node, with which the
            node has the order that it would have in a run by itself.

    Returns:
        The dispatches of each round; the `rows` of each are `[nodes, steps, batch]` row
        numbers within the node, -1 for none.

    Raises:
        ValueError: a node would have no batch in some round.

    >>> plan = plan_rounds(
    ...     [np.full(4, 3), np.full(2, 3)], num_rounds=2, epochs=2, batch_size=2,
    ...     buckets=(4,), steps_per_dispatch=2, seed=0,
    ... )
    >>> [[item.rows.shape for item in turn] for turn in plan]
    [[(2, 2, 2)], [(2, 2, 2)]]
    """
    validate.positive(num_rounds=num_rounds, epochs=epochs)
    seeds = (
        # Far apart: the seeds of a study are small and consecutive.
        [seed + 7919 * node for node in range(len(lengths))]
        if isinstance(seed, int | np.integer)
        else seed
    )
    of_nodes = []
    for node, (tokens, own) in enumerate(zip(lengths, seeds, strict=True)):
        plan = [
            item
            for epoch in range(epochs)
            for item in batches.plan_epoch(
                tokens,
                batch_size=batch_size,
                buckets=buckets,
                steps_per_dispatch=1,
                seed=own,
                epoch=epoch,
            )
        ]
        validate.require(
            len(plan) >= num_rounds,
            "num_rounds",
            num_rounds,
            f"<= {len(plan)}, the batches of node {node} in {epochs} epochs",
        )
        # Equal shares of the node's own batches, whatever their number.
        cuts = np.linspace(0, len(plan), num_rounds + 1).round().astype(int)
        of_nodes.append([plan[a:b] for a, b in itertools.pairwise(cuts)])
    return [
        _together(turn, batch_size, steps_per_dispatch)
        for turn in zip(*of_nodes, strict=True)
    ]


def _together(
    turn: Sequence[list[batches.Dispatch]], batch_size: int, steps: int
) -> list[batches.Dispatch]:
    """The dispatches of one round, from the batches of each node."""
    found = []
    # All nodes must run the same program at the same time, hence one length.
    for length in sorted({item.length for node in turn for item in node}):
        mine = [[b.rows for b in node if b.length == length] for node in turn]
        most = max(map(len, mine))
        # Rounded up, so that all dispatches of a length share one compiled program.
        most += -most % steps
        # Empty batches fill it up: their steps are skipped.
        rows = np.full((len(turn), most, batch_size), -1, np.int64)
        for node, blocks in enumerate(mine):
            if blocks:
                rows[node, : len(blocks)] = np.concatenate(blocks)
        cuts = np.split(rows, most // steps, axis=1)
        found += [batches.Dispatch(length, cut) for cut in cuts]
    return found


def init_federation(states: Sequence[TrainState], mesh: Mesh, *, server: bool):
    """The initial federation, placed on the devices of its nodes.

    Args:
        states: the state of each node, from `training.init_state`. With a server all
            must have the same parameters.
        mesh: from `nodes.make_mesh`.
        server: whether a server merges.

    Raises:
        ValueError: parameters that differ although there is a server.
    """
    stacked = nodes.stack(jax.device_get(list(states)))
    if server:
        for leaf in jax.tree.leaves(stacked.params):
            validate.require(
                bool((leaf == leaf[:1]).all()), "params", "others", "alike on all nodes"
            )
        # Once, not once a node: updates are differences from it on every node.
        origin = nodes.broadcast(nodes.unstack(stacked.params, 0), mesh)
    else:
        origin = nodes.shard(stacked.params, mesh)
    zero = nodes.broadcast(np.int32(0), mesh)
    return Federation(nodes.shard(stacked, mesh), origin, zero)


def merge_at_server(aggregate: Callable[..., PyTree]) -> Merge:
    """The merge by a server: origin ← origin + A(updates), which all nodes receive.

    Args:
        aggregate: a rule of `protojax.federated.aggregation` with its parameters.

    References:
        McMahan et al., 2017, arXiv:1602.05629. Unlike there, each node's optimiser
        keeps its own moments from round to round.
    """

    def merge(params, origin, weights, attack):
        # Updates, not parameters: rules bound what a node adds, and 0 is no change.
        updates = jax.tree.map(jnp.subtract, params, origin)
        if attack is not None:
            updates = attack(updates)
        update = aggregate(updates, weights=weights)
        origin = jax.tree.map(lambda x, u: x + u.astype(x.dtype), origin, update)
        return nodes.replicate(origin, len(weights)), origin

    return merge


def merge_by_gossip(
    mixing: np.ndarray,
    aggregate: Callable[..., PyTree] | None = None,
    *,
    mesh: Mesh | None = None,
) -> Merge:
    """The merge among neighbours.

    Args:
        mixing: `[nodes, nodes]`, see `protojax.federated.gossip`.
        aggregate: a robust rule that each node applies to the parameters it receives;
            None takes their mean with the matrix's weights.
        mesh: from `nodes.make_mesh`, for the robust form.
    """
    mixing = gossip.check_mixing(mixing)

    def merge(params, origin, weights, attack):
        sent = params
        if attack is not None:
            # Attacks act on updates, gossip on parameters.
            updates = attack(jax.tree.map(jnp.subtract, params, origin))
            sent = jax.tree.map(jnp.add, origin, updates)
        if aggregate is None:
            merged = gossip.mix(sent, mixing)
        else:
            merged = gossip.robust_mix(sent, mixing, aggregate, own=params, mesh=mesh)
        # Without a server each node's next updates are relative to what it now holds.
        return merged, merged

    return merge


def keep_local() -> Merge:
    """The merge that changes nothing: every node distils by itself."""
    return lambda params, origin, weights, attack: (params, origin)


def make_local(
    step: Callable,
    mesh: Mesh,
    *,
    at_once: int = 1,
    on_trace: Callable[[Batch], None] | None = None,
):
    """A compiled function for several local steps of every node in one call.

    Args:
        step: the step of one node, from `training.make_step`.
        mesh: from `nodes.make_mesh`.
        at_once: nodes per device that are computed together.
        on_trace: called with the (abstract) batches once per shape.

    Returns:
        `local(states, batches) -> (states, metrics)`; batches have leading axes
        `[nodes, steps, batch]`, metrics are `[nodes, steps]`. The states are donated.
    """
    every = nodes.per_node(
        lambda state, stacked: jax.lax.scan(step, state, stacked), mesh, at_once=at_once
    )

    def local(states: TrainState, stacked: Batch):
        if on_trace is not None:
            on_trace(stacked)
        return every(states, stacked)

    return jax.jit(local, donate_argnums=0)


def make_merge(
    merge: Merge,
    mesh: Mesh,
    *,
    weights: np.ndarray,
    attack: Callable[[PyTree, np.ndarray, Array], PyTree] | None = None,
    hostile: np.ndarray | None = None,
    seed: int = 0,
    on_trace: Callable[[], None] | None = None,
):
    """A compiled function for the end of a round: the attack and the merge.

    Args:
        merge: `merge_at_server(...)`, `merge_by_gossip(...)` or `keep_local()`.
        mesh: from `nodes.make_mesh`.
        weights: `[nodes]`, >= 0, such as the rows of each node.
        attack: `(updates, hostile, key) -> updates`, or None.
        hostile: `[nodes]`, bool, the nodes that attack.
        seed: the seed of the attack's random draws.
        on_trace: called whenever the function is traced.

    Returns:
        `merge(federation) -> federation` with unchanged sharding. The argument is
        donated.

    Raises:
        ValueError: an attack without hostile nodes, or the other way round; a weight
            that is negative or not finite.
    """
    weights = np.asarray(weights, np.float32)
    valid = bool((np.isfinite(weights) & (weights >= 0)).all())
    validate.require(valid, "weights", weights.tolist(), ">= 0 and finite")
    validate.require(
        (attack is None) == (hostile is None or not np.any(hostile)),
        "hostile",
        hostile,
        "some nodes, if and only if there is an attack",
    )
    weights = jnp.float32(weights)
    everywhere = NamedSharding(mesh, P())

    def arriving(round_: Array) -> UpdateAttack | None:
        if attack is None:
            return None
        # By round, so that a resumed run repeats the attacks without further state.
        key = jax.random.fold_in(jax.random.key(seed), round_)
        return lambda updates: attack(updates, hostile, key)

    def end(federation: Federation) -> Federation:
        if on_trace is not None:
            on_trace()
        states, origin, round_ = federation
        params, origin = merge(states.params, origin, weights, arriving(round_))
        # Without the constraints the compiler would replicate the merged values.
        params = jax.lax.with_sharding_constraint(params, nodes.sharding(mesh))
        origin = jax.tree.map(
            lambda leaf, of_nodes: jax.lax.with_sharding_constraint(
                leaf, nodes.sharding(mesh) if leaf.ndim == of_nodes.ndim else everywhere
            ),
            origin,
            params,
        )
        return Federation(states._replace(params=params), origin, round_ + 1)

    return jax.jit(end, donate_argnums=0)
