"""Settings of a calibration."""

import dataclasses
import math

from protojax import validate
from protojax.distillability.rewards import UNITS
from protojax.rl.advantages import ADVANTAGES
from protojax.rl.policy import NORMALIZERS
from protojax.training.step import AdamW

KL_PLACES = ("loss", "reward")


@dataclasses.dataclass(frozen=True)
class Calibration(AdamW):
    """Everything that `rl.calibration.calibrate` can be told.

    Attributes:
        learning_rate: the peak; 3e-4 cost a small teacher 3 points of skill where 1e-4
            cost none.
        weight_decay: see `AdamW`.
        warmup: see `AdamW`.
        clip_norm: see `AdamW`.
        eta: η, the weight of the calibration: above 0 for a teacher that is easier to
            distil, below 0 for one that is harder, 0 for the control.
        steps: rollouts.
        prompts: prompts of a rollout.
        draws: texts of each prompt, the group of an advantage.
        passes: times that each text of a rollout is learned from.
        minibatches: optimiser steps of a pass.
        max_new: the most tokens of a text, the stop token included.
        advantage: a name in `ADVANTAGES`, applied to both rewards by themselves.
        correct_only: whether the calibration counts among draws of task reward 1 only.
        per: the unit of the calibration reward, "text" or "byte".
        least_prob: a bound below the proxy's probability of each token; 0 for none.
        low: how far ratios may fall, see `clipped_policy_loss`.
        high: how far they may rise.
        normalizer: see `text_mean`; "constant" divides by `max_new`.
        kl: the place of the penalty on drift: "loss", see `kl_penalty`, or "reward",
            the log ratio of each text minus that of the prompt's other texts.
        beta: β, its weight at the beginning.
        kl_target: nats a text to which β steers the divergence from the original.
        kl_budget: nats a text: the mean of ten rollouts at which the calibration stops.
        skill_loss: how far the share of solved held-out prompts may fall: it stops
            where the 95 % upper bound of the share is below the original's share minus
            this.
        evaluate_every: rollouts between two evaluations on held-out prompts.
        held_out: share of the prompts, at most 512, that are never trained on.
        prompt: the form in which the teacher reads a prompt, see `WriterSettings`.
        proxy_prompt: the form in which the proxy does.
        seed: of all random choices.
        every: rollouts between two checkpoints.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    eta: float = 1.0
    steps: int = 150
    prompts: int = 16
    draws: int = 8
    passes: int = 1
    minibatches: int = 1
    max_new: int = 128
    advantage: str = "normalize"
    correct_only: bool = False
    per: str = "text"
    least_prob: float = 1e-4
    low: float = 0.2
    high: float = 0.28
    normalizer: str = "constant"
    kl: str = "loss"
    beta: float = 0.1
    kl_target: float = 2.0
    kl_budget: float = 8.0
    skill_loss: float = 0.05
    evaluate_every: int = 25
    held_out: float = 0.2
    prompt: str = "{source}"
    proxy_prompt: str = "{source}"
    seed: int = 0
    every: int = 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is float:
                # 1 and 1.0 are one setting, and one identity of a checkpoint.
                value = float(getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        super().__post_init__()
        for name in ("steps", "prompts", "passes", "minibatches", "every"):
            validate.positive(**{name: getattr(self, name)})
        for name in ("max_new", "evaluate_every", "kl_target", "high"):
            validate.positive(**{name: getattr(self, name)})
        validate.require(self.draws > 1, "draws", self.draws, "> 1, as a group needs")
        validate.require(math.isfinite(self.eta), "eta", self.eta, "finite")
        validate.non_negative(beta=self.beta, seed=self.seed)
        validate.fraction(skill_loss=self.skill_loss)
        for name in ("low", "held_out"):
            value = getattr(self, name)
            validate.require(0 < value < 1, name, value, "in (0, 1)")
        value = self.least_prob
        validate.require(0 <= value < 1, "least_prob", value, "in [0, 1)")
        bound = f">= kl_target={self.kl_target}"
        fits = self.kl_budget >= self.kl_target
        validate.require(fits, "kl_budget", self.kl_budget, bound)
        rows = self.prompts * self.draws
        bound = f"a divisor of prompts * draws = {rows}"
        fits = rows % self.minibatches == 0
        validate.require(fits, "minibatches", self.minibatches, bound)
        validate.one_of(ADVANTAGES, advantage=self.advantage)
        validate.one_of(UNITS, per=self.per)
        validate.one_of(NORMALIZERS, normalizer=self.normalizer)
        validate.one_of(KL_PLACES, kl=self.kl)

    @property
    def rows(self) -> int:
        """The texts of a rollout."""
        return self.prompts * self.draws

    @property
    def least(self) -> float | None:
        """The bound on the log probability of each of the proxy's tokens."""
        return math.log(self.least_prob) if self.least_prob else None
