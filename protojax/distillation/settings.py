"""Settings of distillation: objective, constraint, adversarial and private training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from protojax import validate
from protojax.distillation import losses, schedules
from protojax.distillation.adversarial import adversarial
from protojax.distillation.margin import ASSIGNMENTS
from protojax.validate import options, tuples


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The objective of a student, see `distillation.distillation_loss`."""

    divergence: str = "forward_kl"
    temperature: float = 2.0
    hard_weight: float = 0.0
    hidden_weight: float = 0.0

    def __post_init__(self):
        validate.one_of(losses.DIVERGENCES, divergence=self.divergence)
        validate.positive(temperature=self.temperature)
        validate.fraction(hard_weight=self.hard_weight)
        validate.non_negative(hidden_weight=self.hidden_weight)


@dataclasses.dataclass(frozen=True)
class Private:
    """Differentially private distillation, see `distillation.dp_sgd`.

    Attributes:
        epsilon: ε of (ε, δ)-privacy in the transfer rows.
        delta: δ of (ε, δ)-privacy.
        clip_norm: the largest norm of each row's gradient.
        batch_size: expected number of rows of a Poisson batch.
        microbatch: rows whose gradients are in memory at once.
        frozen: parameters without a gradient.
        epochs: expected number of passes over the rows.
        learning_rate: the peak learning rate.
        reproducible: whether batches and noise are drawn from the seed, which is
            recorded. ε is then only nominal: it would hold if nobody knew the seed.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    clip_norm: float = 1.0
    batch_size: int = 256
    microbatch: int = 8
    frozen: tuple[str, ...] = ("embeddings",)
    epochs: int = 6
    learning_rate: float = 5e-4
    reproducible: bool = False

    def __post_init__(self):
        is_names = not isinstance(self.frozen, str)
        validate.require(is_names, "frozen", self.frozen, "a tuple of names")
        tuples(self, "frozen")
        numbers = {
            k: v for k, v in vars(self).items() if k not in ("frozen", "reproducible")
        }
        validate.positive(**numbers)
        validate.require(self.delta < 1, "delta", self.delta, "in (0, 1)")
        # A smaller batch may be empty, and a step without rows adds no noise.
        validate.require(self.batch_size >= 32, "batch_size", self.batch_size, ">= 32")
        # Poisson batches are padded to a multiple of 8 rows.
        divides = 8 % self.microbatch == 0
        validate.require(divides, "microbatch", self.microbatch, "1, 2, 4 or 8")


@dataclasses.dataclass(frozen=True)
class Margin:
    """The prototype constraint, see `distillation.prototype_constraint`.

    Attributes:
        assignment: "assigned", "label" or "nearest", in arms with a trusted model.
        weight: the weight of the constraint.
        value: the distance that costs nothing.
        layer_weights: one weight for each of features.layers.
        schedule: the schedule of the value over steps, a name in `schedules.SCHEDULES`.
        schedule_args: options of that schedule.
        weight_schedule: the schedule of the weight, likewise.
        weight_schedule_args: options of that schedule.
    """

    assignment: str = "assigned"
    weight: float = 0.1
    value: float = 0.3
    layer_weights: tuple[float, ...] = (1.0,)
    schedule: str = "constant"
    schedule_args: Mapping[str, Any] = options()
    weight_schedule: str = "constant"
    weight_schedule_args: Mapping[str, Any] = options()

    def __post_init__(self):
        tuples(self, "layer_weights")
        validate.one_of(ASSIGNMENTS, assignment=self.assignment)
        validate.non_negative(weight=self.weight, value=self.value)
        for field in ("schedule", "weight_schedule"):
            name = getattr(self, field)
            validate.one_of(schedules.SCHEDULES, **{field: name})
            # Built once, so that wrong options are found before any training.
            with validate.prefixed(f"{field}_args"):
                schedules.SCHEDULES[name](0.1, **getattr(self, f"{field}_args"))


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Adversarial training, see `distillation.adversarial`."""

    epsilon: float = 0.1
    step_size: float = 0.04
    num_steps: int = 3
    norm: str = "linf"

    def __post_init__(self):
        # The builder itself checks its options; no loss is called here.
        adversarial(None, dim=1, **vars(self))


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The published constraint: near any of the teacher's prototypes, with a weight."""

    weight: float = 1.0

    def __post_init__(self):
        validate.non_negative(weight=self.weight)
