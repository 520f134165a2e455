"""Several seeds side by side are what each of them is by itself."""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from rich.progress import Progress

from experiments import runtime, together, trainer
from experiments.study import grid as jobs_lib
from experiments.study.defaults import defaults, encoder
from protojax import models
from protojax.data import batches
from protojax.data import tokens as tokens_lib
from protojax.models import hf
from tests.test_study import forget, run, run_killed, tiny
from tests.tiny import encoder_config

SECTION = ml_collections.FrozenConfigDict(
    encoder("scratch", epochs=2, batch_size=4, learning_rate=1e-2)
)
CONFIG = encoder_config(vocab_size=40, num_layers=1)


def run_of(seed, rows, **changes):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, rows).astype(np.int32)
    ids = rng.integers(1, 40, (rows, 8), np.int32)
    tokens = tokens_lib.Tokens(ids, np.zeros_like(ids), lengths, 0)
    model = models.init_model(CONFIG, seed=seed)
    labels = rng.integers(0, 2, rows).astype(np.int32)
    one = trainer.Run(f"seed{seed}/it", model, tokens, labels, SECTION, seed)
    return one._replace(**changes)


def context_of(folder, **changes):
    config = defaults()
    config.data.buckets = (4, 8)
    config.steps_per_dispatch = 2
    config.seeds_at_once = 2
    config.update(changes)
    progress = Progress()
    return runtime.Context(
        ml_collections.FrozenConfigDict(config), folder, progress, progress.add_task("")
    )


def by_itself(one, plan):
    """Trains one run over its share of a plan, a step after the other."""
    dispatch, optimizer = runtime.compiled_dispatch(
        one.model.config, one.objective, runtime.optimizer_of(one.section)
    )
    state = trainer.start_of(one, optimizer, batches.num_steps(plan))
    for item in plan:
        batch = batches.make_batch(one.tokens, one.labels, item)
        state, _ = dispatch(state, batch)
    return jax.device_get(state.params["model"])


def plan_of(context, runs, monkeypatch):
    """The dispatches in which some runs train together."""
    with monkeypatch.context() as patch:
        plans, walk = [], together.walk

        def watched(context, name, plan, *rest, **options):
            plans.append(plan)
            return walk(context, name, plan, *rest, **options)

        patch.setattr(together, "walk", watched)
        list(together.train(context, runs))
    (plan,) = plans
    return plan


def test_the_order_of_a_seed_is_its_own(tmp_path, monkeypatch):
    def batches_of(plan):
        blocks = [row[row >= 0] for item in plan for row in item.rows]
        return sorted(tuple(block) for block in blocks if len(block))

    context, own = context_of(tmp_path), run_of(1, 12)
    found = []
    for place, runs in ((1, (run_of(0, 12), own)), (0, (own, run_of(2, 9)))):
        plan = plan_of(context, runs, monkeypatch)
        found.append(batches_of(together.of_node(plan, place)))
    assert found[0] == found[1]
    alone = trainer.epochs_plan(own.tokens.lengths, SECTION, context.config, own.seed)
    assert found[0] == batches_of(alone)


def test_what_is_kept_trains_again_beside_others_only(tmp_path):
    given = [run_of(seed, 8) for seed in (0, 1)]
    context = context_of(tmp_path)
    whole = list(together.train(context, given))
    (second,) = together.train(context, given, done={given[0].name})
    jax.tree.map(np.testing.assert_array_equal, second.params, whole[1].params)
    assert second.at_once == 2
    assert list(together.train(context, given, done={one.name for one in given})) == []
    alone = context_of(tmp_path, seeds_at_once=1)
    (found,) = together.train(alone, given, done={given[0].name})
    assert found.at_once == 1


@pytest.mark.parametrize("rows", [(10, 10), (16, 7)], ids=["even", "uneven"])
def test_seeds_at_once_are_seeds_by_themselves(tmp_path, monkeypatch, rows):
    given = [run_of(seed, count) for seed, count in enumerate(rows)]
    found = list(together.train(context_of(tmp_path), given))
    plan = plan_of(context_of(tmp_path), given, monkeypatch)
    for number, (one, trained) in enumerate(zip(given, found, strict=True)):
        own = together.of_node(plan, number)
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


def test_what_cannot_be_stacked_goes_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "_train", None)
    monkeypatch.setattr(trainer, "train", lambda context, one: one.name)
    context = context_of(tmp_path)
    private = ml_collections.FrozenConfigDict(
        {"kd": None, "gradient": {"name": "dp_sgd"}}
    )
    other = ml_collections.FrozenConfigDict({**SECTION.to_dict(), "epochs": 3})
    for changes in ({"objective": private}, {"section": other}):
        given = [run_of(0, 8), run_of(1, 8, **changes)]
        if "objective" in changes:
            given[0] = given[0]._replace(**changes)
        assert list(together.train(context, given)) == ["seed0/it", "seed1/it"]
    # The third of three has no partner.
    monkeypatch.setattr(
        together, "_train", lambda _, group: [one.name for one in group]
    )
    given = [run_of(seed, 8) for seed in range(3)]
    assert list(together.train(context, given)) == ["seed0/it", "seed1/it", "seed2/it"]
    assert list(together.train(context, [])) == []


