"""Training: one step, several steps in a dispatch, and the loop around them."""

from protojax.training.step import (
    Step,
    adamw,
    fit,
    init_state,
    make_dispatch,
    make_step,
)

__all__ = ["Step", "adamw", "fit", "init_state", "make_dispatch", "make_step"]
