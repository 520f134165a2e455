"""A private run's coins and noise follow from nothing that is written down."""

import json
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from experiments import together, trainer
from experiments.reports import results
from experiments.study import check, runner
from experiments.study.defaults import defaults
from experiments.study.grid import DONE
from protojax import training
from tests.test_together import SECTION, context_of, run_of

RULE = {
    "name": "dp_sgd",
    "clip_norm": 1.0,
    "noise_multiplier": 1.0,
    "expected_rows": 4,
    "frozen": ("embeddings",),
}
OBJECTIVE = ml_collections.FrozenConfigDict({"kd": None, "gradient": RULE})
PRIVATE = {
    "objective": OBJECTIVE,
    "section": ml_collections.FrozenConfigDict(
        {**SECTION.to_dict(), "batch_size": 4, "epochs": 3}
    ),
}


def private_run():
    return run_of(0, 24, **PRIVATE)


def params_of(trained):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trained.params)])


def fixed_entropy(monkeypatch, coins, noise):
    """Stands in for the operating system."""
    monkeypatch.setattr(trainer.secrets, "randbits", lambda bits: coins)
    monkeypatch.setattr(training.secrets, "token_bytes", lambda n: bytes([noise] * n))


def test_a_key_without_a_seed_is_new_each_time():
    def key(seed):
        params = {"w": jnp.zeros(2)}
        state = training.init_state(params, optax.sgd(1.0), num_steps=1, seed=seed)
        return np.asarray(state.key)

    seeded = key(0)
    assert (key(0) == seeded).all()
    drawn = [key(None) for _ in range(4)]
    assert len({found.tobytes() for found in [*drawn, seeded]}) == 5
    assert all(f.shape == seeded.shape and f.dtype == seeded.dtype for f in drawn)
    # A seed has 32 bits, which can be tried one by one; these have all 64.
    assert any(found.all() for found in drawn)


def test_draws_are_not_of_the_seed_unless_asked(tmp_path, monkeypatch):
    planned, plan = [], trainer.batches.plan_poisson

    def watched(*args, seed, **rest):
        planned.append(seed)
        return plan(*args, seed=seed, **rest)

    monkeypatch.setattr(trainer.batches, "plan_poisson", watched)
    found = {}
    for reproducible in (False, True):
        context = context_of(tmp_path, dp={"reproducible": reproducible})
        both = [t for _ in range(2) for t in together.train(context, [private_run()])]
        found[reproducible] = [params_of(trained) for trained in both]
        (tmp_path / "metrics.jsonl").unlink()
        trainer.forget_checkpoints(context, "seed0/it", secret=True)
    assert not np.allclose(*found[False], atol=1e-4)
    np.testing.assert_array_equal(*found[True])
    assert planned[2:] == [0, 0]
    assert planned[0] != planned[1]
    assert min(planned[:2]) > 2**64


def test_what_was_drawn_goes_with_the_checkpoints(tmp_path, monkeypatch):
    coins = 0x1234567890ABCDEF1234567890ABCDEF
    fixed_entropy(monkeypatch, coins, 7)
    context = context_of(tmp_path, keep_checkpoints=True, checkpoint_every=1)
    seen, save = [], trainer.checkpoint.save

    def watched(folder, state, step, **rest):
        seen.append((rest["extra"]["coins"], step))
        return save(folder, state, step, **rest)

    monkeypatch.setattr(trainer.checkpoint, "save", watched)
    ended = together.train(context, [private_run()])
    next(ended)
    assert {found for found, _ in seen} == {coins}
    assert (tmp_path / "seed0/it/checkpoints").exists()
    assert list(ended) == []
    assert not (tmp_path / "seed0/it/checkpoints").exists()
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["metrics.jsonl"]
    assert str(coins) not in left[0].read_text()
    # Under `reproducible` there is nothing to hide, and the last one is kept.
    context = context_of(tmp_path, keep_checkpoints=True, dp={"reproducible": True})
    monkeypatch.setattr(trainer.checkpoint, "save", save)
    list(together.train(context, [private_run()]))
    assert (tmp_path / "seed0/it/checkpoints").exists()


def test_a_killed_private_run_goes_on_with_its_own_draws(tmp_path, monkeypatch, caplog):
    def run_in(folder):
        folder.mkdir(exist_ok=True)
        context = context_of(folder, checkpoint_every=2)
        return params_of(trainer.train(context, private_run()))

    fixed_entropy(monkeypatch, 2**90 + 1, 7)
    expected = run_in(tmp_path / "whole")
    fit = training.fit

    def mortal(dispatch, state, plan, load, **rest):
        def counted(item):
            if item is plan[5]:
                raise KeyboardInterrupt
            return load(item)

        return fit(dispatch, state, plan, counted, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", mortal)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "killed")
    # The system does not give the same bytes again.
    fixed_entropy(monkeypatch, 2**90 + 2, 8)
    np.testing.assert_array_equal(run_in(tmp_path / "killed"), expected)
    assert not np.allclose(run_in(tmp_path / "other"), expected, atol=1e-4)
    # A checkpoint of a seed's own draws is none that a secret run goes on with.
    assert "starts anew" not in caplog.text
    folder = tmp_path / "seeded"
    folder.mkdir()
    options = {"checkpoint_every": 2, "dp": {"reproducible": True}}
    trainer.train(context_of(folder, **options), private_run())
    run_in(folder)
    assert "found none" in caplog.text


def test_a_study_killed_before_it_forgot_forgets_when_it_goes_on(tmp_path):
    context = context_of(tmp_path, keep_checkpoints=True)
    for name, nominal in (("secret", False), ("nominal", True), ("plain", None)):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / DONE).write_text(json.dumps({"epsilon_nominal": nominal}))
        runner.train_students(context, [types.SimpleNamespace(student=name)])
        assert (folder / "checkpoints").exists() == (name != "secret")


def test_results_say_where_epsilon_is_nominal():
    row = {"task": "t", "attack": "a", "metric_name": "accuracy", "clean_metric": 0.5}
    for fields, said in (
        ({"noise_multiplier": 1.0, "epsilon_nominal": False}, False),
        ({"noise_multiplier": 1.0, "epsilon_nominal": True}, True),
        ({"noise_multiplier": 1.0}, True),  # from before it could be otherwise
        ({"noise_multiplier": None, "epsilon_nominal": None}, False),
    ):
        rows = [{**row, "arm": "dp_sgd", "seed": 0, **fields}]
        legend = results.legend(results.summarise(results.compared(rows)))
        assert ("ε of dp_sgd: nominal" in legend) == said


def test_reproducible_is_yes_or_no():
    config = defaults()
    with config.unlocked():
        config.variants = {"fixed": {"dp": {"reproducible": "yes"}}}
    with pytest.raises(ValueError, match=r"variants\.fixed"):
        check._check_variant(config, "fixed", config.variants.fixed)
