"""The differential privacy that a recipe states, beside what an audit refutes."""

from typing import NamedTuple

import numpy as np

from protojax.distillation.gradients import epsilon_of, noise_multiplier_of
from protojax.pipelines.privacy.settings import Noise, Recipe
from protojax.privacy import audited, label_log_odds
from protojax.privacy.dp_audit import Audited
from protojax.training.plans import poisson_steps


class Guarantee(NamedTuple):
    """A statement of (ε, δ)-privacy in the private rows.

    Attributes:
        epsilon: ε.
        delta: δ.
        noise: the deviation of the noise, in units of the clip norm, or of votes.
        nominal: whether the noise can be computed from a recorded seed; then ε holds
            only towards those who do not know it.
    """

    epsilon: float
    delta: float
    noise: float
    nominal: bool


def noise_of(noise: Noise, rows: int) -> float:
    """The noise multiplier of a training.

    Args:
        noise: with ε, or with the multiplier itself.
        rows: that the model learns from.

    Raises:
        ImportError: the extra `[dp]` is not installed.
    """
    if not noise.epsilon:
        return noise.noise_multiplier
    steps = poisson_steps(rows, noise.epochs, noise.batch_size)
    return noise_multiplier_of(
        epsilon=noise.epsilon,
        delta=noise.delta,
        sampling_rate=min(1.0, noise.batch_size / rows),
        num_steps=steps,
    )


def guarantee_of(recipe: Recipe, rows: int, queries: int) -> Guarantee | None:
    """The privacy in the private rows that a recipe states; None for none.

    Noise in the student's training is none: it protects the transfer rows. Neither is a
    teacher's noise where the student learns on the members' own texts. Noisy votes are
    private where one row is replaced by another, which is in the same shard: two counts
    change by one.

    Args:
        recipe: of the pipeline.
        rows: private rows that it is run on.
        queries: transfer rows that are answered.

    Raises:
        ImportError: it states some, and the extra `[dp]` is not installed.
    """
    noise = recipe.teacher_noise
    if recipe.shipped == "student" and recipe.transfer == "members":
        return None
    if noise.used:
        rows = rows // recipe.shards
        multiplier = noise_of(noise, rows)
        epsilon = noise.epsilon or epsilon_of(
            noise=multiplier,
            delta=noise.delta,
            sampling_rate=min(1.0, noise.batch_size / rows),
            num_steps=poisson_steps(rows, noise.epochs, noise.batch_size),
        )
        return Guarantee(epsilon, noise.delta, multiplier, noise.reproducible)
    if recipe.vote_noise:
        epsilon = epsilon_of(
            noise=recipe.vote_noise / 2**0.5, delta=noise.delta, num_steps=queries
        )
        return Guarantee(epsilon, noise.delta, recipe.vote_noise, noise.reproducible)
    return None


def audit_of(
    stated: Guarantee | None,
    logits: np.ndarray,
    reference: np.ndarray | None,
    members: np.ndarray,
    labels: np.ndarray,
    *,
    kinds: np.ndarray,
    significance: float = 0.05,
    seed: int = 0,
) -> Audited | None:
    """The epsilon that the pipelines of a recipe refute; None where none is stated.

    Args:
        stated: of the recipe, run on as many rows as its pipelines learn from.
        logits: `[P, rows, classes]`, of the models that would be shipped.
        reference: likewise of plain teachers, which an audit must see through, or None.
        members: `[P, rows]`, bool.
        labels: `[rows]`, int, as members are trained with them.
        kinds: `[rows]`, str.
        significance: how often the bound may exceed the true epsilon; of several
            recipes, shared out among them.
        seed: of the split on which a threshold is chosen.

    Raises:
        ImportError: the extra `[dp]` is not installed.
        ValueError: on arrays that do not fit.
    """
    if stated is None:
        return None
    return audited(
        label_log_odds(logits, labels),
        members,
        delta=stated.delta,
        kinds=kinds,
        control=None if reference is None else label_log_odds(reference, labels),
        significance=significance,
        seed=seed,
    )
