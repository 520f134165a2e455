"""Reinforcement of models that write: rewards, advantages, a loss, a calibration.

`from protojax.rl.calibration import calibrate` imports the loop; it is not imported
here, because Orbax is slow to import.
"""

from protojax.rl.advantages import (
    ADVANTAGES,
    calibrated_advantage,
    centre,
    group_normalize,
    leave_one_out,
)
from protojax.rl.policy import (
    PolicyBatch,
    clipped_policy_loss,
    kl_estimates,
    kl_penalty,
    policy_loss,
    text_mean,
)
from protojax.rl.problems import Drawn, Problems
from protojax.rl.rollouts import Prompts, Rollout, read_prompts, rollout, score_fn
from protojax.rl.settings import Calibration
from protojax.rl.verifiers import VERIFIERS, VerifierFn

__all__ = ["ADVANTAGES", "VERIFIERS", "Calibration", "Drawn"]
__all__ += ["PolicyBatch", "Problems", "Prompts", "Rollout", "VerifierFn"]
__all__ += ["calibrated_advantage", "centre", "clipped_policy_loss"]
__all__ += ["group_normalize", "kl_estimates", "kl_penalty", "leave_one_out"]
__all__ += ["policy_loss", "read_prompts", "rollout", "score_fn", "text_mean"]
