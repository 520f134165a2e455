"""Several seeds side by side are what each of them is by itself."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from experiments import runtime
from experiments.study import check
from experiments.study import grid as jobs_lib
from protojax import models
from protojax.data import batches
from protojax.data import tokens as tokens_lib
from protojax.federated import replicas
from protojax.federated.replicas import Surroundings
from protojax.models import hf
from protojax.training import plans, programs, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.predict import Lengths
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run, Store
from tests.test_study import forget, run, run_killed, tiny
from tests.tiny import encoder_config

TRAIN = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
LENGTHS = Lengths(max_length=8, buckets=(4, 8), steps_per_dispatch=2)
# Where a program is run by one test only, of rows of one length: half the compilations.
ONE_LENGTH = dataclasses.replace(LENGTHS, buckets=(8,))
# Random numbers of each seed are its own: something is dropped.
CONFIG = encoder_config(vocab_size=40, num_layers=1, dropout=0.1)
OTHER = dataclasses.replace(CONFIG, dropout=0.0)


def run_of(seed, rows, **changes):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, rows).astype(np.int32)
    ids = rng.integers(1, 40, (rows, 8), np.int32)
    tokens = tokens_lib.Tokens(ids, np.zeros_like(ids), lengths, 0)
    model = models.init_model(CONFIG, seed=seed)
    labels = rng.integers(0, 2, rows).astype(np.int32)
    one = Run(f"seed{seed}/it", model, tokens, labels, TRAIN, seed)
    return one._replace(**changes)


def around(folder, *, every=10, keep=False, lengths=LENGTHS, **rest):
    return Surroundings(lengths, lambda name: Store(folder / name, every, keep), **rest)


def together(runs, folder, **options):
    """The models of some runs, two of them at once."""
    return list(replicas.train_all(runs, around(folder, **options), at_once=2))


def by_itself(one, plan):
    """Trains one run over its share of a plan, a step after the other."""
    dispatch, optimizer = programs.dispatch_of(
        one.model.config, one.objective, one.train.optimizer
    )
    state = trainer.start_of(one, optimizer, batches.num_steps(plan))
    for item in plan:
        batch = batches.make_batch(one.tokens, one.labels, item)
        state, _ = dispatch(state, batch)
    return jax.device_get(state.params["model"])


def test_the_order_of_a_seed_is_its_own():
    def batches_of(plan):
        blocks = [row[row >= 0] for item in plan for row in item.rows]
        return sorted(tuple(block) for block in blocks if len(block))

    own, found = run_of(1, 12), []
    for place, runs in ((1, (run_of(0, 12), own)), (0, (own, run_of(2, 9)))):
        plan = replicas.plan_group(runs, LENGTHS)
        found.append(batches_of(replicas.of_node(plan, place)))
    assert found[0] == found[1]
    alone = plans.epochs_plan(own.tokens.lengths, TRAIN, LENGTHS, own.seed)
    assert found[0] == batches_of(alone)


def test_what_is_kept_trains_again_beside_others_only(tmp_path):
    given = [run_of(seed, 8) for seed in (0, 1)]
    given_to = around(tmp_path)
    whole = together(given, tmp_path)
    names = [one.name for one in given]
    (second,) = replicas.train_all(given, given_to, at_once=2, done=names[:1])
    jax.tree.map(np.testing.assert_array_equal, second.params, whole[1].params)
    assert second.at_once == 2
    assert list(replicas.train_all(given, given_to, at_once=2, done=names)) == []
    (found,) = replicas.train_all(given, given_to, at_once=1, done=names[:1])
    assert found.at_once == 1


@pytest.mark.parametrize("rows", [(10, 10), (16, 7)], ids=["even", "uneven"])
def test_seeds_at_once_are_seeds_by_themselves(tmp_path, rows):
    given = [run_of(seed, count) for seed, count in enumerate(rows)]
    units = []
    found = together(given, tmp_path, on_progress=units.append)
    plan = replicas.plan_group(given, LENGTHS)
    # These are the dispatches that they trained in; the first report is of none.
    cost = trainer.row_cost(CONFIG)
    sizes = [int((item.rows >= 0).sum()) * cost for item in plan]
    assert units == [0, *sizes]
    for number, (one, trained) in enumerate(zip(given, found, strict=True)):
        own = replicas.of_node(plan, number)
        members = np.concatenate([item.rows.ravel() for item in own])
        # Two epochs: each row twice, and once before any comes again.
        members = members[members >= 0]
        count = rows[number]
        assert sorted(members[:count]) == sorted(members[count:]) == list(range(count))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
            trained.params,
            by_itself(one, own),
        )


PRIVATE = Objective(
    gradient=Spec(
        "dp_sgd",
        {
            "clip_norm": 1.0,
            "noise_multiplier": 1.0,
            "expected_rows": 4,
            "frozen": ("embeddings", "layers_0"),  # a small program
        },
    )
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"objective": PRIVATE}, {"objective": PRIVATE}),
        ({}, {"train": TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2)}),
        ({}, {"model": models.init_model(OTHER, seed=1)}),
    ],
    ids=["private", "other steps", "another model"],
)
def test_what_cannot_be_stacked_goes_one_after_the_other(tmp_path, first, second):
    said = []
    given = [run_of(0, 8, **first), run_of(1, 8, **second)]
    found = together(given, tmp_path, describe=said.append, lengths=ONE_LENGTH)
    assert said == ["seed0/it", "seed1/it"]
    assert [trained.at_once for trained in found] == [1, 1]


def test_the_last_of_an_odd_number_has_no_partner(tmp_path):
    said = []
    given = [run_of(seed, 8) for seed in range(3)]
    found = together(given, tmp_path, describe=said.append)
    assert said == ["seed0/it and 1 more", "seed2/it"]
    assert [trained.at_once for trained in found] == [2, 2, 1]
    assert together([], tmp_path, describe=said.append) == []
    assert len(said) == 2


def test_a_mean_over_nodes_leaves_out_who_had_nothing():
    values = {"loss": np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])}
    had = np.array([[True, False, False], [True, True, False]])
    for finite in (True, False):
        found = replicas.mean_over_nodes(values, had, finite=finite)["loss"]
        np.testing.assert_array_equal(found, [2.0, 5.0, np.nan])
    # A batch whose loss is NaN counts, unless hostile nodes may send what they like.
    had[0, 1] = True
    found = replicas.mean_over_nodes(values, had, finite=True)["loss"]
    np.testing.assert_array_equal(found, [2.0, np.nan, np.nan])
    found = replicas.mean_over_nodes(values, had, finite=False)["loss"]
    np.testing.assert_array_equal(found, [2.0, 5.0, np.nan])


def test_one_seed_that_diverges_stops_them_all(tmp_path):
    good, bad = run_of(0, 8), run_of(1, 8)
    params = bad.model.params
    head = jax.tree.map(lambda leaf: leaf * np.nan, params["classifier"])
    bad = bad._replace(model=bad.model._replace(params={**params, "classifier": head}))
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        together([good, bad], tmp_path)


def test_checkpoints_of_other_seeds_are_not_gone_on_with(tmp_path, caplog):
    first = together([run_of(0, 8), run_of(1, 8)], tmp_path, keep=True)
    assert (tmp_path / "seed0/it/checkpoints").exists()
    again = together([run_of(0, 8), run_of(1, 8)], tmp_path, keep=True)
    assert "starts anew" not in caplog.text
    other = together([run_of(0, 8), run_of(2, 8)], tmp_path, keep=True)
    assert "starts anew" in caplog.text
    for a, b in zip(first, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    expected = together([run_of(0, 8), run_of(2, 8)], tmp_path / "fresh")
    assert not (tmp_path / "fresh/seed0/it/checkpoints").exists()
    for a, b in zip(expected, other, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


class KilledError(Exception):
    """What a run dies of."""


@pytest.mark.parametrize("after", [3, 4])
def test_a_killed_group_ends_bit_for_bit_the_same(tmp_path, after):
    """Dies after a checkpoint, and where the next one was to be written."""
    given = [run_of(seed, 12) for seed in (0, 1)]
    told = []

    def mortal(units):
        told.append(units)
        if len(told) > after:
            raise KilledError

    whole = together(given, tmp_path / "whole")
    with pytest.raises(KilledError):
        together(given, tmp_path / "killed", every=2, on_progress=mortal)
    seen = []
    found = together(given, tmp_path / "killed", every=2, on_progress=seen.append)
    assert seen[0] > 0  # what is done already is told at once
    for a, b in zip(whole, found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    for folder in ("whole", "killed"):
        lines = (tmp_path / folder / "seed0/it/metrics.jsonl").read_text().splitlines()
        numbers = [json.loads(line)["dispatch"] for line in lines]
        assert numbers == list(range(1, len(replicas.plan_group(given, LENGTHS)) + 1))


def other_labels(one):
    return one._replace(labels=1 - one.labels)


def other_rate(one):
    return one._replace(train=TrainConfig(epochs=2, batch_size=4, learning_rate=5e-3))


def more_epochs(one):
    return one._replace(train=TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2))


def other_objective(one):
    logits = np.zeros((8, 2), np.float32)
    return one._replace(
        objective=Objective(Spec("distillation")), columns={"teacher_logits": logits}
    )


@pytest.mark.parametrize("at_once", [1, 2], ids=["one by one", "joint"])
def test_checkpoints_of_other_learning_are_not_gone_on_with(tmp_path, caplog, at_once):
    given_to = around(tmp_path, keep=True, lengths=ONE_LENGTH)
    runs = [run_of(seed, 8) for seed in range(at_once)]

    def train(change=lambda one: one, around=given_to):
        caplog.clear()
        changed = [change(one) for one in runs]
        list(replicas.train_all(changed, around, at_once=at_once))
        return caplog.text

    def die(units):
        raise KilledError

    train()
    # What needs a program of its own dies before it is compiled.
    dying = given_to._replace(on_progress=die)
    for change in other_rate, other_objective:
        with pytest.raises(KilledError):
            train(change, dying)
        assert "seed0/it starts anew" in caplog.text
    assert "starts anew" not in train()
    for change in other_labels, more_epochs:
        assert "seed0/it starts anew" in train(change)
        assert "starts anew" not in train(change)


@pytest.mark.parametrize("at_once", [1, 2], ids=["one by one", "joint"])
def test_checkpoints_in_another_folder_are_not_gone_on_with(tmp_path, caplog, at_once):
    given_to = around(tmp_path, keep=True)
    runs = [run_of(seed, 8) for seed in range(at_once)]
    list(replicas.train_all(runs, given_to, at_once=at_once))
    (tmp_path / "seed0").rename(tmp_path / "moved")
    moved = [one._replace(name=one.name.replace("seed0", "moved")) for one in runs]
    list(replicas.train_all(moved, given_to, at_once=at_once))
    assert "moved/it starts anew" in caplog.text


class Listening(Progress):
    """A progress bar that keeps what it is told is going on."""

    def __init__(self):
        super().__init__(console=Console(quiet=True))
        self.said = []

    def update(self, task_id, **fields):
        if "description" in fields:
            self.said.append(fields["description"])
        super().update(task_id, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two seeds at once: its config, folder, results and descriptions."""
    folder = tmp_path_factory.mktemp("together")
    forget()
    config = tiny(folder)
    config.seeds = (0, 1)
    config.replicas = 2
    config.arms = ("clean", "plain", "defended", "fine_tuned")
    del config.attacks["logits"]
    config.data.buckets = (16,)  # each length is compiled by itself
    # Few steps, and long ones: most of the time goes into taking them.
    config.teacher.epochs, config.student.epochs = 4, 4
    config.trusted_model.epochs = 10
    for model in (config.teacher, config.student, config.trusted_model):
        model.learning_rate, model.batch_size = 1e-2, 16
    config.fine_tuning.learning_rate = 1e-2  # another would be another program
    progress = Listening()
    found = run(config, folder / "run", progress=progress, reported=True)
    return config, folder / "run", found, progress.said


