"""Bounds of epsilon against closed forms, and a broken DP-SGD, which is caught."""

import functools
import sys

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from protojax.base import Batch
from protojax.distillation import GRADIENTS
from protojax.privacy.dp_audit import (
    audited,
    ceiling,
    epsilon_lower_bound,
    epsilon_one_run,
    one_run_ceiling,
    require_stated,
)
from protojax.privacy.findings import ALWAYS, ORDINARY
from protojax.privacy.membership_attacks import lira
from protojax.privacy.memberships import coin_flips, complementary_halves

pytest.importorskip("jax_privacy.auditing")

HUNDRED = np.repeat([1.0, 0.0], 100)
MEMBERS = HUNDRED > 0


def test_bounds_of_perfect_attacks():
    exact = epsilon_lower_bound(HUNDRED, MEMBERS, threshold=0.5)
    assert exact == pytest.approx(3.2813, abs=5e-5)
    assert exact == pytest.approx(ceiling(100, 100), abs=1e-9)
    corrected = epsilon_lower_bound(HUNDRED, MEMBERS, strategy="bonferroni")
    assert corrected == pytest.approx(3.0151, abs=5e-5)
    half = epsilon_lower_bound(HUNDRED, MEMBERS, strategy="split")
    assert half == pytest.approx(ceiling(50, 50), abs=1e-9)
    one_run = epsilon_one_run(HUNDRED, MEMBERS, delta=1e-12, threshold=0.5)
    assert one_run == pytest.approx(3.4930, abs=5e-5)
    assert one_run == pytest.approx(one_run_ceiling(100), abs=1e-5)
    # A stated delta explains some of it.
    assert epsilon_one_run(HUNDRED, MEMBERS, delta=1e-3, threshold=0.5) < one_run


def test_ceilings():
    # Each side's exact bound at 2.5 %.
    low, high = stats.beta.ppf(0.025, 100, 1), stats.beta.ppf(0.975, 1, 100)
    assert ceiling(100, 100) == pytest.approx(np.log(low / high))
    assert ceiling(2, 2) == 0
    assert one_run_ceiling(1) == 0
    q = 0.05 ** (1 / 9000)
    assert one_run_ceiling(9000) == pytest.approx(np.log(q / (1 - q)))
    assert one_run_ceiling(9000) == pytest.approx(8, abs=0.02)


def test_what_knows_nothing_bounds_nothing():
    rng = np.random.default_rng(0)
    members = coin_flips(2000, seed=0)[0]
    evidence = rng.normal(size=2000)
    assert epsilon_lower_bound(evidence, members) < 0.3
    assert epsilon_one_run(evidence, members, delta=1e-5) < 0.3


@pytest.mark.parametrize(
    ("evidence", "members", "options", "message"),
    [
        (np.zeros(3), np.zeros(2), {}, "members.shape"),
        (np.zeros(2), np.zeros(2), {}, "num_members > 0"),
        (np.full(2, np.nan), [True, False], {}, "evidence finite"),
        (np.zeros((2, 2)), np.zeros((2, 2)), {}, "evidence.ndim 1"),
        (HUNDRED, MEMBERS, {"strategy": "splits"}, "Did you mean 'split'"),
    ],
)
def test_bounds_of_arrays_that_do_not_fit(evidence, members, options, message):
    with pytest.raises(ValueError, match=message):
        epsilon_lower_bound(evidence, members, **options)


def test_without_the_extra_an_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy.auditing", None)
    with pytest.raises(ImportError, match=r"pip install 'protojax\[dp\]'"):
        epsilon_lower_bound(HUNDRED, MEMBERS)


CANARIES = 2000
DELTA = 1e-5


def epsilon_of(noise_multiplier):
    """The exact epsilon of one Gaussian release (Balle and Wang 2018)."""

    def excess(epsilon):
        half, rest = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        outer = np.exp(epsilon) * stats.norm.cdf(-half - rest)
        return stats.norm.cdf(half - rest) - outer - DELTA

    return optimize.brentq(excess, 0, 50)


def own_direction(params, batch, prototypes, step, key):
    """A loss whose gradient has norm 5 in a direction of the row's own."""
    loss = 5 * params["weights"][batch.input_ids[:, 0]]
    return loss, {"own_loss": loss}


def dp_rule(noise_multiplier, clip_norm):
    return GRADIENTS["dp_sgd"](
        own_direction,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        expected_rows=1,
    )


@functools.cache
def one_step(noise_multiplier, clip_norm=1.0):
    """All that one step of DP-SGD releases, and the coins of its canaries.

    The best that any attacker could see: the gradients, of orthogonal canaries.
    """
    members = coin_flips(CANARIES, seed=1)[0]
    ids = np.arange(CANARIES, dtype=np.int32)[:, None]
    ones = np.ones_like(ids)
    batch = Batch(ids, ones, 0 * ids, np.zeros(CANARIES, np.int32), members)
    rule = dp_rule(noise_multiplier, clip_norm)
    weights = {"weights": np.zeros(CANARIES, np.float32)}
    grads, _ = jax.jit(rule)(weights, batch, None, 0, jax.random.key(0))
    return np.asarray(grads["weights"]), members


def bound(**options):
    return epsilon_one_run(*one_step(**options), delta=DELTA)


