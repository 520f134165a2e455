"""Replicas: models of several seeds that train together in one program.

A model of tens of millions of weights leaves an accelerator idle most of the time;
three such models take hardly longer than one. Seeds are treated like the nodes of a
federation without a merge: each has its own rows, order and dropout.

The seeds of a group must not depend on how far a killed run had progressed. The
vocabulary and the sequence of lengths are common to a group, so the same seed in
another group would give a slightly different model.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from protojax.base import Batch, PyTree
from protojax.data import batches
from protojax.federated import federation, node_checkpoint, nodes
from protojax.federated.federation import Federation
from protojax.models import EncoderConfig
from protojax.storage import fingerprint
from protojax.training import log, programs, trainer
from protojax.training.objective import Objective
from protojax.training.predict import Lengths
from protojax.training.step import AdamW
from protojax.training.trainer import OnProgress, Run, Saver, Store, Trained


class Surroundings(NamedTuple):
    """The environment of training runs: lengths, storage and progress reports.

    Attributes:
        lengths: how rows are padded and batched.
        store: name of a run -> where its checkpoints are written.
        describe: called with a description of the current work.
        on_progress: called with the work done.
    """

    lengths: Lengths
    store: Callable[[str], Store]
    describe: Callable[[str], None] = lambda text: None
    on_progress: OnProgress = lambda units: None


def seeds_beside(seeds: Sequence[int], at_once: int, seed: int) -> tuple[int, ...]:
    """The seeds that train together with `seed`, including itself.

    >>> [seeds_beside((4, 5, 6), 2, seed) for seed in (4, 5, 6)]
    [(4, 5), (4, 5), (6,)]
    """
    seeds = tuple(seeds)
    if seed not in seeds:
        return (seed,)
    # By position in the study, not by what is left to do: a resumed run must form the
    # same groups, since a seed's result depends on its group.
    start = seeds.index(seed) // at_once * at_once
    return seeds[start : start + at_once]


def train_all(
    runs: Sequence[Run],
    around: Surroundings,
    *,
    at_once: int = 1,
    done: Collection[str] = (),
) -> Iterator[Trained]:
    """The trained models of several runs, `at_once` of them at a time.

    Runs that differ in more than seed and rows, such as models with their own
    tokenizers, train one after the other. So do private runs, whose batches differ in
    size.

    Args:
        runs: all runs of the groups, including those that are done.
        around: the runs' environment.
        at_once: the maximum number of runs that train together.
        done: names of runs whose results are already stored. They train again only if
            another run of their group is not done.

    Yields:
        The results of the runs that are not done, in order; in a group, `step_seconds`
        is a share. Each result must be stored before the next is requested, because a
        group's checkpoints are removed after its last result.
    """
    for start in range(0, len(runs), at_once):
        group = runs[start : start + at_once]
        # One compiled program serves a group only if these are equal.
        alike = {(run.model.config, run.objective, run.train) for run in group}
        if len(group) > 1 and len(alike) == 1 and not group[0].private:
            if not {run.name for run in group} <= set(done):
                ended = zip(group, train_group(group, around), strict=True)
                yield from (found for run, found in ended if run.name not in done)
            trainer.remove_checkpoints(around.store(group[0].name))
            continue
        for run in group:
            if run.name in done:
                continue
            around.describe(run.name)
            yield trainer.train(
                run,
                lengths=around.lengths,
                store=around.store(run.name),
                on_progress=around.on_progress,
            )
            trainer.remove_checkpoints(around.store(run.name), secret=run.secret)


def train_group(whole: Sequence[Run], around: Surroundings) -> list[Trained]:
    """The trained models of runs that share one program.

    Args:
        whole: runs that differ only in seed and rows.
        around: the runs' environment.
    """
    around.describe(f"{whole[0].name} and {len(whole) - 1} more")
    lengths, ids = around.lengths, trainer.used_ids(whole)
    runs = [trainer.narrowed(run, ids) for run in whole]
    first = runs[0]
    plan = plan_group(whole, lengths)
    mesh = nodes.make_mesh(len(runs))
    local, optimizer = local_of(
        first.model.config, first.objective, first.train.optimizer, mesh, len(runs)
    )
    states = [
        trainer.start_of(run, optimizer, batches.num_steps(of_node(plan, number)))
        for number, run in enumerate(runs)
    ]
    state = federation.init_federation(states, mesh, server=False)

    def load(number: int) -> Batch:
        return batches_of(runs, plan[number], mesh)

    def dispatch(state: Federation, loaded: Batch):
        states, metrics = local(state.nodes, loaded)
        return state._replace(nodes=states), metrics

    state, seconds = fit_nodes(
        first.name,
        plan,
        load,
        dispatch,
        lambda metrics: nodes.gather(metrics, mesh),
        state,
        around=around,
        cost=trainer.row_cost(first.model.config),
        finite=True,
        identity=trainer.identity_of(runs, ids, around.lengths),
    )
    everyone = nodes.gather(state.nodes.params, mesh)
    # The group takes more steps than a single run, which has no batch in some of them.
    total = seconds * batches.num_steps(of_all(plan)) / len(runs)
    return [
        trainer.end_of(
            run,
            nodes.unstack(everyone, number),
            ids,
            total / batches.num_steps(of_node(plan, number)),
        )._replace(at_once=len(runs))
        for number, run in enumerate(whole)
    ]


def batches_of(runs: Sequence[Run], item: batches.Dispatch, mesh: Mesh) -> Batch:
    """The batches of a dispatch `[runs, steps, batch]`, each on its run's device.

    Args:
        runs: one for each node.
        item: the rows of all runs.
        mesh: from `nodes.make_mesh`.
    """
    stacked = [
        batches.make_batch(
            run.tokens, run.labels, batches.Dispatch(item.length, own), **run.columns
        )
        for run, own in zip(runs, item.rows, strict=True)
    ]
    return nodes.shard(nodes.stack(stacked), mesh)


def plan_group(runs: Sequence[Run], lengths: Lengths) -> list[batches.Dispatch]:
    """The dispatches `[runs, steps, batch]` of runs that train together.

    Args:
        runs: runs that differ only in seed and rows.
        lengths: how rows are padded and batched.
    """
    train = runs[0].train
    epochs = federation.plan_rounds(
        [run.tokens.lengths for run in runs],
        num_rounds=train.epochs,
        epochs=train.epochs,
        batch_size=train.batch_size,
        buckets=lengths.buckets,
        steps_per_dispatch=lengths.steps_per_dispatch,
        seed=[run.seed for run in runs],
    )
    # The plan is sorted by length; training on one length after another would bias it.
    rng = np.random.default_rng(runs[0].seed)
    return [epoch[i] for epoch in epochs for i in rng.permutation(len(epoch))]


@functools.cache
def local_of(
    config: EncoderConfig, objective: Objective, optimizer: AdamW, mesh: Mesh, many: int
):
    """The compiled local steps of all nodes, and the optimiser.

    Args:
        config: the model's config.
        objective: the objective to minimise.
        optimizer: the optimiser's settings.
        mesh: the mesh of the nodes.
        many: nodes per device that are computed together.
    """
    step, transformation, count = programs.step_of(config, objective, optimizer)
    local = federation.make_local(step, mesh, at_once=many, on_trace=count)
    return local, transformation


def of_node(plan: list[batches.Dispatch], node: int) -> list[batches.Dispatch]:
    """The dispatches of one node."""
    return [batches.Dispatch(length, rows[node]) for length, rows in plan]


def of_all(plan: list[batches.Dispatch]) -> list[batches.Dispatch]:
    """The plan with the batches of all nodes joined into one batch per step."""
    return [
        batches.Dispatch(length, rows.swapaxes(0, 1).reshape(rows.shape[1], -1))
        for length, rows in plan
    ]


def fit_nodes(
    name: str,
    plan: list[batches.Dispatch],
    load: Callable[[int], Any],
    dispatch: Callable[[Federation, Any], tuple[Federation, dict[str, Any]]],
    gather: Callable[[PyTree], dict[str, np.ndarray]],
    state: Federation,
    *,
    around: Surroundings,
    cost: float,
    finite: bool,
    identity: str = "",
) -> tuple[Federation, float]:
    """The federation at the end of a plan, and the seconds of a step.

    Args:
        name: the run's name.
        plan: the dispatches of all rounds.
        load: number of a dispatch -> the second argument of `dispatch`.
        dispatch: `(federation, loaded) -> (federation, metrics [nodes, steps])`.
        gather: copies metrics to the host.
        state: the initial federation.
        around: the run's environment.
        cost: the cost of a row in units of progress.
        finite: whether a loss that is not finite is an error.
        identity: the identity with which checkpoints must have been written.
    """
    store = around.store(name)
    saver = _saver(
        store.checkpoints, fingerprint(name, identity), plan[0].rows.shape[0]
    )
    state, start, extra = trainer.resumed(name, saver, state)
    metrics_log = log.MetricsLog(
        store.folder,
        name,
        of_all(plan),
        cost=cost,
        start=start,
        extra=extra,
        on_progress=around.on_progress,
        finite=finite,
    )

    def report(done: int, metrics) -> None:
        had_batch = (plan[done - 1].rows >= 0).any(-1)
        means = mean_over_nodes(gather(metrics), had_batch, finite=finite)
        metrics_log(done, means)

    state = trainer.fit_saved(
        dispatch,
        state,
        # Numbers, since loading an item needs more than its rows.
        range(len(plan)),
        load,
        store=store,
        saver=saver,
        log=metrics_log,
        start=start,
        on_dispatch=report,
    )
    return state, metrics_log.step_seconds


def _saver(folder: Path, identity: str, num_nodes: int) -> Saver:
    """The functions that read and write the checkpoints of a federation."""
    writer = node_checkpoint.NodeWriter(folder, identity=identity)

    def restore(state: Federation):
        if node_checkpoint.latest_step(folder, num_nodes) is None:
            return None
        return node_checkpoint.restore_nodes(
            folder, state, fallback=True, identity=identity
        )

    def write(state: Federation, done: int, extra: dict[str, Any], ended: bool) -> None:
        del ended
        writer.save(state, done, extra)

    return Saver(restore, write, writer)


def mean_over_nodes(
    metrics: dict[str, np.ndarray], had_batch: np.ndarray, *, finite: bool
) -> dict[str, np.ndarray]:
    """The means `[steps]` of metrics over the nodes that had a batch.

    Args:
        metrics: each `[nodes, steps]`.
        had_batch: `[nodes, steps]`, bool.
        finite: whether NaN values count; otherwise they are left out of the means.
    """
    found = {}
    for name, values in metrics.items():
        # A step without a batch has NaN metrics, which must not enter the means.
        known = had_batch & (finite | ~np.isnan(values))
        total = np.where(known, values, 0).sum(0)
        found[name] = np.where(
            known.any(0), total / np.maximum(known.sum(0), 1), np.nan
        )
    return found
