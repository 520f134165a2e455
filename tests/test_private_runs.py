"""A private run's batches and noise follow from nothing that is written down."""

import dataclasses
import json
import secrets
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import runtime, settings
from experiments.reports import results
from experiments.settings import Settings
from experiments.study import check, students
from experiments.study.defaults import defaults
from experiments.study.grid import DONE
from protojax import training
from protojax.federated import replicas
from protojax.storage import checkpoint
from protojax.training import plans, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.step import TrainConfig
from protojax.training.trainer import Store
from tests.test_replicas import CONFIG, ONE_LENGTH, around, run_of

RULE = Spec(
    "dp_sgd",
    {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "expected_rows": 4,
        "frozen": ("embeddings", "layers_0"),  # a small program
    },
)
# So few rows of a batch that hardly any draw has more than eight, another program's.
TRAIN = TrainConfig(epochs=2, batch_size=3, learning_rate=1e-2)


def private_run(*, secret=True):
    return run_of(0, 24, objective=Objective(gradient=RULE), train=TRAIN, secret=secret)


def train(run, store, on_progress=lambda units: None):
    return trainer.train(run, lengths=ONE_LENGTH, store=store, on_progress=on_progress)


def params_of(trained):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trained.params)])


def fixed_entropy(monkeypatch, sampling_seed, noise):
    """Stands in for the operating system."""
    monkeypatch.setattr(secrets, "randbits", lambda bits: sampling_seed)
    monkeypatch.setattr(secrets, "token_bytes", lambda n: bytes([noise] * n))


def held_by(store, run):
    """What a run's checkpoints hold beside its state."""
    ids = trainer.used_ids([run])
    identity = trainer.identity_of([trainer.narrowed(run, ids)], ids, ONE_LENGTH)
    return [
        checkpoint.verify(store.checkpoints, step, identity=identity)
        for step in checkpoint.complete_steps(store.checkpoints)
    ]


def units_of(run, sampling_seed):
    """The work of each dispatch whose batches a sampling seed draws."""
    plan = plans.poisson_plan(run.tokens.lengths, TRAIN, ONE_LENGTH, sampling_seed)
    cost = trainer.row_cost(CONFIG)
    return [int((item.rows >= 0).sum()) * cost for item in plan]


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


def test_draws_are_not_of_the_seed_unless_asked(tmp_path):
    found, sampling_seed = {}, []
    for secret in (True, False):
        run, found[secret] = private_run(secret=secret), []
        for life in range(2):
            told, store = [], Store(tmp_path / f"{secret}{life}", every=4)
            found[secret].append(params_of(train(run, store, told.append)))
            held = [extra.get("sampling_seed") for extra in held_by(store, run)]
            assert len(held) == 2
            assert len({*held}) == 1
            if secret:
                sampling_seed.append(held[0])
            # Its batches are those that this sampling seed draws, or the run's seed.
            assert told[1:] == units_of(run, held[0] if secret else run.seed)
            assert (held[0] is None) == (not secret)
    assert not np.allclose(*found[True], atol=1e-4)
    np.testing.assert_array_equal(*found[False])
    assert sampling_seed[0] != sampling_seed[1]
    assert min(sampling_seed) > 2**64
    assert units_of(private_run(), sampling_seed[0]) != units_of(private_run(), 0)


