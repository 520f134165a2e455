"""Detectors of other authors, to compare with: which transfer rows to leave out.

Each is a function from a cell to a `Verdict` and sees what `quarantine.judge` sees. A
newcomer adds one function here and one arm in `arms.py`.
"""

import jax
import numpy as np
import sklearn.cluster
import sklearn.decomposition
from ml_collections import FrozenConfigDict

from experiments.arms import quarantine
from experiments.arms.quarantine import Verdict
from experiments.runtime import Context
from experiments.world import artifacts
from experiments.world.scenario import Cell


def small_clusters(context: Context, cell: Cell) -> Verdict:
    """Rejects what is not in the largest cluster of the rows that claim a class.

    The teacher's hidden states of each claimed class are reduced, then clustered by
    density; poison is expected to lie by itself. Its p-value is the size of a row's
    cluster in units of the largest.

    Cui et al., 2022 (CUBE, arXiv:2206.08514). Departing from it, principal components
    stand in the place of UMAP, the class is what the teacher says (as in the channel
    that the student learns from), and rows of no cluster are kept: they were a third of
    a poisoned class on SST-2, and all rows where there is only one cluster.
    """
    config = context.config.filters
    transfer = artifacts.transfer(context, cell)
    claims = transfer.logits.argmax(-1)
    p_values = np.ones(len(claims))
    for claim in np.unique(claims):
        rows = np.flatnonzero(claims == claim)
        if len(rows) < 2 * config.min_cluster_rows:
            continue
        features = transfer.features[rows, -1]
        reduced = sklearn.decomposition.PCA(
            min(config.components, *features.shape), random_state=cell.seed
        ).fit_transform(features)
        clusters = sklearn.cluster.HDBSCAN(
            min_cluster_size=config.min_cluster_rows, copy=True
        ).fit_predict(reduced)
        sizes = np.bincount(clusters[clusters >= 0], minlength=1)
        inside = clusters >= 0
        p_values[rows[inside]] = sizes[clusters[inside]] / max(sizes.max(), 1)
    return Verdict(p_values < 1, p_values)


def quick_to_learn(
    context: Context, cell: Cell, objective: FrozenConfigDict
) -> Verdict:
    """Rejects the rows whose loss is lowest after a short warm-up of a student.

    A trigger is easier to learn than a meaning, so poison is learned first. Its p-value
    is the rank of a row's loss among all.

    Li et al., 2021 (ABL, arXiv:2110.11571). Departing from it, isolated rows are left
    out instead of unlearned by gradient ascent, and no loss is flooded. The share that
    is isolated is a guess of the poison's: the default of 5 % favours this baseline.

    Args:
        context: the study.
        cell: the cell.
        objective: how the student is warmed up.
    """
    transfer = artifacts.transfer(context, cell)
    claims = transfer.logits.argmax(-1)
    rows = np.arange(len(claims))
    logits, _ = quarantine.warmed_up(context, cell, objective)
    losses = -np.asarray(jax.nn.log_softmax(logits[: len(rows)]))[rows, claims]
    ranks = np.empty(len(rows))
    ranks[np.argsort(losses, kind="stable")] = (rows + 1) / len(rows)
    return Verdict(ranks <= context.config.filters.isolated_share, ranks)
