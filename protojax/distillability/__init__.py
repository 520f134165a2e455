"""Distillability: what a student gets out of a teacher, and what stands in its way."""

from protojax.distillability.across import (
    across_loss,
    cross_tokenizer_loss,
    matched_tokens,
    sorted_l1,
)
from protojax.distillability.alignment import (
    byte_spans,
    common_boundaries,
    span_log_probs,
)
from protojax.distillability.diagnosis import Figures, Trap, traps_of, worst
from protojax.distillability.long_horizon import OwnTexts, long_horizon_loss
from protojax.distillability.rewards import (
    calibration_reward,
    product_of_experts,
    recovery,
    text_log_prob,
)
from protojax.distillability.selection import Held, Lessons, resampled
from protojax.distillability.students import (
    ATTACKERS,
    Attacker,
    Budget,
    claim_of,
    is_undistillable,
)
from protojax.distillability.traps import Readings, token_readings
from protojax.distillability.values import learning_value, tilted_weights, token_gate

__all__ = ["ATTACKERS", "Attacker", "Budget", "Figures", "Held", "Lessons", "OwnTexts"]
__all__ += ["Readings", "Trap", "across_loss", "byte_spans", "calibration_reward"]
__all__ += ["claim_of", "is_undistillable", "matched_tokens"]
__all__ += ["common_boundaries", "cross_tokenizer_loss", "learning_value"]
__all__ += ["long_horizon_loss", "product_of_experts", "recovery", "resampled"]
__all__ += ["sorted_l1", "span_log_probs", "text_log_prob", "tilted_weights"]
__all__ += ["token_gate", "token_readings", "traps_of", "worst"]
