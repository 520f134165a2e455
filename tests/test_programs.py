"""Compiled programs: how often they are made, and when they are let go."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import distillation
from protojax.base import Batch
from protojax.models import init_model
from protojax.training import objective as objectives
from protojax.training import programs
from protojax.training.objective import Objective, Spec
from protojax.training.step import AdamW, init_state
from tests.tiny import encoder_config

# In a process of its own: to make all programs of the others anew would take minutes.
CLEARED = """
import pathlib
import jax
import numpy as np
from protojax.training import programs

def mappings():
    return pathlib.Path("/proc/self/maps").read_text().count("\\n")

x = np.ones((3, 3), np.float32)
functions = [jax.jit(lambda x, i=i: (x @ x.T + i).sum()) for i in range(20)]
values = [float(function(x)) for function in functions]
many = mappings()
programs.clear_caches_near_limit(fraction=1.0)
assert mappings() >= many - 10
programs.clear_caches_near_limit(fraction=0.0)
assert mappings() < many - 20
# They are compiled again where they are asked for again.
assert [float(function(x)) for function in functions] == values
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the mappings of Linux")
def test_programs_are_cleared_when_there_are_too_many():
    subprocess.run([sys.executable, "-c", CLEARED], check=True)


def test_other_systems_have_no_such_limit(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    programs.clear_caches_near_limit(fraction=0.0)


def rows_of(shape):
    """A batch `[*shape, length]` of the token 1."""
    ids = np.ones((*shape, 4), np.int32)
    return Batch(
        input_ids=ids,
        attention_mask=ids,
        token_type_ids=0 * ids,
        labels=np.zeros(shape, np.int32),
        where=np.ones(shape, bool),
        teacher_logits=np.zeros((*shape, 2), np.float32),
    )


@pytest.mark.parametrize(
    ("options", "products"),
    [
        (None, "bfloat16"),
        ({"frozen": ("embeddings", "layers_0")}, "float32"),
        ({"frozen": ("layers_0", "layers_1")}, "bfloat16"),
    ],
    ids=["mean", "a layer learns", "no layer learns"],
)
def test_gradients_of_single_rows_are_multiplied_in_float32(options, products):
    config = encoder_config(products="bfloat16")
    rule = Spec("mean")
    if options is not None:
        private = {"clip_norm": 1.0, "noise_multiplier": 0.0, "expected_rows": 8}
        rule = Spec("dp_sgd", {**options, **private})
    grad_fn = objectives.build(Objective(gradient=rule), config)
    params = distillation.student_params(init_model(config, seed=0).params)
    found = jax.make_jaxpr(grad_fn)(
        params, rows_of((2,)), None, jnp.int32(0), jax.random.key(0)
    )
    assert ("bf16" in str(found)) == (products == "bfloat16")


def test_a_step_is_compiled_once_a_shape_and_objective():
    config = encoder_config(num_layers=1, hidden_size=6)  # of no other test
    params = distillation.student_params(init_model(config, seed=0).params)
    plain, sharp = (
        Objective(Spec("distillation", {"temperature": value})) for value in (1.0, 2.0)
    )

    def state_of(optimizer):
        return init_state(params, optimizer, num_steps=4, seed=0)

    before = programs.TRACES.copy()
    for objective in (plain, sharp, plain, Objective(plain.loss)):
        dispatch, optimizer = programs.dispatch_of(config, objective, AdamW())
        for shape in ((1, 2), (2, 2), (1, 2)):
            # What is traced once is compiled once, and need not be to be counted.
            jax.eval_shape(dispatch, state_of(optimizer), rows_of(shape))
    found = programs.TRACES - before
    # Objectives that differ in an option are counted apart.
    assert len(found) == 4
    assert set(found.values()) == {1}
    assert {shape for _, shape in found} == {(1, 2, 4), (2, 2, 4)}


def test_what_shapes_no_program_asks_for_none():
    config = encoder_config(num_layers=1)
    assert programs.dispatch_of(
        config, Objective(), AdamW(1e-3)
    ) is programs.dispatch_of(config, Objective(), AdamW(learning_rate=1e-3))
    other = programs.dispatch_of(config, Objective(), AdamW(2e-3))
    assert other is not programs.dispatch_of(config, Objective(), AdamW(1e-3))