def test_what_was_drawn_goes_with_the_checkpoints(tmp_path, monkeypatch):
    sampling_seed, run = 0x1234567890ABCDEF1234567890ABCDEF, private_run()
    fixed_entropy(monkeypatch, sampling_seed, 7)
    given_to, told = around(tmp_path, every=4, keep=True, lengths=ONE_LENGTH), []

    def watched(units):
        told.append(
            {extra["sampling_seed"] for extra in held_by(given_to.store(run.name), run)}
        )

    given_to = given_to._replace(on_progress=watched)
    ended = replicas.train_all([run], given_to)
    next(ended)
    assert told[-1] == {sampling_seed}
    assert all(seen <= {sampling_seed} for seen in told)
    assert (tmp_path / "seed0/it/checkpoints").exists()
    assert list(ended) == []
    assert not (tmp_path / "seed0/it/checkpoints").exists()
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["metrics.jsonl"]
    assert str(sampling_seed) not in left[0].read_text()
    # Where draws are those of the seed there is nothing to hide; the last is kept.
    given_to = around(tmp_path, keep=True, lengths=ONE_LENGTH)
    list(replicas.train_all([private_run(secret=False)], given_to))
    assert (tmp_path / "seed0/it/checkpoints").exists()


class KilledError(Exception):
    """What a run dies of."""


def test_a_killed_private_run_goes_on_with_its_own_draws(tmp_path, monkeypatch, caplog):
    def run_in(name, on_progress=lambda units: None, every=100):
        store = Store(tmp_path / name, every=every)
        return params_of(train(private_run(), store, on_progress))

    told = []

    def mortal(units):
        told.append(units)
        if len(told) == 6:
            raise KilledError

    fixed_entropy(monkeypatch, 2**90 + 1, 7)
    expected = run_in("whole")
    with pytest.raises(KilledError):
        run_in("killed", mortal, every=2)
    # The system does not give the same bytes again.
    fixed_entropy(monkeypatch, 2**90 + 2, 8)
    np.testing.assert_array_equal(run_in("killed"), expected)
    assert not np.allclose(run_in("other"), expected, atol=1e-4)
    # A checkpoint of a seed's own draws is none that a secret run goes on with.
    assert "starts anew" not in caplog.text
    train(private_run(secret=False), Store(tmp_path / "seeded", every=4))
    run_in("seeded")
    assert "found none" in caplog.text


def test_an_empty_poisson_batch_ends_no_run(tmp_path, monkeypatch):
    """Neither one among others, nor a dispatch of nothing else."""
    lengths = dataclasses.replace(ONE_LENGTH, steps_per_dispatch=2)
    train_config = dataclasses.replace(TRAIN, batch_size=1, epochs=1)
    run = private_run()._replace(train=train_config)

    def held(seed):
        plan = plans.poisson_plan(run.tokens.lengths, train_config, lengths, seed)
        return [tuple((item.rows >= 0).any(-1).tolist()) for item in plan]

    seed = next(
        seed
        for seed in range(100)
        if {(False, True), (False, False)} <= set(held(seed)[:-1])
    )
    fixed_entropy(monkeypatch, seed, 7)
    store = Store(tmp_path / "run")
    done = []
    trainer.train(run, lengths=lengths, store=store, on_progress=done.append)
    text = (store.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    wanted = [at for at, some in enumerate(held(seed), 1) if any(some)]
    assert [line["dispatch"] for line in lines] == wanted
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert len(done) == len(held(seed)) + 1


def test_a_run_of_the_seed_does_not_go_on_with_secret_draws(tmp_path, caplog):
    """Its noise would be of a key that the seed does not say."""
    store = Store(tmp_path / "secret", every=4)
    train(private_run(), store)
    found = params_of(train(private_run(secret=False), store))
    assert "starts anew" in caplog.text
    fresh = train(private_run(secret=False), Store(tmp_path / "fresh"))
    np.testing.assert_array_equal(found, params_of(fresh))


def test_a_study_killed_before_it_forgot_forgets_when_it_goes_on(tmp_path):
    config = settings.make(Settings(), {"keep_checkpoints": True})
    context = runtime.Context(config, tmp_path, None, 0)
    for name, nominal in (("secret", False), ("nominal", True), ("plain", None)):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / DONE).write_text(json.dumps({"epsilon_nominal": nominal}))
        students.train(context, types.SimpleNamespace(student=name))
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
    with pytest.raises(ValueError, match=r"variants\.fixed.*dp\.reproducible"):
        check.check(config)
