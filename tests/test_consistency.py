"""Internal consistency of layers, against NumPy and differences of its values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.distillation import (
    consistent_loss,
    inconsistency,
    sequence_loss,
    student_params,
)
from protojax.training import objective as objectives
from protojax.training.objective import Objective, Spec
from tests.writers import (
    DIM,
    language_config,
    sequence_batch,
    writer_apply,
    writer_head,
    writer_params,
)

PARAMS = student_params(writer_params())


def apart(source):
    """1 − cos of a token's embedding `[dim]` and its only layer, in float64."""
    state = np.tanh(source @ np.asarray(PARAMS["model"]["mix"], np.float64))
    return 1 - source @ state / np.linalg.norm(source) / np.linalg.norm(state)


def by_loop(batch, epsilon):
    """The inconsistency near each row, a token and a coordinate at a time."""
    words = np.asarray(PARAMS["model"]["words"], np.float64)
    rows = []
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        found = []
        for source in words[ids[mask > 0]]:
            steps = 1e-5 * np.eye(DIM)
            slope = [apart(source + one) - apart(source - one) for one in steps]
            found.append(apart(source + epsilon * np.sign(slope)))
        rows.append(np.mean(found))
    return rows


def evaluate(batch, **options):
    loss_fn = consistent_loss(
        writer_apply, writer_head, dim=DIM, hard_weight=1.0, **options
    )
    return jax.jit(lambda: loss_fn(PARAMS, batch, None, 0, None))()


def test_the_loss_is_a_loop_over_tokens():
    batch = sequence_batch()
    plain, _ = jax.jit(
        lambda: sequence_loss(writer_apply, writer_head, hard_weight=1.0)(
            PARAMS, batch, None, 0, None
        )
    )()
    loss, aux = evaluate(batch, weight=2.0, epsilon=0.3)
    np.testing.assert_allclose(aux["consistency_loss"], by_loop(batch, 0.3), rtol=1e-4)
    np.testing.assert_allclose(loss - plain, 2 * aux["consistency_loss"], rtol=1e-4)
    _, near = evaluate(batch, epsilon=0.0)
    np.testing.assert_allclose(near["consistency_loss"], by_loop(batch, 0), rtol=1e-4)
    assert (aux["consistency_loss"] > near["consistency_loss"]).all()


def test_layers_that_agree_cost_nothing():
    states = [jnp.ones((2, 3, 4)), 2 * jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))]
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(inconsistency(states, mask), 0, atol=1e-6)
    with pytest.raises(ValueError, match="number of states >= 2"):
        inconsistency(states[:1], mask)


def test_a_config_does_not_repeat_the_width():
    built = objectives.build(
        Objective(Spec("consistent", {"hard_weight": 1.0})), language_config()
    )
    assert callable(built)
    for options in ({"weight": -1.0}, {"epsilon": -0.1}, {"dim": 0}):
        with pytest.raises(ValueError, match=f"Expected {next(iter(options))}"):
            consistent_loss(writer_apply, writer_head, **{"dim": DIM, **options})
