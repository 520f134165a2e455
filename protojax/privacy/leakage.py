"""Which rows of its training data a model gives away, measured by attacking it.

`audit` trains a pipeline many times, each on another half of the rows, by a function of
the caller's in any framework; `leakage` attacks logits that are there already. Both
take arrays alone and never see a text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from protojax import validate
from protojax.evals import detection_auc, mean_interval
from protojax.privacy._study import (
    WORST,
    Study,
    calibrated,
    curves,
    evidence_of,
    figures,
)
from protojax.privacy.findings import (
    ALWAYS,
    ORDINARY,
    POWER,
    Found,
    Leakage,
    NullCheck,
    PowerCheck,
    RowProfile,
    strongest,
)
from protojax.privacy.membership_attacks import (
    MEMBERSHIP_ATTACKS,
    MembershipAttack,
    label_log_odds,
    reference_moments,
)
from protojax.privacy.memberships import (
    candidates,
    complementary_halves,
    drawn_anew,
    require_design,
)
from protojax.privacy.rates import (
    calibrated_p_values,
    smallest_rate,
    true_positive_rate,
)

LEVELS = (0.01, 0.001)

# (members [rows] bool, seed) -> logits [rows, classes], or them and the reference's.
TrainAndScore = Callable[[np.ndarray, int], np.ndarray | tuple[np.ndarray, np.ndarray]]


def naturally_worst(
    scores: np.ndarray, members: np.ndarray, *, share: float = 0.05
) -> np.ndarray:
    """The rows whose scores rise most by training on them, `[pipelines, rows]`, bool.

    Chosen for each pipeline by all others but its complement. By the target's own
    scores they would be rows that chance favours, and be found by chance.

    Args:
        scores: `[pipelines, rows]`, better of the teacher than of the model attacked.
        members: `[pipelines, rows]`, bool.
        share: of the rows, in (0, 1); at least one row.

    Raises:
        ValueError: on a share outside (0, 1), and as `reference_moments`.
    """
    validate.require(0 < share < 1, "share", share, "in (0, 1)")
    means = [
        reference_moments(scores, members, inside=side, pooled=True, fewest=1).mean
        for side in (True, False)
    ]
    order = np.argsort(means[1] - means[0], axis=1, kind="stable")
    worst = np.zeros(np.shape(members), bool)
    num_worst = max(1, round(share * order.shape[1]))
    np.put_along_axis(worst, order[:, :num_worst], True, axis=1)
    return worst


def null_check(
    attack: MembershipAttack,
    scores: np.ndarray,
    members: np.ndarray,
    *,
    name: str = "",
    level: float = LEVELS[0],
    num_draws: int = 10,
    seed: int = 0,
) -> NullCheck:
    """The finds of an attack with memberships drawn anew, which no training has seen.

    Each draw gives an AUC and a rate; their means are compared with 0.5 and the level
    by a Student interval at 99.9 %. An attack that leaves the target out but not its
    complement fails.

    Args:
        attack: such as one of `MEMBERSHIP_ATTACKS`.
        scores: `[pipelines, rows]`.
        members: `[pipelines, rows]`, bool, all rows candidates; only their design is
            used.
        name: of the attack.
        level: of false alarms.
        num_draws: at least 2.
        seed: of the draws.

    Raises:
        ValueError: on fewer than two draws, and as the attack.
    """
    validate.require(num_draws >= 2, "num_draws", num_draws, ">= 2")
    rng = np.random.default_rng(seed)
    areas, rates = [], []
    for _ in range(num_draws):
        anew = drawn_anew(members, rng)
        evidence = attack(scores, anew)
        areas.append(detection_auc(evidence.ravel(), anew.ravel()))
        rates.append(true_positive_rate(evidence, anew, max_false_positive_rate=level))
    area, width = mean_interval(areas, 0.999)
    passed = abs(area - 0.5) <= width + 1e-12
    if any(rate is None for rate in rates):
        return NullCheck(name, area, width, None, None, passed)
    rate, rate_width = mean_interval(rates, 0.999)
    # A score with many ties finds less than the level allows, which is no bias.
    passed = passed and rate - level <= rate_width + 1e-12
    return NullCheck(name, area, width, rate, rate_width, passed)


def _profile(
    scores: np.ndarray,
    hits: np.ndarray,
    members: np.ndarray,
    described: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> RowProfile:
    """The leakage of each row; `described` holds indices, kinds and labels."""
    inner = (scores * members).sum(0) / members.sum(0)
    outer = (scores * ~members).sum(0) / (~members).sum(0)
    spread = (scores - np.where(members, inner, outer)).std()
    gaps = (inner - outer) / max(spread, np.finfo(float).tiny)
    return RowProfile(*described, gaps, (hits & members).sum(0) / members.sum(0))


def _power(found: Sequence[Found], on_reference: bool) -> PowerCheck:
    """The share of rows found of the kind that is found best."""
    best = strongest(found)
    rate = best.rates[0]
    passed = rate is not None and rate > POWER
    return PowerCheck(best.kind, best.attack, rate, on_reference, passed)


def leakage(
    logits: np.ndarray,
    members: np.ndarray,
    labels: np.ndarray,
    *,
    kinds: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    attacks: Sequence[str] = tuple(MEMBERSHIP_ATTACKS),
    levels: Sequence[float] = LEVELS,
    worst_share: float = 0.05,
    num_draws: int = 500,
    seed: int = 0,
) -> Leakage:
    """The leakage of training rows by many trainings of one pipeline.

    Each pipeline is attacked with all others but its complement. Rows that are in all
    pipelines, or in none, are left out. Each kind of rows is attacked by itself; the
    ordinary rows that the reference remembers best are a kind of their own.

    Args:
        logits: `[pipelines, rows, classes]`, of the model that would be shipped, on all
            rows, at temperature 1 and without dropout.
        members: `[pipelines, rows]`, bool, from `complementary_halves`; 6 or more
            pipelines, better 16.
        labels: `[rows]`, int, as members are trained with them.
        kinds: `[rows]`, str, such as from `CANARIES`; None calls all "ordinary".
        groups: `[rows]`, whose memberships were drawn together, or None.
        reference: `[pipelines, rows, classes]`, logits of the teacher of each pipeline,
            in which planted rows must be found; None asks that of the model itself.
        attacks: names of `MEMBERSHIP_ATTACKS`, chosen beforehand; the strongest is the
            headline.
        levels: rates of false alarms, the headline's first.
        worst_share: of the ordinary rows, in (0, 1).
        num_draws: of each bootstrap.
        seed: of the bootstraps and of the null.

    Raises:
        ValueError: on arrays that do not fit or are not finite, too few pipelines, or
            memberships that are neither complementary pairs nor independent coins.

    >>> members = complementary_halves(400, 8, seed=0)
    >>> noise = np.random.default_rng(0).normal(size=(8, 400))
    >>> logits = np.stack([noise + 6 * members, np.zeros((8, 400))], -1)
    >>> found = leakage(logits, members, np.zeros(400, int), attacks=["lira"])
    >>> found.conclusive
    True
    >>> print(found.sentence)
    At 1 % false alarms, ... of 100 ordinary rows of the training data are
    recognised; a better attack may find more. Too few rows to say of: naturally worst
    (from 12 %).
    """
    members, labels = np.asarray(members, bool), np.asarray(labels)
    require_design(members)
    for index, name in enumerate(attacks):
        validate.one_of(MEMBERSHIP_ATTACKS, **{f"attacks[{index}]": name})
    validate.positive(attacks=len(attacks), levels=len(levels))
    logits = np.asarray(logits)
    validate.shape((*members.shape, *logits.shape[2:]), logits=logits)
    rows = np.flatnonzero(candidates(members))
    validate.positive(num_candidates=len(rows))
    scores = label_log_odds(logits, labels)[:, rows]
    described = rows, _of_rows(kinds, members, rows, "kinds"), labels[rows]
    taken = WORST in described[1].tolist()
    validate.require(not taken, "kinds", WORST, "to be another name")
    leads = scores
    if reference is not None:
        validate.shape(members.shape, reference=np.asarray(reference)[..., 0])
        leads = label_log_odds(reference, labels)[:, rows]
    given, members = members, members[:, rows]
    study = Study(
        members,
        described[1],
        None if groups is None else _of_rows(groups, given, rows, "groups"),
        _worst(leads, members, described[1], worst_share),
        *(tuple(attacks), tuple(levels), num_draws, seed),
    )
    evidence = evidence_of(scores, study)
    found = figures(evidence, study, intervals=True)
    p_values = calibrated_p_values(scores, members)
    hits = p_values <= levels[0]
    best = strongest(found).attack
    attack = MEMBERSHIP_ATTACKS[best]
    there = found
    if reference is not None:
        there = figures(evidence_of(leads, study), study, intervals=False)
    right = logits[:, rows].argmax(-1) == described[2]
    usual = (described[1] == ORDINARY) if ORDINARY in described[1] else True
    return Leakage(
        found,
        calibrated(hits, study),
        null_check(attack, scores, members, name=best, level=levels[0], seed=seed),
        _power(there, reference is not None),
        _profile(scores, hits, members, described),
        study.levels,
        len(members),
        float(right[usual & ~members].mean()),
        float(right[usual & members].mean()),
        {kind: smallest_rate(members[where]) for kind, where in study.masks()},
        curves(evidence, study, found),
    )


def _of_rows(
    values: np.ndarray | None, members: np.ndarray, rows: np.ndarray, name: str
) -> np.ndarray:
    """Values of the candidates, checked; all ordinary where there is none."""
    if values is None:
        return np.full(len(rows), ORDINARY)
    validate.shape((members.shape[1],), **{name: values})
    return np.asarray(values)[rows]


def _worst(
    scores: np.ndarray, members: np.ndarray, kinds: np.ndarray, share: float
) -> np.ndarray:
    """The naturally worst of the ordinary rows, `[pipelines, rows]`, bool."""
    worst, usual = np.zeros(members.shape, bool), np.flatnonzero(kinds == ORDINARY)
    if len(usual):
        worst[:, usual] = naturally_worst(
            scores[:, usual], members[:, usual], share=share
        )
    return worst


def audit(
    train_and_score: TrainAndScore,
    labels: np.ndarray,
    *,
    num_pipelines: int = 32,
    kinds: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Leakage:
    """The leakage of training rows by the caller's own training, in any framework.

    It is run `num_pipelines` times, each on another half of the rows. The whole
    pipeline belongs into it, from the teacher to the student that would be shipped;
    tokenizer, stopping and transfer rows must not depend on the candidates.

    Args:
        train_and_score: `(members [rows] bool, seed) -> logits [rows, classes]`: trains
            on the rows of the mask and scores all rows. It may return a pair, logits
            of the model and of its teacher, in which planted rows must be found.
        labels: `[rows]`, int, as members are trained with them.
        num_pipelines: how many trainings, even, at least 6.
        kinds: `[rows]`, str, such as from `CANARIES`; rows of the kind "always in" are
            in every training. An even number of others, unless groups are given.
        groups: `[rows]`, whose rows go together, or None.
        seed: of the memberships and of the seeds of the trainings.
        progress: called with the number of trainings done and of all.
        options: of `leakage`.

    Raises:
        ValueError: on logits of another shape, and as `leakage`.

    >>> def nearest_mean(members, seed):
    ...     means = [points[members & (labels == c)].mean(0) for c in (0, 1)]
    ...     return -np.stack([((points - mean) ** 2).sum(1) for mean in means], 1)
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(400) % 2
    >>> points = rng.normal(size=(400, 30)) + 0.2 * labels[:, None]
    >>> found = audit(nearest_mean, labels, num_pipelines=8, attacks=["lira"])
    >>> found.null.passed, found.conclusive
    (True, False)
    """
    labels = np.asarray(labels)
    always = None if kinds is None else np.asarray(kinds) == ALWAYS
    members = complementary_halves(
        len(labels), num_pipelines, seed=seed, groups=groups, always=always
    )
    seeds = np.random.SeedSequence(seed).generate_state(num_pipelines) >> 1
    logits, references = [], []
    for done, (rows, own) in enumerate(zip(members, seeds.tolist(), strict=True), 1):
        # A copy: what the training does to its mask stays there.
        scored = train_and_score(rows.copy(), own)
        pair = scored if isinstance(scored, tuple) else (scored,)
        for name, values, kept in zip(
            ("logits", "reference"), pair, (logits, references), strict=False
        ):
            values = np.asarray(values)
            validate.shape((len(labels), *values.shape[1:]), **{name: values})
            kept.append(values)
        if progress is not None:
            progress(done, num_pipelines)
    return leakage(
        np.stack(logits),
        members,
        labels,
        kinds=kinds,
        groups=groups,
        reference=np.stack(references) if references else None,
        seed=seed,
        **options,
    )
