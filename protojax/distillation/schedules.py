"""How margins and weights change over training, as `optax.Schedule`s.

A prototype constraint need not hold equally hard all the time: a margin can start tight
and relax as the student settles, or the constraint can act in an early phase only, when
a shortcut such as a trigger is learned. A schedule maps the step to a value and may be
called under jit; whatever optax already builds is used as it is.
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
    """Returns a margin that widens linearly and then stays.

    m(t) = init + (end − init) · clip((t − begin) / steps, 0, 1)

    Args:
        init_value: the margin at first, >= 0.
        end_value: the margin at last, >= `init_value`. (For a margin that tightens,
            say `optax.linear_schedule`.)
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
    """Returns a weight that acts until `end_step` and then fades to zero.

    w(t) = value for t < end_step, then falls linearly to 0 over `fade_steps` steps.

    Args:
        value: the weight of the early phase, >= 0.
        end_step: the first step after the phase, >= 0.
        fade_steps: how many steps the fall takes; with 0 the weight is zero at
            `end_step` already.

    Returns:
        A function of the step.

    Raises:
        ValueError: a negative argument.

    >>> weight = early_phase(2.0, 10, fade_steps=4)
    >>> [float(weight(step)) for step in (0, 9, 10, 11, 14, 100)]
    [2.0, 2.0, 2.0, 1.5, 0.0, 0.0]
    """
    validate.non_negative(value=value, end_step=end_step, fade_steps=fade_steps)
    if fade_steps == 0:
        return optax.piecewise_constant_schedule(value, {end_step: 0.0})
    return optax.linear_schedule(value, 0.0, fade_steps, transition_begin=end_step)


# Name -> builder; each takes its own keyword arguments, as a config names them.
SCHEDULES = {
    "constant": optax.constant_schedule,
    "relaxing": relaxing_margin,
    "early": early_phase,
}
