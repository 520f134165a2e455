import numpy as np

from protojax.base import Examples, TeacherOutputs
from protojax.detection import sample_test
from protojax.detection.evidence import Evidence, Reading


def evidence_of(posterior, posterior_refs, claims, claims_refs):
    """Returns evidence in which a teacher claims classes and a trusted model reads."""

    def outputs(claimed):
        return TeacherOutputs(np.eye(2)[claimed], np.zeros((len(claimed), 0, 0)))

    def examples(claimed):
        return Examples(["a"] * len(claimed), None, np.asarray(claimed))

    def reading(chances):
        return Reading(np.argmax(chances, 1), np.log(chances))

    return Evidence(
        examples(claims),
        outputs(claims),
        examples(claims_refs),
        outputs(claims_refs),
        np.arange(len(claims_refs)),
        reading(posterior),
        reading(posterior_refs),
    )


def test_sample_test_by_hand():
    # Of 9 references with scores 0.1, ..., 0.9, five score at least 0.5.
    refs = np.linspace(0.9, 0.1, 9)
    posterior_refs = np.stack([refs, 1 - refs], axis=1)
    posterior = np.array([[0.45, 0.55], [0.05, 0.95]])
    found = sample_test(
        evidence_of(posterior, posterior_refs, [0, 0], [0] * 9), false_rejection=0.1
    )
    np.testing.assert_allclose(found.p_values, [0.5, 0.1])
    np.testing.assert_array_equal(found.rejected, [False, True])
    np.testing.assert_array_equal(found.trusted_classes, [1, 1])


def test_sample_test_keeps_its_rate():
    rng = np.random.default_rng(11)
    rates = []
    for _ in range(200):
        posterior = rng.dirichlet(np.ones(2), 199)
        claims = np.arange(199) % 2
        evidence = evidence_of(posterior[:41], posterior[41:], claims[:41], claims[41:])
        found = sample_test(evidence, false_rejection=0.2)
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert 0.1 <= np.mean(rates) <= 0.2 + 3 * error
