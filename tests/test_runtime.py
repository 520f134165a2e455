"""What a long study needs of its process."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import FrozenConfigDict

from experiments import runtime
from experiments.study.defaults import defaults
from protojax import models
from tests.tiny import encoder_config


def mappings():
    return pathlib.Path("/proc/self/maps").read_text().count("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="counts the mappings of Linux")
def test_programs_are_forgotten_when_there_are_too_many():
    functions = [jax.jit(lambda x, i=i: jnp.tanh(x @ x.T) + i) for i in range(20)]
    values = [float(function(jnp.ones((3, 3))).sum()) for function in functions]
    many = mappings()
    runtime.make_room(share=1.0)
    assert mappings() >= many - 10
    runtime.make_room(share=0.0)
    assert mappings() < many - 20
    # They are compiled again where they are asked for again.
    assert [float(function(jnp.ones((3, 3))).sum()) for function in functions] == values


def test_other_systems_have_no_such_limit(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    runtime.make_room(share=0.0)


@pytest.mark.parametrize(
    ("rule", "products"),
    [
        ({}, "bfloat16"),
        ({"name": "dp_sgd", "frozen": ("embeddings", "layers_0")}, "float32"),
        ({"name": "dp_sgd", "frozen": ("layers_0", "layers_1")}, "bfloat16"),
    ],
)
def test_gradients_of_single_rows_are_multiplied_in_float32(
    monkeypatch, rule, products
):
    config = encoder_config(products="bfloat16")
    if rule:
        rule = {**rule, "clip_norm": 1.0, "noise_multiplier": 0.0, "expected_rows": 8}
    seen, apply_fn = [], models.apply_fn
    monkeypatch.setattr(
        models, "apply_fn", lambda config: seen.append(config) or apply_fn(config)
    )
    objective = FrozenConfigDict({"kd": None, "gradient": rule})
    section = FrozenConfigDict(defaults().student)
    runtime.make_step(config, objective, runtime.optimizer_of(section))
    assert [found.products for found in seen] == [products]


def test_results_are_kept_for_two_cells_of_each_seed_at_once():
    asked = []

    @runtime.cached
    def build(context, cell):
        asked.append(cell)
        return cell

    def context_of(seeds):
        config = FrozenConfigDict({"seeds_at_once": seeds})
        return runtime.Context(config, None, None, 0)

    for _ in range(2):
        assert [build(context_of(2), cell) for cell in range(4)] == [0, 1, 2, 3]
    assert asked == [0, 1, 2, 3]
    # Of one seed the third cell takes the place of the first.
    for cell in (0, 1, 2, 0):
        build(context_of(1), cell)
    assert asked[4:] == [0, 1, 2, 0]
    build.cache_clear()
    build(context_of(1), 0)
    assert asked[8:] == [0]
