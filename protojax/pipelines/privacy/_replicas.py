"""Models of several pipelines that train in one compiled program, and their outputs.

Pipelines are nodes that never merge. All rows are on the device once, and a plan says
which rows a pipeline sees in which step, so nothing but row numbers and targets differs
between pipelines, and a program serves all models of one kind.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import distillation, models, validate
from protojax.base import Array, Batch, PyTree, TrainState
from protojax.data.tokens import Tokens
from protojax.federated import nodes
from protojax.models import EncoderConfig
from protojax.training import programs
from protojax.training.objective import Objective
from protojax.training.step import AdamW, init_state

# Steps of one compiled call: few calls for a program, and few empty steps at its end.
STEPS = 32
_SCORED = 64  # rows of a batch that is only read


class Held(NamedTuple):
    """The tokens of all rows, as the device holds them.

    Attributes:
        input_ids: `[rows, length]`, int32.
        token_type_ids: `[rows, length]`, int32.
        lengths: `[rows]`, int32.
        pad_id: scalar int32.
    """

    input_ids: Array
    token_type_ids: Array
    lengths: Array
    pad_id: Array


class Machine(NamedTuple):
    """The devices that pipelines are spread over.

    Attributes:
        mesh: from `nodes.make_mesh`.
        at_once: pipelines that a device computes together.
    """

    mesh: Mesh
    at_once: int = 1


class Lesson(NamedTuple):
    """The rows and targets of the models of K pipelines.

    Attributes:
        plans: `[steps, batch]` of each pipeline, int, numbers of rows, -1 for none.
        labels: `[K, rows]`, int32.
        targets: `[K, rows, classes]`, float32, a teacher's logits, or None.
        objective: what they minimise.
        optimizer: its settings.
    """

    plans: Sequence[np.ndarray]
    labels: np.ndarray
    targets: np.ndarray | None
    objective: Objective
    optimizer: AdamW


def held(tokens: Tokens, mesh: Mesh) -> Held:
    """The tokens of all rows on all devices.

    Args:
        tokens: of all rows.
        mesh: from `nodes.make_mesh`.
    """
    ids, types, lengths, pad_id = tokens
    return nodes.broadcast(Held(ids, types, lengths, np.int32(pad_id)), mesh)


def batch_of(
    tokens: Held, rows: Array, labels: Array, targets: Array | None = None
) -> Batch:
    """The batch of some rows, gathered on the device; see `data.batches.make_batch`.

    Args:
        tokens: of all rows.
        rows: `[batch]`, int32, -1 for none.
        labels: `[rows]`.
        targets: `[rows, classes]`, or None.
    """
    where, chosen = rows >= 0, jnp.maximum(rows, 0)
    lengths = jnp.where(where, tokens.lengths[chosen], 0)
    mask = jnp.arange(tokens.input_ids.shape[1]) < lengths[:, None]
    return Batch(
        input_ids=jnp.where(mask, tokens.input_ids[chosen], tokens.pad_id),
        attention_mask=mask.astype(jnp.int32),
        token_type_ids=jnp.where(mask, tokens.token_type_ids[chosen], 0),
        labels=jnp.where(where, labels[chosen], 0),
        where=where,
        teacher_logits=None
        if targets is None
        else jnp.where(where[:, None], targets[chosen], 0),
    )


@functools.cache
def _steps_of(
    config: EncoderConfig, objective: Objective, optimizer: AdamW, machine: Machine
):
    """The compiled steps of all pipelines, and the optimiser."""
    step, transformation, _ = programs.step_of(config, objective, optimizer)

    def one(tokens: Held, state: TrainState, rows: Array, labels: Array, targets):
        def body(state: TrainState, rows: Array):
            state, metrics = step(state, batch_of(tokens, rows, labels, targets))
            return state, metrics["loss"]

        return jax.lax.scan(body, state, rows)

    every = nodes.per_node(one, machine.mesh, at_once=machine.at_once, num_shared=1)

    def steps(tokens: Held, states: TrainState, rows: Array, *given):
        # Runs when the function is traced only, hence once per compilation.
        programs.TRACES[f"pipelines/{objective}", rows.shape] += 1
        return every(tokens, states, rows, *given)

    return jax.jit(steps, donate_argnums=1), transformation


@functools.cache
def _reader_of(config: EncoderConfig, machine: Machine):
    """The compiled logits of all pipelines' models."""
    apply = models.apply_fn(config)

    def one(tokens: Held, rows: Array, params: PyTree):
        labels = jnp.zeros(len(tokens.lengths), jnp.int32)

        def some(rows: Array):
            return apply(params["model"], batch_of(tokens, rows, labels)).logits

        return jax.lax.map(some, rows)

    every = nodes.per_node(one, machine.mesh, at_once=machine.at_once, num_shared=2)
    return jax.jit(every)


def train(
    config: EncoderConfig,
    params: Sequence[PyTree],
    tokens: Held,
    lesson: Lesson,
    machine: Machine,
    *,
    seeds: Sequence[int | None],
    on_progress: Callable[[int], None] = lambda rows: None,
) -> PyTree:
    """The trained parameters of K models, `[K, ...]` on their devices.

    Args:
        config: of all models.
        params: the initial parameters of each.
        tokens: of all rows.
        lesson: what they learn.
        machine: the devices.
        seeds: of each model's dropout and noise; None takes the system's entropy.
        on_progress: called with the rows that were learned since the last call.

    Raises:
        FloatingPointError: the loss of a model is not finite.
    """
    validate.same_length(params=params, plans=lesson.plans, seeds=seeds)
    program, optimizer = _steps_of(config, lesson.objective, lesson.optimizer, machine)
    states = [
        init_state(
            distillation.student_params(own),
            optimizer,
            num_steps=int((plan >= 0).any(1).sum()),
            seed=seed,
        )
        for own, plan, seed in zip(params, lesson.plans, seeds, strict=True)
    ]
    state = nodes.shard(nodes.stack(jax.device_get(states)), machine.mesh)
    most = max(map(len, lesson.plans))
    most += -most % STEPS
    plans = np.full((len(states), most, lesson.plans[0].shape[1]), -1, np.int32)
    for own, plan in zip(plans, lesson.plans, strict=True):
        own[: len(plan)] = plan
    given = (lesson.labels.astype(np.int32), lesson.targets)
    given = nodes.shard(given, machine.mesh)
    for rows in np.split(plans, most // STEPS, axis=1):
        state, losses = program(tokens, state, nodes.shard(rows, machine.mesh), *given)
        # Waits for the device, so that progress and Ctrl-C come in time.
        found = nodes.gather(losses, machine.mesh)
        if not np.isfinite(found[(rows >= 0).any(-1)]).all():
            raise FloatingPointError(
                "The loss of a model is not finite: take a lower learning_rate."
            )
        on_progress(int((rows >= 0).sum()))
    return state.params


def read(
    config: EncoderConfig, params: PyTree, tokens: Held, machine: Machine
) -> np.ndarray:
    """The logits of K models on all rows, `[K, rows, classes]`, float32.

    Args:
        config: of all models.
        params: from `train`.
        tokens: of all rows.
        machine: the devices.
    """
    count = len(tokens.lengths)
    rows = np.full(count + -count % _SCORED, -1, np.int32)
    rows[:count] = np.arange(count)
    rows = nodes.broadcast(rows.reshape(-1, _SCORED), machine.mesh)
    found = nodes.gather(
        _reader_of(config, machine)(tokens, rows, params), machine.mesh
    )
    return found.reshape(len(found), -1, found.shape[-1])[:, :count]
