"""What every run needs: compiled steps, resumable training, progress.

Compiled functions are cached by the values that shape them (model config, objective,
optimiser), so a whole study compiles each step at most once per bucket shape;
`TRACES` counts how often that happened.
"""

import collections
import contextlib
import copy
import dataclasses
import fcntl
import functools
import logging
import pathlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict
from rich.progress import Progress

from protojax import distillation, models, training
from protojax.base import Batch
from protojax.distillation import GRADIENTS, TRANSFORMS, schedules
from protojax.storage import atomic as atomic
from protojax.storage import remove_leftovers
from protojax.storage import write_json as write_json

# (function, shape) -> how many times it was traced, hence compiled.
TRACES: collections.Counter[tuple[str, tuple[int, ...]]] = collections.Counter()


logger = logging.getLogger("protojax")


def make_room(*, share: float = 0.5) -> None:
    """Forgets all compiled programs once they take up a share of what Linux allows.

    A process may have so many memory mappings (`vm.max_map_count`) and each program for
    the CPU holds dozens; where none is left the compiler crashes. A study of many arms
    and lengths gets there in hours.
    """
    try:
        limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
        used = pathlib.Path("/proc/self/maps").read_text().count("\n")
    except OSError:  # another system, which has no such limit
        return
    if used > share * limit:
        logger.info("Compiled programs are forgotten: %d of %d mappings.", used, limit)
        jax.clear_caches()


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


def kept(function):
    """Keeps what a function of a context and more has returned of late.

    Two results for each seed that is trained at once, since an arm goes over all seeds
    before the next one asks for the same.
    """
    of_size = functools.cache(lambda size: functools.lru_cache(size)(function))

    @functools.wraps(function)
    def ask(context: Context, *args, **options):
        return of_size(2 * context.config.seeds_at_once)(context, *args, **options)

    ask.cache_clear = of_size.cache_clear
    return ask


def varied(config, variant: str) -> FrozenConfigDict:
    """Returns a config with the fields of one of its variants.

    >>> config = ConfigDict({"a": {"b": 1}, "variants": {"two": {"a": {"b": 2}}}})
    >>> varied(config, "two").a.b, config.a.b
    (2, 1)
    """
    changed = ConfigDict(copy.deepcopy(config.to_dict()))
    changed.update(changed.variants[variant])
    return FrozenConfigDict(changed)


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
        TRANSFORMS["prototype"],
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

    Under a gradient rule of its own linear layers multiply in float32, whatever the
    model's `products`, unless no encoder layer has a gradient.
    """
    rule = dict(objective.get("gradient", {}))
    layers = {f"layers_{number}" for number in range(model_config.num_layers)}
    if rule and not layers <= set(rule.get("frozen", ())):
        # The gradients of single rows are batched products, and those are slow so.
        model_config = dataclasses.replace(model_config, products="float32")
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
            loss_fn = TRANSFORMS["adversarial"](
                loss_fn, dim=model_config.hidden_size, **objective.adversarial
            )
            name += "/adversarial"
    optimizer = training.adamw(**optimizer_config)
    name += f"/{model_config.num_layers}x{model_config.hidden_size}"
    name += f"/{optimizer_config.learning_rate:g}"

    def count(stacked: Batch) -> None:
        TRACES[name, stacked.input_ids.shape] += 1

    grad_fn = GRADIENTS[rule.pop("name", "mean")](loss_fn, **rule)
    return training.make_step(grad_fn, optimizer), optimizer, count


@functools.cache
def compiled_dispatch(
    model_config, objective: FrozenConfigDict, optimizer_config: FrozenConfigDict
):
    """Returns the compiled dispatch of `make_step` and its optimiser."""
    step, optimizer, count = make_step(model_config, objective, optimizer_config)
    return training.make_dispatch(step, on_trace=count), optimizer


@contextlib.contextmanager
def only_process(workdir: pathlib.Path, folders: Sequence[str] = ()) -> Iterator[None]:
    """Holds a study's folder for this process, and clears what a killed one left.

    Only temporary files and folders of this program go; a user's hidden ones stay.

    Args:
        workdir: the study's folder.
        folders: those in it that are the study's own, such as its tasks'; cleared with
            all below them, `workdir` itself without.

    Raises:
        ValueError: another process works in it.
    """
    # Not emptied: a user may have a file of that name.
    with (workdir / ".lock").open("a") as file:
        try:
            # Freed by the system however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in {workdir}.") from None
        remove_leftovers(workdir)
        for name in folders:
            remove_leftovers(workdir / name, below=True)
        yield
