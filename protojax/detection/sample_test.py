"""The per-sample conformal test, the baseline that group tests are compared with."""

import jax
import numpy as np

from protojax.detection.consistency import sample_gate
from protojax.detection.evidence import Evidence, Verdict, check, require_trusted


def sample_test(
    evidence: Evidence, *, false_rejection: float = 0.05, seed: int = 0
) -> Verdict:
    """The rows whose claim the trusted model alone finds improbable.

    Conformal, so as strict on clean rows as stated, but limited by the trusted model's
    errors on single rows.

    Args:
        evidence: what the defender holds; the claim is the teacher's argmax.
        false_rejection: the rate at which clean rows may be rejected.
        seed: not read; every detector is given one.

    Raises:
        ValueError: without a trusted model, or those of `check` and `sample_gate`.
    """
    del seed
    require_trusted(evidence)
    check(evidence)
    held_out = evidence.teacher_on_references.logits[evidence.held_out]
    found = sample_gate(
        _posterior(evidence.trusted_on_transfer.logits),
        evidence.teacher.logits.argmax(-1),
        _posterior(evidence.trusted_on_held_out.logits),
        held_out.argmax(-1),
        alpha=false_rejection,
    )
    return Verdict(found.rejected, found.p_values, *evidence.trusted_on_transfer)


def _posterior(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits over their last axis."""
    return np.asarray(jax.nn.softmax(logits, axis=-1))
