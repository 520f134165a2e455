"""CUBE: rows outside the largest cluster of what they claim."""

import numpy as np

from protojax import validate
from protojax.detection.conformal import require_finite
from protojax.detection.evidence import Evidence, Verdict, check


def cube(
    evidence: Evidence, *, components: int = 10, min_cluster_rows: int = 30, seed: int
) -> Verdict:
    """The rows that are not in the largest cluster of the rows that claim a class.

    The teacher's hidden states of each claimed class are reduced, then clustered by
    density; poisoned rows are expected to form clusters of their own. The p-value is
    the size of a row's cluster divided by that of the largest.

    Args:
        evidence: the teacher's logits and features of the transfer rows are read.
        components: number of principal components.
        min_cluster_rows: the fewest rows of a cluster; no row of a class with less than
            twice as many is rejected.
        seed: of the principal components.

    Raises:
        ValueError: no component, clusters of fewer than two rows, features that are not
            finite, or the errors of `check`.

    References:
        Cui et al., 2022 (CUBE, arXiv:2206.08514). Departing from it, principal
        components replace UMAP, the class is the teacher's argmax (which is what the
        student learns from), and rows in no cluster are not rejected: they were a third
        of a poisoned class on SST-2, and all rows where there is only one cluster.
    """
    # Imported here: nothing else in this package needs scikit-learn.
    import sklearn.cluster
    import sklearn.decomposition

    validate.positive(components=components)
    least = min_cluster_rows
    validate.require(least >= 2, "min_cluster_rows", least, ">= 2")
    check(evidence)
    require_finite(teacher_features=evidence.teacher.features[:, -1])
    claims = evidence.teacher.logits.argmax(-1)
    p_values = np.ones(len(claims))
    for claim in np.unique(claims):
        rows = np.flatnonzero(claims == claim)
        # Two clusters are needed for any row to lie outside the largest.
        if len(rows) < 2 * min_cluster_rows:
            continue
        features = evidence.teacher.features[rows, -1]
        reduced = sklearn.decomposition.PCA(
            min(components, *features.shape), random_state=seed
        ).fit_transform(features)
        clusters = sklearn.cluster.HDBSCAN(
            min_cluster_size=min_cluster_rows, copy=True
        ).fit_predict(reduced)
        inside = clusters >= 0  # HDBSCAN marks rows in no cluster by -1
        if inside.any():
            sizes = np.bincount(clusters[inside])
            p_values[rows[inside]] = sizes[clusters[inside]] / sizes.max()
    return Verdict(p_values < 1, p_values)
