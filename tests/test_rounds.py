"""Rounds of a server over nodes that train models that write."""

import jax
import numpy as np
import pytest

from protojax.federated import AGGREGATORS, nodes
from protojax.federated.replicas import Surroundings
from protojax.federated.rounds import fit_rounds, train_rounds
from protojax.models.language import init_model
from protojax.training import sequences, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.predict import SequenceLengths
from protojax.training.step import TrainConfig
from protojax.training.trainer import Run, Store
from tests.writers import Letters, language_config

LENGTHS = SequenceLengths(
    max_length=4, max_output=4, buckets=((4, 4),), steps_per_dispatch=1
)
CONFIG = language_config(encoder_layers=0, hidden_size=8, num_heads=1, num_kv_heads=1)
TRAIN = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2, warmup=0.0)


def run_of(rows, seed=0, **changes):
    model = init_model(CONFIG, seed=0, tokenizer=Letters())
    rng = np.random.default_rng(rows)
    texts = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(rows)]
    tokens = sequences.tokenize(model, texts, texts, LENGTHS)
    objective = Objective(Spec("sequence", {"hard_weight": 1.0}))
    run = Run("copy", model, tokens, None, TRAIN, seed=seed, objective=objective)
    return run._replace(**changes)


def around(folder):
    return Surroundings(LENGTHS, lambda name: Store(folder / name))


def test_a_round_is_the_mean_of_what_nodes_learn_alone(tmp_path):
    """Weighted by their rows. A node's only batch has all of them."""
    sizes = (8, 4)
    found = train_rounds(
        [run_of(rows) for rows in sizes],
        around(tmp_path),
        AGGREGATORS["mean"],
        rounds=1,
    )
    alone = [
        trainer.train(run_of(rows), lengths=LENGTHS, store=Store(tmp_path / str(rows)))
        for rows in sizes
    ]
    # AdamW moves a weight by the rate whatever the gradient's size, so that the last
    # digits of a gradient near 0 show.
    wanted = jax.tree.map(lambda a, b: (2 * a + b) / 3, *(one.params for one in alone))
    for one, two in _leaves(found, wanted):
        np.testing.assert_allclose(one, two, atol=1e-5)
    moved = [np.abs(a - b).max() for a, b in _leaves(found, run_of(8).model.params)]
    assert max(moved) > 1e-3


def test_nodes_that_exchange_nothing_learn_as_they_do_alone(tmp_path):
    sizes = (8, 4)
    mesh = nodes.make_mesh(2)
    found = fit_rounds(
        [run_of(rows) for rows in sizes],
        around(tmp_path),
        lambda state: state,
        mesh,
        rounds=1,
        server=False,
    )
    everyone = nodes.gather(found.state.nodes.params["model"], mesh)
    for node, rows in enumerate(sizes):
        folder = Store(tmp_path / str(rows))
        alone = trainer.train(run_of(rows), lengths=LENGTHS, store=folder).params
        for one, two in _leaves(nodes.unstack(everyone, node), alone):
            np.testing.assert_allclose(one, two, atol=1e-5)
    assert found.steps == 1


def _leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": TrainConfig(epochs=2)},
        {"columns": {"output_weights": np.ones((4, 4))}},
        {"objective": Objective(Spec("sequence", {"hard_weight": 0.5}))},
    ],
)
def test_nodes_that_differ_in_more_than_rows_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="Expected run of node 1 like those of node 0"):
        train_rounds(
            [run_of(8), run_of(4, **changes)],
            around(tmp_path),
            AGGREGATORS["mean"],
            rounds=1,
        )
