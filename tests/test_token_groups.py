"""Groups of rows that share a token, against loops over rows and tokens."""

import math

import numpy as np
import pytest

from experiments.former.consistency import Claims, neighbourhood_scores
from experiments.former.token_groups import (
    class_associated_tokens,
    co_occurring_tokens,
    token_p_values,
    token_scores,
)
from protojax.detection.conformal import expected_disagreement, quarantine
from tests.test_consistency import HALF, constant_claims, join, sample


def token_rows(rng, claims):
    """One to five random tokens of 30 for each row, some of them twice."""
    tokens = rng.integers(0, 30, (len(claims.classes), 5))
    tokens[rng.random(tokens.shape) < 0.4] = -1
    return tokens


@pytest.mark.parametrize("overdispersion", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("asked", [0.0, 0.5])
def test_token_scores_match_a_loop(overdispersion, asked):
    rng = np.random.default_rng(11)
    transfer, refs = sample(rng, 60), sample(rng, 30)
    expected = expected_disagreement(refs.confidence, refs.disagree)
    rows = join(transfer, refs)
    tokens = token_rows(rng, rows)
    tokens[7] = -1
    hidden = rng.integers(0, 2, tokens.shape).astype(float)
    hidden[rng.random(tokens.shape) >= asked] = np.nan
    found = token_scores(
        transfer,
        refs,
        expected,
        tokens[:60],
        tokens[60:],
        overdispersion=overdispersion,
        masked_disagreement=(hidden[:60], hidden[60:]) if asked else None,
    )
    rate = expected.predict(rows.confidence)
    for row, score in enumerate(np.concatenate(found)):
        best = -np.inf
        for token in set(tokens[row]) - {-1}:
            members = [
                other
                for other in range(90)
                if token in tokens[other] and rows.classes[other] == rows.classes[row]
            ]
            excess = 0.0
            for member in members:
                first = list(tokens[member]).index(token)
                seen = hidden[member, first]
                seen = rows.disagree[member] if np.isnan(seen) else seen
                excess += seen - rate[member]
            least = expected.average * (1 - expected.average)
            variance = sum(max(rate[m] * (1 - rate[m]), least) for m in members)
            spread = variance + (overdispersion * len(members)) ** 2
            best = max(best, excess / np.sqrt(spread))
        np.testing.assert_allclose(score, best if best > -np.inf else 0, atol=1e-6)


def test_token_scores_ignore_order_and_repetition():
    rng = np.random.default_rng(12)
    transfer, refs = sample(rng, 40), sample(rng, 40)
    tokens = token_rows(rng, join(transfer, refs))
    again = np.concatenate([tokens, tokens], axis=1)[:, rng.permutation(10)]
    one = token_scores(transfer, refs, HALF, tokens[:40], tokens[40:])
    two = token_scores(transfer, refs, HALF, again[:40], again[40:])
    np.testing.assert_array_equal(one, two)


def test_a_word_trigger_is_found_where_no_neighbourhood_shows_it():
    """Poison scattered among clean rows of the target: only the word is common."""
    rng = np.random.default_rng(13)
    transfer, refs = sample(rng, 600), sample(rng, 200)
    poison = Claims(
        rng.normal(size=(30, 2)).astype(np.float32),
        np.ones(30, int),
        np.full(30, 0.97),
        (rng.random(30) < 0.85).astype(np.float32),
    )
    rows = join(transfer, poison)
    tokens = rng.integers(0, 50, (630, 4))
    tokens[600:, 2] = 99
    expected = expected_disagreement(refs.confidence, refs.disagree)
    shared = token_scores(rows, refs, expected, tokens, rng.integers(0, 50, (200, 4)))
    near = neighbourhood_scores(rows, refs, expected, num_neighbours=20)
    alone = quarantine([near], rows.classes, refs.classes, alpha=0.05)
    both = quarantine([near, shared], rows.classes, refs.classes, alpha=0.05)
    assert alone.rejected[600:].mean() < 0.5
    assert both.rejected[600:].all()
    assert both.rejected[:600].mean() < 0.1


def test_clean_tokens_are_rejected_at_the_stated_rate():
    rates = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        transfer, refs = sample(rng, 300), sample(rng, 100)
        tokens = token_rows(rng, join(transfer, refs))
        scores = token_scores(
            transfer,
            refs,
            expected_disagreement(refs.confidence, refs.disagree),
            tokens[:300],
            tokens[300:],
        )
        found = quarantine([scores], transfer.classes, refs.classes, alpha=0.1)
        rates.append(found.rejected.mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert 0.03 < np.mean(rates) < 0.1 + 3 * error


def test_a_word_that_changes_the_trusted_model_is_found_once_it_is_hidden():
    """The trusted model agrees with all poison as long as it sees the word."""
    rng = np.random.default_rng(14)
    transfer, refs = sample(rng, 600), sample(rng, 200)
    poison = Claims(
        rng.normal(size=(30, 2)).astype(np.float32),
        np.ones(30, int),
        np.full(30, 0.97),
        np.zeros(30, np.float32),
    )
    rows = join(transfer, poison)
    tokens = rng.integers(0, 50, (630, 4))
    tokens[600:, 2] = 99
    tokens_refs = rng.integers(0, 50, (200, 4))
    asked, asked_refs = class_associated_tokens(
        rows.classes, refs.classes, tokens, tokens_refs
    )
    assert asked[600:, 2].all()
    assert asked.mean() < 0.1
    # Without the word it denies most poison; without another it is as it was.
    masked_disagreement = np.where(asked, np.asarray(rows.disagree)[:, None], np.nan)
    masked_disagreement[600:, 2] = rng.random(30) < 0.85
    blind_refs = np.where(asked_refs, np.asarray(refs.disagree)[:, None], np.nan)
    expected = expected_disagreement(refs.confidence, refs.disagree)
    given = rows, refs, expected, tokens, tokens_refs
    seen = quarantine([token_scores(*given)], rows.classes, refs.classes, alpha=0.05)
    found = quarantine(
        [token_scores(*given, masked_disagreement=(masked_disagreement, blind_refs))],
        rows.classes,
        refs.classes,
        alpha=0.05,
    )
    assert not seen.rejected[600:].any()
    assert found.rejected[600:].all()
    assert found.rejected[:600].mean() < 0.1


def test_lopsided_tokens_match_a_loop():
    rng = np.random.default_rng(15)
    classes = rng.integers(0, 3, 80)
    tokens = rng.integers(-1, 12, (80, 6))
    tokens[:30, 0] = np.where(classes[:30] == 2, 77, tokens[:30, 0])
    found = class_associated_tokens(
        classes[:60], classes[60:], tokens[:60], tokens[60:], least_rows=4, level=0.05
    )
    found = np.concatenate(found)
    for row in range(80):
        for place, token in enumerate(tokens[row]):
            if token < 0 or token in tokens[row, :place]:
                assert not found[row, place]
                continue
            holders = [other for other in range(80) if token in tokens[other]]
            same = sum(classes[other] == classes[row] for other in holders)
            share = np.mean(classes == classes[row])
            chance = sum(
                math.comb(len(holders), k)
                * share**k
                * (1 - share) ** (len(holders) - k)
                for k in range(same, len(holders) + 1)
            )
            assert found[row, place] == (chance <= 0.05 and same >= 4)
    assert found[classes == 2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"least_rows": 0}, "least_rows > 0"), ({"level": 1.0}, r"level in \(0, 1\)")],
)
def test_limits_of_lopsided_tokens_are_checked(options, message):
    none = np.zeros((0, 1), int)
    with pytest.raises(ValueError, match=message):
        class_associated_tokens(
            np.zeros(2), np.zeros(0), np.zeros((2, 1), int), none, **options
        )


