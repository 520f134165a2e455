"""The model of a server whose nodes train in rounds, of whatever kind the model is."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from protojax import validate
from protojax.base import Batch, PyTree
from protojax.data import batches
from protojax.federated import federation, nodes, replicas
from protojax.federated.federation import Federation
from protojax.federated.replicas import Surroundings
from protojax.training import programs, trainer
from protojax.training.step import init_state
from protojax.training.trainer import Run


def train_rounds(
    runs: Sequence[Run],
    around: Surroundings,
    aggregate: Callable[..., PyTree],
    *,
    rounds: int,
    at_once: int = 1,
    rule: str = "",
) -> PyTree:
    """The parameters at a server after rounds of local training, resumed if killed.

    Args:
        runs: one for each node, which differ in rows, columns and prototypes only. The
            first names the run, and has the seed and the initial model.
        around: the surroundings of the run: lengths, storage and progress.
        aggregate: a rule of `aggregation` with its parameters; nodes weigh as much as
            they have rows, where it weighs.
        rounds: the number of merges, over which the epochs are divided.
        at_once: nodes per device that are computed together.
        rule: names the rule, for the identity of the checkpoints.

    Raises:
        ValueError: nodes with other models, objectives, settings or columns.
    """
    first = runs[0]
    for node, run in enumerate(runs):
        alike = [
            (one.model.config, one.objective, one.train, sorted(one.columns))
            for one in (first, run)
        ]
        bound = "like those of node 0 but for its rows"
        validate.require(alike[0] == alike[1], f"run of node {node}", alike[1], bound)
    turns = federation.plan_rounds(
        [run.tokens.lengths for run in runs],
        num_rounds=rounds,
        epochs=first.train.epochs,
        batch_size=first.train.batch_size,
        buckets=around.lengths.buckets,
        steps_per_dispatch=around.lengths.steps_per_dispatch,
        seed=first.seed,
    )
    plan = [item for turn in turns for item in turn]
    ends = {*(np.cumsum([len(turn) for turn in turns]) - 1).tolist()}
    mesh = nodes.make_mesh(len(runs))
    local, optimizer = replicas.local_of(
        first.model.config, first.objective, first.train.optimizer, mesh, at_once
    )
    rows = tuple(len(run.tokens.lengths) for run in runs)
    words = np.arange(first.model.config.vocab_size)
    end = federation.make_merge(
        federation.merge_at_server(aggregate),
        mesh,
        weights=np.array(rows),
        # Counted, so that the time of a compilation is not taken for step time.
        on_trace=lambda: programs.TRACES.update({("merge/server", rows): 1}),
    )

    def dispatch(state: Federation, loaded: tuple[Batch, bool]):
        stacked, ends_round = loaded
        states, metrics = local(state.nodes, stacked)
        state = state._replace(nodes=states)
        return end(state) if ends_round else state, metrics

    state, _ = replicas.fit_nodes(
        first.name,
        plan,
        lambda number: (
            replicas.batches_of(runs, plan[number], mesh),
            number in ends,
        ),
        dispatch,
        lambda metrics: nodes.gather(metrics, mesh),
        _start(runs, plan, mesh, optimizer),
        around=around,
        cost=trainer.row_cost(first.model.config),
        finite=True,
        identity=trainer.identity_of(runs, words, around.lengths, f"{rounds} {rule}"),
    )
    return jax.device_get(state.origin)["model"]


def _start(
    runs: Sequence[Run], plan: Sequence[batches.Dispatch], mesh, optimizer
) -> Federation:
    """The federation before its first step: one start for all nodes."""
    first = runs[0]
    params = trainer.initial_params(first.model, first.columns, first.seed)
    states = [
        init_state(
            params,
            optimizer,
            # Its own batches alone: it skips the steps in which only others have one.
            num_steps=max(1, batches.num_steps(replicas.of_node(plan, node))),
            # No two nodes of any two seeds have the same dropout.
            seed=first.seed * len(runs) + node,
            prototypes=run.prototypes,
        )
        for node, run in enumerate(runs)
    ]
    return federation.init_federation(states, mesh, server=True)
