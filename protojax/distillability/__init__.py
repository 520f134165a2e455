"""Distillability: what a student gets out of a teacher, and what stands in its way."""

from protojax.distillability.rewards import (
    calibration_reward,
    product_of_experts,
    recovery,
    text_log_prob,
)

__all__ = ["calibration_reward", "product_of_experts", "recovery", "text_log_prob"]
