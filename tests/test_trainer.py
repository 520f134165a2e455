"""One training run: killed and gone on with, its checkpoints, its log."""

import dataclasses
import json

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import models, training
from protojax.base import Batch, Prototypes
from protojax.data import batches
from protojax.data import tokens as tokens_lib
from protojax.distillation import mean_gradient
from protojax.models import vocabulary
from protojax.storage import checkpoint
from protojax.training import plans, trainer
from protojax.training.log import MetricsLog
from protojax.training.objective import Objective, Spec
from protojax.training.predict import Lengths
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run, Saver, Store
from tests.tiny import encoder_config

LENGTHS = Lengths(max_length=8, buckets=(4, 8), steps_per_dispatch=2)
TRAIN = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
CONFIG = encoder_config(vocab_size=40, num_layers=1, dropout=0.3, num_labels=2)


def run_of(rows=24, **changes):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (rows, 8), np.int32)
    tokens = tokens_lib.Tokens(
        ids, np.zeros_like(ids), rng.integers(2, 9, rows).astype(np.int32), 0
    )
    run = Run(
        "a/run",
        models.init_model(CONFIG, seed=0),
        tokens,
        rng.integers(0, 2, rows).astype(np.int32),
        TRAIN,
        seed=3,
        columns={
            "teacher_logits": rng.normal(size=(rows, 2)).astype(np.float32),
            # Of another width than the student's: a map to it is learned too.
            "teacher_features": rng.normal(size=(rows, 1, 5)).astype(np.float32),
        },
        objective=Objective(Spec("distillation", {"hidden_weight": 0.5})),
    )
    return run._replace(**changes)


def train(run, store, on_progress=lambda units: None, lengths=LENGTHS):
    return trainer.train(run, lengths=lengths, store=store, on_progress=on_progress)


def plan_of(run):
    return plans.epochs_plan(run.tokens.lengths, run.train, LENGTHS, run.seed)


