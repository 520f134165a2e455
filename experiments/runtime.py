"""What every run needs: compiled steps, resumable training, progress.

Compiled functions are cached by the values that shape them (model config, objective,
optimiser), so a whole study compiles each step at most once per bucket shape;
`TRACES` counts how often that happened.
"""

import collections
import contextlib
import copy
import fcntl
import functools
import json
import logging
import os
import pathlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from rich.progress import Progress

from experiments import processes
from protojax import (
    batches,
    checkpoint,
    distillation,
    models,
    schedules,
    training,
)
from protojax.base import Batch, Prototypes, PyTree
from protojax.defenses import DEFENSES, GRADIENTS
from protojax.models import Model, vocabulary

# (function, shape) -> how many times it was traced, hence compiled.
TRACES: collections.Counter[tuple[str, tuple[int, ...]]] = collections.Counter()


logger = logging.getLogger("protojax")


class Context(NamedTuple):
    """One study in progress.

    Attributes:
        config: the study's resolved config.
        workdir: where everything is written.
        progress: the bar over the whole study.
        task_id: the bar's row; advanced in rows x epochs x `row_cost`.
    """

    config: FrozenConfigDict
    workdir: pathlib.Path
    progress: Progress
    task_id: int

    def describe(self, text: str) -> None:
        """Says beside the bar what is going on."""
        self.progress.update(self.task_id, description=text)

    def varied(self, variant: str) -> "Context":
        """Returns the study as one of its variants sees it; "" is the study itself."""
        return self._replace(config=varied(self.config, variant)) if variant else self


def varied(config, variant: str) -> FrozenConfigDict:
    """Returns a config with the fields of one of its variants.

    >>> config = ConfigDict({"a": {"b": 1}, "variants": {"two": {"a": {"b": 2}}}})
    >>> varied(config, "two").a.b, config.a.b
    (2, 1)
    """
    changed = ConfigDict(copy.deepcopy(config.to_dict()))
    changed.update(changed.variants[variant])
    return FrozenConfigDict(changed)


class Trained(NamedTuple):
    """The end of one training run.

    Attributes:
        params: the model's parameters.
        projection: `[student_dim, teacher_dim]`, or None.
        step_seconds: mean seconds of a step, compilation left out.
    """

    params: PyTree
    projection: np.ndarray | None
    step_seconds: float


@functools.cache
def commit() -> str | None:
    """Returns the code's commit, `-dirty` where files differ, None outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed package has no history


def constraint_of(objective: FrozenConfigDict):
    """Returns the prototype constraint that an objective names, as a defence."""
    margin = objective.margin
    return functools.partial(
        DEFENSES["prototype"],
        weight=schedules.SCHEDULES[margin.weight_schedule](
            margin.weight, **margin.weight_schedule_args
        ),
        margin=schedules.SCHEDULES[margin.schedule](
            margin.value, **margin.schedule_args
        ),
        assignment=objective.assignment,
        metric=objective.metric,
        layer_weights=tuple(margin.layer_weights),
    )


# The fields of a model's section that its optimiser is made of.
OPTIMIZER = ("learning_rate", "weight_decay", "warmup", "clip_norm")


def optimizer_of(section) -> FrozenConfigDict:
    """Returns the arguments of `training.adamw` that a model's section holds."""
    return FrozenConfigDict({field: section[field] for field in OPTIMIZER})


def changed(section, **fields) -> FrozenConfigDict:
    """Returns a section of the config with some fields changed."""
    return FrozenConfigDict({**section.to_dict(), **fields})


def row_cost(config: models.EncoderConfig) -> float:
    """Returns the work of a row in the progress bar's units: millions of weights.

    Those of the encoder's layers; embeddings are looked up, and texts are about as long
    for one model as for another.
    """
    width, inner = config.hidden_size, config.intermediate_size
    return config.num_layers * width * (4 * width + 2 * inner) / 1e6


def make_step(
    model_config, objective: FrozenConfigDict, optimizer_config: FrozenConfigDict
):
    """Returns an objective's step, its optimiser, and what counts its compilations.

    Args:
        model_config: an `EncoderConfig`.
        objective: `{"kd": None}` learns from labels, with the attention of a copy where
            `attention` holds its weight; else `kd` holds the arguments of
            `distillation_loss`, an `assignment` that is not empty adds the prototype
            constraint, `adversarial` holds the arguments of that defence if any, and
            `gradient` the name of a gradient rule with its arguments if any.
        optimizer_config: from `optimizer_of`.
    """
    apply = models.apply_fn(model_config)
    if objective.get("attention"):
        loss_fn = distillation.attention_loss(apply, weight=objective.attention)
        name = "attention"
    elif objective.kd is None:
        loss_fn = distillation.supervised_loss(apply, problem=model_config.problem)
        name = "supervised"
    else:
        loss_fn = distillation.distillation_loss(
            apply, problem=model_config.problem, **objective.kd
        )
        name = f"distil/{objective.assignment or 'plain'}"
        if objective.assignment:
            loss_fn = constraint_of(objective)(loss_fn)
        if objective.adversarial:
            loss_fn = DEFENSES["adversarial"](
                loss_fn, dim=model_config.hidden_size, **objective.adversarial
            )
            name += "/adversarial"
    optimizer = training.adamw(**optimizer_config)
    name += f"/{model_config.num_layers}x{model_config.hidden_size}"
    name += f"/{optimizer_config.learning_rate:g}"

    def count(stacked: Batch) -> None:
        TRACES[name, stacked.input_ids.shape] += 1

    rule = dict(objective.get("gradient", {}))
    grad_fn = GRADIENTS[rule.pop("name", "mean")](loss_fn, **rule)
    return training.make_step(grad_fn, optimizer), optimizer, count


