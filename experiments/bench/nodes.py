"""Benchmarks of nodes: the cost of a round, and lies about prototypes.

`nodes`: the time of a round of N nodes on this machine's devices (local steps and a
merge) relative to N separate runs of the same steps, and the memory of the compiled
program. `lies`: the displacement of merged prototypes by two hostile nodes of eight,
relative to the distances between honest nodes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.arms import merges
from experiments.bench.measure import measure
from experiments.configs.federated import RULES
from experiments.reports import results
from protojax import distillation, models, prototypes, training
from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.base import Batch, Prototypes
from protojax.distillation import mean_gradient
from protojax.federated import aggregation, federation, nodes
from protojax.federated.settings import Federation
from protojax.prototypes import matching
from protojax.prototypes.geometry import paired_distance

STEPS, ROWS, LENGTH = 4, 16, 32
CONFIG = models.EncoderConfig(
    family="bert",
    vocab_size=4000,
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    intermediate_size=512,
    max_positions=LENGTH,
)


def make_batches(num_nodes: int) -> Batch:
    """The random batches of a benchmark, with leading axes `[nodes, steps, batch]`."""
    rng = np.random.default_rng(0)
    shape = (num_nodes, STEPS, ROWS)
    return Batch(
        input_ids=rng.integers(0, CONFIG.vocab_size, (*shape, LENGTH), np.int32),
        attention_mask=np.ones((*shape, LENGTH), np.int32),
        token_type_ids=np.zeros((*shape, LENGTH), np.int32),
        labels=rng.integers(0, CONFIG.num_labels, shape, np.int32),
        where=np.ones(shape, bool),
    )


def program_bytes(compiled: Any) -> int:
    """The bytes of memory that a compiled program needs."""
    found = compiled.memory_analysis()
    # Donated arguments share their memory with outputs, so they count once.
    donated = found.alias_size_in_bytes
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - donated
    )


def bench_nodes(
    console: Console, sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
) -> None:
    """Prints the time and memory of a round relative to those of separate runs.

    Args:
        console: the console to print to.
        sizes: the numbers of nodes to measure.
    """
    table = Table(title=f"{STEPS} steps of {ROWS} x {LENGTH} tokens a node and round")
    for name in (
        *("nodes", "separate", "round", "ratio", "vmapped", "ratio"),
        *("memory", "of separate", "compilations"),
    ):
        table.add_column(name, justify="right")
    for size in sizes:
        table.add_row(*_bench_size(size))
    results.show(console, table)
    console.print(
        "round: nodes of a device one after the other, and the merge; vmapped: all at "
        "once. compilations: of both kinds of round, two programs each."
    )


def _bench_size(size: int) -> list[str]:
    """The table's row for one number of nodes."""
    loss_fn = distillation.supervised_loss(models.apply_fn(CONFIG))
    optimizer = training.adamw(learning_rate=1e-3)
    step = training.make_step(mean_gradient(loss_fn), optimizer)
    params = distillation.student_params(models.init_model(CONFIG, seed=0).params)
    states = [
        training.init_state(params, optimizer, num_steps=10**6, seed=node)
        for node in range(size)
    ]
    mesh, stacked, traces = nodes.make_mesh(size), make_batches(size), []
    placed, held, runs = nodes.shard(stacked, mesh), {}, {}
    for name, at_once in (("round", 1), ("vmapped", size)):
        local = federation.make_local(
            step, mesh, at_once=at_once, on_trace=lambda _: traces.append("local")
        )
        end = federation.make_merge(
            federation.merge_at_server(aggregation.mean),
            mesh,
            weights=np.ones(size),
            on_trace=lambda: traces.append("merge"),
        )
        held[name] = federation.init_federation(states, mesh, server=True)
        # What is measured is what runs: a second compilation would cost as much again.
        local = local.lower(held[name].nodes, placed).compile()
        runs[name] = functools.partial(_round, held, name, local, end, placed)
        if name == "round":
            memory = program_bytes(local)
    own = [jax.tree.map(jnp.asarray, nodes.unstack(stacked, n)) for n in range(size)]
    alone = training.make_dispatch(step).lower(states[0], own[0]).compile()
    separate = size * program_bytes(alone)
    held["separate"] = states
    runs["separate"] = functools.partial(_separate, held, alone, own)
    seconds = measure(runs)
    ratios = {name: seconds[name] / seconds["separate"] for name in runs}
    return [
        str(size),
        f"{1e3 * seconds['separate']:.0f} ms",
        f"{1e3 * seconds['round']:.0f} ms",
        f"{ratios['round']:.2f}",
        f"{1e3 * seconds['vmapped']:.0f} ms",
        f"{ratios['vmapped']:.2f}",
        f"{memory / 1e6:.0f} MB",
        f"{memory / separate:.2f}",
        str(len(traces)),
    ]