def lines_of(store):
    text = (store.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class KilledError(Exception):
    """What a run dies of."""


def killed_after(reports):
    """A progress that raises at the report after so many; the first is of no work."""
    left = [reports]

    def on_progress(units):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    return on_progress


def same(found, expected):
    chex.assert_trees_all_equal(found.params, expected.params)
    np.testing.assert_array_equal(found.projection, expected.projection)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody killed: what came of it, and its store."""
    store = Store(tmp_path_factory.mktemp("whole"), every=2)
    return train(run_of(), store), store


# Before any save, right behind one, and with work lost; every place of all is that of
# the run below that is killed again and again.
@pytest.mark.parametrize(("every", "reports"), [(1, 1), (1, 4), (2, 4)])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(
    whole, tmp_path, every, reports
):
    """With dropout, and a map to the teacher's width."""
    expected, untouched = whole
    store = Store(tmp_path, every=every)
    with pytest.raises(KilledError):
        train(run_of(), store, killed_after(reports))
    last = checkpoint.latest_step(store.checkpoints) or 0
    # The report of dispatch n comes before the save that includes it.
    assert last == (reports - 1) // every * every
    told = []
    same(train(run_of(), store, told.append), expected)
    plan = plan_of(run_of())
    cost = trainer.row_cost(CONFIG)
    sizes = [int((item.rows >= 0).sum()) * cost for item in plan]
    assert told == [sum(sizes[:last]), *sizes[last:]]
    assert lines_of(store) == lines_of(untouched)


def test_a_run_killed_again_and_again_ends_the_same(whole, tmp_path):
    store, kills = Store(tmp_path, every=1), 0
    while True:
        try:
            found = train(run_of(), store, killed_after(2))
            break
        except KilledError:
            kills += 1
            assert kills < 20, "no progress"
    assert kills > 3
    same(found, whole[0])
    assert lines_of(store) == lines_of(whole[1])


def test_dropout_and_order_are_of_the_seed(whole, tmp_path):
    other = train(run_of(seed=4), Store(tmp_path / "other"))
    assert not np.allclose(other.projection, whole[0].projection)
    still = dataclasses.replace(CONFIG, dropout=0.0)
    one_length = dataclasses.replace(LENGTHS, buckets=(8,))
    ends = []
    for config in (CONFIG, still):
        run = run_of(rows=8, model=models.init_model(config, seed=0))
        store = Store(tmp_path / str(config.dropout))
        end = train(run, store, lengths=one_length)
        ends.append(jax.flatten_util.ravel_pytree(jax.device_get(end.params))[0])
    assert not np.allclose(*ends, atol=1e-4)


@pytest.mark.parametrize("keep", [True, False])
def test_the_last_checkpoint_stays_where_it_is_to(whole, tmp_path, keep):
    store, dispatches = Store(tmp_path, every=2, keep=keep), len(plan_of(run_of()))
    same(train(run_of(), store), whole[0])
    steps = checkpoint.complete_steps(store.checkpoints)
    if keep:
        assert steps == [dispatches]
    else:
        assert dispatches not in steps or dispatches % 2 == 0
    trainer.remove_checkpoints(store)
    assert store.checkpoints.exists() == keep
    # A finished run that is asked for again takes no step, and says the same.
    if keep:
        told = []
        same(train(run_of(), store, told.append), whole[0])
        assert len(told) == 1
        assert lines_of(store) == lines_of(whole[1])
    trainer.remove_checkpoints(store, secret=True)
    assert not store.checkpoints.exists()
    trainer.remove_checkpoints(store, secret=True)  # nor is it there twice


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, caplog):
    store = Store(tmp_path, every=1)
    with pytest.raises(KilledError):
        train(run_of(), store, killed_after(4))
    steps = checkpoint.complete_steps(store.checkpoints)
    assert len(steps) == 2
    for path in (store.checkpoints / f"step_{steps[-1]:08d}").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(b"damaged")
    same(train(run_of(), store), whole[0])
    assert f"Step {steps[-1]} is passed over" in caplog.text
    assert "starts anew" not in caplog.text
    assert lines_of(store) == lines_of(whole[1])


def test_a_run_without_any_intact_checkpoint_starts_anew(whole, tmp_path, caplog):
    store = Store(tmp_path, every=2)
    with pytest.raises(KilledError):
        train(run_of(), store, killed_after(4))
    for path in store.checkpoints.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(b"damaged")
    same(train(run_of(), store), whole[0])
    assert "a/run starts anew, no checkpoint is intact" in caplog.text
    assert lines_of(store) == lines_of(whole[1])


def test_the_identity_changes_with_all_that_a_result_depends_on():
    base, ids = run_of(), np.arange(1, 40)
    columns, tokens = dict(base.columns), base.tokens
    changed = jax.tree.map(np.copy, base.model.params)
    changed["classifier"]["bias"][0] += 1
    vectors = np.ones((1, 2, 8), np.float32)
    one = Prototypes(vectors, np.arange(2)[None], np.ones((1, 2)))
    swapped = dict(zip(columns, reversed(columns.values()), strict=True))
    runs = [
        base,
        base._replace(seed=4),
        base._replace(labels=1 - base.labels),
        base._replace(tokens=tokens._replace(input_ids=tokens.input_ids[::-1])),
        base._replace(tokens=tokens._replace(lengths=tokens.lengths[::-1])),
        base._replace(model=base.model._replace(params=changed)),
        base._replace(columns={"teacher_logits": columns["teacher_logits"]}),
        base._replace(
            columns={**columns, "teacher_logits": columns["teacher_logits"] + 1}
        ),
        base._replace(columns=swapped),
        base._replace(prototypes=one),
        base._replace(prototypes=one._replace(vectors=2 * vectors)),
        base._replace(train=dataclasses.replace(TRAIN, epochs=3)),
    ]
    found = [trainer.identity_of([run], ids, LENGTHS) for run in runs]
    found.append(trainer.identity_of([base], ids[1:], LENGTHS))
    shorter = dataclasses.replace(LENGTHS, buckets=(8,))
    found.append(trainer.identity_of([base], ids, shorter))
    found.append(trainer.identity_of([base, base], ids, LENGTHS))
    found.append(trainer.identity_of([base], ids, LENGTHS, "three nodes"))
    assert len(set(found)) == len(found)
    assert trainer.identity_of([run_of()], ids, LENGTHS) == found[0]