def test_each_group_of_references_counts_once_and_a_rows_own_does_not():
    rng = np.random.default_rng(16)
    classes_refs, tokens_refs = rng.integers(0, 2, 90), rng.integers(-1, 30, 90)
    level = rng.normal(size=(2, 31))
    scores_refs = level[classes_refs, tokens_refs]
    classes, tokens = rng.integers(0, 2, 40), rng.integers(-1, 30, 40)
    scores = rng.normal(size=40)
    found = token_p_values(
        scores, tokens, scores_refs, tokens_refs, classes, classes_refs, alpha=0.2
    )
    for row in range(40):
        others = {
            (token, level[classes[row], token])
            for token, claim in zip(tokens_refs, classes_refs, strict=True)
            if claim == classes[row] and (token != tokens[row] or token < 0)
        }
        above = sum(score >= scores[row] for _, score in others)
        assert found[row] == pytest.approx((1 + above) / (1 + len(others)))


def test_too_few_groups_leave_all_references():
    given = np.array([5.0]), np.array([3]), np.arange(9.0), np.full(9, 3)
    found = token_p_values(*given, np.zeros(1), np.zeros(9), alpha=0.5)
    assert found.tolist() == [0.5]  # of nine references four score as high


def test_clean_groups_are_rejected_at_the_stated_rate_and_contamination_excuses_none():
    clean, poison = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        level = rng.normal(size=400)
        held, held_refs = rng.integers(0, 400, 600), rng.integers(0, 400, 100)
        # A trigger's group scores higher than any; a fifth of the references hold it.
        level[7], held[:30], held_refs[:20] = 9.0, 7, 7
        same = np.zeros(600)
        p_values = token_p_values(
            level[held], held, level[held_refs], held_refs, same, same[:100], alpha=0.05
        )
        clean.append(np.mean(p_values[held != 7] <= 0.05))
        poison.append(np.mean(p_values[:30] <= 0.05))
    assert np.mean(poison) == 1
    error = np.std(clean) / np.sqrt(len(clean))
    assert 0.01 < np.mean(clean) < 0.05 + 3 * error