def test_a_mean_over_nodes_leaves_out_who_had_nothing():
    values = {"loss": np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])}
    had = np.array([[True, False, False], [True, True, False]])
    for finite in (True, False):
        found = together._mean_over_nodes(values, had, finite=finite)["loss"]
        np.testing.assert_array_equal(found, [2.0, 5.0, np.nan])
    # A batch whose loss is NaN counts, unless hostile nodes may send what they like.
    had[0, 1] = True
    found = together._mean_over_nodes(values, had, finite=True)["loss"]
    np.testing.assert_array_equal(found, [2.0, np.nan, np.nan])
    found = together._mean_over_nodes(values, had, finite=False)["loss"]
    np.testing.assert_array_equal(found, [2.0, 5.0, np.nan])


def test_one_seed_that_diverges_stops_them_all(tmp_path):
    good, bad = run_of(0, 8), run_of(1, 8)
    params = bad.model.params
    head = jax.tree.map(lambda leaf: leaf * np.nan, params["classifier"])
    bad = bad._replace(model=bad.model._replace(params={**params, "classifier": head}))
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        list(together.train(context_of(tmp_path), [good, bad]))


def test_checkpoints_of_other_seeds_are_not_gone_on_with(tmp_path, caplog):
    context = context_of(tmp_path, keep_checkpoints=True)
    first = list(together.train(context, [run_of(0, 8), run_of(1, 8)]))
    assert (tmp_path / "seed0/it/checkpoints").exists()
    again = list(together.train(context, [run_of(0, 8), run_of(1, 8)]))
    other = list(together.train(context, [run_of(0, 8), run_of(2, 8)]))
    assert "starts anew" in caplog.text
    for a, b in zip(first, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    (tmp_path / "fresh").mkdir()
    fresh = context_of(tmp_path / "fresh")
    expected = list(together.train(fresh, [run_of(0, 8), run_of(2, 8)]))
    for a, b in zip(expected, other, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def other_labels(one):
    return one._replace(labels=1 - one.labels)


@pytest.mark.parametrize("at_once", [1, 2], ids=["one by one", "joint"])
def test_checkpoints_of_other_labels_are_not_gone_on_with(tmp_path, caplog, at_once):
    context = context_of(tmp_path, keep_checkpoints=True, seeds_at_once=at_once)
    runs = [run_of(seed, 8) for seed in range(at_once)]
    list(together.train(context, runs))
    list(together.train(context, runs))
    assert "starts anew" not in caplog.text
    list(together.train(context, [other_labels(one) for one in runs]))
    assert "seed0/it starts anew" in caplog.text


@pytest.mark.parametrize("at_once", [1, 2], ids=["one by one", "joint"])
def test_checkpoints_in_another_folder_are_not_gone_on_with(tmp_path, caplog, at_once):
    context = context_of(tmp_path, keep_checkpoints=True, seeds_at_once=at_once)
    runs = [run_of(seed, 8) for seed in range(at_once)]
    list(together.train(context, runs))
    (tmp_path / "seed0").rename(tmp_path / "moved")
    moved = [one._replace(name=one.name.replace("seed0", "moved")) for one in runs]
    list(together.train(context, moved))
    assert "moved/it starts anew" in caplog.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two seeds at once: its config, folder, results and joint runs."""
    folder = tmp_path_factory.mktemp("together")
    forget()
    config = tiny(folder)
    config.seeds = (0, 1)
    config.seeds_at_once = 2
    config.arms = ("clean", "plain", "anchor", "fine_tuned")
    del config.attacks["logits"]
    joint, train = [], together._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            together,
            "_train",
            lambda context, group: (
                joint.append([r.name for r in group]) or train(context, group)
            ),
        )
        found = run(config, folder / "run")
    return config, folder / "run", found, joint


def test_teachers_anchors_and_students_are_trained_at_once(finished):
    config, workdir, found, joint = finished
    parts = {names[0].rpartition("seed0/")[2] for names in joint}
    assert parts == {
        *("no_attack/teacher", "no_attack/clean", "no_attack/anchor_encoder"),
        *("data/teacher", "data/plain", "data/anchor", "data/fine_tuned"),
    }
    assert all(second == first.replace("seed0", "seed1") for first, second in joint)
    assert len(found["rows"]) == 8
    for job in jobs_lib.jobs(ml_collections.FrozenConfigDict(config)):
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


def test_a_killed_joint_study_resumes_to_the_same_numbers(
    finished, tmp_path, monkeypatch
):
    config, workdir, _, _ = finished
    config = config.copy_and_resolve_references()
    config.arms = ("plain",)
    found = run_killed(config, tmp_path, monkeypatch, dispatches=11)
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
    config.checkpoint_every = 5
    save, seen, of_this_life, kills = hf.save_hf, set(), [], 0

    class KilledError(Exception):
        pass

    def mortal(folder, model):
        """Dies after each model's first save, and before each second of a life."""
        if of_this_life:
            raise KilledError
        save(folder, model)
        of_this_life.append(folder)
        if folder not in seen:
            seen.add(folder)
            raise KilledError

    monkeypatch.setattr(hf, "save_hf", mortal)
    while True:
        forget(compiled=False)
        of_this_life.clear()
        try:
            found = run(config, tmp_path)
            break
        except KilledError:
            kills += 1
            assert kills < 50, "no progress"
    whole = weights_of(workdir)
    assert len(seen) == len(whole) < kills
    assert weights_of(tmp_path) == whole
    measures = ("clean_metric", "asr", "robust_accuracy", "seeds_at_once")
    for row, other in zip(found["rows"], expected["rows"], strict=True):
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
