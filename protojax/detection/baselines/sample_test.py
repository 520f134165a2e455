"""The per-sample conformal test, the baseline of the test of groups."""

import numpy as np
from scipy import special

from protojax.detection.conformal import conformal_p_values
from protojax.detection.evidence import Evidence, Verdict, check, require_trusted


def sample_test(
    evidence: Evidence, *, false_rejection: float = 0.05, seed: int = 0
) -> Verdict:
    """The rows whose claim is improbable under the trusted model, each by itself.

    The test is conformal, so it rejects clean rows at the stated rate, but its power is
    limited by the trusted model's errors on single rows.

    Args:
        evidence: what the defender holds; the claim is the teacher's argmax.
        false_rejection: the rate at which clean rows may be rejected.
        seed: not read; every detector is given one.

    Raises:
        ValueError: without a trusted model, or those of `check` and
            `conformal_p_values`.
    """
    del seed
    require_trusted(evidence)
    check(evidence)
    claims = evidence.teacher.logits.argmax(-1)
    # Both claims come from the teacher's argmax, so that scores are exchangeable.
    held_out = evidence.teacher_on_references.logits[evidence.held_out].argmax(-1)
    p_values = conformal_p_values(
        _improbability(evidence.trusted_on_transfer.logits, claims),
        _improbability(evidence.trusted_on_held_out.logits, held_out),
        claims,
        held_out,
        alpha=false_rejection,
    )
    rejected = p_values <= false_rejection
    return Verdict(rejected, p_values, *evidence.trusted_on_transfer)


def _improbability(logits: np.ndarray, claims: np.ndarray) -> np.ndarray:
    """One minus the probability of each row's claim, `[rows]`."""
    posterior = special.softmax(np.asarray(logits, np.float64), axis=1)
    return 1 - np.take_along_axis(posterior, claims[:, None], axis=1)[:, 0]
