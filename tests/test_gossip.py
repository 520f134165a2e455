"""Mixing matrices and mixing, plain and robust."""

import functools

import jax
import numpy as np
import pytest

from protojax.federated import aggregation, gossip
from tests.test_aggregation import reference

TRIMMED = functools.partial(aggregation.trimmed_mean, num_byzantine=1)


def make_states(num_nodes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": np.float32(rng.normal(size=(num_nodes, 3, 2))),
        "bias": np.float32(rng.normal(size=num_nodes)),
    }


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("name", gossip.TOPOLOGIES)
def test_topologies_mix(name, num_nodes):
    mixing = gossip.check_mixing(gossip.TOPOLOGIES[name](num_nodes))
    assert mixing.shape == (num_nodes, num_nodes)
    powers = np.linalg.matrix_power(np.float64(mixing), 200)
    np.testing.assert_allclose(powers, 1 / num_nodes, atol=1e-5)
    assert 0 < gossip.spectral_gap(mixing) <= 1


def test_degrees_are_those_of_the_papers():
    assert ((gossip.ring(8) > 0).sum(1) == 3).all()
    assert ((gossip.exponential(8) > 0).sum(1) == 4).all()
    assert ((gossip.complete(8) > 0).sum(1) == 8).all()


def test_denser_graphs_agree_faster():
    gaps = [
        gossip.spectral_gap(gossip.TOPOLOGIES[name](16))
        for name in ("ring", "exponential", "complete")
    ]
    assert gaps == sorted(gaps)
    # λ = 1/3 + 2/3 cos(2π/16), by hand.
    np.testing.assert_allclose(gaps[0], 1 - (1 + 2 * np.cos(np.pi / 8)) / 3)


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (np.ones((2, 3)), r"mixing.shape \[nodes, nodes\]"),
        (np.array([[1.5, -0.5], [-0.5, 1.5]]), "mixing >= 0"),
        (np.array([[0.5, 0.4], [0.5, 0.5]]), "row 0 with the sum 1"),
        (np.array([[0.5, 0.5], [0.4, 0.6]]), "column 1 with the sum 1"),
        (np.full((2, 2), np.nan), "mixing >= 0"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), "on its diagonal"),
        (np.kron(np.eye(2), np.full((2, 2), 0.5)), r"nodes \[2, 3\]"),
    ],
)
def test_other_matrices_are_refused(mixing, message):
    with pytest.raises(ValueError, match=message):
        gossip.check_mixing(mixing)


def test_mixing_is_the_matrix_product():
    states, mixing = make_states(5), gossip.ring(5)
    found = gossip.mix(states, mixing)
    for leaf, before in zip(
        jax.tree.leaves(found), jax.tree.leaves(states), strict=True
    ):
        for node in range(5):
            expected = sum(mixing[node, j] * np.asarray(before[j]) for j in range(5))
            np.testing.assert_allclose(leaf[node], expected, rtol=1e-5, atol=1e-6)


def uneven():
    """A star: the middle hears three, the others two."""
    mixing = np.diag([0.25, 0.75, 0.75, 0.75])
    mixing[0, 1:] = mixing[1:, 0] = 0.25
    return mixing


@pytest.mark.parametrize("mixing", [gossip.ring(6), gossip.exponential(6), uneven()])
def test_robust_mixing_is_each_node_by_itself(mixing):
    # A rule that hears weights, and that a loop computes exactly.
    states, rule = make_states(len(mixing)), aggregation.norm_clipping
    found = gossip.robust_mix(states, mixing, rule)
    rows = np.concatenate([states["kernel"].reshape(-1, 6), states["bias"][:, None]], 1)
    found = np.concatenate(
        [np.reshape(found["kernel"], (-1, 6)), np.array(found["bias"])[:, None]], 1
    )
    for node, weights in enumerate(mixing):
        heard = np.flatnonzero(weights)
        differences = np.float64(rows[heard] - rows[node])
        moved = reference("norm_clipping", differences, weights[heard])
        np.testing.assert_allclose(
            found[node], rows[node] + moved, rtol=1e-5, atol=1e-6
        )


def wheel():
    """Twelve nodes that hear seven to nine, and one that hears all (Metropolis)."""
    gaps = np.subtract.outer(np.arange(12), np.arange(12)) % 12
    heard = np.minimum(gaps, 12 - gaps) <= 3
    heard[0] = heard[:, 0] = True
    np.fill_diagonal(heard, False)
    degrees = heard.sum(1)
    mixing = np.where(heard, 1 / (1 + np.maximum.outer(degrees, degrees)), 0.0)
    return gossip.check_mixing(mixing + np.diag(1 - mixing.sum(1)))


# One of the rules that mix first will do: mixing is the same code in all.
HEARD = [name for name in sorted(aggregation.AGGREGATORS) if "mixed" not in name]


@pytest.mark.parametrize("name", [*HEARD, "mixed_median"])
def test_a_node_that_hears_few_stands_as_many_liars(name):
    counts = "krum" in name or "trimmed" in name or "mixed" in name
    args = {"num_byzantine": 2} if counts else {}
    rule = functools.partial(aggregation.AGGREGATORS[name], **args)
    by_itself = jax.jit(rule)
    mixing = wheel()
    assert len(set((mixing > 0).sum(1))) > 2
    honest = ~np.isin(np.arange(12), (5, 6))
    # Not evenly apart: two of the same distance are chosen between by rounding.
    states = np.random.default_rng(0).uniform(0, 0.5, 12)
    states = np.where(honest, states, 1e3)[:, None]
    states = np.float32(states)
    found = np.asarray(gossip.robust_mix(states, mixing, rule))
    if name != "mean":
        most = 1.0 if "clipping" in name else 0.5
        assert ((found >= 0) & (found <= most))[honest].all()
    for node in np.flatnonzero(honest):
        weights = mixing[node]
        heard = np.flatnonzero(weights)
        differences = np.asarray(states[heard] - states[node], np.float64)
        # An iteration that is cut off is compared with itself only.
        one = by_itself if "geometric" in name else functools.partial(reference, name)
        moved = np.asarray(one(differences, weights=weights[heard]))
        np.testing.assert_allclose(
            found[node], states[node] + moved, rtol=1e-4, atol=1e-5
        )


def test_a_mean_in_the_place_of_the_rule_mixes():
    states, mixing = make_states(6), gossip.exponential(6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        gossip.robust_mix(states, mixing, aggregation.mean),
        gossip.mix(states, mixing),
    )


@pytest.mark.parametrize("lie", [np.nan, np.inf, 1e6])
def test_a_liar_does_not_move_its_neighbours_far(lie):
    own = {"w": np.float32(np.random.default_rng(0).normal(size=(6, 4)))}
    sent = jax.tree.map(np.copy, own)
    sent["w"][2] = lie
    found = gossip.robust_mix(sent, gossip.complete(6), TRIMMED, own=own)
    honest = np.delete(np.asarray(own["w"]), 2, axis=0)
    inside = np.delete(np.asarray(found["w"]), 2, axis=0)
    assert (honest.min(0) - 1e-5 <= inside).all()
    assert (inside <= honest.max(0) + 1e-5).all()
    plain = np.asarray(gossip.mix(sent, gossip.complete(6))["w"])
    assert not (np.abs(plain) < 1e3).any()


def test_rules_count_neighbours_not_nodes():
    with pytest.raises(ValueError, match="num_nodes >= 5"):
        gossip.robust_mix(
            make_states(8),
            gossip.ring(8),
            functools.partial(aggregation.trimmed_mean, num_byzantine=2),
        )
