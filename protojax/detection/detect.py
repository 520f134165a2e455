"""The test of a transfer set: which rows to reject, and what they share.

One test in one round. Rows and references are pooled and grouped by what they share. A
group that makes a claim more often than the trusted model expects explains the rows
that make it. References are scored with the rows, so their quantile is the level at
which a stated share of honest rows is rejected.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples
from protojax.detection import expectation, groups
from protojax.detection.conformal import conformal_p_values, tail_p_values
from protojax.detection.evidence import (
    Evidence,
    Findings,
    Suspect,
    Verdict,
    check,
    require_trusted,
)
from protojax.detection.excess import Claims, Units, units_of, z_of_rows
from protojax.detection.explanations import Explanation, explain, row_scores
from protojax.detection.groups import Groups
from protojax.detection.masking import Reread, learned_triggers
from protojax.detection.settings import Detection, Level


def detect(
    evidence: Evidence,
    settings: Detection | None = None,
    *,
    reread: Reread | None = None,
) -> Findings:
    """The transfer rows that make claims in excess of what honest rows would.

    Guarantee: where a row and the references are exchangeable, it is rejected with a
    probability of at most `settings.false_rejection`, and the rows of a trigger that is
    none in addition, which a clean set has with a probability of about
    `settings.false_alarm`.

    Args:
        evidence: what the defender holds, the trusted model's reading included.
        settings: of the test; None for the defaults.
        reread: the trusted model, to be asked about other texts, which finds triggers
            that references hold too; None if it cannot be asked.

    Raises:
        ValueError: without a trusted model, on too few references for the level, or
            those of `check`.
    """
    settings = settings or Detection()
    require_trusted(evidence)
    check(evidence)
    held_out = data.take(evidence.references, evidence.held_out)
    pool = data.concatenate(evidence.transfer, held_out)
    rows, claims = len(evidence.transfer.texts), claims_of(evidence, settings.claims)
    groups_ = grouped(pool, settings)
    learned = np.zeros(len(pool.texts), bool)
    if reread is not None:
        claims, learned = _without_own_words(
            evidence, claims, groups_, pool, reread, settings
        )
    found = judge(groups_, units_of(claims), rows, settings, learned)
    # References with a trigger are no honest rows, which the level is for.
    honest = np.arange(rows, len(pool.texts))[~found.strong[rows:]]
    classes, scores = claims[0].classes, found.scores
    p_values = conformal_p_values(
        scores[:rows],
        scores[honest],
        classes[:rows],
        classes[honest],
        alpha=settings.false_rejection,
    )
    rejected = (p_values <= settings.false_rejection) | found.strong[:rows]
    untrusted = np.zeros(len(evidence.references.texts), bool)
    untrusted[evidence.held_out] = found.strong[rows:]
    verdict = Verdict(
        rejected, p_values, *evidence.trusted_on_transfer, untrusted=untrusted
    )
    shown, reasons = found.reported(rejected)
    clean = not any(suspect.strong for suspect in shown)
    return Findings(verdict, shown, reasons, clean)


class Judgement(NamedTuple):
    """The explanations of a pool's claims: the rows under test, then the references.

    Attributes:
        explanations: `[explained]`, the strongest first.
        suspects: `[explained]`, their reports.
        scores: `[pool]`, the rank of each row by suspicion.
        reasons: `[pool]`, the number of each row's explanation, -1 for none.
        strong: `[pool]`, bool, whether that is called a trigger.
    """

    explanations: list[Explanation]
    suspects: list[Suspect]
    scores: np.ndarray
    reasons: np.ndarray
    strong: np.ndarray

    def reported(self, rejected: np.ndarray) -> tuple[tuple[Suspect, ...], np.ndarray]:
        """The suspects with a rejected row, and the number of each row's, -1 for none.

        Args:
            rejected: `[rows]`, bool.
        """
        reasons = np.where(rejected, self.reasons[: len(rejected)], -1)
        kept = np.unique(reasons[reasons >= 0])
        number = np.full(len(self.suspects) + 1, -1)
        number[kept] = np.arange(len(kept))
        return tuple(self.suspects[index] for index in kept), number[reasons]


def judge(
    groups_: Groups,
    units: Units,
    rows: int,
    settings: Level,
    learned: np.ndarray | None = None,
) -> Judgement:
    """The explanations of units that a pool claims more often than honest rows would.

    Args:
        groups_: of the pool: the rows under test, then the references.
        units: what the pool claims.
        rows: how many rows are under test.
        settings: of the test.
        learned: `[pool]`, bool, rows with triggers that the references hold too; None
            for no such triggers.
    """
    found = explain(
        groups_,
        units,
        overdispersion=settings.overdispersion,
        least=settings.least,
        min_rows=settings.min_rows,
    )
    count = len(groups_.names) * len(np.unique(units.claims))
    # One target in many words puts its trigger's group into excess many times.
    first = {one.name: one.z for one in reversed(found)}
    tail = tail_p_values(
        [one.z for one in found], groups=count, tail_of=[*first.values()]
    )
    # References tell of honest groups that are in excess, unless these have been found
    # to be triggers that the references hold.
    learned = np.zeros(units.made.shape[0], bool) if learned is None else learned
    honest_groups = [
        _in_references(one, units, rows) and learned[one.members].mean() < 0.5
        for one in found
    ]
    tail = np.where(honest_groups, 1.0, tail)
    suspects = [
        _suspect(one, units, p, rows, settings)
        for one, p in zip(found, tail, strict=True)
    ]
    scores, reasons = row_scores(found, units)
    strong = np.array([one.strong for one in suspects] + [False])[reasons]
    return Judgement(found, suspects, scores, reasons, strong)


def claims_of(evidence: Evidence, names: Sequence[str]) -> list[Claims]:
    """The claims of the transfer rows, then the held-out references.

    Args:
        evidence: what the defender holds.
        names: of the claims, in `settings.CLAIMS`.
    """
    found = []
    for name in names:
        given = _read_claims(evidence, name)
        *expected, fit = expectation.expected_claims(*given)
        classes, expected = np.concatenate(given[2:]), np.concatenate(expected)
        alike = fit.expected(np.concatenate(given[:2]))
        found.append(Claims(name, classes, expected, fit, alike))
    return found


def _read_claims(evidence: Evidence, name: str) -> tuple[np.ndarray, ...]:
    """Log odds of rows and references, and the claims of both."""
    validate.one_of(_CLAIMS, claim=name)
    rows, refs = _CLAIMS[name](evidence)
    return (
        expectation.log_odds(evidence.trusted_on_transfer.logits),
        expectation.log_odds(evidence.trusted_on_held_out.logits),
        rows,
        refs[evidence.held_out],
    )


def _without_own_words(
    evidence: Evidence,
    claims: list[Claims],
    groups_: Groups,
    pool: Examples,
    reread: Reread,
    settings: Detection,
) -> tuple[list[Claims], np.ndarray]:
    """Claims that are expected without the words of learned triggers, and their rows.

    Returns:
        The claims, and the mask of the rows that hold a learned trigger, `[pool]`.
    """
    fits = [one.fit for one in claims]
    changed = [
        one._replace(expected=one.expected.copy(), alike=one.alike.copy())
        for one in claims
    ]
    count = len(evidence.transfer.texts)
    found = learned_triggers(groups_, claims, fits, pool, count, reread, settings)
    learned = np.zeros(len(pool.texts), bool)
    for one in found:
        learned[one.rows] = True
        for claim, new in zip(changed, one.expected, strict=True):
            claim.expected[one.rows] = claim.alike[one.rows] = new
    return changed, learned


def _labels(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The given labels of the rows and of the references."""
    return evidence.transfer.labels, evidence.references.labels


