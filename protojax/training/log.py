"""The log of a training run: metrics of each dispatch, and the time of a step."""

import collections
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from protojax import storage
from protojax.data import batches
from protojax.training import processes, programs


class MetricsLog:
    """A line per dispatch in a run's `metrics.jsonl`, and the time of a step.

    It also reports progress, `cost` units per row. The dispatches that a resumed run
    skips are reported at once when the log is made.

    Args:
        folder: the run's folder.
        name: the run's name.
        plan: the run's dispatches.
        cost: the cost of a row in units of progress.
        start: the number of dispatches already done.
        extra: the `extra` of the checkpoint that the run resumes from.
        on_progress: called with the work done.
        finite: whether a loss that is not finite is an error.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        plan: Sequence[batches.Dispatch],
        *,
        cost: float,
        start: int,
        extra: Mapping[str, Any],
        on_progress: Callable[[float], None],
        finite: bool = True,
    ):
        self.name, self.plan, self.on_progress = name, plan, on_progress
        self.units = [int((item.rows >= 0).sum()) * cost for item in plan]
        # Skipped dispatches count as done, or progress would never reach its end.
        on_progress(sum(self.units[:start]))
        self.finite = finite
        # Written just before a checkpoint, see `flush`.
        self.lines: list[str] = []
        # length -> seconds of a step in each of its dispatches
        self.seconds: dict[str, list[float]] = extra.get("step_seconds", {})
        self.path = folder / "metrics.jsonl"
        self._remove_after(start)
        self.traced = sum(programs.TRACES.values())
        self.last = time.perf_counter()

    def _remove_after(self, start: int) -> None:
        """Removes lines that a killed run wrote after its last checkpoint."""
        if not self.path.exists() or not processes.is_leader():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        before = [line for line in lines if not self._is_later(line, start)]
        if len(before) < len(lines):
            with storage.atomic(self.path) as file:
                file.write("".join(before).encode())

    def _is_later(self, line: str, start: int) -> bool:
        """Whether a line belongs to a dispatch after `start`, or is incomplete."""
        try:
            return json.loads(line)["dispatch"] > start
        except json.JSONDecodeError:
            # The run was killed while it wrote this line.
            return True

    def __call__(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one dispatch, the `done`-th of the plan."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        now, traced = time.perf_counter(), sum(programs.TRACES.values())
        # Metrics are read one dispatch late, so a compilation falls into the interval
        # in which its dispatch was started; that interval is not step time.
        item = self.plan[done - 1]
        held = (item.rows >= 0).any(-1)
        if traced == self.traced and held.any():
            # By batches with rows, since the device skips the others.
            seconds = (now - self.last) / held.sum()
            self.seconds.setdefault(str(item.length), []).append(seconds)
        self.last, self.traced = now, traced
        if held.any():
            self._append(done, {name: found[held] for name, found in values.items()})
        self.on_progress(self.units[done - 1])

    def _append(self, done: int, values: dict[str, np.ndarray]) -> None:
        """Adds the line of a dispatch, from the metrics of its batches with rows.

        The metrics of other batches are NaN: of those that fill a dispatch up, and of
        Poisson samples that happen to be empty.
        """
        means = {name: float(value.mean()) for name, value in values.items()}
        # On the host, where the metrics are anyway, so that no step waits.
        if self.finite and not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"{self.name}: the loss is {means['loss']} in dispatch {done}. Lower "
                "its learning rate or its clip_norm."
            )
        self.lines.append(json.dumps({"run": self.name, "dispatch": done, **means}))

    def flush(self) -> None:
        """Writes the lines that were added since the last flush."""
        if processes.is_leader():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Appended: a half-written last line is removed when the run resumes.
            with self.path.open("a") as file:
                file.writelines(line + "\n" for line in self.lines)
        self.lines.clear()

    def resume_timing(self) -> None:
        """Excludes the time spent on a save from the step times."""
        self.last = time.perf_counter()

    @property
    def extra(self) -> dict[str, Any]:
        """The measurements that a checkpoint keeps for a resumed run."""
        return {"step_seconds": self.seconds}

    @property
    def step_seconds(self) -> float:
        """The seconds of a step: each length's median, weighted by its share of steps.

        Medians, because other work on the machine can only lengthen a step. 0 if every
        dispatch compiled, so that none was timed.
        """
        steps = collections.Counter()
        for item in self.plan:
            steps[str(item.length)] += batches.num_steps([item])
        medians = {n: statistics.median(found) for n, found in self.seconds.items()}
        total = sum(steps[length] for length in medians)
        # Shares of the whole plan: dispatches that compiled were not timed.
        weighted = sum(medians[length] * steps[length] for length in medians)
        return weighted / total if total else 0.0
