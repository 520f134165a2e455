"""A teacher's outputs along sequences, and students that learn from them."""

import chex
import jax
import numpy as np
import pytest

from protojax import distillation, storage
from protojax.base import SequenceOutputs
from protojax.data import batches
from protojax.data.sequences import check_same_tokens, with_outputs
from protojax.distillation.teacher import cached_outputs
from protojax.models import language
from protojax.models.language import init_model
from protojax.training import programs, sequences, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.predict import SequenceLengths
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run, Store
from tests.writers import Letters, language_config

LENGTHS = SequenceLengths(
    max_length=6,
    max_output=5,
    buckets=((4, 3), (6, 5)),
    steps_per_dispatch=8,
    evaluation_rows=4,
)


def texts_of(rows, size=None, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rows) if size is None else [size] * rows
    return ["".join(rng.choice(list("abcdefgh"), n)) for n in sizes]


def test_a_teachers_top_tokens_are_those_of_its_softmax():
    # A decoder only: half the program of an encoder-decoder.
    config = language_config(encoder_layers=0)
    teacher = init_model(config, seed=0, tokenizer=Letters())
    rows = sequences.tokenize(teacher, texts_of(20), texts_of(20, seed=1), LENGTHS)
    before = programs.TRACES.copy()
    found = sequences.teacher_forced_outputs(
        teacher, rows, LENGTHS, tokenizer=Letters(), k=3
    )
    # One program for each bucket, whatever the number of batches.
    assert sum((programs.TRACES - before).values()) == 2
    assert found.top_ids.shape == (20, 5, 3)
    assert found.features.shape == (20, 1, 16)
    again, said = with_outputs(rows.sources, found), sequences.columns_of(found)
    dispatch = batches.Dispatch((6, 5), np.arange(20)[None])
    stacked = batches.make_batch(again, None, dispatch, **said)
    loss, states = learnt(teacher, jax.tree.map(lambda leaf: leaf[0], stacked))
    # Aligned with the student's tokens: a teacher has nothing to learn from itself.
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    # Ten tokens: the embedding's two other rows are none.
    words = np.asarray(teacher.params["embedding"]["embedding"], np.float64)[:10]
    logits = np.asarray(states, np.float64) @ words.T
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, length in enumerate(rows.outputs.lengths):
        for place in range(length):
            top = np.argsort(-probs[row, place])[:3]
            assert found.top_ids[row, place].tolist() == top.tolist()
            kept = probs[row, place, top]
            stored = np.exp(found.top_log_probs[row, place].astype(np.float64))
            np.testing.assert_allclose(stored, kept, rtol=1e-3)
            rest = np.exp(found.rest_log_prob[row, place])
            np.testing.assert_allclose(rest, 1 - kept.sum(), rtol=1e-5)


def learnt(model, batch):
    """What a model would learn of a batch's teacher, and its states."""
    apply, head = language.apply_fn(model.config), language.head_fn(model.config)
    loss_fn = distillation.sequence_loss(apply, head, vocabulary=10, hidden_weight=1.0)

    @jax.jit
    def run(params):
        loss, _ = loss_fn(params, batch, None, 0, None)
        return loss, apply(params["model"], batch).states

    return run(distillation.student_params(model.params))


def outputs_of(rows=3, length=4, k=16):
    rng = np.random.default_rng(0)
    return SequenceOutputs(
        ids=rng.integers(0, 12, (rows, length)),
        lengths=np.full(rows, length),
        top_ids=rng.integers(0, 12, (rows, length, k)),
        top_log_probs=np.log(rng.random((rows, length, k))),
        rest_log_prob=np.log(rng.random((rows, length))),
        features=rng.normal(size=(rows, 1, 8)),
    )


