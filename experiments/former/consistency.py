"""Scores of rows whose claimed class does not fit their meaning.

A trusted model that never saw the transfer set reads each row and agrees with its
claimed class or not. One answer of a weak trusted model says little, so rows are tested
in groups that make the same claim: neighbours or clusters in a model's hidden states,
or all rows that share a token. A poisoned group disagrees with the trusted model far
more often than clean rows of the same kind do. "Far more" is a quantile over clean
references scored in the same way, so clean rows are rejected at the stated rate alpha.
Nothing here reads which rows are poisoned or the true label of a transfer row.

    expected = expected_disagreement(refs.confidence, refs.disagree)
    scores = [neighbourhood_scores(transfer, refs, expected),
              token_scores(transfer, refs, expected.whatever_confidence, ...), ...]
    verdict = quarantine(scores, transfer.classes, refs.classes, alpha=0.05)

Everything but the neighbour search is NumPy on the host: a few vectors, used once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.detection.conformal import (
    IsotonicFit,
    Scores,
    require_finite,
)
from protojax.prototypes.neighbours import neighbours


class Claims(NamedTuple):
    """The claims of rows, their confidence, and whether the trusted model disagrees.

    Attributes:
        features: `[rows, dim]`, hidden states in which similar rows are close.
        classes: `[rows]`, int32, the claim: the teacher's argmax or the given label.
        confidence: `[rows]`, the teacher's largest probability, also where the claim is
            the given label: a low probability of a flipped label would explain it.
        disagree: `[rows]`, 1 where the trusted model's class differs from the claim,
            else 0.
    """

    features: ArrayLike
    classes: ArrayLike
    confidence: ArrayLike
    disagree: ArrayLike


def disagreement(trusted_classes: ArrayLike, claims: ArrayLike) -> np.ndarray:
    """The disagreement of a trusted model: 1 where it reads another class, else 0.

    Args:
        trusted_classes: `[rows]`, the class of the trusted model's nearest prototype.
        claims: `[rows]`, the claimed class.

    Returns:
        `[rows]`, float32.

    >>> disagreement(np.array([0, 1, 1]), np.array([0, 0, 1])).tolist()
    [0.0, 1.0, 0.0]
    """
    validate.same_length(trusted_classes=trusted_classes, claims=claims)
    return (np.asarray(trusted_classes) != np.asarray(claims)).astype(np.float32)


def neighbourhood_scores(
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
    *,
    num_neighbours: int = 50,
    metric: str = "cosine",
) -> Scores:
    """The excess of each row and its neighbours over the expected disagreement.

        z_i = Σ_{j ∈ N(i)} (disagree_j - e_j) / √(Σ_{j ∈ N(i)} v_j)

    with the variances v_j of `moments`, at least those of the average reference.

    N(i) is row i and its nearest rows of the same claim: a local group for which no
    number of clusters has to be chosen. Where no other row makes the claim, N(i) = {i}.

    Guarantee: transfer rows and references lie in one pool, and each is scored by one
    function of itself and of the multiset of all other rows. Given e, a clean row and
    the references of its claim therefore have exchangeable scores (up to the choice
    among rows at equal distance), although neighbouring z are correlated and far from
    standard normal. An e fitted on the same references depends on them and not on the
    row; each reference has the weight of one point in the fit. Where the transfer rows
    trained the model whose features and confidences are compared, and the references
    did not, memorisation makes the two differ and the rate holds approximately; the
    measured rate was 1 to 4 % at a stated 5 %.

    Args:
        transfer: the rows under test, `Claims` of arrays `[rows, ...]`.
        refs: clean rows that trained neither the trusted model nor the teacher,
            `[references, ...]`.
        expected: the rate that clean rows show, see `expected_disagreement`.
        num_neighbours: how many neighbours join each row.
        metric: "cosine" or "l2".

    Returns:
        The scores of the transfer rows `[rows]` and of the references `[references]`.

    Raises:
        ValueError: on arrays of different lengths, values that are not finite, or the
            errors of `neighbours`.

    Source: the joint pool is that of Marandon, Lei, Mary and Roquain 2022,
    arXiv:2208.06685. Every row has its own group here, where activation clustering
    (Chen et al. 2018, arXiv:1811.03728) has two clusters per class and no trusted
    model.

    >>> one = Claims(np.ones((1, 2)), np.zeros(1), np.ones(1), np.ones(1))
    >>> four = Claims(*(np.repeat(array, 4, axis=0) for array in one))
    >>> half = IsotonicFit(np.array([1.0]), np.array([0.5]))
    >>> neighbourhood_scores(four, one, half, num_neighbours=3)[0].tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    # One pool: references scored against each other only would not be exchangeable.
    rows = pool(transfer, refs)
    num_rows = len(rows.classes)
    indices, valid = neighbours(
        rows.features,
        rows.features,
        rows.classes,
        rows.classes,
        k=num_neighbours,
        metric=metric,
        query_rows=np.arange(num_rows),
    )
    # Sums, not means: a group's evidence grows with the number of its rows.
    excess, variance = moments(rows, expected)
    total = excess + np.sum(excess[indices], axis=1, where=valid)
    spread = variance + np.sum(variance[indices], axis=1, where=valid)
    return split(total / np.sqrt(spread), transfer)


