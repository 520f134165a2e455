"""Training of a federation in rounds, of whatever kind the model is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from protojax import validate
from protojax.base import Batch, PyTree, TrainState
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
        runs: see `fit_rounds`.
        around: the surroundings of the run: lengths, storage and progress.
        aggregate: a rule of `aggregation` with its parameters; nodes weigh as much as
            they have rows, where it weighs.
        rounds: the number of merges, over which the epochs are divided.
        at_once: nodes per device that are computed together.
        rule: names the rule, for the identity of the checkpoints.

    Raises:
        ValueError: nodes with other models, objectives, settings or columns.
    """
    mesh = nodes.make_mesh(len(runs))
    rows = tuple(len(run.tokens.lengths) for run in runs)
    end = federation.make_merge(
        federation.merge_at_server(aggregate),
        mesh,
        weights=np.array(rows),
        # Counted, so that the time of a compilation is not taken for step time.
        on_trace=lambda: programs.TRACES.update({("merge/server", rows): 1}),
    )
    found = fit_rounds(
        runs, around, end, mesh, rounds=rounds, at_once=at_once, more=rule
    )
    return jax.device_get(found.state.origin)["model"]


class Fitted(NamedTuple):
    """A federation at the end of its rounds.

    Attributes:
        state: of the federation.
        step_seconds: of a step of all nodes.
        steps: that were taken.
    """

    state: Federation
    step_seconds: float
    steps: int


def fit_rounds(
    runs: Sequence[Run],
    around: Surroundings,
    end: Callable[[Federation], Federation],
    mesh: Mesh,
    *,
    rounds: int,
    at_once: int = 1,
    server: bool = True,
    finite: bool = True,
    more: str = "",
) -> Fitted:
    """The federation after rounds of local training, resumed if killed.

    Args:
        runs: one for each node, which differ in rows, the values of columns, and
            prototypes only. The first names the run, and has the seed and the model
            that all start from.
        around: the surroundings of the run: lengths, storage and progress.
        end: of a round: what the nodes exchange.
        mesh: from `nodes.make_mesh`, of as many nodes.
        rounds: over which the epochs are divided.
        at_once: nodes per device that are computed together.
        server: whether the nodes' updates are relative to a model at a server.
        finite: whether an infinite loss is an error.
        more: what else the result depends on, for the identity of the checkpoints.

    Raises:
        ValueError: nodes with other models, objectives, settings or columns.
    """
    first, lengths = runs[0], around.lengths
    _require_alike(runs)
    turns = federation.plan_rounds(
        [run.tokens.lengths for run in runs],
        num_rounds=rounds,
        epochs=first.train.epochs,
        batch_size=first.train.batch_size,
        buckets=lengths.buckets,
        steps_per_dispatch=lengths.steps_per_dispatch,
        seed=first.seed,
    )
    plan = [item for turn in turns for item in turn]
    # From the plan alone, so that a resumed run merges after the same dispatches.
    ends = {*(np.cumsum([len(turn) for turn in turns]) - 1).tolist()}
    local, optimizer = replicas.local_of(
        first.model.config, first.objective, first.train.optimizer, mesh, at_once
    )
    settings = first.model.config
    words = np.arange(settings.vocab_size)
    # All start from one model, whose weights count once.
    others = [run._replace(model=run.model._replace(params={})) for run in runs[1:]]

    def load(number: int) -> tuple[Batch, bool]:
        return replicas.batches_of(runs, plan[number], mesh), number in ends

    def dispatch(state: Federation, loaded: tuple[Batch, bool]):
        stacked, ends_round = loaded
        states, metrics = local(state.nodes, stacked)
        state = state._replace(nodes=states)
        return end(state) if ends_round else state, metrics

    state, seconds = replicas.fit_nodes(
        first.name,
        plan,
        load,
        dispatch,
        lambda metrics: nodes.gather(metrics, mesh),
        federation.init_federation(_starts(runs, plan, optimizer), mesh, server=server),
        around=around,
        cost=trainer.row_cost(first.model.config),
        finite=finite,
        identity=trainer.identity_of(
            [first, *others], words, lengths, f"{rounds} {settings}", more
        ),
    )
    return Fitted(state, seconds, batches.num_steps(replicas.of_all(plan)))


def _require_alike(runs: Sequence[Run]) -> None:
    """Raises where nodes have other models, objectives, settings or columns."""
    parts = [
        (run.model.config, run.objective, run.train, sorted(run.columns))
        for run in runs
    ]
    for node, found in enumerate(parts):
        bound = "like those of node 0 but for its rows"
        validate.require(found == parts[0], f"run of node {node}", found, bound)


def _starts(
    runs: Sequence[Run], plan: Sequence[batches.Dispatch], optimizer
) -> list[TrainState]:
    """The state of each node before its first step: one start for all."""
    first = runs[0]
    params = trainer.initial_params(first.model, first.columns, first.seed)
    return [
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
