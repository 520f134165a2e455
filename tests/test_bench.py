"""Benchmarks run and print their ratios; their times are nobody's test."""

import dataclasses
import io
import re

import numpy as np
import pytest
from rich.console import Console

from experiments.bench import distil, language, measure
from experiments.bench import nodes as bench
from experiments.bench.__main__ import main
from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.base import Prototypes
from protojax.federated import nodes


def test_the_nodes_benchmark_prints_ratios_and_compiles_once(monkeypatch):
    small = dataclasses.replace(
        bench.CONFIG, hidden_size=16, intermediate_size=32, num_heads=2, num_layers=1
    )
    monkeypatch.setattr(bench, "CONFIG", small)
    console = Console(file=io.StringIO(), width=160)
    # Of one node both kinds of round are one program, which the cache compiles once;
    # that nodes at once learn as one after the other do is a test of federations.
    bench.bench_nodes(console, sizes=(1,))
    text = console.file.getvalue()
    lines = [line for line in text.splitlines() if re.search(r"\d ms", line)]
    assert len(lines) == 1
    # A local program and a merge, for each of two kinds of round.
    assert all(line.rstrip(" │").endswith("4") for line in lines), text


def test_measuring_is_in_turns_and_leaves_compilation_out():
    calls = []
    found = measure.measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_the_lies_benchmark_prints_a_row_of_each_rule(monkeypatch):
    monkeypatch.setattr(bench, "RULES", {"mean": {}, "median": {}})
    console = Console(file=io.StringIO(), width=160)
    bench.bench_lies(console)
    mean, median = (
        [float(x) for x in re.findall(r"\d+\.\d+", line)]
        for line in console.file.getvalue().splitlines()
        if re.search(r"\d\.\d", line)
    )
    assert len(mean) == len(median) == 1 + len(PROTOTYPE_ATTACKS)
    assert max(mean) > 2
    assert max(median) < 1


def test_displacement_is_in_units_of_the_honest_spread():
    def at(x):
        return Prototypes(np.array([[x, 0.0]]), np.array([1]), np.ones(1))

    honest = nodes.stack([at(-1.0), at(1.0)])
    assert bench.displacement(at(3.0), honest) == pytest.approx(3.0)
    assert bench.displacement(at(0.0), honest) == 0.0
    other = at(0.0)._replace(labels=np.array([0]))
    assert bench.displacement(other, honest) == np.inf


def test_unknown_benchmarks_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'nodes'"):
        main(["node"])


def small_t5():
    sizes = {"num_layers": 1, "encoder_layers": 1, "vocab_size": 32}
    sizes |= {"hidden_size": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    return dataclasses.replace(language.T5_SMALL, **sizes, intermediate_size=8)


def test_the_decoding_benchmark_says_what_it_did_not_measure(monkeypatch):
    monkeypatch.setattr(language, "transformers_model", lambda model: None)
    console = Console(file=io.StringIO(), width=160)
    language.bench_decode(
        console, configs=[small_t5()], batch_sizes=[2], length=4, max_new=3
    )
    text = console.file.getvalue()
    assert re.search(r"t5 +│ +2 │ +\d+ │ +- │", text), text
    assert "torch is not installed" in text


def test_the_device_benchmark_runs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(language, "T5_SMALL", small_t5())
    monkeypatch.setattr(language, "T5_BASE", small_t5())
    monkeypatch.setattr(language, "measure", lambda runs, **_: dict.fromkeys(runs, 0.5))
    console = Console(file=io.StringIO(), width=160)
    language.bench_device(console)
    assert len(re.findall("500.0 ms", console.file.getvalue())) == 6


def test_the_benchmark_of_distillation_holds_no_logits_of_a_batch(monkeypatch):
    monkeypatch.setattr(distil, "transformers_model", lambda model: None)
    monkeypatch.setattr(distil, "measure", lambda runs, **_: dict.fromkeys(runs, 0.5))
    monkeypatch.setattr(distil, "memory_line", lambda job: "")
    sizes = {"num_layers": 2, "vocab_size": 300, "hidden_size": 8, "num_heads": 2}
    sizes |= {"num_kv_heads": 1, "head_dim": 4, "intermediate_size": 8}
    config = dataclasses.replace(language.LLAMA, **sizes)
    console = Console(file=io.StringIO(), width=160)
    distil.bench_distil(console, config=config, layers=1, rows=30, length=4, written=20)
    text = console.file.getvalue()
    assert "PyTorch was not measured" in text
    assert re.search(r"1200 with scores.*│ +1200 │ +- │", text), text
    # 600 tokens in three chunks of 200.
    assert "of 600 tokens of a batch: of 200" in text
