"""The test of a transfer set: which rows to reject, and what they share.

One test in one round. Rows and references are pooled and grouped by what they share. A
group that makes a claim more often than the trusted model expects explains the rows
that make it. References are scored with the rows, so their quantile is the level at
which a stated share of honest rows is rejected.
"""

from collections.abc import Sequence

import numpy as np

from protojax import data, validate
from protojax.base import Examples
from protojax.detection import excess, expectation, groups
from protojax.detection.conformal import conformal_p_values
from protojax.detection.evidence import (
    Evidence,
    Findings,
    Suspect,
    Verdict,
    check,
    require_trusted,
)
from protojax.detection.excess import Claims, Explanation
from protojax.detection.groups import Groups
from protojax.detection.masking import Reread, learned_triggers
from protojax.detection.settings import Detection


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
    found = excess.explain(
        groups_,
        claims,
        overdispersion=settings.overdispersion,
        least=settings.least,
        min_rows=settings.min_rows,
    )
    count = len(groups_.names) * len(claims)
    tail = excess.tail_p_values([one.z for one in found], groups=count)
    # References tell of honest groups that are in excess, unless these have been found
    # to be triggers that the references hold.
    honest_groups = [
        _in_references(one, claims, rows) and learned[one.members].mean() < 0.5
        for one in found
    ]
    tail = np.where(honest_groups, 1.0, tail)
    suspects = [
        _suspect(one, p, rows, settings) for one, p in zip(found, tail, strict=True)
    ]
    scores, reasons = excess.row_scores(found, claims)
    strong = np.array([one.strong for one in suspects] + [False])[reasons]
    # References with a trigger are no honest rows, which the level is for.
    honest = np.arange(rows, len(scores))[~strong[rows:]]
    classes = claims[0].classes
    p_values = conformal_p_values(
        scores[:rows],
        scores[honest],
        classes[:rows],
        classes[honest],
        alpha=settings.false_rejection,
    )
    rejected = (p_values <= settings.false_rejection) | strong[:rows]
    reasons = np.where(rejected, reasons[:rows], -1)
    kept = np.unique(reasons[reasons >= 0])
    number = np.full(len(found) + 1, -1)
    number[kept] = np.arange(len(kept))
    untrusted = np.zeros(len(evidence.references.texts), bool)
    untrusted[evidence.held_out] = strong[rows:]
    verdict = Verdict(
        rejected, p_values, *evidence.trusted_on_transfer, untrusted=untrusted
    )
    shown = tuple(suspects[index] for index in kept)
    clean = not any(suspect.strong for suspect in shown)
    return Findings(verdict, shown, number[reasons], clean)


def claims_of(evidence: Evidence, names: Sequence[str]) -> list[Claims]:
    """The claims of the transfer rows, then the held-out references.

    Args:
        evidence: what the defender holds.
        names: of the claims, in `settings.CLAIMS`.
    """
    found = []
    for name in names:
        given = _read_claims(evidence, name)
        expected = np.concatenate(expectation.expected_claims(*given))
        found.append(Claims(name, np.concatenate(given[2:]), expected))
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
    fits = [expectation.calibrate(*_read_claims(evidence, one.name)) for one in claims]
    expected = [one.expected.copy() for one in claims]
    count = len(evidence.transfer.texts)
    found = learned_triggers(groups_, claims, fits, pool, count, reread, settings)
    learned = np.zeros(len(pool.texts), bool)
    for one in found:
        learned[one.rows] = True
        for part, new in zip(expected, one.expected, strict=True):
            part[one.rows] = new
    changed = [
        one._replace(expected=part) for one, part in zip(claims, expected, strict=True)
    ]
    return changed, learned


def _labels(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The given labels of the rows and of the references."""
    return evidence.transfer.labels, evidence.references.labels


def _teacher(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes of the rows and of the references."""
    outputs = evidence.teacher, evidence.teacher_on_references
    return tuple(part.logits.argmax(-1) for part in outputs)


_CLAIMS = {"teacher": _teacher, "label": _labels}


def grouped(examples: Examples, settings: Detection) -> Groups:
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


def _in_references(one: Explanation, claims: list[Claims], rows: int) -> bool:
    """Whether references of a group are in excess about as much as its rows.

    Then the claim is common where the words are, and the trusted model misses it.
    """
    (claim,) = (claim for claim in claims if claim.name == one.claim)
    chance = claim.expected[one.members, one.label]
    made, own = claim.classes[one.members] == one.label, one.members >= rows
    if not own.any() or own.all():
        return False
    z = excess.z_of_rows(made[own], chance[own], tau=0.0)
    surplus = made - chance
    # One-sided at 5 %: a few references by chance must not excuse a trigger.
    return bool(z >= 1.645 and surplus[own].mean() >= surplus[~own].mean() / 2)


def _suspect(
    one: Explanation, p_value: float, rows: int, settings: Detection
) -> Suspect:
    """The report of an explanation."""
    members, claimants = (part[part < rows] for part in (one.members, one.claimants))
    return Suspect(
        one.name,
        one.kind,
        one.claim,
        one.label,
        rows=len(members),
        claimants=len(claimants),
        expected=one.expected * len(members) / len(one.members),
        references=len(one.members) - len(members),
        z=one.z,
        p_value=float(p_value),
        strong=settings.is_trigger(p_value, len(claimants)),
    )
