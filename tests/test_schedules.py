import jax
import numpy as np
import pytest

from protojax.distillation import schedules

BUILT = {
    "constant": {"value": 0.5},
    "relaxing": {"init_value": 0.2, "end_value": 0.6, "transition_steps": 20},
    "early": {"value": 2.0, "end_step": 10, "fade_steps": 5},
}


def test_every_schedule_is_built_here():
    assert set(BUILT) == set(schedules.SCHEDULES)


@pytest.mark.parametrize("name", BUILT)
def test_schedule_is_finite_non_negative_and_the_same_under_jit(name):
    schedule = schedules.SCHEDULES[name](**BUILT[name])
    for step in (0, 1, 9, 10, 11, 1000):
        assert schedule(step) >= 0
        np.testing.assert_allclose(jax.jit(schedule)(step), schedule(step), atol=1e-6)


@pytest.mark.parametrize("begin", [0, 7])
def test_relaxing_margin_matches_formula(begin):
    schedule = schedules.relaxing_margin(0.2, 0.6, 20, transition_begin=begin)
    for step in range(0, 60, 3):
        expected = 0.2 + 0.4 * np.clip((step - begin) / 20, 0, 1)
        np.testing.assert_allclose(schedule(step), expected, atol=1e-6)


@pytest.mark.parametrize("end_step", [0, 1, 10])
@pytest.mark.parametrize("fade_steps", [0, 1, 4])
def test_early_phase_matches_loop(end_step, fade_steps):
    schedule = schedules.early_phase(2.0, end_step, fade_steps=fade_steps)
    weight = 2.0
    for step in range(20):
        if step >= end_step:
            weight = 2.0 * (1 - (step - end_step) / fade_steps) if fade_steps else 0.0
        np.testing.assert_allclose(schedule(step), max(weight, 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: schedules.relaxing_margin(-0.1, 0.5, 10), "init_value"),
        (lambda: schedules.relaxing_margin(0.5, 0.4, 10), "end_value"),
        (lambda: schedules.relaxing_margin(0.1, 0.4, 0), "transition_steps"),
        (
            lambda: schedules.relaxing_margin(0.1, 0.4, 5, transition_begin=-1),
            "transition_begin",
        ),
        (lambda: schedules.early_phase(-1.0, 10), "value"),
        (lambda: schedules.early_phase(1.0, -1), "end_step"),
        (lambda: schedules.early_phase(1.0, 10, fade_steps=-1), "fade_steps"),
    ],
)
def test_bad_argument_is_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()
