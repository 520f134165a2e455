"""The claims that honest rows would make, given the trusted model's reading of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from protojax import validate


class Calibration(NamedTuple):
    """The map from a trusted reading to what honest rows with it claim.

        a_iu = σ(slope · log_odds_iu + intercept + shift_u)

    Attributes:
        slope: of the log odds.
        intercept: the same for all classes.
        shift: `[num_labels]`, of each class.
    """

    slope: float
    intercept: float
    shift: np.ndarray

    def expected(self, log_odds: ArrayLike) -> np.ndarray:
        """The probability of each claim, `[rows, num_labels]`.

        Args:
            log_odds: `[rows, num_labels]`, the trusted model's.
        """
        logits = self.slope * np.asarray(log_odds) + self.intercept
        return special.expit(logits + self.shift)


class Expected(NamedTuple):
    """The probability that an honest row claims each class.

    Attributes:
        rows: `[rows, num_labels]`.
        references: `[references, num_labels]`.
        fit: the calibration of the rows.
    """

    rows: np.ndarray
    references: np.ndarray
    fit: Calibration


def calibrate(
    log_odds: ArrayLike,
    log_odds_refs: ArrayLike,
    claims: ArrayLike,
    claims_refs: ArrayLike,
) -> Calibration:
    """The calibration of rows, against the very claims under test.

    Slope and intercept are fitted on the references, pooled over rows and classes, so
    that the claims' honest noise is expected. The shifts are fitted to the rows, so
    that a node with other classes than the references is not suspected for it.

    Args:
        log_odds: `[rows, num_labels]`, the trusted model's log odds of each class.
        log_odds_refs: `[references, num_labels]`.
        claims: `[rows]`, int, the class that each row claims.
        claims_refs: `[references]`, int.

    Returns:
        The calibration of the rows; references have one of their own, see
        `expected_claims`.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999; pooled over
    classes and with shifts by us.
    """
    odds, odds_refs = np.asarray(log_odds, float), np.asarray(log_odds_refs, float)
    classes = np.arange(odds_refs.shape[1])
    made, made_refs = (np.asarray(c)[:, None] == classes for c in (claims, claims_refs))
    slope, intercept = _logistic(odds_refs, made_refs)
    return Calibration(slope, intercept, _shift(slope * odds + intercept, made))


def expected_claims(
    log_odds: ArrayLike,
    log_odds_refs: ArrayLike,
    claims: ArrayLike,
    claims_refs: ArrayLike,
    *,
    folds: int = 2,
) -> Expected:
    """The probability that an honest row claims each class, of rows and of references.

    No reference takes part in the fit of its own slope and intercept; their shifts are
    fitted to all of them, as those of the rows are to the rows.

    Args:
        log_odds: see `calibrate`.
        log_odds_refs: see `calibrate`.
        claims: see `calibrate`.
        claims_refs: see `calibrate`.
        folds: the number of parts that the references are fitted in.

    Raises:
        ValueError: fewer references than folds, or arrays that do not fit each other.

    >>> odds = np.array([[2.0, -2.0], [-2.0, 2.0]] * 50)
    >>> claims = np.array([0, 1] * 50)
    >>> found = expected_claims(odds, odds, claims, claims)
    >>> bool(found.rows[0, 0] > 0.95), bool(found.references[1, 0] < 0.05)
    (True, True)
    """
    odds, odds_refs = np.asarray(log_odds, float), np.asarray(log_odds_refs, float)
    claims, claims_refs = np.asarray(claims), np.asarray(claims_refs)
    validate.same_length(log_odds=odds, claims=claims)
    validate.same_length(log_odds_refs=odds_refs, claims_refs=claims_refs)
    count = len(odds_refs)
    validate.require(count >= folds, "references", count, f">= {folds}")
    fit = calibrate(odds, odds_refs, claims, claims_refs)
    made = claims_refs[:, None] == np.arange(odds_refs.shape[1])
    logits, fold = np.empty_like(odds_refs), np.arange(count) % folds
    for number in range(folds):
        own = fold == number
        slope, intercept = _logistic(odds_refs[~own], made[~own])
        logits[own] = slope * odds_refs[own] + intercept
    references = special.expit(logits + _shift(logits, made))
    return Expected(fit.expected(odds), references, fit)


def log_odds(logits: ArrayLike) -> np.ndarray:
    """The log odds of each class against all others, `[rows, num_labels]`.

    Clipped to ±20, so that a surely read row weighs as much as a million references.

    Args:
        logits: `[rows, num_labels]`.

    >>> log_odds(np.array([[0.0, 0.0], [1.0, 0.0]])).round(3).tolist()
    [[0.0, 0.0], [1.0, -1.0]]
    """
    logits = np.asarray(logits, np.float64)
    # log p - log(1 - p), where 1 - p is summed over the others: 1 - exp(log p) is 0
    # where p rounds to 1.
    others = np.stack(
        [
            special.logsumexp(np.delete(logits, label, axis=1), axis=1)
            if logits.shape[1] > 1
            else np.full(len(logits), -np.inf)
            for label in range(logits.shape[1])
        ],
        axis=1,
    )
    return np.clip(logits - others, -20, 20)


def _logistic(odds: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of a logistic regression on one number."""
    x, y = odds.ravel(), made.ravel().astype(float)

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        logits = fit[0] * x + fit[1]
        slope = special.expit(logits) - y
        # The penalty keeps separable references from a slope without bound.
        value = np.logaddexp(0, logits).sum() - y @ logits + 0.05 * fit @ fit
        return value, np.array([slope @ x, slope.sum()]) + 0.1 * fit

    fit = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
    return float(fit[0]), float(fit[1])


def _shift(logits: np.ndarray, made: np.ndarray, steps: int = 30) -> np.ndarray:
    """The shift of each class `[num_labels]` at which as much is expected as observed.

    A shift is penalised by about one row, so that a rare class is not fitted to one.
    """
    shift = np.zeros(logits.shape[1])
    for _ in range(steps):
        chance = special.expit(logits + shift)
        slope = (chance - made).sum(0) + shift
        curvature = (chance * (1 - chance)).sum(0) + 1
        # Newton's step may overshoot where all chances are near 0 or 1.
        shift -= np.clip(slope / curvature, -2, 2)
    return shift