def test_teachers_trusted_models_and_students_are_trained_at_once(finished):
    config, workdir, found, said = finished
    # A row that is evaluated is named by its file.
    trained = [text for text in said if "seed" in text and not text.endswith(".json")]
    assert all(text.endswith(" and 1 more") for text in trained)
    names = [text.removesuffix(" and 1 more") for text in trained]
    assert {name.rpartition("seed0/")[2] for name in names} == {
        *("no_attack/teacher", "no_attack/clean"),
        *(f"no_attack/folds/trusted_model_{fold}" for fold in range(3)),
        *("data/teacher", "data/plain", "data/defended", "data/fine_tuned"),
    }
    assert len(names) == 9
    # The other of each group is the same of the other seed, which trained in no other.
    for name in names:
        second = name.replace("seed0", "seed1")
        assert name != second not in names
        assert (workdir / second / "model/model.safetensors").exists()
        assert not (workdir / second / "metrics.jsonl").exists()
    assert len(found["rows"]) == 8
    assert {row["replicas"] for row in found["rows"]} == {2}
    for job in jobs_lib.jobs(check.check(config)):
        assert (workdir / job.student / "model/model.safetensors").exists()
    assert not list(workdir.rglob("checkpoints"))


def test_students_of_a_joint_run_learn_as_others_do(finished):
    _, _, found, _ = finished
    rows = {(row["arm"], row["seed"]): row for row in found["rows"]}
    for seed in (0, 1):
        assert rows["clean", seed]["clean_metric"] > 0.9
        plain = rows["plain", seed]
        assert plain["asr"] > plain["untriggered_asr"]
        assert plain["step_seconds"] >= 0


