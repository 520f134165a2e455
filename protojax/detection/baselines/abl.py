"""ABL: the rows that a student learns first."""

import jax
import numpy as np

from protojax import validate
from protojax.detection.conformal import require_finite
from protojax.detection.evidence import Evidence, Verdict, check, require_student


def abl(evidence: Evidence, *, isolated_share: float = 0.05, seed: int = 0) -> Verdict:
    """The rows whose loss is lowest after a short warm-up of a student.

    A trigger is easier to learn than a meaning, so poisoned rows are learned first. The
    p-value is the rank of a row's loss among all rows, divided by their number.

    Args:
        evidence: with `student`, the outputs of a briefly trained student.
        isolated_share: the share of rows to reject, a guess of the poisoning rate; the
            default favours this baseline where 5 % are poisoned.
        seed: not read; every detector is given one.

    Raises:
        ValueError: without a student, with one whose logits are not finite, a share
            outside (0, 1), or the errors of `check`.

    References:
        Li et al., 2021 (ABL, arXiv:2110.11571). Departing from it, isolated rows are
        left out instead of unlearned by gradient ascent, and no loss is flooded.
    """
    del seed
    bound = "in (0, 1)"
    validate.require(0 < isolated_share < 1, "isolated_share", isolated_share, bound)
    require_student(evidence)
    check(evidence)
    # Sorting NaN losses of a diverged student would rank rows by their position.
    require_finite(student_logits=evidence.student.logits)
    claims = evidence.teacher.logits.argmax(-1)
    rows = np.arange(len(claims))
    # The claim is the teacher's argmax, because that is what the student was taught.
    log_p = np.asarray(jax.nn.log_softmax(evidence.student.logits))
    losses = -log_p[rows, claims]
    # A stable sort makes the verdict on equal losses reproducible.
    ranks = np.empty(len(rows))
    ranks[np.argsort(losses, kind="stable")] = (rows + 1) / len(rows)
    return Verdict(ranks <= isolated_share, ranks)
