"""The group test in rounds: strong triggers do not hide weak ones."""

import numpy as np
import pytest

from experiments.arms import quarantine, token_groups
from experiments.former import token_groups as group_scores
from experiments.former.consistency import Claims
from experiments.runtime import Context
from experiments.study import check
from experiments.study.defaults import defaults
from experiments.world import trusted_model
from experiments.world.scenarios import Scenario
from protojax.detection import conformal
from protojax.detection.evidence import Reading

SCENARIO = Scenario("files", 0, "it")
STRONG, WEAK = slice(0, 60), slice(60, 75)
ROWS = 600


def claims(rng, rows):
    """Rows of one class, denied now and then, and two tokens of each.

    The first is its own or nothing's; the second may be a common one (2).
    """
    tokens = np.stack([100 + rng.integers(0, 40, rows), np.full(rows, -1)], axis=1)
    tokens[rng.random(rows) < 0.08, 1] = 2
    disagree = (rng.random(rows) < 0.05).astype(np.float32)
    place = np.zeros((rows, 1))
    return Claims(place, np.zeros(rows, int), np.full(rows, 0.9), disagree), tokens


@pytest.fixture
def judged(monkeypatch):
    """Judges synthetic rows in so many rounds.

    The strong trigger is a rare word (1) and the common one, so that references with
    the latter score high; the weak one is another rare word (3).
    """
    rng = np.random.default_rng(0)
    (transfer, tokens), (refs, tokens_refs) = claims(rng, ROWS), claims(rng, 300)
    tokens[STRONG], tokens[WEAK] = (1, 2), (3, -1)
    transfer.disagree[STRONG] = rng.random(60) < 0.95
    transfer.disagree[WEAK] = np.arange(15) < 9
    expected = conformal.expected_disagreement(refs.confidence, refs.disagree)
    test = quarantine.Test(transfer, refs, expected, True)
    view = Reading(np.arange(ROWS), np.zeros((ROWS, 2)))
    parts = [token_groups.Words(None, ids, {}) for ids in (tokens, tokens_refs, None)]
    monkeypatch.setattr(quarantine, "_tests", lambda *_: [test])
    monkeypatch.setattr(trusted_model, "trusted_reading", lambda *_: view)
    monkeypatch.setattr(token_groups, "words", lambda *_: parts)

    def judge(rounds):
        quarantine.judge.cache_clear()
        config = defaults()
        config.quarantine.groups = ("tokens",)
        config.quarantine.rounds = rounds
        context = Context(check.check(config), None, None, 0)
        return quarantine.judge(context, SCENARIO, None)

    return judge, test, tokens, tokens_refs


@pytest.mark.parametrize("shares", [(1,), (1 / 2, 1 / 2), (1 / 2, 1 / 4, 1 / 4)])
def test_rounds_are_a_loop_over_what_is_left(judged, shares):
    judge, test, tokens, tokens_refs = judged
    rejected = np.zeros(ROWS, bool)
    p_values = np.ones(ROWS)
    for share in shares:
        kept = np.flatnonzero(~rejected)
        rows = Claims(*(column[kept] for column in test.transfer))
        scores = group_scores.token_scores(
            rows,
            test.refs,
            test.expected.whatever_confidence,
            tokens[kept],
            tokens_refs,
        )
        found = conformal.quarantine(
            [scores], rows.classes, test.refs.classes, alpha=0.05 * share
        )
        rejected[kept[found.rejected]] = True
        p_values[kept] = np.minimum(p_values[kept], found.p_values / share)
    verdict = judge(len(shares))
    np.testing.assert_array_equal(verdict.rejected, rejected)
    np.testing.assert_allclose(verdict.p_values, p_values)
    # Every row has its own view, whatever round it was rejected in.
    np.testing.assert_array_equal(verdict.trusted_classes, np.arange(ROWS))


def test_weak_poison_is_found_once_the_strong_is_gone(judged):
    judge, *_ = judged
    once, thrice = judge(1), judge(3)
    for verdict in (once, thrice):
        assert verdict.rejected[STRONG].all()
        assert verdict.rejected[75:].mean() <= 0.05
    assert not once.rejected[WEAK].any()
    assert thrice.rejected[WEAK].all()


def test_low_confidence_is_no_excuse_of_a_shared_token(judged, monkeypatch):
    judge, test, *_ = judged
    # Where the teacher is unsure the trusted model denies clean claims as often as
    # poison.
    test.transfer.confidence[STRONG] = 0.4
    test.refs.confidence[:8], test.refs.disagree[:8] = 0.4, 1.0
    expected = conformal.expected_disagreement(test.refs.confidence, test.refs.disagree)
    assert expected.predict(0.4) > 0.9
    unsure = test._replace(expected=expected)
    monkeypatch.setattr(quarantine, "_tests", lambda *_: [unsure])
    assert judge(1).rejected[STRONG].all()


def test_the_test_ends_where_nothing_is_rejected(judged, monkeypatch):
    judge, *_ = judged
    calls, once = [], quarantine._judge_once

    def counted(*args, **options):
        calls.append(options["share"])
        return once(*args, **options)

    monkeypatch.setattr(quarantine, "_judge_once", counted)
    judge(8)
    assert 2 <= len(calls) < 8
    assert calls == [0.5**count for count in range(1, len(calls) + 1)]