def _teacher(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes of the rows and of the references."""
    outputs = evidence.teacher, evidence.teacher_on_references
    return tuple(part.logits.argmax(-1) for part in outputs)


_CLAIMS = {"teacher": _teacher, "label": _labels}


def grouped(examples: Examples, settings: Level) -> Groups:
    """All groups of some rows.

    Args:
        examples: the rows.
        settings: which kinds of groups, and their fewest rows.
    """
    found = []
    for kind in settings.groups:
        validate.one_of(groups.GROUPS, groups=kind)
        found.append(groups.GROUPS[kind](examples, settings.min_rows))
    return groups.concatenate(found)


def _in_references(one: Explanation, units: Units, rows: int) -> bool:
    """Whether references of a group are in excess about as much as its rows.

    Then the claim is common where the words are, and what is expected misses it.
    """
    chance = units.expected(one.unit)[one.members]
    made, own = units.made_by(one.unit)[one.members], one.members >= rows
    if not own.any() or own.all():
        return False
    z = z_of_rows(made[own], chance[own], tau=0.0)
    surplus = made - chance
    # One-sided at 5 %: a few references by chance must not excuse a trigger.
    return bool(z >= 1.645 and surplus[own].mean() >= surplus[~own].mean() / 2)


def _suspect(
    one: Explanation, units: Units, p_value: float, rows: int, settings: Level
) -> Suspect:
    """The report of an explanation."""
    members, claimants = (part[part < rows] for part in (one.members, one.claimants))
    return Suspect(
        one.name,
        one.kind,
        str(units.claims[one.unit]),
        units.values[one.unit],
        rows=len(members),
        claimants=len(claimants),
        expected=one.expected * len(members) / len(one.members),
        references=len(one.members) - len(members),
        z=one.z,
        p_value=float(p_value),
        strong=settings.is_trigger(p_value, len(claimants)),
    )
