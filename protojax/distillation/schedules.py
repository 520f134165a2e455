"""Schedules of margins and weights over training, as `optax.Schedule`s.

A prototype constraint need not be equally strong all the time: a margin can start tight
and widen as the student converges, or the constraint can act only in an early phase, in
which shortcuts such as triggers are learned. A schedule maps the step to a value and
may be called under jit; schedules that optax provides are used unchanged.
"""

import optax

from protojax import validate


def relaxing_margin(
    init_value: float,
    end_value: float,
    transition_steps: int,
    *,
    transition_begin: int = 0,
) -> optax.Schedule:
    """A margin that widens linearly and then stays constant.

    m(t) = init + (end − init) · clip((t − begin) / steps, 0, 1)

    Args:
        init_value: the margin at the start, >= 0.
        end_value: the margin at the end, >= `init_value`. (For a margin that tightens,
            use `optax.linear_schedule`.)
        transition_steps: how many steps the change takes, > 0.
        transition_begin: the step at which the change begins.

    Returns:
        A function of the step.

    Raises:
        ValueError: a value out of its range.

    >>> margin = relaxing_margin(0.25, 0.75, 10, transition_begin=10)
    >>> [float(margin(step)) for step in (0, 10, 15, 20, 100)]
    [0.25, 0.25, 0.5, 0.75, 0.75]
    """
    validate.non_negative(init_value=init_value, transition_begin=transition_begin)
    validate.positive(transition_steps=transition_steps)
    validate.require(
        end_value >= init_value, "end_value", end_value, f">= init_value={init_value}"
    )
    return optax.linear_schedule(
        init_value, end_value, transition_steps, transition_begin
    )


def early_phase(value: float, end_step: int, *, fade_steps: int = 0) -> optax.Schedule:
    """A weight that is constant until `end_step` and then falls to zero.

    w(t) = value for t < end_step, then falls linearly to 0 over `fade_steps` steps.

    Args:
        value: the weight of the early phase, >= 0.
        end_step: the first step after the phase, >= 0.
        fade_steps: how many steps the fall takes; with 0 the weight is already zero at
            `end_step`.

    Returns:
        A function of the step.

    Raises:
        ValueError: a negative argument.

    >>> weight = early_phase(2.0, 10, fade_steps=4)
    >>> [float(weight(step)) for step in (0, 9, 10, 11, 14, 100)]
    [2.0, 2.0, 2.0, 1.5, 0.0, 0.0]
    """
    validate.non_negative(value=value, end_step=end_step, fade_steps=fade_steps)
    # optax takes a linear schedule without steps as a constant one.
    if fade_steps == 0:
        return optax.piecewise_constant_schedule(value, {end_step: 0.0})
    return optax.linear_schedule(value, 0.0, fade_steps, transition_begin=end_step)


# Name -> builder; each takes its own keyword arguments, as a config names them.
SCHEDULES = {
    "constant": optax.constant_schedule,
    "relaxing": relaxing_margin,
    "early": early_phase,
}