def test_outputs_come_back_as_they_were_stored(tmp_path):
    given, path = outputs_of(), tmp_path / "outputs"
    given.top_log_probs[0, 0, 0] = -np.inf
    first = cached_outputs(path, "key", lambda: given, kind=SequenceOutputs)
    again = cached_outputs(path, "key", lambda: None, kind=SequenceOutputs)
    chex.assert_trees_all_equal(first, again)
    assert [array.dtype.name for array in again] == (
        ["int32", "int32", "int32", "float16", "float32", "float32"]
    )
    assert np.isfinite(again.top_log_probs).all()
    # As the docstring says: 104 bytes for a token with 16 others.
    along = (again.ids, again.top_ids, again.top_log_probs, again.rest_log_prob)
    assert sum(array.nbytes for array in along) == 104 * again.ids.size
    chex.assert_trees_all_equal(again.take([2, 0]).ids, again.ids[[2, 0]])


@pytest.mark.parametrize("name", SequenceOutputs._fields[1:])
def test_outputs_that_do_not_fit_are_not_stored(tmp_path, name):
    wrong = outputs_of()
    wrong = wrong._replace(**{name: getattr(wrong, name)[:2]})
    with pytest.raises(ValueError, match="shape"):
        cached_outputs(tmp_path / "o", "key", lambda: wrong, kind=SequenceOutputs)
    assert not list(tmp_path.iterdir())


def test_probabilities_of_other_tokens_are_refused():
    known, other = Letters(), Letters("hgfedcba")
    check_same_tokens(known, Letters())
    # A student may have more tokens than its teacher, not fewer.
    check_same_tokens(known, Letters("abcdefghi"))
    message = r"found 'letters' with 11 tokens of the teacher and 'letters' with 10"
    with pytest.raises(ValueError, match=message):
        check_same_tokens(Letters("abcdefghi"), known)
    teacher = init_model(language_config(), seed=0, tokenizer=other)
    rows = sequences.tokenize(teacher, ["ab"], ["a"], LENGTHS)
    with pytest.raises(ValueError, match=r"same tokenizer.*hard_weight=1"):
        sequences.teacher_forced_outputs(teacher, rows, LENGTHS, tokenizer=known)


# Three letters, to be written as they are.
SHORT = SequenceLengths(
    max_length=4, max_output=4, buckets=((4, 4),), steps_per_dispatch=4
)
CONFIG = language_config(
    encoder_layers=0, hidden_size=32, intermediate_size=64, dropout=0.05
)


class KilledError(Exception):
    """What a run dies of."""


def killed_after(reports):
    left = [reports]

    def on_progress(units):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    return on_progress


def run_of(**changes):
    model = init_model(CONFIG, seed=0, tokenizer=Letters())
    # Not a multiple of 32: the last batch has rows that are padding.
    texts = texts_of(250, size=3)
    rows = sequences.tokenize(model, texts, texts, SHORT)
    objective = Objective(Spec("sequence", {"hard_weight": 1.0}))
    train = TrainConfig(epochs=6, batch_size=32, learning_rate=1e-2)
    run = Run("copy", model, rows, None, train, seed=0, objective=objective)
    return run._replace(**changes)


def right(model, params, lengths=SHORT):
    """The share of tokens of new rows that are the most probable ones."""
    texts = texts_of(32, size=3, seed=9)
    rows = sequences.tokenize(model, texts, texts, lengths)
    found = sequences.teacher_forced_outputs(
        model._replace(params=params), rows, lengths, tokenizer=model.tokenizer, k=1
    )
    return (found.top_ids[..., 0] == rows.outputs.input_ids).mean(), found


def test_a_student_learns_to_copy_and_is_resumed_bit_for_bit(tmp_path):
    whole = trainer.train(run_of(), lengths=SHORT, store=Store(tmp_path / "whole"))
    assert right(run_of().model, run_of().model.params)[0] < 0.5
    assert right(run_of().model, whole.params)[0] > 0.95
    store = Store(tmp_path / "killed", every=4)
    with pytest.raises(KilledError):
        trainer.train(run_of(), lengths=SHORT, store=store, on_progress=killed_after(6))
    assert storage.checkpoint.latest_step(store.checkpoints) == 4
    again = trainer.train(run_of(), lengths=SHORT, store=store)
    chex.assert_trees_all_equal(again.params, whole.params)
