"""One training run: what it learns from, its plan, its log; resumable after a kill."""

import collections
import json
import secrets
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from experiments import processes, runtime
from experiments.runtime import Context
from protojax import distillation, training
from protojax.base import NodeState, Prototypes, PyTree
from protojax.data import batches
from protojax.models import Model, vocabulary
from protojax.storage import checkpoint, fingerprint


class Trained(NamedTuple):
    """The end of one training run.

    Attributes:
        params: the model's parameters.
        projection: `[student_dim, teacher_dim]`, or None.
        step_seconds: mean seconds of a step, compilation left out.
        at_once: how many were trained together; the seconds are a share then.
    """

    params: PyTree
    projection: np.ndarray | None
    step_seconds: float
    at_once: int = 1


class Run(NamedTuple):
    """What one model learns from, and how.

    Attributes:
        name: the run's folder below the workdir.
        model: where it starts from.
        tokens: the rows.
        labels: `[rows]`.
        section: the model's section of the config.
        seed: of order, dropout and the projection.
        columns: the batch's other columns, `[rows, ...]`.
        objective: see `make_step`; learns from labels by default.
        prototypes: for an objective with a constraint.
    """

    name: str
    model: Model
    tokens: batches.Tokens
    labels: np.ndarray
    section: FrozenConfigDict
    seed: int
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    objective: FrozenConfigDict = FrozenConfigDict({"kd": None})
    prototypes: Prototypes | None = None

    @property
    def private(self) -> bool:
        """Whether no row may matter much: batches are drawn by coins."""
        return self.objective.get("gradient", {}).get("name") == "dp_sgd"

    def draws_in_secret(self, config: FrozenConfigDict) -> bool:
        """Whether coins and noise come from the operating system, not from `seed`."""
        return self.private and not config.dp.reproducible


def used_ids(runs: Sequence[Run]) -> np.ndarray:
    """Returns the rows of the word embedding that runs of one model need.

    A private one needs all: words left out would tell who sees the student that no row
    has them.
    """
    config, tokens = runs[0].model.config, runs[0].tokens
    if any(run.private for run in runs):
        return np.arange(config.vocab_size)
    ids = np.concatenate([run.tokens.input_ids for run in runs])
    return vocabulary.used_ids(ids, config.vocab_size, pad_id=tokens.pad_id)


def narrowed(run: Run, kept: np.ndarray) -> Run:
    """Returns a run whose model knows some words only, see `vocabulary`."""
    ids = vocabulary.renumber(run.tokens.input_ids, kept)
    return run._replace(
        model=vocabulary.narrow(run.model, kept),
        tokens=run.tokens._replace(input_ids=ids),
    )


def initial_params(model: Model, columns: Mapping[str, np.ndarray], seed: int):
    """Returns what a loss of a student is a function of, before the first step.

    With a map to the width of the teacher's features, where there are some of another
    width than the model's.
    """
    features, width = columns.get("teacher_features"), model.config.hidden_size
    if features is None or features.shape[-1] == width:
        return distillation.student_params(model.params)
    shape, key = (width, features.shape[-1]), jax.random.key(seed)
    projection = jax.nn.initializers.orthogonal()(key, shape)
    return distillation.student_params(model.params, projection)


def start_of(run: Run, optimizer, num_steps: int, *, secret: bool = False) -> NodeState:
    """Returns the state of a run of so many steps before its first.

    Args:
        run: the run.
        optimizer: its optimiser.
        num_steps: of the whole run.
        secret: whether its draws are the operating system's, not its seed's.
    """
    return training.init_state(
        initial_params(run.model, run.columns, run.seed),
        optimizer,
        num_steps=num_steps,
        seed=None if secret else run.seed,
        prototypes=run.prototypes,
    )


def end_of(run: Run, params: PyTree, kept: np.ndarray, seconds: float) -> Trained:
    """Returns what a run came to, with all words."""
    trained = vocabulary.widen(run.model.params, params["model"], kept)
    return Trained(jax.device_get(trained), params.get("projection"), seconds)


def train(context: Context, whole: Run) -> Trained:
    """Trains a model, saving on the way; picks up where a killed run stopped.

    A private run's coins and noise are drawn from the operating system's entropy, and
    are nowhere but in its checkpoints, without which it could not go on; these go with
    its end (`forget_checkpoints`), whatever `keep_checkpoints` says.
    """
    config, kept = context.config, used_ids([whole])
    run = narrowed(whole, kept)
    dispatch, optimizer = runtime.compiled_dispatch(
        run.model.config, run.objective, runtime.optimizer_of(run.section)
    )
    make_plan = poisson_plan if run.private else epochs_plan
    secret = run.draws_in_secret(config)
    coins = secrets.randbits(128) if secret else run.seed
    plan = make_plan(run.tokens.lengths, run.section, config, coins)
    state = start_of(run, optimizer, batches.num_steps(plan), secret=secret)
    folder = context.workdir / run.name / "checkpoints"
    start, extra = 0, {}
    # A checkpoint of another run, other rows or other words is not one of this.
    identity = fingerprint(
        run.name, str(run.seed), kept, run.tokens.input_ids, run.labels
    )
    if checkpoint.latest_step(folder) is not None:
        try:
            found, done, said = checkpoint.restore(
                folder, state, fallback=True, identity=identity
            )
            if secret:
                if "coins" not in said:
                    raise ValueError(
                        "Expected checkpoints with their coins, found none."
                    )
                coins = said["coins"]
                plan = make_plan(run.tokens.lengths, run.section, config, coins)
            state, start, extra = found, done, said
        except ValueError as error:
            runtime.logger.warning(
                "%s starts anew, no checkpoint is intact: %s", run.name, error
            )
    cost = runtime.row_cost(run.model.config)
    log = MetricsLog(context, run.name, plan, cost, start, extra)

    def save(state, done):
        log.flush()
        extra = {**log.extra, "coins": coins} if secret else log.extra
        checkpoint.save(folder, state, done, keep=2, extra=extra, identity=identity)
        log.resume_timing()

    state = training.fit(
        dispatch,
        state,
        plan,
        lambda item: batches.make_batch(run.tokens, run.labels, item, **run.columns),
        start=start,
        save=save,
        save_every=config.checkpoint_every,
        on_dispatch=log,
    )
    log.flush()
    if config.keep_checkpoints and not secret and start < len(plan):
        checkpoint.save(folder, state, len(plan), extra=log.extra, identity=identity)
    return end_of(whole, jax.device_get(state.params), kept, log.step_seconds)