def test_dp_sgd_holds_what_it_states():
    assert epsilon_of(4.0) == pytest.approx(0.95, abs=0.05)
    found = bound(noise_multiplier=4.0)
    require_stated(found, epsilon_of(4.0))
    # Nor does an audit of less noise find more than there is, though it finds some.
    found = bound(noise_multiplier=1.0)
    assert 1 < found < epsilon_of(1.0)


def test_sampling_would_have_made_that_less():
    amplified = np.log1p(0.02 * np.expm1(epsilon_of(1.0)))
    assert amplified < 1 < epsilon_of(1.0)


@pytest.mark.parametrize(
    "broken",
    [
        # The noise left out.
        {"noise_multiplier": 0.0},
        # Noise for gradients of norm 1, which are clipped at 5.
        {"noise_multiplier": 4.0 / 5, "clip_norm": 5.0},
        # Noise for batches of 2 % of the rows at random, and every row in the batch.
        {"noise_multiplier": 1.0},
    ],
    ids=["noise", "clipping", "sampling"],
)
def test_broken_dp_sgd_is_caught(broken):
    with pytest.raises(ValueError, match="The stated epsilon 1 does not hold"):
        require_stated(bound(**broken), 1.0)


HALVES = complementary_halves(600, 16, seed=0)


@functools.cache
def runs(noise_multiplier, clip_norm=1.0):
    """What one step of DP-SGD releases of each row in each of 16 runs, `[runs, rows]`.

    As the scores of a model: of rows whose gradients are orthogonal.
    """
    count = HALVES.shape[1]
    ids = np.arange(count, dtype=np.int32)[:, None]
    rule = dp_rule(noise_multiplier, clip_norm)
    weights = {"weights": np.zeros(count, np.float32)}

    def released(members, key):
        ones = np.ones_like(ids)
        batch = Batch(ids, ones, 0 * ids, np.zeros(count, np.int32), members)
        return rule(weights, batch, None, 0, key)[0]["weights"]

    keys = jax.random.split(jax.random.key(1), len(HALVES))
    return np.asarray(jax.jit(jax.vmap(released))(HALVES, keys))


def test_the_runs_of_a_study_hold_what_they_state():
    kinds = np.full(HALVES.shape[1], "mislabelled")
    found = audited(
        runs(4.0), HALVES, delta=DELTA, kinds=kinds, control=runs(0.0), seed=1
    )
    require_stated(found.bound, epsilon_of(4.0))
    # Four of eight pairs are guessed, one run of each, and the evidence is perfect.
    assert found.trials == 4 * 600
    assert found.control == pytest.approx(found.ceiling)
    assert 4 < found.ceiling < one_run_ceiling(600)
    # Less noise is seen, but no more than there is.
    assert 1 < audited(runs(1.0), HALVES, delta=DELTA).bound < epsilon_of(1.0)


@pytest.mark.parametrize(
    "broken",
    [(0.0,), (4.0 / 5, 5.0), (1.0,)],
    ids=["noise", "clipping", "sampling"],
)
def test_runs_of_a_broken_dp_sgd_are_caught(broken):
    found = audited(runs(*broken), HALVES, delta=DELTA)
    with pytest.raises(ValueError, match="The stated epsilon 1 does not hold"):
        require_stated(found.bound, 1.0)


def test_the_audit_of_runs_guesses_some_by_the_others():
    scores = runs(1.0)
    guessed = [8, 10, 12, 14]
    evidence = [
        lira(scores[[one, *range(8)]], HALVES[[one, *range(8)]])[0] for one in guessed
    ]
    wanted = epsilon_one_run(np.ravel(evidence), HALVES[guessed].ravel(), delta=DELTA)
    assert audited(scores, HALVES, delta=DELTA).bound == wanted > 0


def test_the_audit_of_runs_takes_planted_rows_and_shares_the_significance():
    known = np.where(HALVES, 1.0, -1.0) + runs(4.0) / 1e3
    kinds = np.repeat([ORDINARY, "outlier", "mislabelled", ALWAYS], 150)
    members = HALVES | (kinds == ALWAYS)
    scores = np.where(kinds == "mislabelled", known, runs(4.0))
    found = audited(scores, members, delta=DELTA, kinds=kinds, control=known)
    assert (found.kind, found.trials) == ("mislabelled", 4 * 150)
    assert found.bound == found.control == found.ceiling
    alone = audited(
        scores[:, kinds == "mislabelled"],
        members[:, kinds == "mislabelled"],
        delta=DELTA,
        significance=0.025,
    )
    assert alone.bound == found.bound
    assert (alone.kind, alone.control) == (ORDINARY, None)


@pytest.mark.parametrize(
    ("scores", "members", "options", "message"),
    [
        (runs, HALVES[:4], {}, "pipelines 6 or more"),
        (runs, HALVES, {"kinds": np.full(3, "outlier")}, "kinds.shape"),
        (lambda noise: np.zeros((16, 3)), HALVES, {}, "scores.shape"),
        (runs, HALVES[::2], {}, "take more pipelines"),
    ],
)
def test_audits_of_runs_that_do_not_fit(scores, members, options, message):
    values = scores(4.0)[: len(members)]
    with pytest.raises(ValueError, match=message):
        audited(values, members, delta=DELTA, **options)
