"""What CONTRIBUTING promises: a newcomer is one function and one line of a registry."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.arms import ARMS, Arm, Recipe
from experiments.arms.base import distillation
from experiments.study.defaults import attack, federation
from protojax.attacks import TRIGGERS
from protojax.detection import DETECTORS, Verdict
from protojax.detection.quarantine import as_they_arrived
from protojax.distillation import TRANSFORMS
from protojax.federated.aggregation import AGGREGATORS
from protojax.training.objective import Objective, Spec
from tests.test_study import forget, metrics_of, run, tiny

NAME = "newcomer"
MARK = "zz"


def capped(loss_fn, *, cap):
    """A loss that no row raises above a cap."""

    def loss(params, batch, prototypes, step, key):
        losses, aux = loss_fn(params, batch, prototypes, step, key)
        losses = jnp.minimum(losses, cap)
        return losses, {**aux, "capped_loss": losses}

    return loss


def unknown_words(evidence, *, seed, most):
    """The rows with more words that no reference has than so many."""
    del seed
    known = {word for text in evidence.references.texts for word in text.split()}
    counts = np.array(
        [sum(word not in known for word in t.split()) for t in evidence.transfer.texts]
    )
    return Verdict(counts > most, 1 / (1 + counts))


def around(*, mark, position):
    """A trigger that puts a mark at both ends of a text."""
    assert position == "random"  # not chosen: the default of every attack
    return lambda text, rng: f"{mark} {text} {mark}"


def middle(updates, *, weights=None, where=None):
    """The middle between the least and the greatest update of each coordinate."""
    del weights, where
    return jax.tree.map(lambda leaf: (leaf.min(0) + leaf.max(0)) / 2, updates)


def careful(world):
    """Distillation with a capped loss, from the rows that a detector leaves."""
    evidence = world.evidence()
    verdict = DETECTORS[NAME](evidence, seed=world.scenario.seed, most=1)
    rows = as_they_arrived(evidence.transfer, evidence.teacher)
    objective = Objective(distillation(world.config).loss, (Spec(NAME, {"cap": 5.0}),))
    recipe = Recipe(rows.examples, rows.columns, objective, verdict=verdict)
    return recipe.take(np.flatnonzero(~verdict.rejected))


NEWCOMERS = (
    (TRANSFORMS, capped),
    (DETECTORS, unknown_words),
    (TRIGGERS, around),
    (AGGREGATORS, middle),
)


@pytest.fixture
def calls(monkeypatch):
    """The first arguments of each newcomer's calls by its name; all are registered."""
    calls = {}

    def watched(function):
        calls[function.__name__] = seen = []

        @functools.wraps(function)
        def call(*args, **options):
            seen.append(args[0] if args else options)
            return function(*args, **options)

        return call

    for registry, function in NEWCOMERS:
        monkeypatch.setitem(registry, NAME, watched(function))
    monkeypatch.setitem(ARMS, NAME, Arm(watched(careful)))
    forget(compiled=False)
    yield calls
    forget(compiled=False)


def test_a_newcomer_of_each_kind_is_one_function_and_one_line(tmp_path, calls):
    config = tiny(tmp_path)
    config.arms = ("plain", NAME, f"{NAME}@two")
    config.attacks = {
        "mark": attack(NAME, "data", rate=0.1, trigger_args={"mark": MARK})
    }
    config.federations = {"two": federation(nodes=2, rounds=2, aggregator=NAME)}
    config.data.buckets = (16,)
    config.student.epochs, config.student.batch_size = 12, 8
    found = run(config, tmp_path / "run", reported=True)
    assert {name for name, seen in calls.items() if not seen} == set()
    # The check of a config asks a rule for shapes; a merge gives it the whole model.
    assert any("model" in seen for seen in calls["middle"] if isinstance(seen, dict))
    asked = [
        (world.scenario.federation, world.scenario.node) for world in calls["careful"]
    ]
    assert asked == [("", 0), ("two", 0), ("two", 1)]

    rows = {row["arm"]: row for row in found["rows"]}
    assert rows["plain"]["clean_metric"] > 0.8
    assert rows["plain"]["asr"] > 0.8
    for arm in (NAME, f"{NAME}@two"):
        assert rows[arm]["clean_metric"] > 0.8
        # The poison is left out, all of it and nothing else. What a student makes of a
        # mark that it never saw is left to chance.
        assert rows[arm]["transfer_rows"] < rows["plain"]["transfer_rows"]
        assert rows[arm]["quarantine_recall"] == rows[arm]["quarantine_precision"] == 1
    lines = [x for x in metrics_of(tmp_path / "run") if "capped_loss" in x]
    assert {x["run"].rpartition("/")[2] for x in lines} == {NAME, f"{NAME}@two"}
    alone = [x["capped_loss"] for x in lines if x["run"].endswith(NAME)]
    assert alone[-1] < alone[0] <= 5
    # Whoever reads the results finds the newcomers by their names.
    assert NAME in (tmp_path / "run/results.md").read_text()
    saved = json.loads((tmp_path / "run/results.json").read_text())
    assert saved == found
