"""The test of a transfer set: which rows to reject, and what they share.

One test in one round. Rows and references are pooled and grouped by what they share. A
group that makes a claim more often than the trusted model expects explains the rows
that make it. References are scored with the rows, so their quantile is the level at
which a stated share of honest rows is rejected.
"""

from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples
from protojax.detection import excess, expectation, groups
from protojax.detection.conformal import conformal_p_values
from protojax.detection.evidence import Evidence, Verdict, check, require_trusted
from protojax.detection.excess import Claims, Explanation
from protojax.detection.groups import Groups
from protojax.detection.settings import Detection


class Suspect(NamedTuple):
    """A suspected trigger: what rejected rows share.

    Attributes:
        name: the words, symbols or other property that they share.
        kind: the kind of the group, such as "phrase" or "opening".
        claim: the claim in excess, "label" or "teacher".
        label: the claimed class.
        rows: how many transfer rows have it.
        claimants: how many of these make the claim.
        expected: how many honest claims are expected of them.
        references: how many references have it.
        z: the excess in standard deviations.
        p_value: the chance that the strongest honest group is as strong, see
            `excess.tail_p_values`.
        strong: whether it is called a trigger: it stands apart from honest groups, and
            enough rows make its claim.
    """

    name: str
    kind: str
    claim: str
    label: int
    rows: int
    claimants: int
    expected: float
    references: int
    z: float
    p_value: float
    strong: bool


class Findings(NamedTuple):
    """The result of the test.

    Attributes:
        verdict: the rejected transfer rows and their p-values.
        suspects: the suspected triggers, the strongest first: every group with a
            rejected row.
        reasons: `[rows]`, the number of a row's suspect, -1 for none.
        clean: whether the set as a whole looks clean: no group is strong.
    """

    verdict: Verdict
    suspects: tuple[Suspect, ...]
    reasons: np.ndarray
    clean: bool


def detect(evidence: Evidence, settings: Detection | None = None) -> Findings:
    """The transfer rows that make claims in excess of what honest rows would.

    Guarantee: where a row and the references are exchangeable, it is rejected with a
    probability of at most `settings.false_rejection`.

    Args:
        evidence: what the defender holds, the trusted model's reading included.
        settings: of the test; None for the defaults.

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
    found = excess.explain(
        grouped(pool, settings),
        claims,
        overdispersion=settings.overdispersion,
        least=settings.least,
        min_rows=settings.min_rows,
    )
    scores, reasons = excess.row_scores(found, claims)
    classes = claims[0].classes
    p_values = conformal_p_values(
        scores[:rows],
        scores[rows:],
        classes[:rows],
        classes[rows:],
        alpha=settings.false_rejection,
    )
    rejected = p_values <= settings.false_rejection
    reasons = np.where(rejected, reasons[:rows], -1)
    kept = np.unique(reasons[reasons >= 0])
    number = np.full(len(found) + 1, -1)
    number[kept] = np.arange(len(kept))
    tail = excess.tail_p_values([one.z for one in found])
    suspects = tuple(
        _suspect(found[index], tail[index], rows, settings) for index in kept
    )
    verdict = Verdict(rejected, p_values, *evidence.trusted_on_transfer)
    clean = not any(suspect.strong for suspect in suspects)
    return Findings(verdict, suspects, number[reasons], clean)


def claims_of(evidence: Evidence, names: tuple[str, ...]) -> list[Claims]:
    """The claims of the transfer rows, then the held-out references.

    Args:
        evidence: what the defender holds.
        names: of the claims, in `CLAIMS`.
    """
    odds = expectation.log_odds(evidence.trusted_on_transfer.logits)
    odds_refs = expectation.log_odds(evidence.trusted_on_held_out.logits)
    found = []
    for name in names:
        validate.one_of(CLAIMS, claim=name)
        rows, refs = CLAIMS[name](evidence)
        refs = refs[evidence.held_out]
        expected = expectation.expected_claims(odds, odds_refs, rows, refs)
        found.append(
            Claims(name, np.concatenate([rows, refs]), np.concatenate(expected))
        )
    return found


def _labels(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The given labels of the rows and of the references."""
    return evidence.transfer.labels, evidence.references.labels


def _teacher(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes of the rows and of the references."""
    outputs = evidence.teacher, evidence.teacher_on_references
    return tuple(part.logits.argmax(-1) for part in outputs)


CLAIMS = {"teacher": _teacher, "label": _labels}


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


def _suspect(
    one: Explanation, p_value: float, rows: int, settings: Detection
) -> Suspect:
    """The report of an explanation."""
    apart = p_value <= settings.false_alarm
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
        strong=bool(apart and len(claimants) >= settings.trigger_rows),
    )
