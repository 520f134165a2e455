"""Steps, dispatches and the loop, against a plain Python loop."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import training
from protojax.base import Batch
from protojax.distillation import mean_gradient

STEPS, ROWS, DIM = 6, 4, 3


def linear_loss(params, batch, prototypes, step, key):
    """Half the squared error of a linear model; rows are `teacher_features`."""
    error = batch.teacher_features @ params["w"] - batch.labels
    return 0.5 * error**2, {"half_loss": 0.25 * error**2}


def batches(rng, empty=()):
    where = np.ones((STEPS, ROWS), bool)
    where[-1, 2:] = False
    where[list(empty)] = False
    return Batch(
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        labels=rng.normal(size=(STEPS, ROWS)).astype(np.float32),
        where=where,
        teacher_features=rng.normal(size=(STEPS, ROWS, DIM)).astype(np.float32),
    )


def start(optimizer):
    params = {"w": jnp.arange(DIM, dtype=jnp.float32)}
    return training.init_state(params, optimizer, num_steps=STEPS, seed=0)


def test_a_dispatch_equals_a_plain_loop_with_sgd():
    optimizer = optax.sgd(0.1)
    found = batches(np.random.default_rng(0))
    dispatch = training.make_dispatch(
        training.make_step(mean_gradient(linear_loss), optimizer)
    )
    state, metrics = dispatch(start(optimizer), found)
    w = np.arange(DIM, dtype=np.float64)
    for step in range(STEPS):
        rows = found.where[step]
        x, y = found.teacher_features[step][rows], found.labels[step][rows]
        error = x @ w - y
        np.testing.assert_allclose(metrics["loss"][step], (error**2).mean() / 2, 1e-5)
        np.testing.assert_allclose(
            metrics["half_loss"][step], (error**2).mean() / 4, 1e-5
        )
        gradient = x.T @ error / len(x)
        np.testing.assert_allclose(
            metrics["grad_norm"][step], np.linalg.norm(gradient), 1e-5
        )
        w -= 0.1 * gradient
    np.testing.assert_allclose(state.params["w"], w, atol=1e-6)
    assert int(state.step) == STEPS


def test_an_empty_batch_is_no_step():
    optimizer = training.adamw(learning_rate=0.1)
    step = training.make_step(mean_gradient(linear_loss), optimizer)
    found = batches(np.random.default_rng(1), empty=(3, 5))
    dispatch = training.make_dispatch(step)
    state, metrics = dispatch(start(optimizer), found)
    full = jax.tree.map(lambda leaf: leaf[[0, 1, 2, 4]], found)
    expected, _ = dispatch(start(optimizer), full)
    chex.assert_trees_all_equal(state, expected)
    assert np.isnan(np.asarray(metrics["loss"])[[3, 5]]).all()
    assert np.isfinite(np.asarray(metrics["loss"])[[0, 1, 2, 4]]).all()
    assert int(state.step) == 4


def test_padding_rows_change_nothing_even_where_their_loss_is_infinite():
    optimizer = optax.sgd(0.1)
    found = batches(np.random.default_rng(2))
    found.teacher_features[-1, 2:] = 1e30
    step = training.make_step(mean_gradient(linear_loss), optimizer)
    state, metrics = training.make_dispatch(step)(start(optimizer), found)
    assert np.isfinite(metrics["loss"]).all()
    found.teacher_features[-1, 2:] = 0
    again, _ = training.make_dispatch(step)(start(optimizer), found)
    np.testing.assert_allclose(state.params["w"], again.params["w"], atol=1e-6)


def test_adamw_equals_optax_with_the_schedule_written_out():
    num_steps, peak, warmup = 20, 0.3, 0.25
    optimizer = training.adamw(
        learning_rate=peak, weight_decay=0.1, warmup=warmup, clip_norm=0.5
    )
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = training.init_state(params, optimizer, num_steps=num_steps, seed=0)
    rates = [
        peak
        * min(
            (t + 1) / (warmup * num_steps), (num_steps - t) / ((1 - warmup) * num_steps)
        )
        for t in range(num_steps)
    ]
    plain = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(
            lambda t: jnp.asarray(rates)[t],
            weight_decay=0.1,
            mask={"kernel": True, "bias": False},
        ),
    )
    reference = plain.init(params)
    opt_state, ours, theirs = state.opt_state, params, params
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
        updates, opt_state = optimizer.update(grads, opt_state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, reference = plain.update(grads, reference, theirs)
        theirs = optax.apply_updates(theirs, updates)
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)


def test_runs_of_different_lengths_share_one_compiled_step():
    optimizer = training.adamw(learning_rate=0.1)
    traces = collections.Counter()
    dispatch = training.make_dispatch(
        training.make_step(mean_gradient(linear_loss), optimizer),
        on_trace=lambda batch: traces.update([batch.labels.shape]),
    )
    found = batches(np.random.default_rng(0))
    ends = []
    for num_steps in (6, 60):
        params = {"w": jnp.zeros(DIM)}
        state = training.init_state(params, optimizer, num_steps=num_steps, seed=0)
        ends.append(dispatch(state, found)[0].params["w"])
    assert traces == {(STEPS, ROWS): 1}
    assert not np.allclose(ends[0], ends[1])


def test_the_state_is_donated_and_the_arguments_of_init_state_are_not():
    optimizer = optax.sgd(0.1)
    params = {"w": jnp.ones(DIM)}
    state = training.init_state(params, optimizer, num_steps=1, seed=0)
    dispatch = training.make_dispatch(
        training.make_step(mean_gradient(linear_loss), optimizer)
    )
    dispatch(state, batches(np.random.default_rng(0)))
    assert state.params["w"].is_deleted()
    assert not params["w"].is_deleted()


def fit(start_at=0, state=None, save_every=0):
    optimizer = training.adamw(learning_rate=0.1)
    rng = np.random.default_rng(0)
    plan = [batches(rng) for _ in range(5)]
    dispatch = training.make_dispatch(
        training.make_step(mean_gradient(linear_loss), optimizer)
    )
    if state is None:
        state = training.init_state(
            {"w": jnp.zeros(DIM)}, optimizer, num_steps=5 * STEPS, seed=3
        )
    saved, seen = {}, []
    end = training.fit(
        dispatch,
        state,
        plan,
        lambda item: item,
        start=start_at,
        save=lambda state, done: saved.update({done: jax.device_get(state)}),
        save_every=save_every,
        on_dispatch=lambda done, metrics: seen.append((done, metrics["loss"].shape)),
    )
    return jax.device_get(end), saved, seen


def test_fit_reports_every_dispatch_once_in_order():
    _, saved, seen = fit(save_every=2)
    assert seen == [(done, (STEPS,)) for done in range(1, 6)]
    assert sorted(saved) == [2, 4]


@pytest.mark.parametrize("cut", [2, 4])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(cut):
    whole, saved, _ = fit(save_every=2)
    resumed, _, seen = fit(start_at=cut, state=jax.tree.map(jnp.array, saved[cut]))
    chex.assert_trees_all_equal(whole, resumed)
    assert [done for done, _ in seen] == list(range(cut + 1, 6))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": 0.1, "warmup": 1.0}, "warmup"),
        ({"learning_rate": 0.1, "clip_norm": 0}, "clip_norm"),
        ({"learning_rate": 0.1, "weight_decay": -1}, "weight_decay"),
    ],
)
def test_adamw_names_what_is_wrong(arguments, named):
    with pytest.raises(ValueError, match=named):
        training.adamw(**arguments)


def test_init_state_needs_a_step():
    with pytest.raises(ValueError, match="num_steps"):
        training.init_state({"w": jnp.ones(2)}, optax.sgd(0.1), num_steps=0, seed=0)
