"""Objectives as data: a loss, its transforms and a gradient rule, by name.

    gradient(transform_n(... transform_1(loss(model))))

Every composition that the functions allow can be expressed, and none is dropped
silently. An objective is hashable, so it can be part of the cache key of a compiled
step.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from protojax import distillation, models, validate
from protojax.base import GradFn, LossFn
from protojax.distillation import GRADIENTS, TRANSFORMS, schedules
from protojax.models import EncoderConfig, language
from protojax.models.language import LanguageConfig

# (apply, *, problem, **options) -> LossFn
LOSSES: dict[str, Callable[..., LossFn]] = {
    "attention": distillation.attention_loss,
    "distillation": distillation.distillation_loss,
    "supervised": distillation.supervised_loss,
}
# (apply, head, **options) -> LossFn, of models that write
SEQUENCE_LOSSES: dict[str, Callable[..., LossFn]] = {
    "consistent": distillation.consistent_loss,
    "sequence": distillation.sequence_loss,
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A function of a registry with its options.

    Attributes:
        name: the function's name in the registry.
        options: keyword arguments; a `Spec` among them names a schedule in
            `schedules.SCHEDULES`.
        args: positional arguments.

    >>> Spec("adversarial", {"epsilon": 0.1}) == Spec("adversarial", {"epsilon": 0.1})
    True
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    args: tuple[Any, ...] = ()

    def __post_init__(self):
        # A copy that cannot change: equal objectives share one compiled step.
        frozen = types.MappingProxyType(dict(self.options))
        object.__setattr__(self, "options", frozen)

    # By the names of the options only: their values, such as lists, may be unhashable.
    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options), self.args))

    def __repr__(self) -> str:
        # Sorted: this text is part of a run's identity and of the names of programs.
        options = [f"{k}={v!r}" for k, v in sorted(self.options.items())]
        return f"{self.name}({', '.join([*map(repr, self.args), *options])})"


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that a training step minimises, and the rule for its gradient.

    Attributes:
        loss: a function in `LOSSES` or `SEQUENCE_LOSSES`.
        transforms: functions in `distillation.TRANSFORMS`, the innermost first.
        gradient: a function in `distillation.GRADIENTS`.

    Raises:
        ValueError: a name that is not in its registry.

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
        validate.one_of([*LOSSES, *SEQUENCE_LOSSES], loss=self.loss.name)
        for transform in self.transforms:
            validate.one_of(TRANSFORMS, transforms=transform.name)
        validate.one_of(GRADIENTS, gradient=self.gradient.name)

    @property
    def private(self) -> bool:
        """Whether training is differentially private (Poisson-sampled batches)."""
        return self.gradient.name == "dp_sgd"


def build(objective: Objective, config: EncoderConfig | LanguageConfig) -> GradFn:
    """The gradient rule of an objective for one model.

    With any gradient rule but `mean`, an encoder's linear layers multiply in float32,
    whatever its `products`, unless all its layers are frozen.

    Args:
        objective: the objective.
        config: the model's config.

    Raises:
        ValueError: an option with a value that its function refuses, or a loss of
            another kind of model.
        TypeError: an option that its function does not have.
    """
    loss_fn = _loss_of(objective, config)
    for transform in objective.transforms:
        function = TRANSFORMS[transform.name]
        options = {name: _built(value) for name, value in transform.options.items()}
        loss_fn = function(loss_fn, **options, **_width_for(function, config))
    return GRADIENTS[objective.gradient.name](loss_fn, **objective.gradient.options)


def _loss_of(objective: Objective, config: EncoderConfig | LanguageConfig) -> LossFn:
    """The loss of a model, before any transform."""
    name, options = objective.loss.name, objective.loss.options
    if isinstance(config, LanguageConfig):
        validate.one_of(SEQUENCE_LOSSES, loss=name)
        apply, head = language.apply_fn(config), language.head_fn(config)
        function = SEQUENCE_LOSSES[name]
        return function(apply, head, **options, **_width_for(function, config))
    validate.one_of(LOSSES, loss=name)
    layers = {f"layers_{number}" for number in range(config.num_layers)}
    frozen = set(objective.gradient.options.get("frozen", ()))
    if objective.gradient.name != "mean" and not layers <= frozen:
        # Gradients of single rows are batched matrix products, which are slow in the
        # reduced precision.
        config = dataclasses.replace(config, products="float32")
    return LOSSES[name](models.apply_fn(config), problem=config.problem, **options)


def _width_for(
    function: Callable, config: EncoderConfig | LanguageConfig
) -> dict[str, int]:
    """The option `dim` where a function has one: a config need not repeat a width."""
    named = "dim" in inspect.signature(function).parameters
    return {"dim": config.hidden_size} if named else {}


def _built(option: Any) -> Any:
    """The option itself, or the schedule that it names."""
    if not isinstance(option, Spec):
        return option
    validate.one_of(schedules.SCHEDULES, schedule=option.name)
    return schedules.SCHEDULES[option.name](*option.args, **option.options)
