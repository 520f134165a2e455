"""Training: one optimiser step, several steps in one dispatch, and the training loop.

`make_step` composes a gradient rule with an optimiser. `make_dispatch` scans the step
over stacked batches in one compiled call that donates the state. `fit` executes a plan
of dispatches, saves at intervals, and can start in the middle of the plan.
"""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from protojax import validate
from protojax.base import Array, Batch, GradFn, Prototypes, PyTree, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """The settings of `adamw`.

    Attributes:
        learning_rate: the peak learning rate.
        weight_decay: decoupled; not applied to vectors (biases, layer norms).
        warmup: fraction of the steps in [0, 1) over which the rate rises from 0.
        clip_norm: bound on the global gradient norm.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        validate.positive(learning_rate=self.learning_rate, clip_norm=self.clip_norm)
        validate.non_negative(weight_decay=self.weight_decay)
        validate.require(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")

    def build(self) -> optax.GradientTransformationExtraArgs:
        """The optimiser with these settings."""
        return adamw(**{name: getattr(self, name) for name in OPTIMIZER})


# The names of the optimiser's settings, to select them from a `TrainConfig`.
OPTIMIZER = tuple(field.name for field in dataclasses.fields(AdamW))


@dataclasses.dataclass(frozen=True)
class TrainConfig(AdamW):
    """The settings of a model's training: its optimiser, epochs and batch size.

    Attributes:
        epochs: passes over the rows.
        batch_size: rows per step.
    """

    epochs: int = 3
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        validate.positive(epochs=self.epochs, batch_size=self.batch_size)

    @property
    def optimizer(self) -> AdamW:
        """The optimiser's settings alone, the cache key of compiled steps."""
        return AdamW(**{name: getattr(self, name) for name in OPTIMIZER})