def test_words_that_no_row_has_are_as_they_were(tmp_path):
    config = encoder_config(vocab_size=5000, num_layers=1, num_labels=2)
    run = run_of(rows=8, model=models.init_model(config, seed=0))
    run.tokens.input_ids[0, 0] = 4990
    one_length = dataclasses.replace(LENGTHS, buckets=(8,))  # one program less
    trained = train(run, Store(tmp_path), lengths=one_length)
    found, before = (
        np.asarray(vocabulary.words(params))
        for params in (trained.params, run.model.params)
    )
    assert found.shape == before.shape == (5000, 8)
    # The model in training knows so many words, of which the rows have a few.
    moved = np.flatnonzero((found != before).any(-1))
    assert {*np.unique(run.tokens.input_ids)} <= {*moved}
    assert [word for word in moved if word >= 4096] == [4990]


def test_a_loss_that_is_not_finite_is_an_error_with_the_runs_name(tmp_path):
    run = run_of()
    run.columns["teacher_logits"][:] = np.inf
    with pytest.raises(FloatingPointError, match="a/run: the loss is nan in dispatch"):
        train(run, Store(tmp_path))


# What follows is of the pieces, with a model of one number.


def number_dispatch():
    def loss(params, batch, prototypes, step, key):
        return params["w"] * batch.labels + jax.random.normal(key, ()), {}

    step = training.make_step(mean_gradient(loss), optax.sgd(0.1))
    return training.make_dispatch(step)


NUMBERS = [batches.Dispatch(4, np.array([[0, 1], [2, -1]])) for _ in range(5)]
DISPATCH = number_dispatch()


def fit_number(tmp_path, *, keep, start=0, every=2):
    """Fits a number; what was written, as `(done, extra, ended)`."""
    written = []
    log = MetricsLog(
        tmp_path, "it", NUMBERS, cost=1.0, start=start, extra={}, on_progress=print
    )

    def load(item):
        return Batch(None, None, None, item.rows * 1.0, item.rows >= 0)

    def write(state, done, extra, ended):
        # What is in the log by now is what a resumed run finds.
        lines = len((tmp_path / "metrics.jsonl").read_text().splitlines())
        assert lines == done
        assert int(state.step) == 2 * (done - start)
        written.append((done, sorted(extra), ended))

    state = training.init_state(
        {"w": jnp.ones(())}, optax.sgd(0.1), num_steps=10, seed=0
    )
    trainer.fit_saved(
        DISPATCH,
        state,
        NUMBERS,
        load,
        store=Store(tmp_path, every=every, keep=keep),
        saver=Saver(lambda state: None, write),
        log=log,
        start=start,
        extra={"sampling_seed": 1},
    )
    return written


FIELDS = ["sampling_seed", "step_seconds"]


def test_the_end_is_written_where_it_is_asked_for(tmp_path):
    between = [(2, FIELDS, False), (4, FIELDS, False)]
    assert fit_number(tmp_path / "a", keep=False) == between
    assert fit_number(tmp_path / "b", keep=True) == [*between, (5, FIELDS, True)]
    # The end is the end, also where one in so many is written there.
    (tmp_path / "c").mkdir()
    found = fit_number(tmp_path / "c", keep=True, every=5)
    assert found == [(5, FIELDS, False), (5, FIELDS, True)]


def test_an_end_that_was_resumed_is_not_written_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"dispatch": 5}\n')
    assert fit_number(tmp_path, keep=True, start=5) == []