@functools.cache
def compiled_dispatch(
    model_config, objective: FrozenConfigDict, optimizer_config: FrozenConfigDict
):
    """Returns the compiled dispatch of `make_step` and its optimiser."""
    step, optimizer, count = make_step(model_config, objective, optimizer_config)
    return training.make_dispatch(step, on_trace=count), optimizer


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
    """Appends one line per dispatch to `metrics.jsonl`, and measures the step time."""

    def __init__(
        self, context: Context, name: str, plan, units, start, extra, *, finite=True
    ):
        self.context, self.name, self.plan, self.units = context, name, plan, units
        self.finite = finite  # whether a loss that is not stops the study
        self.lines: list[str] = []
        # length -> seconds of a step in each of its dispatches
        self.seconds: dict[str, list[float]] = extra.get("step_seconds", {})
        self.path = context.workdir / "metrics.jsonl"
        self._forget(start)
        self.traced = sum(TRACES.values())
        self.last = time.perf_counter()

    def _forget(self, start: int) -> None:
        """Removes what a killed run wrote of dispatches that are now done again."""
        if not self.path.exists() or not processes.is_leader():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not self._later(line, start)]
        if len(kept) < len(lines):
            with atomic(self.path) as file:
                file.write("".join(kept).encode())

    def _later(self, line: str, start: int) -> bool:
        """Returns whether a line is of this run, after `start`, or cut short."""
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            return True
        return found["run"] == self.name and found["dispatch"] > start

    def __call__(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one dispatch, the `done`-th of the plan."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        now, traced = time.perf_counter(), sum(TRACES.values())
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


def train(
    context: Context,
    name: str,
    model: Model,
    tokens: batches.Tokens,
    labels: np.ndarray,
    section,
    *,
    seed: int,
    objective: FrozenConfigDict | None = None,
    prototypes: Prototypes | None = None,
    teacher_dim: int | None = None,
    **columns: np.ndarray,
) -> Trained:
    """Trains a model, saving on the way; picks up where a killed run stopped.

    Args:
        context: the study.
        name: the run's folder below the workdir.
        model: where to start from.
        tokens: the rows' tokens.
        labels: `[rows]`.
        section: the model's section of the config.
        seed: of order, dropout and the projection.
        objective: see `make_step`; None learns from labels.
        prototypes: for an objective with a constraint.
        teacher_dim: width of the teacher's features, for a distilled student.
        **columns: the batch's other columns, `[rows, ...]`.
    """
    config = context.config
    objective = objective or FrozenConfigDict({"kd": None})
    private = objective.get("gradient", {}).get("name") == "dp_sgd"
    ids, size = tokens.input_ids, model.config.vocab_size
    # Words that no row has would tell who sees a private student that no row has them.
    kept = (
        np.arange(size)
        if private
        else vocabulary.used_ids(ids, size, pad_id=tokens.pad_id)
    )
    narrow = vocabulary.narrow(model, kept)
    tokens = tokens._replace(input_ids=vocabulary.renumber(ids, kept))
    dispatch, optimizer = compiled_dispatch(
        narrow.config, objective, optimizer_of(section)
    )
    make_plan = poisson_plan if private else epochs_plan
    plan = make_plan(tokens.lengths, section, config, seed)
    projection = init_projection(model.config.hidden_size, teacher_dim, seed)
    state = training.init_state(
        distillation.student_params(narrow.params, projection),
        optimizer,
        num_steps=batches.num_steps(plan),
        seed=seed,
        prototypes=prototypes,
    )
    folder = context.workdir / name / "checkpoints"
    start, extra = 0, {}
    if checkpoint.latest_step(folder) is not None:
        try:
            state, start, extra = checkpoint.restore(folder, state, fallback=True)
        except ValueError as error:
            logger.warning("%s starts anew, no checkpoint is intact: %s", name, error)
    units = [int((item.rows >= 0).sum()) * row_cost(model.config) for item in plan]
    context.progress.advance(context.task_id, sum(units[:start]))
    log = MetricsLog(context, name, plan, units, start, extra)

    def save(state, done):
        log.flush()
        checkpoint.save(folder, state, done, keep=2, extra=log.extra)
        log.resume_timing()

    state = training.fit(
        dispatch,
        state,
        plan,
        lambda item: batches.make_batch(tokens, labels, item, **columns),
        start=start,
        save=save,
        save_every=config.checkpoint_every,
        on_dispatch=log,
    )
    log.flush()
    if config.keep_checkpoints and start < len(plan):
        checkpoint.save(folder, state, len(plan), extra=log.extra)
    params = jax.device_get(state.params)
    trained = vocabulary.widen(model.params, params["model"], kept)
    return Trained(jax.device_get(trained), params.get("projection"), log.step_seconds)


def init_projection(width: int, teacher_dim: int | None, seed: int):
    """Returns a map to the teacher's width, or None where there is none to make."""
    if teacher_dim is None or teacher_dim == width:
        return None
    return jax.nn.initializers.orthogonal()(jax.random.key(seed), (width, teacher_dim))


def forget_checkpoints(context: Context, name: str) -> None:
    """Removes a finished run's checkpoints, unless the config keeps the last."""
    if not context.config.keep_checkpoints:
        shutil.rmtree(context.workdir / name / "checkpoints", ignore_errors=True)


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file under a temporary name that becomes `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_process(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a study's folder for this process, and clears what a killed one left.

    Raises:
        ValueError: another process works in it.
    """
    with (workdir / ".lock").open("w") as file:
        try:
            # Freed by the system however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in {workdir}.") from None
        for path in [*workdir.rglob(".*"), *workdir.rglob("*.tmp")]:
            if path.name != ".lock" and path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink(missing_ok=True)
        yield


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    with atomic(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