def adamw(
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip_norm: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with gradient clipping, linear warm-up and linear decay.

    The number of steps is part of the optimiser's state, not of its code, so runs of
    different lengths share one compiled step; `init_state` sets it.

    Args:
        learning_rate: the peak learning rate.
        weight_decay: decoupled; not applied to vectors (biases, layer norms).
        warmup: fraction of the steps in [0, 1) over which the rate rises from 0.
        clip_norm: bound on the global gradient norm.

    Returns:
        An optax transformation with the hyperparameter `num_steps` in its state.

    References:
        Loshchilov and Hutter, 2017, arXiv:1711.05101.
    """
    AdamW(learning_rate, weight_decay, warmup, clip_norm)  # checks them

    @optax.inject_hyperparams
    def build(num_steps: Array) -> optax.GradientTransformation:
        def schedule(step):
            # The lower of two lines; the maximum avoids a division by 0 steps.
            rising = (step + 1) / jnp.maximum(warmup * num_steps, 1)
            falling = (num_steps - step) / jnp.maximum((1 - warmup) * num_steps, 1)
            return learning_rate * jnp.clip(jnp.minimum(rising, falling), 0, 1)

        return optax.chain(
            optax.clip_by_global_norm(clip_norm),
            optax.adamw(
                schedule,
                weight_decay=weight_decay,
                mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            ),
        )

    # Replaced by `init_state`; a float, so that the leaf has the type it will keep.
    return build(num_steps=1.0)


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    seed: int | None,
    prototypes: Prototypes | None = None,
) -> TrainState:
    """The initial state of a run of `num_steps` steps.

    Args:
        params: the parameters to train; copied, since steps donate their state.
        optimizer: from `adamw`, or any optax transformation.
        num_steps: optimiser steps of the whole run.
        seed: seed of dropout and all other random draws. None takes the key from the
            operating system's entropy: privacy noise must not be computable from a
            recorded seed, nor by a search over the 32 bits of a seed.
        prototypes: the prototypes that constrain the student, or None.

    Returns:
        A `TrainState` that shares no buffer with its arguments. Its 64-bit key, from
        which JAX's counter-based generator (Threefry) makes all draws, is part of each
        checkpoint.
    """
    validate.positive(num_steps=num_steps)
    params, prototypes = _copied((params, prototypes))
    opt_state = optimizer.init(params)
    if "num_steps" in getattr(opt_state, "hyperparams", {}):
        opt_state.hyperparams["num_steps"] = jnp.float32(num_steps)
    # Raw words, which stack along a node axis and are saved like any other array.
    key = jax.random.key_data(jax.random.key(seed or 0))
    if seed is None:
        # All words of the key: a seed would give it 32 bits of entropy at most.
        words = np.frombuffer(secrets.token_bytes(key.nbytes), np.uint32)
        key = jnp.array(words.reshape(key.shape))
    return TrainState(
        params=params,
        opt_state=opt_state,
        prototypes=prototypes,
        step=jnp.int32(0),
        key=key,
    )


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    """The arrays in buffers of their own, by one program for all shapes."""
    return jax.tree.map(jnp.copy, tree)


def make_step(grad_fn: GradFn, optimizer: optax.GradientTransformation) -> Step:
    """One optimiser step.

    A batch without a real row leaves the state unchanged, so a plan may fill its last
    dispatch with empty batches.

    Args:
        grad_fn: a gradient rule applied to a loss.
        optimizer: any optax transformation.

    Returns:
        `step(state, batch) -> (state, metrics)`; metrics are scalars, `grad_norm` among
        them, and NaN if the batch was empty.
    """

    # Shapes are asked of it before it becomes a branch; both uses share one tracing.
    @functools.partial(jax.jit, inline=True)
    def advance(state: TrainState, batch: Batch):
        key, subkey = jax.random.split(jax.random.wrap_key_data(state.key))
        grads, metrics = grad_fn(
            state.params, batch, state.prototypes, state.step, subkey
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            key=jax.random.key_data(key),
        )
        return state, {**metrics, "grad_norm": optax.tree.norm(grads)}

    def step(state: TrainState, batch: Batch):
        _, shapes = jax.eval_shape(advance, state, batch)

        def skip(state, batch):
            # Both branches of the cond must return the same shapes.
            nothing = jax.tree.map(
                lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes
            )
            return state, nothing

        # Not a gradient of 0: weight decay and the moments would act all the same.
        return jax.lax.cond(jnp.any(batch.where), advance, skip, state, batch)

    return step


def make_dispatch(
    step: Step, *, on_trace: Callable[[Batch], None] | None = None
) -> Step:
    """A compiled function that takes several steps in one call.

    Args:
        step: from `make_step`.
        on_trace: called with the (abstract) batches whenever the function is traced,
            that is once per shape; used to count compilations.

    Returns:
        `dispatch(state, batches) -> (state, metrics)` for batches with a leading
        `[steps]` axis; metrics are `[steps]`. The state argument is donated.
    """

    def dispatch(state: TrainState, batches: Batch):
        if on_trace is not None:
            on_trace(batches)
        # A scan: one step is compiled, and the host is asked once for several.
        return jax.lax.scan(step, state, batches)

    # Donated, or parameters and moments would be in memory twice.
    return jax.jit(dispatch, donate_argnums=0)


def fit(
    dispatch: Step,
    state: TrainState,
    plan: Sequence[Any],
    load: Callable[[Any], Batch],
    *,
    start: int = 0,
    save: Callable[[TrainState, int], None] | None = None,
    save_every: int = 0,
    on_dispatch: Callable[[int, dict[str, Array]], None] | None = None,
) -> TrainState:
    """The state after training over a plan of dispatches.

    Args:
        dispatch: from `make_dispatch`.
        state: the initial state; donated.
        plan: one item per dispatch, the same whenever the run is repeated.
        load: turns one item of the plan into batches with a leading `[steps]` axis.
        start: the number of items already done, for a resumed run.
        save: called as `save(state, done)` after every `save_every` items (0: never).
        save_every: items of the plan between two saves.
        on_dispatch: called once per item with the number of items done and the item's
            metrics. The call comes one dispatch late, so that reading the metrics does
            not stall the device, but always before a save that includes the item.

    Returns:
        The state at the end of the plan.
    """
    pending = None

    def report():
        if on_dispatch is not None and pending is not None:
            on_dispatch(*pending)

    for done, item in enumerate(plan[start:], start + 1):
        state, metrics = dispatch(state, load(item))
        # Reports the dispatch before this one, while the device works on this one.
        report()
        pending = done, metrics
        if save is not None and save_every and done % save_every == 0:
            report()
            pending = None
            save(state, done)
    report()
    return state
