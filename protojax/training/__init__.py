"""Training: one step, many in a dispatch, the loop around."""

from protojax.training.step import (
    Step,
    adamw,
    fit,
    init_state,
    make_dispatch,
    make_step,
)

__all__ = ["Step", "adamw", "fit", "init_state", "make_dispatch", "make_step"]