def forget_checkpoints(context: Context, name: str, *, secret: bool = False) -> None:
    """Removes a finished run's checkpoints, unless the config keeps the last.

    Those whose draws are secret go in any case: noise that is known hides nothing.
    """
    if secret or not context.config.keep_checkpoints:
        shutil.rmtree(context.workdir / name / "checkpoints", ignore_errors=True)


def epochs_plan(
    lengths: np.ndarray, section, config, seed: int
) -> list[batches.Dispatch]:
    """Returns the dispatches of all epochs of a run, in order."""
    return [
        item
        for epoch in range(section.epochs)
        for item in batches.plan_epoch(
            lengths,
            batch_size=section.batch_size,
            buckets=tuple(config.data.buckets),
            steps_per_dispatch=config.steps_per_dispatch,
            seed=seed,
            epoch=epoch,
        )
    ]


def poisson_steps(rows: int, epochs: int, batch_size: int) -> int:
    """Returns how many Poisson batches are as many rows as some epochs, expected."""
    return -(-rows * epochs // batch_size)


def poisson_plan(
    lengths: np.ndarray, section, config, seed: int
) -> list[batches.Dispatch]:
    """Returns the dispatches of a run whose batches are drawn by coins."""
    return batches.plan_poisson(
        lengths,
        expected_rows=section.batch_size,
        num_steps=poisson_steps(len(lengths), section.epochs, section.batch_size),
        buckets=tuple(config.data.buckets),
        steps_per_dispatch=config.steps_per_dispatch,
        seed=seed,
    )


class MetricsLog:
    """Appends a line per dispatch to a run's `metrics.jsonl`, measures the step time.

    It moves the progress bar too, by `cost` a row; all of what `start` skips at once.
    """

    def __init__(
        self, context: Context, name: str, plan, cost, start, extra, *, finite=True
    ):
        self.context, self.name, self.plan = context, name, plan
        self.units = [int((item.rows >= 0).sum()) * cost for item in plan]
        context.progress.advance(context.task_id, sum(self.units[:start]))
        self.finite = finite  # whether a loss that is not stops the study
        self.lines: list[str] = []
        # length -> seconds of a step in each of its dispatches
        self.seconds: dict[str, list[float]] = extra.get("step_seconds", {})
        self.path = context.workdir / name / "metrics.jsonl"
        self._forget(start)
        self.traced = sum(runtime.TRACES.values())
        self.last = time.perf_counter()

    def _forget(self, start: int) -> None:
        """Removes what a killed run wrote of dispatches that are now done again."""
        if not self.path.exists() or not processes.is_leader():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not self._later(line, start)]
        if len(kept) < len(lines):
            with runtime.atomic(self.path) as file:
                file.write("".join(kept).encode())

    def _later(self, line: str, start: int) -> bool:
        """Returns whether a line is of a dispatch after `start`, or cut short."""
        try:
            return json.loads(line)["dispatch"] > start
        except json.JSONDecodeError:
            return True

    def __call__(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one dispatch, the `done`-th of the plan."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        now, traced = time.perf_counter(), sum(runtime.TRACES.values())
        # Reading trails the device by one dispatch, so a compilation shows up in the
        # interval in which it was dispatched; that interval is not step time.
        item = self.plan[done - 1]
        steps = batches.num_steps([item])
        if traced == self.traced:
            seconds = (now - self.last) / steps
            self.seconds.setdefault(str(item.length), []).append(seconds)
        self.last, self.traced = now, traced
        # Empty batches are the last of a dispatch.
        means = {name: float(value[:steps].mean()) for name, value in values.items()}
        if self.finite and not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"{self.name}: the loss is {means['loss']} in dispatch {done}. Lower "
                "its learning rate or its clip_norm."
            )
        self.lines.append(json.dumps({"run": self.name, "dispatch": done, **means}))
        self.context.progress.advance(self.context.task_id, self.units[done - 1])

    def flush(self) -> None:
        """Writes what has gathered since the last flush."""
        if processes.is_leader():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(line + "\n" for line in self.lines)
        self.lines.clear()

    def resume_timing(self) -> None:
        """Leaves the time that saving took out of the steps."""
        self.last = time.perf_counter()

    @property
    def extra(self) -> dict[str, Any]:
        """What a resumed run needs to go on measuring."""
        return {"step_seconds": self.seconds}

    @property
    def step_seconds(self) -> float:
        """Seconds of a step: each length's median, weighted by its share of the plan.

        A median, since other work on the machine only ever adds. 0 where every dispatch
        compiled.
        """
        steps = collections.Counter()
        for item in self.plan:
            steps[str(item.length)] += batches.num_steps([item])
        medians = {n: statistics.median(found) for n, found in self.seconds.items()}
        total = sum(steps[length] for length in medians)
        weighted = sum(medians[length] * steps[length] for length in medians)
        return weighted / total if total else 0.0
