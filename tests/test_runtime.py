"""What a long study needs of its process."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import runtime


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