def log_of(folder, start, extra=None, told=None, **options):
    return MetricsLog(
        folder,
        "it",
        NUMBERS,
        cost=0.5,
        start=start,
        extra=extra or {},
        on_progress=(told if told is not None else []).append,
        **options,
    )


def loss_of(*values):
    return {"loss": np.array(values), "norm_loss": np.array(values) * 2}


def test_the_log_drops_what_is_done_again(tmp_path):
    told = []
    log = log_of(tmp_path, 0, told=told)
    for done in range(1, 5):
        log(done, loss_of(done, done))
    log.flush()
    assert told == [0, 1.5, 1.5, 1.5, 1.5]
    path = tmp_path / "metrics.jsonl"
    assert [line["dispatch"] for line in lines_of(Store(tmp_path))] == [1, 2, 3, 4]
    # A killed process may have cut the last line short.
    path.write_text(path.read_text() + '{"run": "it", "disp')
    told.clear()
    log = log_of(tmp_path, 2, told=told)
    assert told == [3.0]
    assert [line["dispatch"] for line in lines_of(Store(tmp_path))] == [1, 2]
    log(3, loss_of(9, 11))
    log.flush()
    log.flush()
    last = lines_of(Store(tmp_path))[-1]
    assert last == {"run": "it", "dispatch": 3, "loss": 10.0, "norm_loss": 20.0}
    assert len(lines_of(Store(tmp_path))) == 3


def test_a_log_with_nothing_later_is_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"dispatch": 1}\n{"dispatch": 2}\n')
    before = path.stat().st_mtime_ns, path.stat().st_ino
    log_of(tmp_path, 2)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_empty_batches_count_in_no_mean(tmp_path):
    plan = [batches.Dispatch(4, np.array([[0, 1], [-1, -1]]))]
    log = MetricsLog(
        tmp_path, "it", plan, cost=1.0, start=0, extra={}, on_progress=print
    )
    log(1, {"loss": np.array([3.0, np.nan])})
    log.flush()
    assert lines_of(Store(tmp_path))[0]["loss"] == 3.0


def test_a_loss_that_is_not_finite_is_an_error_unless_it_may_be(tmp_path):
    told = []
    with pytest.raises(FloatingPointError, match="it: the loss is inf in dispatch 1"):
        log_of(tmp_path, 0, told=told)(1, loss_of(1.0, np.inf))
    assert told == [0]  # a run that diverged has not done that work
    log_of(tmp_path, 0, finite=False, told=told)(1, loss_of(1.0, np.inf))
    assert told == [0, 0, 1.5]


def test_seconds_of_a_step_go_on_where_a_run_was_killed(tmp_path):
    log = log_of(tmp_path, 0)
    assert log.step_seconds == 0.0
    for done in (1, 2):
        log(done, loss_of(1.0, 1.0))
    kept = json.loads(json.dumps(log.extra))
    assert len(kept["step_seconds"]["4"]) == 2
    again = log_of(tmp_path, 2, extra=kept)
    assert again.step_seconds == pytest.approx(log.step_seconds) != 0
    again(3, loss_of(1.0, 1.0))
    assert len(again.extra["step_seconds"]["4"]) == 3


def test_seconds_are_a_median_of_each_length_by_its_share(tmp_path):
    plan = [
        batches.Dispatch(4, np.zeros((2, 1), int)),
        batches.Dispatch(8, np.zeros((1, 1), int)),
        batches.Dispatch(16, np.zeros((9, 1), int)),  # compiled in each of them
    ]
    seconds = {"step_seconds": {"4": [1.0, 50.0, 2.0], "8": [8.0]}}
    log = MetricsLog(
        tmp_path, "it", plan, cost=1.0, start=0, extra=seconds, on_progress=print
    )
    assert log.step_seconds == pytest.approx((2 * 2.0 + 1 * 8.0) / 3)