def test_companions_match_a_loop():
    rng = np.random.default_rng(17)
    classes = rng.integers(0, 2, 50)
    tokens = rng.integers(-1, 15, (50, 6))
    tokens[:20, 1], tokens[:19, 4] = 77, 78
    asked = rng.random((50, 6)) < 0.2
    asked &= tokens >= 0
    asked[:20, 1] = True
    found = co_occurring_tokens(classes, tokens, asked, share=0.8)
    for (row, place), hidden in zip(np.argwhere(asked), found, strict=True):
        token = tokens[row, place]
        holders = [
            other
            for other in range(50)
            if classes[other] == classes[row] and token in tokens[other]
        ]
        for at, other in enumerate(tokens[row]):
            share = np.mean([other in tokens[holder] for holder in holders])
            assert hidden[at] == (other >= 0 and share >= 0.8)


def test_two_words_of_one_trigger_are_hidden_together():
    tokens = np.random.default_rng(18).integers(0, 500, (40, 6))
    tokens[:, 2], tokens[:, 5] = 901, 902
    hidden = co_occurring_tokens(np.ones(40), tokens, tokens == 901)
    assert hidden[:, [2, 5]].all()
    assert hidden.sum() < 85  # hardly any other word


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_companions_reject(share):
    with pytest.raises(ValueError, match="share"):
        co_occurring_tokens(
            np.ones(1), np.ones((1, 1)), np.ones((1, 1), bool), share=share
        )
    with pytest.raises(ValueError, match=r"asked\.shape"):
        co_occurring_tokens(np.ones(1), np.ones((1, 1)), np.ones((1, 2), bool))


def test_hidden_tokens_of_another_shape_are_refused():
    rows, tokens = constant_claims(4, 0.0), np.zeros((4, 2), int)
    with pytest.raises(ValueError, match="shape"):
        token_scores(
            rows,
            rows,
            HALF,
            tokens,
            tokens,
            masked_disagreement=(np.zeros((4, 3)), np.zeros((4, 2))),
        )


def test_broken_tokens_are_refused():
    rows = constant_claims(30, 0.0)
    with pytest.raises(ValueError, match=r"len\(tokens\)=4"):
        token_scores(rows, rows, HALF, np.zeros((4, 1), int), np.zeros((30, 1), int))
    with pytest.raises(ValueError, match="overdispersion >= 0"):
        token_scores(
            rows,
            rows,
            HALF,
            np.zeros((30, 1), int),
            np.zeros((30, 1), int),
            overdispersion=-1,
        )