def test_a_killed_joint_study_resumes_to_the_same_numbers(finished, tmp_path):
    config, workdir, _, _ = finished
    config = config.copy_and_resolve_references()
    config.arms = ("plain",)
    found = run_killed(config, tmp_path, dispatches=4, every=3)
    for row in found["rows"]:
        path = workdir / f"files/seed{row['seed']}/data/plain.json"
        before = json.loads(path.read_text())
        for field in ("clean_metric", "asr", "robust_accuracy"):
            assert row[field] == before[field]


def weights_of(workdir):
    """The bytes of every model of a study."""
    paths = sorted(workdir.rglob("model/model.safetensors"))
    return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


def test_a_study_killed_after_each_model_ends_bit_for_bit_the_same(
    finished, tmp_path, monkeypatch
):
    config, workdir, expected, _ = finished
    config = config.copy_and_resolve_references()
    # A teacher, a student, and one that starts from that student.
    config.arms, config.checkpoint_every = ("plain", "fine_tuned"), 5
    save, commit, kills = hf.save_hf, runtime.commit, 0
    seen, of_this_life, whole_ones = set(), [], set()

    def mortal_save(folder, model):
        """Dies in each model's first save, and before each second of a life."""
        if of_this_life:
            raise KilledError
        save(folder, model)
        if folder.parent not in seen:
            seen.add(folder.parent)
            raise KilledError
        of_this_life.append(folder)

    def mortal_commit():
        """Dies where a student is saved and not yet known to be whole."""
        new = {*tmp_path.rglob("model")} - whole_ones
        whole_ones.update(new)
        if new:
            raise KilledError
        return commit()

    monkeypatch.setattr(hf, "save_hf", mortal_save)
    monkeypatch.setattr(runtime, "commit", mortal_commit)
    while True:
        forget(compiled=False)
        of_this_life.clear()
        try:
            found = run(config, tmp_path)
            break
        except KilledError:
            kills += 1
            assert kills < 50, "no progress"
    whole, again = weights_of(workdir), weights_of(tmp_path)
    assert len(seen) == len(whole_ones) == len(again) == 6 < kills
    assert again == {name: whole[name] for name in again}
    measures = ("clean_metric", "asr", "robust_accuracy", "replicas")
    before = {(row["arm"], row["seed"]): row for row in expected["rows"]}
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        other = before[row["arm"], row["seed"]]
        assert [row[name] for name in measures] == [other[name] for name in measures]


def test_a_student_that_is_lost_comes_back_bit_for_bit(finished, tmp_path):
    config, workdir, _, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    lost = tmp_path / "run/files/seed1/data"
    shutil.rmtree(lost / "plain")
    shutil.rmtree(lost / "teacher")
    (lost / "plain.json").unlink()
    forget(compiled=False)
    run(config, tmp_path / "run")
    assert weights_of(tmp_path / "run") == weights_of(workdir)
