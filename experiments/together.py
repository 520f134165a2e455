"""Trains the models of several seeds side by side, as one more axis of a program.

A model of tens of millions of weights leaves an accelerator idle most of the time;
three of them take hardly longer than one. Seeds are then what nodes are in a
federation without any merge: each has rows, order and dropout of its own.

Which seeds train side by side is a matter of the config alone (`seeds_beside`), never
of what a killed study had come to: the words that a group's models know and the lengths
that they step through are the group's, so a seed that trained beside others would not
come out the same.
"""

import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from experiments import runtime, trainer
from experiments.runtime import Context
from experiments.trainer import Run, Trained
from protojax import data, training
from protojax.base import Batch
from protojax.data import batches
from protojax.federated import federation, node_checkpoint, nodes
from protojax.federated.federation import Federation


def seeds_beside(config, seed: int) -> tuple[int, ...]:
    """Returns the seeds that train side by side with one, itself among them.

    >>> from ml_collections import ConfigDict
    >>> config = ConfigDict({"seeds": (4, 5, 6), "seeds_at_once": 2})
    >>> [seeds_beside(config, seed) for seed in (4, 5, 6)]
    [(4, 5), (4, 5), (6,)]
    """
    seeds, at_once = tuple(config.seeds), config.seeds_at_once
    if seed not in seeds:
        return (seed,)
    start = seeds.index(seed) // at_once * at_once
    return seeds[start : start + at_once]


def train(
    context: Context, runs: Sequence[Run], *, done: Collection[str] = ()
) -> Iterator[Trained]:
    """Trains some models, `seeds_at_once` of them at a time.

    One after the other go those that differ in more than seed and rows, such as models
    with a tokenizer of their own, and private ones, whose batches differ in size.

    Args:
        context: the study.
        runs: what to train, all that the config puts side by side.
        done: names of those whose result is kept already. They train again only where
            they are part of the program of one that is not.

    Yields:
        What each of the others came to, in their order; the seconds of a step are a
        share. To be kept before the next is asked for: the checkpoints that they came
        from go once all of a group are.
    """
    at_once = context.config.seeds_at_once
    for start in range(0, len(runs), at_once):
        group = runs[start : start + at_once]
        alike = {(run.model.config, run.objective, run.section) for run in group}
        if len(group) > 1 and len(alike) == 1 and not group[0].private:
            if not {run.name for run in group} <= set(done):
                ended = zip(group, _train(context, group), strict=True)
                yield from (found for run, found in ended if run.name not in done)
            trainer.forget_checkpoints(context, group[0].name)
            continue
        for run in group:
            if run.name in done:
                continue
            context.describe(run.name)
            yield trainer.train(context, run)
            secret = run.draws_in_secret(context.config)
            trainer.forget_checkpoints(context, run.name, secret=secret)


def _train(context: Context, whole: Sequence[Run]) -> list[Trained]:
    """Trains models of one shape at once."""
    context.describe(f"{whole[0].name} and {len(whole) - 1} more")
    config, kept = context.config, trainer.used_ids(whole)
    runs = [trainer.narrowed(run, kept) for run in whole]
    first = runs[0]
    epochs = federation.plan_rounds(
        [run.tokens.lengths for run in runs],
        num_rounds=first.section.epochs,
        epochs=first.section.epochs,
        batch_size=first.section.batch_size,
        buckets=tuple(config.data.buckets),
        steps_per_dispatch=config.steps_per_dispatch,
        seed=[run.seed for run in runs],
    )
    # They come by length, the same for all; learning wants them mixed.
    rng = np.random.default_rng(first.seed)
    plan = [epoch[i] for epoch in epochs for i in rng.permutation(len(epoch))]
    mesh = nodes.make_mesh(len(runs))
    local, optimizer = compiled_local(
        first.model.config,
        first.objective,
        runtime.optimizer_of(first.section),
        mesh,
        len(runs),
    )
    states = [
        trainer.start_of(run, optimizer, batches.num_steps(of_node(plan, number)))
        for number, run in enumerate(runs)
    ]
    state = federation.init_federation(states, mesh, server=False)

    def load(number: int) -> Batch:
        length, rows = plan[number]
        stacked = [
            batches.make_batch(
                run.tokens, run.labels, batches.Dispatch(length, own), **run.columns
            )
            for run, own in zip(runs, rows, strict=True)
        ]
        return nodes.shard(nodes.stack(stacked), mesh)

    def dispatch(state: Federation, loaded: Batch):
        states, metrics = local(state.nodes, loaded)
        return state._replace(nodes=states), metrics

    # A checkpoint of other seeds or words is not one of this run.
    names, texts = [run.name for run in runs], [run.tokens.input_ids for run in runs]
    labels = [run.labels for run in runs]
    state, seconds = walk(
        context,
        first.name,
        plan,
        load,
        dispatch,
        lambda metrics: nodes.gather(metrics, mesh),
        state,
        cost=runtime.row_cost(first.model.config),
        finite=True,
        identity=data.fingerprint(*names, kept, *texts, *labels),
    )
    everyone = nodes.gather(state.nodes.params, mesh)
    # Steps together are more than those of one, who may have no batch in some.
    total = seconds * batches.num_steps(for_log(plan)) / len(runs)
    return [
        trainer.end_of(
            run,
            nodes.unstack(everyone, number),
            kept,
            total / batches.num_steps(of_node(plan, number)),
        )._replace(at_once=len(runs))
        for number, run in enumerate(whole)
    ]


