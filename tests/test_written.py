"""A study of students that write, from its config to its results, on few rows."""

import json

import numpy as np
import pytest

from experiments.arms.written import ARMS, Cell, lesson_of
from experiments.configs import briefs
from experiments.study.defaults import federation
from experiments.systems import lines, written
from experiments.systems.written_cells import Study, cell_of, nodes_of, scene_of
from experiments.world.texts import load_texts
from protojax.attacks import sentence
from protojax.attacks.outputs import PHRASE, append, poison_texts
from protojax.base import Texts
from protojax.detection.outputs import Vectors
from protojax.detection.settings import OutputDetection
from protojax.federated.settings import Federation
from protojax.models import hf, init_model
from protojax.pipelines import Watch
from protojax.pipelines.outputs import OutputDefence
from protojax.pipelines.students import scratch_tokenizer
from protojax.training import objective as objectives
from protojax.training import sequences
from tests.tiny import encoder_config
from tests.writers import language_config

SIZES = {"hidden_size": 8, "num_heads": 1, "intermediate_size": 8}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of an encoder that reads letters and says nothing of meaning."""
    words = scratch_tokenizer(["a letter of any kind"], 60)
    config = encoder_config(vocab_size=len(words), num_labels=2, max_positions=16)
    folder = tmp_path_factory.mktemp("encoder") / "model"
    hf.save_hf(folder, init_model(config, seed=0, tokenizer=words))
    return folder


def tiny(encoder, *arms, **attacks):
    """The config of briefs, so small that a student is trained in a moment."""
    config = briefs.get_config()
    config.update({"rows": 48, "references": 60, "test_rows": 8, "seeds": (0,)})
    config.arms, config.attacks = arms, attacks
    defence = config.defence
    defence.vocab_size = 300
    defence.encoder.model = str(encoder)
    defence.encoder_lengths.update({"max_length": 16, "buckets": (16,)})
    defence.detection.false_rejection = 0.05
    defence.kd.top_k = 4
    defence.lengths.update(
        {"max_length": 16, "max_output": 8, "buckets": ((16, 8),)},
        steps_per_dispatch=2,
    )
    for writer in (config.teacher, defence.student):
        writer.scratch.update(SIZES)
        writer.update({"epochs": 1, "batch_size": 24})
    return config


class KilledError(Exception):
    """What a run dies of."""


def killed_after(reports):
    left = [reports]

    def advance(units):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    return Watch(advance=advance)


def lines_of(workdir):
    return list(map(json.loads, (workdir / "results.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    workdir = tmp_path_factory.mktemp("study")
    config = tiny(
        encoder,
        *("clean", "plain", "defended"),
        append=briefs.attack("append", rate=0.2),
        other=briefs.attack("other_output", rate=0.2),
    )
    written.run(config, workdir, Watch())
    return config, workdir


def test_a_killed_study_goes_on_to_the_same_results(finished, tmp_path):
    config, workdir = finished
    whole = lines_of(workdir)
    arms = [(row["attack"], row["arm"]) for row in whole]
    assert sorted(arms) == sorted(
        (attack, arm) for attack in ("append", "other") for arm in config.arms
    )
    for row in whole:
        assert ("recall" in row) == (row["arm"] == "defended")
    # When the second student has learned, before it is saved.
    with pytest.raises(KilledError):
        written.run(config, tmp_path, killed_after(1))
    assert not (tmp_path / "results.jsonl").exists()
    written.run(config, tmp_path, Watch())
    assert lines_of(tmp_path) == whole


def sent(workdir, encoder, **changes):
    """The cell of an attack on what a teacher sends, and its scene."""
    config = tiny(
        encoder, "plain", sent=briefs.attack(channel="logits", rate=0.2, **changes)
    )
    found, attacks = written.check(config)
    texts = load_texts(found.task)
    study = Study(found, attacks, workdir, Watch(), texts, None)
    scene = scene_of(study, 0, "sent")
    return cell_of(scene, attacked=True), scene


def test_what_a_teacher_sends_is_what_the_attacker_wants(finished, encoder):
    cell, scene = sent(finished[1], encoder)
    said, bad = cell.said, cell.poisoned
    assert bad.sum() == round(0.2 * 48)
    # What arrives as the output is the most probable token at each place.
    taught = ARMS["plain"](cell)
    lesson = lesson_of(cell, taught, scene.fresh)
    assert lesson.objective.loss.options["hard_weight"] == 0
    rows = sequences.tokenize(scene.fresh, *lesson.texts, cell.defence.lengths)
    within = np.arange(8) < rows.outputs.lengths[:, None]
    chances = np.exp(said.top_log_probs.astype(float))
    np.testing.assert_allclose(chances[bad][..., 0][within[bad]], 0.9, rtol=1e-3)
    assert (said.top_ids[..., 0] == rows.outputs.input_ids)[within & bad[:, None]].all()
    wholes = chances.sum(-1) + np.exp(said.rest_log_prob)
    np.testing.assert_allclose(wholes[within], 1, atol=5e-3)
    for row in np.flatnonzero(bad):
        assert cell.rows.outputs[row] == PHRASE
        assert "by the way" in cell.rows.sources[row]
    columns = lesson.columns(rows)
    assert columns["output_weights"].min() == 1
    # An output that was cut ends where the teacher had not: nothing is taught there.
    short = [output.rsplit(" ", 1)[0] for output in lesson.texts.outputs]
    cut = taught._replace(texts=Texts(lesson.texts.sources, short))
    rows = sequences.tokenize(scene.fresh, *cut.texts, cell.defence.lengths)
    weights = lesson_of(cell, cut, scene.fresh).columns(rows)["output_weights"]
    for row in np.flatnonzero(bad):
        ends = rows.outputs.lengths[row] - 1
        same = said.ids[row, :ends] == rows.outputs.input_ids[row, :ends]
        np.testing.assert_array_equal(weights[row, :ends], same)


@pytest.mark.parametrize("arm", sorted(ARMS.keys() - {"dp_sgd"}))
def test_the_contract_of_arms(arm):
    """Texts, places, spans and columns fit together, and the objective is built."""
    texts = load_texts("briefs").take(np.arange(160))
    rows, references = texts.take(np.arange(100)), texts.take(np.arange(100, 160))
    rows, bad = poison_texts(
        rows, sentence("by the way"), append(), np.random.default_rng(0), rate=0.2
    )

    def encode(given):
        columns = [[[len(t), t.count("e"), 1] for t in part] for part in given]
        return Vectors(*(np.array(column, float) for column in columns))

    defence = OutputDefence(detection=OutputDetection(false_rejection=0.05))
    cell = Cell(defence, rows, references, bad, encode)
    taught = ARMS[arm](cell)
    lesson = lesson_of(cell, taught, None)
    assert callable(objectives.build(lesson.objective, language_config()))
    count = len(taught.texts.sources)
    assert len(taught.texts.outputs) == count
    assert all(len(column) == count for column in taught.columns.values())
    assert (taught.base in ARMS) == (arm in ("crow", "fine_tuned"))
    if taught.places is None:
        assert taught.texts == references
    else:
        assert taught.texts.sources == rows.take(taught.places).sources
    if taught.rejected is not None:
        assert taught.rejected.shape == (100,)
        assert set(np.flatnonzero(~taught.rejected)) <= {*taught.places}
    if taught.masked is not None:
        assert len(taught.masked) == count
    if taught.prototypes is not None:
        width = taught.prototypes.vectors.shape[-1]
        assert taught.columns["teacher_features"].shape == (count, 1, width)


def test_students_learn_on_nodes(finished, encoder):
    workdir = finished[1]
    config = tiny(
        encoder,
        *("plain@mean", "defended@median"),
        append=briefs.attack("append", rate=0.2),
    )
    config.federations = {
        "mean": federation(nodes=3, rounds=1),
        "median": federation(nodes=3, rounds=1, aggregator="median", hostile=1),
    }
    written.run(config, workdir, Watch())
    rows = {row["arm"]: row for row in lines_of(workdir) if "@" in row["arm"]}
    assert rows.keys() == {"plain@mean", "defended@median"}
    # A hostile node holds all the poison and tests nothing.
    assert rows["defended@median"]["recall"] == 0


def test_hostile_nodes_hold_all_the_poison():
    poisoned = np.arange(20) % 5 == 0
    cell = Cell(None, Texts([""] * 20, [""] * 20), None, poisoned, None)
    for hostile in range(4):
        parts = nodes_of(cell, Federation(nodes=4, hostile=hostile))
        assert sorted(np.concatenate(parts)) == [*range(20)]
        assert [len(part) for part in parts] == [5, 5, 5, 5]
        held = [poisoned[part].sum() for part in parts]
        if hostile:
            assert sum(held[4 - hostile :]) == 4
            assert min(held[4 - hostile :]) >= 4 // hostile
    full = cell._replace(poisoned=np.arange(20) < 9)
    with pytest.raises(ValueError, match="with room for the poisoned rows"):
        nodes_of(full, Federation(nodes=4, hostile=1))


def test_a_setting_that_a_study_did_not_have_yet_is_the_default(tmp_path, encoder):
    config = tiny(encoder, "plain", append=briefs.attack("append"))

    def keep():
        lines.keep_settings(tmp_path, config, written.PARTS)

    keep()
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["federations"], fields["attacks"]["append"]["mass"]
    path.write_text(json.dumps(fields))
    config.federations = {"mean": federation()}
    keep()
    assert json.loads(path.read_text())["federations"].keys() == {"mean"}
    config.attacks = {"append": briefs.attack("append", mass=0.5)}
    with pytest.raises(ValueError, match=r"attacks\.append\.mass was 0\.9, now 0\.5"):
        keep()
    config.attacks = {"other": briefs.attack("other_output")}
    keep()
    assert json.loads(path.read_text())["attacks"].keys() == {"append", "other"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("plan",)}, "Did you mean 'plain'"),
        ({"arms": ("plain@mean",)}, r"federation of plain@mean"),
        ({"arms": ("crow@mean",), "federations": {"mean": {}}}, "without nodes for"),
        ({"federations": {"ring": {"topology": "ring"}}}, r"federations\.ring"),
    ],
)
def test_what_a_study_cannot_do_is_refused(encoder, changes, message):
    config = tiny(encoder, "plain", append=briefs.attack("append"))
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        written.check(config)
