import numpy as np
import pytest

from protojax.detection.baselines.sample_test import sample_gate


def test_sample_gate_by_hand():
    # Of 9 references with scores 0.1, ..., 0.9, five score at least 0.5.
    refs = np.linspace(0.9, 0.1, 9)
    posterior_refs = np.stack([refs, 1 - refs], axis=1)
    posterior = np.array([[0.5, 0.5], [0.05, 0.95]])
    found = sample_gate(posterior, np.zeros(2), posterior_refs, np.zeros(9), alpha=0.1)
    np.testing.assert_allclose(found.p_values, [0.6, 0.1])
    np.testing.assert_array_equal(found.rejected, [False, True])


@pytest.mark.parametrize("claim", [-1, 2])
def test_sample_gate_names_claims_that_are_no_class(claim):
    posterior, refs = np.array([[0.9, 0.1]]), np.tile([0.9, 0.1], (19, 1))
    with pytest.raises(ValueError, match=rf"claims in \[0, 2\), found claims={claim}"):
        sample_gate(posterior, np.array([claim]), refs, np.zeros(19))
    with pytest.raises(ValueError, match="claims"):
        sample_gate(posterior, np.zeros(1), refs, np.full(19, claim))


def test_sample_gate_keeps_its_rate():
    rng = np.random.default_rng(11)
    rates = []
    for _ in range(200):
        posterior = rng.dirichlet(np.ones(2), 199)
        claims = np.arange(199) % 2
        found = sample_gate(
            posterior[:41], claims[:41], posterior[41:], claims[41:], alpha=0.2
        )
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert 0.1 <= np.mean(rates) <= 0.2 + 3 * error
