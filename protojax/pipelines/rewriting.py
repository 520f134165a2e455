"""What a student may see after the test: evidence without the words of triggers."""

from collections.abc import Callable

import numpy as np

from protojax import data
from protojax.base import Examples, TeacherOutputs
from protojax.detection.evidence import Evidence, Findings, Reading, Verdict
from protojax.detection.rewriting import without

# (rows and then references without triggers, mask of those that changed) -> the
# teacher's outputs on those.
Ask = Callable[[Examples, np.ndarray], TeacherOutputs]


def rewritten(
    evidence: Evidence,
    findings: Findings,
    *,
    ask: Ask | None,
    read: Callable[[Examples], Reading],
) -> tuple[Evidence, Verdict]:
    """Rows and references without the words of triggers, and the verdict on the rows.

    Args:
        evidence: as it arrived.
        findings: the result of the test.
        ask: the teacher, which is asked again about rows that changed; None where it
            cannot be asked, so that these rows count as rejected.
        read: the trusted model, whose reading is the target of rejected rows.
    """
    rows, count = evidence.transfer, len(evidence.transfer.texts)
    pool = data.concatenate(rows, evidence.references)
    # Together, so that both lose the same words.
    pure = without(pool, findings.suspects)
    # Not as arrays of texts, in which each is as long as the longest.
    pairs = zip(_texts_of(pure), _texts_of(pool), strict=True)
    changed = np.array([new != old for new, old in pairs])
    verdict = findings.verdict
    outputs = evidence.teacher, evidence.teacher_on_references
    if ask is None:
        verdict = verdict._replace(rejected=verdict.rejected | changed[:count])
    elif changed.any():
        whole = TeacherOutputs(*map(np.concatenate, zip(*outputs, strict=True)))
        for part, new in zip(whole, ask(pure, changed), strict=True):
            part[changed] = new
        outputs = (
            whole.take(np.arange(count)),
            whole.take(np.arange(count, len(changed))),
        )
    rejected = np.flatnonzero(verdict.rejected)
    if len(rejected):
        verdict = _read_as(verdict, rejected, read(data.take(pure, rejected)))
    learned = evidence._replace(
        transfer=rows._replace(
            texts=pure.texts[:count], pairs=pure.pairs and pure.pairs[:count]
        ),
        teacher=outputs[0],
        references=evidence.references._replace(
            texts=pure.texts[count:], pairs=pure.pairs and pure.pairs[count:]
        ),
        teacher_on_references=outputs[1],
    )
    return learned, verdict


def _texts_of(examples: Examples) -> list[tuple[str, str]]:
    """The two texts of each row, the second "" where there is none."""
    pairs = examples.pairs or [""] * len(examples.texts)
    return list(zip(examples.texts, pairs, strict=True))


def _read_as(verdict: Verdict, rows: np.ndarray, reading: Reading) -> Verdict:
    """The verdict with another reading of some rows."""
    classes, logits = verdict.trusted_classes.copy(), verdict.trusted_logits.copy()
    classes[rows], logits[rows] = reading
    return verdict._replace(trusted_classes=classes, trusted_logits=logits)
