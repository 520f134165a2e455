"""Lower bounds of the epsilon that a training has, beside the one it states.

Thin over `jax_privacy.auditing`, of the extra `[dp]`. A bound holds for what was
attacked: with independent coins in one training, or with one canary in each of many.
`audited` bounds the epsilon of a whole study of complementary halves.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from protojax import validate
from protojax.privacy.findings import ALWAYS, ORDINARY
from protojax.privacy.membership_attacks import (
    PER_ROW_FROM,
    Moments,
    log_ratio,
    reference_moments,
)
from protojax.privacy.memberships import candidates, complement_of, require_design
from protojax.privacy.rates import clopper_pearson

# How the threshold is chosen: on half of the canaries, or all with a correction.
STRATEGIES = ("split", "bonferroni")


def _auditing():
    """The module that bounds are taken from."""
    return validate.extra("jax_privacy.auditing", "dp")


def _auditor(evidence: np.ndarray, members: np.ndarray):
    evidence, members = np.asarray(evidence, np.float64), np.asarray(members, bool)
    validate.require(evidence.ndim == 1, "evidence.ndim", evidence.ndim, "1")
    validate.shape(evidence.shape, members=members)
    finite = bool(np.isfinite(evidence).all())
    validate.require(finite, "evidence", "NaN or infinite values", "finite")
    inside, outside = int(members.sum()), int((~members).sum())
    validate.positive(num_members=inside, num_non_members=outside)
    return _auditing().CanaryScoreAuditor(evidence[members], evidence[~members])


def _strategy(strategy: str, threshold: float | None, seed: int):
    validate.one_of(STRATEGIES, strategy=strategy)
    auditing = _auditing()
    if threshold is not None:
        return auditing.Explicit(threshold)
    if strategy == "split":
        return auditing.Split(seed=seed)
    return auditing.Bonferroni()


def epsilon_lower_bound(
    evidence: np.ndarray,
    members: np.ndarray,
    *,
    delta: float = 0.0,
    significance: float = 0.05,
    strategy: str = "split",
    threshold: float | None = None,
    seed: int = 0,
) -> float:
    """The epsilon that independent trials refute, by Clopper-Pearson on both rates.

        log (TPR - delta) / FPR, with both rates at their exact bounds

    Args:
        evidence: `[trials]`, higher for more likely a member; each of another training.
        members: `[trials]`, bool.
        delta: that is stated, in [0, 1].
        significance: how often the bound may exceed the true epsilon; of several arms
            that are judged together, shared out among them.
        strategy: "split" chooses the threshold on half of the trials, "bonferroni"
            corrects for all thresholds.
        threshold: chosen beforehand, which takes no correction; or None.
        seed: of the split.

    Raises:
        ImportError: without the extra `[dp]`.
        ValueError: on arrays that do not fit, or numbers out of range.

    Source: Jagielski, Ullman and Oprea 2020, arXiv:2006.07709; Nasr et al. 2021,
    arXiv:2101.04535.
    """
    return float(
        _auditor(evidence, members).epsilon_clopper_pearson(
            significance,
            delta,
            threshold_strategy=_strategy(strategy, threshold, seed),
        )
    )


def epsilon_one_run(
    evidence: np.ndarray,
    members: np.ndarray,
    *,
    delta: float,
    significance: float = 0.05,
    strategy: str = "split",
    threshold: float | None = None,
    seed: int = 0,
) -> float:
    """The epsilon that many canaries of one training refute.

    Args:
        evidence: `[canaries]`, higher for more likely a member.
        members: `[canaries]`, bool, drawn by independent coins (`coin_flips`).
        delta: that is stated, in (0, 1].
        significance: how often the bound may exceed the true epsilon.
        strategy: as of `epsilon_lower_bound`.
        threshold: chosen beforehand, or None.
        seed: of the split.

    Raises:
        ImportError: without the extra `[dp]`.
        ValueError: on arrays that do not fit, or numbers out of range.

    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846; guesses are of members
    alone.
    """
    return float(
        _auditor(evidence, members).epsilon_one_run(
            significance,
            delta,
            threshold_strategy=_strategy(strategy, threshold, seed),
        )
    )


def one_run_ceiling(num_guesses: int, *, significance: float = 0.05) -> float:
    """The largest epsilon that so many guesses in one run can refute, all being right.

        log q / (1 - q), q = significance^(1 / guesses), at delta 0

    Canaries in the training are about half of all, and "split" takes half of these:
    with 400 canaries there are about 100 guesses.

    Args:
        num_guesses: at least 1.
        significance: in (0, 1).

    Raises:
        ValueError: on numbers out of range.

    >>> round(one_run_ceiling(100), 4)
    3.493
    """
    validate.positive(num_guesses=num_guesses)
    validate.require(0 < significance < 1, "significance", significance, "in (0, 1)")
    return max(0.0, float(special.logit(significance ** (1 / num_guesses))))


def ceiling(num_members: int, num_others: int, *, significance: float = 0.05) -> float:
    """The largest epsilon that so many independent trials can refute, all being right.

    Args:
        num_members: trials with the canary.
        num_others: trials without it.
        significance: in (0, 1), shared out between the two rates.

    Raises:
        ValueError: on numbers out of range.

    >>> round(ceiling(100, 100), 4)
    3.2813
    """
    validate.positive(num_members=num_members, num_others=num_others)
    validate.require(0 < significance < 1, "significance", significance, "in (0, 1)")
    # One-sided at half the significance each: two-sided intervals at all of it.
    confidence = 1 - significance
    low, _ = clopper_pearson(num_members, num_members, confidence=confidence)
    _, high = clopper_pearson(0, num_others, confidence=confidence)
    return max(0.0, math.log(low / high))


class Audited(NamedTuple):
    """The epsilon that the runs of a study refute, beside what they could have refuted.

    Attributes:
        bound: every smaller epsilon is refuted.
        kind: of the rows that gave the bound.
        trials: memberships of such rows that were guessed, of all runs together.
        ceiling: the bound of an attack that is never wrong.
        control: the bound of the same attack on a training without noise, None where
            there is none; an audit whose control is below the stated epsilon would not
            have caught noise that was left out.
    """

    bound: float
    kind: str
    trials: int
    ceiling: float
    control: float | None


def audited(
    scores: np.ndarray,
    members: np.ndarray,
    *,
    delta: float,
    kinds: np.ndarray | None = None,
    control: np.ndarray | None = None,
    significance: float = 0.05,
    seed: int = 0,
) -> Audited:
    """The epsilon that many runs on halves of the rows refute.

    Runs of which each has coins of its own are one mechanism that is (epsilon,
    delta)-private in each of all coins, so the bound of one run holds for all of them
    together. One run of each pair is guessed, as the other has the opposite coins; the
    evidence is LiRA's by other pairs, whose coins are never guessed.

    Two things hold nearly but not quite: coins of a half of an exact size depend a
    little on each other, and a row that is out leaves its place to another, whose own
    influence on the score is taken to be small.

    Args:
        scores: `[pipelines, rows]`, such as `label_log_odds`, of the model that would
            be shipped.
        members: `[pipelines, rows]`, bool, from `complementary_halves`; 6 or more
            pipelines, better 16.
        delta: that is stated, in (0, 1].
        kinds: `[rows]`, str; planted kinds alone are guessed, or ordinary rows where
            there are none. The significance is shared out among kinds.
        control: `[pipelines, rows]`, the scores of a training without noise.
        significance: how often the bound may exceed the true epsilon; of several arms
            that are judged together, shared out among them.
        seed: of the split on which a threshold is chosen.

    Raises:
        ImportError: without the extra `[dp]`.
        ValueError: on arrays that do not fit, too few pipelines, or rows of which all
            pipelines have all, or none.

    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846.
    """
    scores, members = np.asarray(scores), np.asarray(members, bool)
    require_design(members)
    kinds = np.full(members.shape[1], ORDINARY) if kinds is None else np.asarray(kinds)
    validate.shape(members.shape, scores=scores)
    validate.shape(members.shape[1:], kinds=kinds)
    rows = candidates(members)
    names = _audited_kinds(kinds[rows])
    guessed, references = _sides(members)
    found = []
    for name in names:
        own = rows & (kinds == name)
        options = {
            "delta": delta,
            "significance": significance / len(names),
            "seed": seed,
        }

        def bound(values: np.ndarray, own=own, options=options) -> float:
            evidence = _evidence(values[:, own], members[:, own], guessed, references)
            inside = members[guessed][:, own].ravel()
            return epsilon_one_run(evidence.ravel(), inside, **options)

        inside = members[guessed][:, own].ravel()
        found.append(
            Audited(
                bound(scores),
                name,
                inside.size,
                epsilon_one_run(inside.astype(float), inside, **options),
                None if control is None else bound(np.asarray(control)),
            )
        )
    best = max(found, key=lambda one: (one.bound, one.ceiling))
    if control is None:
        return best
    # The control too may show in another kind.
    return best._replace(control=max(one.control for one in found))


def _audited_kinds(kinds: np.ndarray) -> Sequence[str]:
    """The planted kinds, or ordinary rows where there are none."""
    found = sorted({*kinds.tolist()} - {ORDINARY, ALWAYS})
    return found or [ORDINARY]


def _sides(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pipelines whose coins are guessed, and those that the evidence is from."""
    firsts = np.minimum(np.arange(len(members)), complement_of(members))
    pairs = np.unique(firsts)
    # LiRA takes two with and two without each row.
    least = 2 if len(pairs) < len(members) else 4
    count = max(least, len(pairs) // 2)
    validate.require(
        count < len(pairs), "pipelines", len(members), "6 or more, in pairs"
    )
    return pairs[count:], np.flatnonzero(np.isin(firsts, pairs[:count]))


def _evidence(
    scores: np.ndarray,
    members: np.ndarray,
    guessed: np.ndarray,
    references: np.ndarray,
) -> np.ndarray:
    """The evidence against each guessed pipeline by the references alone."""
    pooled = len(references) < PER_ROW_FROM

    def moments(some: np.ndarray, inside: bool) -> Moments:
        # Those of the first alone are read, which all references attack.
        given = scores[some], members[some]
        found = reference_moments(*given, inside=inside, pooled=pooled, fewest=1)
        return Moments(*(part[0] for part in found))

    evidence = []
    for one in guessed:
        some = np.concatenate([[one], references])
        sides = (moments(some, inside) for inside in (True, False))
        evidence.append(log_ratio(scores[one], *sides))
    return np.stack(evidence)


def require_stated(bound: float, epsilon: float) -> None:
    """Raises where the bound exceeds the epsilon that a training states.

    Args:
        bound: such as from `epsilon_one_run` or of `audited`.
        epsilon: that is stated.

    Raises:
        ValueError: where the stated guarantee does not hold.

    >>> require_stated(0.4, 1.0)
    >>> require_stated(3.2, 1.0)
    Traceback (most recent call last):
    ValueError: The stated epsilon 1 does not hold: an audit refutes all below 3.2...
    """
    if bound > epsilon:
        raise ValueError(
            f"The stated epsilon {epsilon:g} does not hold: an audit refutes all below "
            f"{bound:.3g}. Check sampling, clipping, noise and accounting."
        )
