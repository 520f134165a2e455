"""Benchmarks run and print their ratios; their times are nobody's test."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from experiments import bench


def test_the_nodes_benchmark_prints_ratios_and_compiles_once(monkeypatch):
    small = dataclasses.replace(
        bench.CONFIG, hidden_size=16, intermediate_size=32, num_heads=2, num_layers=1
    )
    monkeypatch.setattr(bench, "CONFIG", small)
    console = Console(file=io.StringIO(), width=160)
    bench.bench_nodes(console, sizes=(2,))
    text = console.file.getvalue()
    lines = [line for line in text.splitlines() if re.search(r"\d ms", line)]
    assert len(lines) == 1
    # A local program and a merge, for each of two kinds of round.
    assert all(line.rstrip(" │").endswith("4") for line in lines), text


def test_measuring_is_in_turns_and_leaves_compilation_out():
    calls = []
    found = bench.measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_unknown_benchmarks_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'nodes'"):
        bench.main(["node"])
