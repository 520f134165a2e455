"""Times of functions that are compared in one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def measure(
    runs: dict[str, Callable[[], Any]], *, repeats: int = 5
) -> dict[str, float]:
    """The median seconds of each function, called in turns.

    Calling them in turns spreads other load on the machine over all of them. Each is
    called once before, to compile.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # turn 0 compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}