@functools.cache
def compiled_local(model_config, objective, optimizer_config, mesh: Mesh, at_once: int):
    """Returns the compiled local steps of all nodes and the optimiser."""
    step, optimizer, count = runtime.make_step(
        model_config, objective, optimizer_config
    )
    local = federation.make_local(step, mesh, at_once=at_once, on_trace=count)
    return local, optimizer


def of_node(plan: list[batches.Dispatch], node: int) -> list[batches.Dispatch]:
    """Returns the dispatches of one node."""
    return [batches.Dispatch(length, rows[node]) for length, rows in plan]


def for_log(plan: list[batches.Dispatch]) -> list[batches.Dispatch]:
    """Returns a plan in which the batches of all nodes are one."""
    return [
        batches.Dispatch(length, rows.swapaxes(0, 1).reshape(rows.shape[1], -1))
        for length, rows in plan
    ]


def walk(
    context,
    name,
    plan,
    load,
    dispatch,
    gather,
    state,
    *,
    cost: float,
    finite: bool,
    identity: str = "",
):
    """Walks a plan, saving on the way; returns the end and the seconds of a step.

    Args:
        context: the study.
        name: the run's folder below the workdir.
        plan: the dispatches of all rounds.
        load: number of a dispatch -> what `dispatch` takes.
        dispatch: `(federation, loaded) -> (federation, metrics [nodes, steps])`.
        gather: brings metrics to the host.
        state: the federation at its start.
        cost: of a row, in the progress bar's units.
        finite: whether a loss that is not finite stops the study.
        identity: what checkpoints must have been written with.
    """
    config = context.config
    folder = context.workdir / name / "checkpoints"
    identity = data.fingerprint(name, identity)
    start, extra, num_nodes = 0, {}, plan[0].rows.shape[0]
    if node_checkpoint.latest_step(folder, num_nodes) is not None:
        try:
            found, done, said = node_checkpoint.restore_nodes(
                folder, state, fallback=True, identity=identity
            )
            state, start, extra = found, done, said
        except ValueError as error:
            runtime.logger.warning("%s starts anew: %s", name, error)
    log = trainer.MetricsLog(
        context, name, for_log(plan), cost, start, extra, finite=finite
    )
    with node_checkpoint.NodeWriter(folder, identity=identity) as writer:

        def save(state: Federation, done: int) -> None:
            log.flush()
            writer.save(state, done, log.extra)
            log.resume_timing()

        def report(done: int, metrics) -> None:
            had_batch = (plan[done - 1].rows >= 0).any(-1)
            log(done, _mean_over_nodes(gather(metrics), had_batch, finite=finite))

        state = training.fit(
            dispatch,
            state,
            range(len(plan)),
            load,
            start=start,
            save=save,
            save_every=config.checkpoint_every,
            on_dispatch=report,
        )
        log.flush()
        if config.keep_checkpoints and start < len(plan):
            writer.save(state, len(plan), log.extra)
    return state, log.step_seconds


def _mean_over_nodes(
    metrics: dict[str, np.ndarray], had_batch: np.ndarray, *, finite: bool
) -> dict[str, np.ndarray]:
    """Returns `[steps]`, the mean over the nodes that had a batch.

    Args:
        metrics: each `[nodes, steps]`.
        had_batch: `[nodes, steps]`, bool.
        finite: whether what is not finite counts; else nodes of NaN are left out.
    """
    found = {}
    for name, values in metrics.items():
        known = had_batch & (finite | ~np.isnan(values))
        total = np.where(known, values, 0).sum(0)
        found[name] = np.where(
            known.any(0), total / np.maximum(known.sum(0), 1), np.nan
        )
    return found
