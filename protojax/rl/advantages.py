"""Advantages: how much better a text is than others drawn for the same prompt.

They are computed on the host from the rewards of a group, before any loss: a loss never
mixes rows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from protojax import validate


def group_normalize(
    rewards: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ddof: int = 1,
    epsilon: float = 1e-4,
) -> np.ndarray:
    """The rewards of each group, shifted to mean 0 and scaled to deviation 1.

    A = (r − mean(r)) / (std(r) + ε), the advantage of GRPO

    Args:
        rewards: `[..., draws]`, a group on the last axis.
        where: `[..., draws]`, bool, the draws that count; all by default. Rewards
            elsewhere have no effect, even where they are not finite.
        ddof: 1 for the deviation of a sample, 0 for that of a population.
        epsilon: ε >= 0, in the unit of the rewards.

    Returns:
        `[..., draws]`, float64; exactly 0 in a group whose rewards are all equal or
        that has one draw, and for draws that do not count.

    Raises:
        ValueError: the shapes differ, ddof is neither 0 nor 1, epsilon is below 0, or a
            reward that counts is not finite.

    >>> group_normalize([1.0, 0.0, 0.0, 1.0]).round(4).tolist()
    [0.8659, -0.8659, -0.8659, 0.8659]

    References:
        Shao et al., 2024, arXiv:2402.03300, who give no ε and leave ddof open; these
        are those of TRL.
    """
    validate.require(ddof in (0, 1), "ddof", ddof, "0 or 1")
    validate.non_negative(epsilon=epsilon)
    shifted, where, count = _shifted(rewards, where)
    square = (shifted**2).sum(-1, keepdims=True)
    deviation = np.sqrt(square / np.maximum(count - ddof, 1))
    # A group of equal rewards has no deviation: 0 / 0 without this.
    return shifted / np.where(deviation > 0, deviation + epsilon, 1.0)


def centre(rewards: ArrayLike, *, where: ArrayLike | None = None) -> np.ndarray:
    """The rewards of each group, shifted to mean 0.

    A = r − mean(r), the advantage of Dr. GRPO: without a division, a group that is
    nearly solved or nearly hopeless weighs no more than others.

    Args:
        rewards: `[..., draws]`, a group on the last axis.
        where: see `group_normalize`.

    Returns:
        `[..., draws]`, float64, see `group_normalize`.

    Raises:
        ValueError: the shapes differ, or a reward that counts is not finite.

    >>> centre([1.0, 0.0, 0.0, 1.0]).tolist()
    [0.5, -0.5, -0.5, 0.5]

    References:
        Liu et al., 2025, arXiv:2503.20783.
    """
    return _shifted(rewards, where)[0]


def leave_one_out(rewards: ArrayLike, *, where: ArrayLike | None = None) -> np.ndarray:
    """The rewards of each group, each minus the mean of the others.

    A_i = r_i − Σ_{j≠i} r_j / (n − 1) = n / (n − 1) · (r_i − mean(r)), the advantage of
    RLOO: the baseline does not depend on the draw, so the policy gradient is unbiased.

    Args:
        rewards: `[..., draws]`, a group on the last axis.
        where: see `group_normalize`.

    Returns:
        `[..., draws]`, float64, see `group_normalize`.

    Raises:
        ValueError: the shapes differ, or a reward that counts is not finite.

    >>> leave_one_out([1.0, 0.0, 0.0, 1.0]).round(4).tolist()
    [0.6667, -0.6667, -0.6667, 0.6667]

    References:
        Ahmadian et al., 2024, arXiv:2402.14740.
    """
    shifted, _, count = _shifted(rewards, where)
    return shifted * count / np.maximum(count - 1, 1)


# (rewards [..., draws], *, where) -> advantages [..., draws]
AdvantageFn = Callable[..., np.ndarray]
ADVANTAGES: dict[str, AdvantageFn] = {
    "normalize": group_normalize,
    "centre": centre,
    "leave_one_out": leave_one_out,
}


def calibrated_advantage(
    task: ArrayLike,
    calibration: ArrayLike,
    eta: float,
    *,
    correct_only: bool = False,
    advantage: AdvantageFn = group_normalize,
) -> np.ndarray:
    """The advantage of two rewards, each made comparable within its group by itself.

    A = GN(task) + η · GN(calibration)

    Normalised after their sum, the reward of the larger unit would decide alone. Each
    term is at most (n − 1) / √n for n draws, so at |η| >= 1 the only wrong draw of a
    group can have an advantage of 0 or more, if it is the outlier of the calibration as
    well; `correct_only` excludes that.

    Args:
        task: `[..., draws]`, rewards in [0, 1], a group on the last axis.
        calibration: `[..., draws]`, see `distillability.calibration_reward`.
        eta: η, above 0 for a teacher that is easier to distil, below 0 for one that is
            harder, 0 for the control.
        correct_only: whether the calibration counts, and is normalised, among draws of
            task reward 1 only.
        advantage: a function as in `ADVANTAGES`, applied to both.

    Returns:
        `[..., draws]`, float64.

    Raises:
        ValueError: the shapes differ, or a reward is not finite.

    >>> calibrated_advantage([1, 0, 0, 1], [-3, -1, -2, -6], 1.0).round(3).tolist()
    [0.866, 0.06, -0.403, -0.523]

    References:
        arXiv:2604.18963; the sum of separately normalised rewards is that of
        arXiv:2601.05242. `correct_only` is ours.
    """
    task = np.asarray(task, float)
    validate.shape(task.shape, calibration=calibration)
    correct = task >= 1 if correct_only else None
    return advantage(task) + eta * advantage(calibration, where=correct)


def _shifted(
    rewards: ArrayLike, where: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards minus the mean of their group, the draws that count, their number."""
    rewards = np.asarray(rewards, float)
    where = np.ones(rewards.shape, bool) if where is None else np.asarray(where, bool)
    validate.shape(rewards.shape, where=where)
    # 0 where a draw does not count: infinity minus a mean would be NaN.
    rewards = np.where(where, rewards, 0.0)
    finite = np.isfinite(rewards)
    bad = rewards[~finite]
    validate.require(finite.all(), "rewards", bad[:1].tolist(), "finite")
    count = where.sum(-1, keepdims=True)
    mean = rewards.sum(-1, keepdims=True) / np.maximum(count, 1)
    low = np.where(where, rewards, np.inf).min(-1, keepdims=True)
    high = np.where(where, rewards, -np.inf).max(-1, keepdims=True)
    # The mean of equal rewards may differ from them in its last digit.
    return np.where(where & (high > low), rewards - mean, 0.0), where, count
