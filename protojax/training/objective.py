"""Objectives as data: a loss, transforms of it and a gradient rule, by their names.

    gradient(transform_n(... transform_1(loss(model))))

Every composition that the functions allow can be written, none is dropped silently, and
an objective is hashable, so that a compiled step can be kept by what shapes it.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from protojax import distillation, models, validate
from protojax.base import GradFn, LossFn
from protojax.distillation import GRADIENTS, TRANSFORMS, schedules
from protojax.models import EncoderConfig

# (apply, *, problem, **options) -> LossFn
LOSSES: dict[str, Callable[..., LossFn]] = {
    "attention": distillation.attention_loss,
    "distillation": distillation.distillation_loss,
    "supervised": distillation.supervised_loss,
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A function of a registry with its options.

    Attributes:
        name: in the registry.
        options: keyword arguments; one that is a `Spec` is a schedule, see
            `schedules.SCHEDULES`.
        args: positional arguments.

    >>> Spec("adversarial", {"epsilon": 0.1}) == Spec("adversarial", {"epsilon": 0.1})
    True
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    args: tuple[Any, ...] = ()

    def __post_init__(self):
        frozen = types.MappingProxyType(dict(self.options))
        object.__setattr__(self, "options", frozen)

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options), self.args))

    def __repr__(self) -> str:
        options = [f"{k}={v!r}" for k, v in sorted(self.options.items())]
        return f"{self.name}({', '.join([*map(repr, self.args), *options])})"


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a training step minimises, and by which gradient.

    Attributes:
        loss: in `LOSSES`.
        transforms: in `distillation.TRANSFORMS`, the innermost first.
        gradient: in `distillation.GRADIENTS`.

    Raises:
        ValueError: on a name that no registry has.

    >>> Objective(transforms=(Spec("prototypes"),))
    Traceback (most recent call last):
    ValueError: Expected transforms one of adversarial, prototype, \
found transforms='prototypes'. Did you mean 'prototype'?
    """

    loss: Spec = Spec("supervised")
    transforms: tuple[Spec, ...] = ()
    gradient: Spec = Spec("mean")

    def __post_init__(self):
        object.__setattr__(self, "transforms", tuple(self.transforms))
        validate.one_of(LOSSES, loss=self.loss.name)
        for transform in self.transforms:
            validate.one_of(TRANSFORMS, transforms=transform.name)
        validate.one_of(GRADIENTS, gradient=self.gradient.name)

    @property
    def private(self) -> bool:
        """Whether training is differentially private (Poisson-sampled batches)."""
        return self.gradient.name == "dp_sgd"


def build(objective: Objective, config: EncoderConfig) -> GradFn:
    """The gradient rule of an objective for one model.

    Under a gradient rule of its own linear layers multiply in float32, whatever the
    model's `products`, unless no encoder layer has a gradient.

    Args:
        objective: what to minimise.
        config: of the model.

    Raises:
        ValueError: on options that a function refuses.
        TypeError: on options that a function does not have.
    """
    layers = {f"layers_{number}" for number in range(config.num_layers)}
    frozen = set(objective.gradient.options.get("frozen", ()))
    if objective.gradient.name != "mean" and not layers <= frozen:
        # The gradients of single rows are batched products, and those are slow so.
        config = dataclasses.replace(config, products="float32")
    loss_fn = LOSSES[objective.loss.name](
        models.apply_fn(config), problem=config.problem, **objective.loss.options
    )
    for transform in objective.transforms:
        function = TRANSFORMS[transform.name]
        options = {name: _built(value) for name, value in transform.options.items()}
        if "dim" in inspect.signature(function).parameters:
            options["dim"] = config.hidden_size
        loss_fn = function(loss_fn, **options)
    return GRADIENTS[objective.gradient.name](loss_fn, **objective.gradient.options)


def _built(option: Any) -> Any:
    """An option, or the schedule that it names."""
    if not isinstance(option, Spec):
        return option
    validate.one_of(schedules.SCHEDULES, schedule=option.name)
    return schedules.SCHEDULES[option.name](*option.args, **option.options)