def cluster_scores(
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
    assignments: ArrayLike,
    assignments_refs: ArrayLike,
) -> Scores:
    """The excess of each row's clusters over the expected disagreement.

    Like `neighbourhood_scores`, but N(i) are all rows that share the cluster and the
    claim of row i, and z_i is the largest over several resolutions: a coarse cluster
    mixes poisoned with clean rows, a fine one has few members. It is cheap, and its
    groups are easy to inspect.

    Guarantee: as for `neighbourhood_scores` where transfer rows and references were
    clustered together. Clusters of the transfer rows alone, to which references are
    assigned later, fit their own rows slightly better than the references.

    Args:
        transfer: the rows under test, `[rows, ...]`; features are not read.
        refs: clean rows that trained neither the trusted model nor the teacher,
            `[references, ...]`.
        expected: the rate that clean rows show, see `expected_disagreement`.
        assignments: `[rows]` or `[rows, resolutions]`, int, the cluster of each row.
        assignments_refs: `[references]` or `[references, resolutions]`, likewise.

    Returns:
        The scores of the transfer rows `[rows]` and of the references `[references]`.

    Raises:
        ValueError: on arrays of different lengths or values that are not finite.

    >>> one = Claims(np.ones((1, 2)), np.zeros(1), np.ones(1), np.ones(1))
    >>> four = Claims(*(np.repeat(array, 4, axis=0) for array in one))
    >>> half = IsotonicFit(np.array([1.0]), np.array([0.5]))
    >>> cluster_scores(four, one, half, np.zeros(4), np.ones(1))
    (array([2., 2., 2., 2.]), array([1.]))
    """
    rows = pool(transfer, refs)
    validate.same_length(transfer=transfer.classes, assignments=assignments)
    validate.same_length(refs=refs.classes, assignments_refs=assignments_refs)
    clusters = np.concatenate([np.asarray(assignments), np.asarray(assignments_refs)])
    clusters = clusters.reshape(len(rows.classes), -1)
    excess, variance = moments(rows, expected)
    scores = []
    for resolution in clusters.T:
        # Rows of one cluster that make different claims are different groups.
        keys = np.stack([rows.classes, resolution], axis=1)
        group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        total, spread = np.bincount(group, excess), np.bincount(group, variance)
        scores.append((total / np.sqrt(spread))[group])
    return split(np.max(scores, axis=0), transfer)


def pool(transfer: Claims, refs: Claims) -> Claims:
    """Transfer rows and references as one checked set of rows."""
    for claims in (transfer, refs):
        validate.same_length(**claims._asdict())
    rows = Claims(*map(np.concatenate, zip(transfer, refs, strict=True)))
    require_finite(confidence=rows.confidence, disagree=rows.disagree)
    return rows


def moments(rows: Claims, expected: IsotonicFit) -> tuple[np.ndarray, np.ndarray]:
    """The excess of each row over its expected disagreement, and its variance.

        d - e(c)  and  max(e(c) (1 - e(c)), ē (1 - ē))

    Where the teacher is confident, e is so small that a few errors of the trusted model
    on clean rows give a very large z. Such groups would set the level, and poison whose
    logits are pushed just over the boundary, where e is large and z small, would stay
    below it. So the variance is at least that of the average reference (ē).

    Args:
        rows: transfer rows and references.
        expected: from `expected_disagreement`; without an average e alone counts.

    Returns:
        Both `[rows]`.

    >>> one = Claims(np.ones((1, 1)), np.zeros(1), np.ones(1), np.ones(1))
    >>> fit = IsotonicFit(np.array([1.0]), np.array([0.1]), average=0.5)
    >>> moments(one, fit)
    (array([0.9]), array([0.25]))
    """
    rate, least = expected.predict(rows.confidence), expected.average
    return rows.disagree - rate, np.maximum(rate * (1 - rate), least * (1 - least))


def split(scores: np.ndarray, transfer: Claims) -> Scores:
    """The scores of the transfer rows and those of the references."""
    num_rows = len(transfer.classes)
    return scores[:num_rows], scores[num_rows:]
