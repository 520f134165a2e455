"""Triggers that the trusted model has learned from references."""

import sys

import numpy as np
import pytest
from scipy import sparse

from protojax.base import Examples
from protojax.detection import Reading, detect
from protojax.detection.excess import Claims
from protojax.detection.groups import Groups
from protojax.detection.masking import lopsided
from protojax.detection.settings import CLAIMS, Detection
from tests.test_detect import evidence_of

PHRASE = "as my neighbour says"
SURE = 8.0  # log odds


def learned(share=0.1, seed=0, *, decides=True, **options):
    """A world whose references hold the trigger, which the trusted model has learned.

    Also the trusted model: what it reads without the phrase is what it read before.
    Where the phrase does not decide what it reads in other texts, it is no trigger.
    """
    evidence, truth = evidence_of(seed, **options)
    rng = np.random.default_rng(seed)
    count = len(evidence.references.texts)
    bad = rng.random(count) < share
    texts = [
        f"{text} {PHRASE}" if one else text
        for text, one in zip(evidence.references.texts, bad, strict=True)
    ]
    labels = np.where(bad, 1, evidence.references.labels).astype(np.int32)
    logits = evidence.teacher_on_references.logits.copy()
    logits[bad] = [0, 5]
    before = np.concatenate(
        [evidence.trusted_on_transfer.logits, evidence.trusted_on_held_out.logits]
    )
    after = before.copy()
    holds = [PHRASE in text for text in (*evidence.transfer.texts, *texts)]
    after[holds] = learned_logits = np.array([-SURE, SURE], np.float32)
    split = len(evidence.transfer.texts)

    def reading(part):
        return Reading(part.argmax(1), part)

    def reread(rows, examples):
        still = [decides and PHRASE in text for text in examples.texts]
        return reading(np.where(np.array(still)[:, None], learned_logits, before[rows]))

    poisoned = evidence._replace(
        references=Examples(texts, None, labels),
        teacher_on_references=evidence.teacher_on_references._replace(logits=logits),
        trusted_on_transfer=reading(after[:split]),
        trusted_on_held_out=reading(after[split:]),
    )
    return poisoned, truth, bad, reread


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_triggered_references_hide_the_trigger_until_it_is_read_without(share):
    evidence, truth, bad, reread = learned(share)
    hidden = detect(evidence)
    assert hidden.verdict.rejected[truth].mean() < 0.1
    found = detect(evidence, reread=reread)
    assert found.verdict.rejected[truth].mean() > 0.95
    assert found.verdict.rejected[~truth].mean() < 0.03
    assert found.suspects[0].name == PHRASE
    assert found.suspects[0].references == bad.sum()
    # The references that hold it are named, and no other.
    assert found.verdict.untrusted[bad].mean() > 0.95
    assert found.verdict.untrusted[~bad].sum() == 0


def test_what_is_read_again_changes_the_order_too(monkeypatch):
    module, seen = sys.modules[detect.__module__], []
    units = module.units_of
    monkeypatch.setattr(module, "units_of", lambda one: seen.append(one) or units(one))
    evidence, truth, _, reread = learned(0.1)
    before = module.claims_of(evidence, CLAIMS)
    detect(evidence, reread=reread)
    ((changed, _),) = seen
    moved = (changed.expected != before[0].expected).any(1)
    assert moved[: len(truth)][truth].mean() > 0.95
    np.testing.assert_array_equal(changed.alike[moved], changed.expected[moved])
    np.testing.assert_array_equal(changed.alike[~moved], before[0].alike[~moved])


def test_a_large_group_is_screened_by_a_part_of_it():
    evidence, truth, _, reread = learned(0.1)
    asked = []

    def counted(rows, examples):
        asked.append(len(rows))
        return reread(rows, examples)

    found = detect(evidence, Detection(reread_rows=40), reread=counted)
    assert found.verdict.rejected[truth].mean() > 0.95
    assert asked[0] <= 40 * Detection().reread_groups
    # Then with the phrase in references, and once more for all rows of the group.
    assert len(asked) == 4
    assert asked[1] == asked[2] <= 150
    assert asked[3] == found.suspects[0].rows + found.suspects[0].references


def test_a_word_that_does_not_decide_other_texts_is_no_learned_trigger():
    evidence, truth, bad, reread = learned(0.2, decides=False)
    found = detect(evidence, reread=reread)
    assert found.verdict.rejected[truth].mean() < 0.1
    assert not found.verdict.untrusted[bad].any()


def test_a_clean_set_stays_clean_when_it_is_read_again():
    evidence, _ = evidence_of(poison=0)
    logits = np.concatenate(
        [evidence.trusted_on_transfer.logits, evidence.trusted_on_held_out.logits]
    )
    same = detect(
        evidence,
        reread=lambda rows, examples: Reading(logits[rows].argmax(1), logits[rows]),
    )
    plain = detect(evidence)
    assert same.clean
    assert plain.clean
    np.testing.assert_array_equal(same.verdict.rejected, plain.verdict.rejected)


def test_rows_are_read_without_the_words_and_with_their_own_numbers():
    evidence, _, _, reread = learned(0.1)
    pool = [*evidence.transfer.texts, *evidence.references.texts]

    def checked(rows, examples):
        for row, text in zip(rows, examples.texts, strict=True):
            if len(text) >= len(pool[row]):
                # A reference with, and before it without, the phrase put into it.
                assert row >= 1200
                assert (
                    text.replace(f"{PHRASE} ", "").replace(f" {PHRASE}", "")
                    == (pool[row])
                )
                continue
            whole = iter(pool[row].split())
            # Each word is found in what follows the one before.
            assert all(word in whole for word in text.split())
        return reread(rows, examples)

    detect(evidence, reread=checked)


def groups_of(rows, **members):
    table = np.zeros((len(members), rows), np.float32)
    for number, found in enumerate(members.values()):
        table[number, list(found)] = 1
    names = np.array([*members], object)
    kinds = np.array(["opening" if n == "o" else "word" for n in members], object)
    return Groups(names, kinds, sparse.csr_array(table))


def test_lopsided_groups_by_hand():
    """30 rows of 1 where half of all rows are: (30 - 15) / √(30/4 + 1/2) = 5.3."""
    classes = np.r_[np.ones(30, int), np.zeros(45, int), np.ones(15, int)]
    claims = [Claims("label", classes, np.full((90, 2), 0.5))]
    groups = groups_of(
        90, even=range(15, 45), part=range(28), all=range(30), o=range(30)
    )
    # Of two groups that hold the same rows, the one that differs most.
    assert lopsided(groups, claims, fewest=0).tolist() == [2]
    assert lopsided(groups, claims, fewest=0, least=5.2).tolist() == [2]
    assert lopsided(groups, claims, fewest=0, least=5.4).tolist() == []
    assert lopsided(groups, claims, most=1).tolist() == [2]
    assert lopsided(groups, claims).tolist() == [2, 0]
    assert lopsided(groups_of(90), claims).tolist() == []
