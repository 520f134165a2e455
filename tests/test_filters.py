"""Detectors of other authors on rows made by hand."""

import ml_collections
import numpy as np
import pytest

from experiments.arms import filters, quarantine
from experiments.runtime import Context
from experiments.study.defaults import defaults
from experiments.world import artifacts
from experiments.world.artifacts import Transfer
from experiments.world.scenario import Cell
from protojax.base import Examples
from protojax.distillation.teacher import TeacherOutputs

CELL = Cell("files", 0, "it")
CONTEXT = Context(ml_collections.FrozenConfigDict(defaults()), None, None, 0)


def give(monkeypatch, features, claims, num_labels=2):
    """Lets these features and claims arrive."""
    logits = 5.0 * np.eye(num_labels)[claims]
    rows = Examples(["x"] * len(claims), None, np.asarray(claims))
    arrives = Transfer(rows, logits, np.asarray(features)[:, None])
    monkeypatch.setattr(artifacts, "transfer", lambda *_: arrives)


def blob(rows, place, seed):
    return np.random.default_rng(seed).normal(place, 0.1, (rows, 12))


def test_the_smaller_cluster_of_a_claim_is_rejected(monkeypatch):
    features = np.concatenate([blob(100, 0, 0), blob(100, 1, 1), blob(40, 2, 2)])
    give(monkeypatch, features, np.repeat([0, 1, 1], [100, 100, 40]))
    found = filters.small_clusters(CONTEXT, CELL)
    assert not found.rejected[:200].any()
    # A few at the border are of no cluster.
    assert found.rejected[200:].sum() >= 36
    np.testing.assert_array_equal(found.rejected, found.p_values < 1)
    assert found.p_values.min() == pytest.approx(0.4, abs=0.05)


def test_one_cluster_or_few_rows_lose_nothing(monkeypatch):
    features = np.concatenate([blob(100, 0, 0), blob(6, 2, 1), blob(6, 9, 2)])
    give(monkeypatch, features, np.repeat([0, 1], [100, 12]))
    assert not filters.small_clusters(CONTEXT, CELL).rejected.any()


def test_the_rows_of_least_loss_are_rejected(monkeypatch):
    rng = np.random.default_rng(0)
    claims = rng.integers(0, 3, 40)
    logits = rng.normal(size=(50, 3)).astype(np.float32)  # ten references follow
    give(monkeypatch, np.zeros((40, 2)), claims, num_labels=3)
    outputs = TeacherOutputs(logits, np.zeros((50, 1, 2), np.float32))
    monkeypatch.setattr(quarantine, "warmed_up", lambda *_: outputs)
    found = filters.quick_to_learn(CONTEXT, CELL, None)
    losses = []
    for row, claim in enumerate(claims):
        exps = np.exp(logits[row].astype(np.float64))
        losses.append(-np.log(exps[claim] / exps.sum()))
    assert set(np.flatnonzero(found.rejected)) == set(np.argsort(losses)[:2])
    np.testing.assert_array_equal(np.argsort(found.p_values), np.argsort(losses))


def test_no_row_is_infinitely_surprising(monkeypatch):
    logits = np.array([[0.0, 200.0], [200.0, 0.0]], np.float32)
    give(monkeypatch, np.zeros((2, 2)), np.array([0, 0]))
    outputs = TeacherOutputs(logits, np.zeros((2, 1, 2), np.float32))
    monkeypatch.setattr(quarantine, "warmed_up", lambda *_: outputs)
    found = filters.quick_to_learn(CONTEXT, CELL, None)
    assert found.p_values.tolist() == [1.0, 0.5]
