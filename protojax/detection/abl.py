"""ABL: the rows that a student learns first."""

import jax
import numpy as np

from protojax import validate
from protojax.detection.evidence import Evidence, Verdict


def abl(evidence: Evidence, *, isolated_share: float = 0.05, seed: int = 0) -> Verdict:
    """The rows whose loss is lowest after a short warm-up of a student.

    A trigger is easier to learn than a meaning, so poison is learned first. The p-value
    is the rank of a row's loss among all.

    Args:
        evidence: with `student`, what a briefly trained student says.
        isolated_share: the share of the rows to reject, a guess of the poison's; the
            default favours this baseline where 5 % are poisoned.
        seed: not read; every detector is given one.

    Raises:
        ValueError: without a student, or a share outside (0, 1).

    References:
        Li et al., 2021 (ABL, arXiv:2110.11571). Departing from it, isolated rows are
        left out instead of unlearned by gradient ascent, and no loss is flooded.
    """
    del seed
    bound = "in (0, 1)"
    validate.require(0 < isolated_share < 1, "isolated_share", isolated_share, bound)
    bound = "outputs of a briefly trained student"
    validate.require(evidence.student is not None, "evidence.student", None, bound)
    claims = evidence.teacher.logits.argmax(-1)
    rows = np.arange(len(claims))
    log_p = np.asarray(jax.nn.log_softmax(evidence.student.logits))
    losses = -log_p[rows, claims]
    ranks = np.empty(len(rows))
    ranks[np.argsort(losses, kind="stable")] = (rows + 1) / len(rows)
    return Verdict(ranks <= isolated_share, ranks)
