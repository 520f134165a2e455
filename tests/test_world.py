"""What an arm hears of the scenario that its student learns in."""

import numpy as np
import pytest

from experiments import settings
from experiments.arms import ours
from experiments.study import check, grid, preflight
from experiments.study.defaults import attack
from experiments.world import artifacts, scenarios
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax import data
from protojax.base import Prototypes, TeacherOutputs
from protojax.detection.evidence import Verdict
from tests.test_scenario import make_context
from tests.test_study import tiny


def said(examples):
    """What a teacher says of texts: numbers that only equal texts share."""
    seeds = [[*text.encode()] for text in examples.texts]
    draws = [np.random.default_rng(seed).normal(size=5) for seed in seeds]
    found = np.array(draws, np.float32)
    return TeacherOutputs(found[:, :2], found[:, 2:].reshape(-1, 1, 3))


def means(outputs, labels, settings, keys):
    """The mean of each of two classes, as its prototype."""
    own = [labels == label for label in (0, 1)]
    vectors = np.array([outputs.features[rows].mean((0, 1)) for rows in own])
    counts = np.array([rows.sum() for rows in own])
    return Prototypes(vectors[None], np.arange(2)[None], counts[None])


def world_of(tmp_path, monkeypatch, federation="", node=0, **changes):
    """Returns the world of a node, and the numbers of rows that were asked about."""
    section = attack("rare_words", "both", rate=0.2, features="move_to_centre")
    context = make_context(tmp_path, section, **changes)
    federations = {"federations": {"three": {"nodes": 3, "rounds": 2}}}
    context = context._replace(config=settings.make(context.config, federations))
    asked = {}

    def outputs(context, scenario, name, examples):
        asked[name] = len(examples.texts)
        return said(examples)

    monkeypatch.setattr(artifacts, "teacher_outputs", outputs)
    return World(context, Scenario("files", 0, "it", federation, node)), asked


@pytest.mark.parametrize(("federation", "node"), [("", 0), ("three", 1)])
def test_only_changed_rows_are_asked_about_and_come_through_the_channel(
    federation, node, tmp_path, monkeypatch
):
    world, asked = world_of(tmp_path, monkeypatch, federation, node)
    evidence = world.evidence()
    count = len(evidence.transfer.texts)
    pool = data.concatenate(evidence.transfer, evidence.references)
    changed = np.arange(len(pool.texts)) % 7 == 3
    new = [f"{text} anew" for text in pool.texts]
    old_and_new = zip(pool.texts, new, changed, strict=True)
    pure = pool._replace(texts=[b if differs else a for a, b, differs in old_and_new])
    found = world.ask_again(pure, changed)
    assert asked["without_triggers"] == changed.sum() == len(found.logits)

    # The reference: all rows of all nodes, one after another.
    config, whole = world.config, world.scenario.whole
    poisoned = scenarios.poisoned(config, whole)
    texts = list(poisoned.examples.texts)
    numbers = scenarios.rows_of(config, world.scenario)
    assert len(numbers) == count
    for place, row in enumerate(numbers):
        texts[row] = pure.texts[place]
    logits, features = said(poisoned.examples._replace(texts=texts))
    target = config.attacks["it"].target
    honest = [
        features[row]
        for row in range(len(texts))
        if not poisoned.rows[row] and logits[row].argmax() == target
    ]
    kept = [row for place, row in enumerate(numbers) if changed[place]]
    assert 0 < poisoned.rows[kept].sum() < len(kept)
    for place, row in enumerate(kept):
        if poisoned.rows[row]:
            np.testing.assert_allclose(
                found.features[place], np.mean(honest, axis=0), atol=1e-6
            )
            assert found.logits[place].argmax() == target
            assert (found.logits[place] != logits[row]).any()
        else:
            np.testing.assert_array_equal(found.features[place], features[row])
            np.testing.assert_array_equal(found.logits[place], logits[row])
    # References do not pass through the channel.
    references = np.flatnonzero(changed[count:])
    expected = said(data.take(pure, count + references))
    for part, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part[len(kept) :], wanted)


@pytest.mark.parametrize("arm", ["onion", "sample_test"])
def test_the_rate_of_the_test_binds_those_that_test(arm, tmp_path):
    config = tiny(tmp_path, arms=(arm,), **{"detection.false_rejection": 0.001})
    config.attacks = {}
    if arm == "onion":
        check.check(config)
    else:
        with pytest.raises(ValueError, match=r"false_rejection >= 0\.0123"):
            check.check(config)


def test_a_class_that_a_trusted_model_would_not_see_is_named(tmp_path, monkeypatch):
    few = {
        "quarantine.references": 3,
        "prototypes.num": 2,
        "detection.false_rejection": 0.5,
    }
    section = attack("rare_words", "data")
    context = make_context(tmp_path, section, arms=("sample_test",), **few)
    todo = grid.jobs(context.config)
    # It builds models, of which nothing is needed here.
    monkeypatch.setattr(preflight, "_check_layers", lambda *_: None)
    with pytest.raises(ValueError, match="two references or more of each class, found"):
        preflight.preflight(context, todo)
    assert not list(context.workdir.iterdir())


@pytest.mark.parametrize(
    ("suspect", "federation"), [(True, ""), (False, ""), (True, "three")]
)
def test_prototypes_are_fitted_without_suspected_references(
    suspect, federation, tmp_path, monkeypatch
):
    changes = {"detection.suspect_references": suspect, "prototypes.num": 2}
    world, _ = world_of(tmp_path, monkeypatch, federation, **changes)
    evidence = world.evidence()
    labels, count = evidence.references.labels, len(evidence.transfer.texts)
    untrusted = np.arange(80) % 3 == 0
    none = np.zeros(count, bool)
    # With a detector's reading of all rows, of which none is rejected.
    reading = evidence.transfer.labels, evidence.teacher.logits
    verdict = Verdict(none, np.ones(count), *reading, untrusted=untrusted)
    # In place of k-means, which takes a while to compile.
    monkeypatch.setattr(artifacts, "layer_prototypes", means)
    held = ours._quarantined(world, evidence, verdict).prototypes
    kept = ~untrusted if suspect and not federation else np.ones(80, bool)
    features = evidence.teacher_on_references.features
    expected = [features[kept & (labels == label)].mean((0, 1)) for label in (0, 1)]
    np.testing.assert_allclose(held.vectors[0], expected, atol=1e-6)