def _round(held, name: str, local, end, stacked):
    """The federation after one round; it replaces the donated one in `held`."""
    fed = held[name]
    states, _ = local(fed.nodes, stacked)
    held[name] = end(fed._replace(nodes=states))
    return held[name]


def _separate(held, alone, own):
    """The states after separate runs of every node's steps; they replace those held."""
    held["separate"] = [
        alone(state, batch)[0]
        for state, batch in zip(held["separate"], own, strict=True)
    ]
    return held["separate"]


def honest_prototypes(num_nodes: int, *, rows: int = 600, seed: int = 0) -> Prototypes:
    """The prototypes `[nodes, ...]` of each node for its own sample of two classes.

    A class is a mixture of five Gaussians in 64 dimensions; a node has `rows` rows.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, 64))
    sets = []
    for node in range(num_nodes):
        # As many rows of each cluster: classes of one size are one program.
        cluster = rng.permutation(rows) % 10
        features = centres[cluster] + 0.5 * rng.normal(size=(rows, 64))
        sets.append(
            prototypes.class_prototypes(
                jax.random.key(node),
                jnp.asarray(features, jnp.float32),
                jnp.asarray(cluster % 2),
                2,
                num_prototypes=10,
                metric="l2",
            )
        )
    return nodes.stack(jax.device_get(sets))


def displacement(merged: Prototypes, honest: Prototypes) -> float:
    """The displacement of merged prototypes in units of the honest spread.

    It is the largest distance of a merged prototype from its match in the mean of the
    honest nodes, divided by the largest such distance of any honest node's prototypes.
    It is at most 1 within the honest spread, and infinite if a prototype has no match
    of its class.

    Args:
        merged: `[num_prototypes, dim]`.
        honest: `[nodes, num_prototypes, dim]`.
    """
    centre = matching.merge_prototypes(honest, aggregation.mean, metric="l2")

    def farthest(found: Prototypes) -> float:
        found = matching.match_prototypes(found, centre, metric="l2")
        gaps = paired_distance(found.vectors, centre.vectors, metric="l2")
        return float(jnp.where(found.counts > 0, gaps, jnp.inf).max())

    sets = [nodes.unstack(honest, node) for node in range(len(honest.labels))]
    return farthest(merged) / max(map(farthest, sets))


def bench_lies(console: Console) -> None:
    """Prints the displacement of merged prototypes by two hostile nodes of eight.

    Args:
        console: the console to print to.
    """
    everyone = honest_prototypes(8)
    honest = jax.tree.map(lambda leaf: leaf[2:], everyone)
    table = Table(
        title="2 of 8 nodes lie: displacement of the merged prototypes, 1 is the "
        "honest spread"
    )
    table.add_column("rule")
    for name in ("honest", *PROTOTYPE_ATTACKS):
        table.add_column(name, justify="right")
    for name, args in RULES.items():
        section = Federation(aggregator=name, aggregator_args=args)
        rule = merges.rule_of(section, weighted=name == "mean")
        sets = [everyone]
        for lie in PROTOTYPE_ATTACKS.values():
            liars = [
                lie(nodes.unstack(everyone, node), jax.random.key(node), 1)
                for node in (0, 1)
            ]
            sets.append(
                jax.tree.map(
                    lambda *parts: jnp.concatenate(parts), nodes.stack(liars), honest
                )
            )
        found = [
            displacement(matching.merge_prototypes(s, rule, metric="l2"), honest)
            for s in sets
        ]
        table.add_row(name, *(f"{value:.2f}" for value in found))
    results.show(console, table)
