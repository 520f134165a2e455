"""The per-sample conformal test, the baseline that group tests are compared with."""

import jax
import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.detection.conformal import Quarantine, quarantine
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
        ValueError: without a trusted model, or those of `check` and `sample_gate`.
    """
    del seed
    require_trusted(evidence)
    check(evidence)
    held_out = evidence.teacher_on_references.logits[evidence.held_out]
    # Both claims come from the teacher's argmax, so that scores are exchangeable.
    found = sample_gate(
        _posterior(evidence.trusted_on_transfer.logits),
        evidence.teacher.logits.argmax(-1),
        _posterior(evidence.trusted_on_held_out.logits),
        held_out.argmax(-1),
        alpha=false_rejection,
    )
    return Verdict(found.rejected, found.p_values, *evidence.trusted_on_transfer)


def sample_gate(
    posterior: ArrayLike,
    claims: ArrayLike,
    posterior_refs: ArrayLike,
    claims_refs: ArrayLike,
    *,
    alpha: float = 0.05,
) -> Quarantine:
    """The rejection of rows whose claim is improbable under the trusted model.

    The per-sample baseline that group tests are compared with: conformal too, so that
    both reject clean rows at one rate, but limited by the trusted model's errors on
    single rows.

    Args:
        posterior: `[rows, num_classes]`, the trusted model's probabilities.
        claims: `[rows]`, int, the claimed classes.
        posterior_refs: `[references, num_classes]`, the same for clean references.
        claims_refs: `[references]`, int.
        alpha: the rate at which clean rows may be rejected.

    Returns:
        The `Quarantine` of the rows, by 1 - posterior of the claim.

    Raises:
        ValueError: a claim that is not one of the classes, or those of
            `conformal_p_values`.

    >>> rows, refs = np.array([[0.9, 0.1], [0.1, 0.9]]), np.tile([0.9, 0.1], (9, 1))
    >>> found = sample_gate(rows, np.zeros(2), refs, np.zeros(9), alpha=0.1)
    >>> found.rejected.tolist()
    [False, True]
    """
    scores = (
        _improbability(posterior, claims),
        _improbability(posterior_refs, claims_refs),
    )
    return quarantine([scores], claims, claims_refs, alpha=alpha)


def _posterior(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits over their last axis."""
    return np.asarray(jax.nn.softmax(logits, axis=-1))


def _improbability(posterior: ArrayLike, claims: ArrayLike) -> np.ndarray:
    """One minus the probability of each row's claim, `[rows]`."""
    validate.same_length(posterior=posterior, claims=claims)
    posterior, claims = np.asarray(posterior), np.asarray(claims, np.int64)
    classes = posterior.shape[1]
    known = (claims >= 0) & (claims < classes)
    # A negative claim would silently select a class from the end.
    first = None if known.all() else int(claims[~known][0])
    validate.require(first is None, "claims", first, f"in [0, {classes})")
    return 1 - np.take_along_axis(posterior, claims[:, None], axis=1)[:, 0]
