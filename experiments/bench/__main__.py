"""The command line of the benchmarks.

python -m experiments.bench nodes lies decode device distil
"""

import sys
from collections.abc import Callable

from rich.console import Console

from experiments.bench.distil import bench_distil
from experiments.bench.language import bench_decode, bench_device
from experiments.bench.nodes import bench_lies, bench_nodes
from protojax import validate

BENCHMARKS: dict[str, Callable[[Console], None]] = {
    "nodes": bench_nodes,
    "lies": bench_lies,
    "decode": bench_decode,
    "device": bench_device,
    "distil": bench_distil,
}


def main(arguments: list[str]) -> None:
    """Runs the benchmarks named on the command line, all by default."""
    names = arguments or list(BENCHMARKS)
    for name in names:
        validate.one_of(BENCHMARKS, benchmark=name)
    for name in names:
        BENCHMARKS[name](Console())


if __name__ == "__main__":
    main(sys.argv[1:])
