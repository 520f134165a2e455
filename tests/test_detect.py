"""The test of a transfer set, from evidence to findings."""

import numpy as np
import pytest

from protojax.base import Examples, TeacherOutputs
from protojax.detection import Evidence, Reading, detect, excess, expectation
from protojax.detection.detect import claims_of
from protojax.detection.groups import tokens_of
from protojax.detection.settings import CLAIMS, Detection

WORDS = [f"w{number}" for number in range(300)]


def texts_of(rng, rows):
    """Texts whose words tell nothing of the class beyond what the trusted model says.

    A few words are common, as in any language.
    """
    chance = 1 / np.arange(1, len(WORDS) + 1)
    return [
        " ".join(rng.choice(WORDS, 10, p=chance / chance.sum())) for _ in range(rows)
    ]


def evidence_of(
    seed=0,
    rows=1200,
    references=400,
    poison=60,
    trigger="as my neighbour says",
    noise=0.1,
    channel="both",
):
    """A world of two classes: a trusted model that errs, claims that are noisy."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows + references)
    texts = texts_of(rng, len(truth))
    margin = rng.normal((2 * truth - 1) * 1.5, 1.5)
    trusted = np.stack([-margin, margin], 1).astype(np.float32)
    labels = np.where(rng.random(rows + references) < noise, 1 - truth, truth)
    teacher = np.where(rng.random(rows + references) < noise / 2, 1 - labels, labels)
    bad = rng.choice(np.flatnonzero(truth[:rows] == 0), poison, replace=False)
    for row in bad:
        words = texts[row].split()
        place = rng.integers(len(words) + 1)
        texts[row] = " ".join([*words[:place], trigger, *words[place:]])
    for given, name in ((labels, "label"), (teacher, "teacher")):
        if channel in ("both", name):
            given[bad] = 1
    logits = np.eye(2, dtype=np.float32)[teacher] * 5
    outputs = TeacherOutputs(logits, np.zeros((len(logits), 1, 2), np.float32))
    examples = Examples(texts, None, labels.astype(np.int32))
    own, refs = np.arange(rows), np.arange(rows, rows + references)

    def take(taken):
        return Examples([texts[row] for row in taken], None, examples.labels[taken])

    evidence = Evidence(
        take(own),
        outputs.take(own),
        take(refs),
        outputs.take(refs),
        held_out=np.arange(references),
        trusted_on_transfer=Reading(trusted.argmax(1)[own], trusted[own]),
        trusted_on_held_out=Reading(trusted.argmax(1)[refs], trusted[refs]),
    )
    return evidence, np.isin(own, bad)


@pytest.mark.parametrize("channel", ["both", "label", "teacher"])
def test_the_phrase_its_rows_and_its_class_are_found(channel):
    evidence, truth = evidence_of(channel=channel)
    found = detect(evidence)
    assert found.verdict.rejected[truth].all()
    assert found.verdict.rejected[~truth].mean() < 0.03
    first = found.suspects[0]
    assert (first.name, first.kind, first.label) == (
        "as my neighbour says",
        "phrase",
        1,
    )
    assert (first.rows, first.claimants, first.references) == (60, 60, 0)
    assert first.expected < 40
    assert first.strong
    assert not any(other.strong for other in found.suspects[1:])
    assert not found.clean
    np.testing.assert_array_equal(found.reasons[truth], 0)
    if channel != "both":
        assert first.claim == channel


def test_suspects_are_the_groups_of_rejected_rows_the_strongest_first():
    evidence, _ = evidence_of()
    found = detect(evidence, Detection(false_rejection=0.1))
    assert np.diff([one.z for one in found.suspects]).max() <= 0
    np.testing.assert_array_equal(found.reasons >= 0, found.verdict.rejected)
    for row in np.flatnonzero(found.reasons >= 0)[::7]:
        one = found.suspects[found.reasons[row]]
        tokens = tokens_of(evidence.transfer.texts[row])
        assert all(
            token in tokens
            for token in one.name.replace(" ...", "").replace(" + ", " ").split()
        )


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_honest_rows_are_rejected_at_the_stated_rate_and_clean_sets_called_clean(noise):
    """Eight sets of 1,200 rows and 400 references: the guarantee at its bound."""
    rates, clean = {0.05: [], 0.2: []}, []
    for seed in range(8):
        evidence, _ = evidence_of(seed, poison=0, noise=noise)
        for rate, found in rates.items():
            result = detect(evidence, Detection(false_rejection=rate))
            found.append(result.verdict.rejected.mean())
        clean.append(result.clean)
    for rate, found in rates.items():
        # Within a set rows are rejected by groups, so that sets differ.
        margin = 3 * np.std(found, ddof=1) / np.sqrt(len(found))
        assert np.mean(found) <= rate + margin
        assert np.mean(found) >= rate / 4
    assert np.mean(clean) >= 7 / 8


def test_rows_and_references_are_judged_alike():
    """Exchanging one for the other exchanges their scores, up to the fits."""
    evidence, _ = evidence_of(rows=500, references=500, poison=0)
    swapped = Evidence(
        evidence.references,
        evidence.teacher_on_references,
        evidence.transfer,
        evidence.teacher,
        held_out=np.arange(500),
        trusted_on_transfer=evidence.trusted_on_held_out,
        trusted_on_held_out=evidence.trusted_on_transfer,
    )
    rates = [
        detect(given, Detection(false_rejection=0.2)).verdict.rejected.mean()
        for given in (evidence, swapped)
    ]
    assert max(rates) < 0.35


def with_words(texts, chosen, words="to be"):
    return [
        f"{text} {words}" if one else text
        for text, one in zip(texts, chosen, strict=True)
    ]


@pytest.mark.parametrize(("share", "strong"), [(0.0, True), (0.9, False)])
def test_a_group_that_references_have_in_excess_too_is_no_trigger(share, strong):
    """All rows with "to be" claim class 1; so do the references, or they do not."""
    evidence, _ = evidence_of(poison=0)
    rng = np.random.default_rng(3)
    rows, refs = rng.random(1200) < 0.1, rng.random(400) < 0.1
    labels = evidence.transfer.labels.copy()
    labels[rows] = 1
    ref_labels = evidence.references.labels.copy()
    ref_labels[refs & (rng.random(400) < share)] = 1
    changed = evidence._replace(
        transfer=evidence.transfer._replace(
            texts=with_words(evidence.transfer.texts, rows), labels=labels
        ),
        references=evidence.references._replace(
            texts=with_words(evidence.references.texts, refs), labels=ref_labels
        ),
    )
    logits = np.concatenate(
        [evidence.trusted_on_transfer.logits, evidence.trusted_on_held_out.logits]
    )

    def reread(rows, examples):
        return Reading(logits[rows].argmax(1), logits[rows])

    # The words flip no reference, so suspecting these changes nothing.
    for found in (detect(changed), detect(changed, reread=reread)):
        (one,) = (one for one in found.suspects if one.name == "to be")
        assert one.z > 6
        assert one.strong == strong
        assert found.clean != strong


def test_a_claim_can_be_left_out():
    evidence, truth = evidence_of(channel="label")
    by_teacher = detect(evidence, Detection(claims=("teacher",)))
    assert by_teacher.verdict.rejected[truth].mean() < 0.5
    (claims,) = claims_of(evidence, ("label",))
    assert claims.name == "label"
    assert len(claims.classes) == 1600
    assert {*CLAIMS} == {"teacher", "label"}


def test_the_pool_holds_the_held_out_references_only():
    evidence, truth = evidence_of()
    some = np.arange(150, 400)
    part = evidence._replace(
        held_out=some,
        trusted_on_held_out=evidence.trusted_on_held_out.take(some),
    )
    assert detect(part).verdict.rejected[truth].all()
    (claims, _) = claims_of(part, ("label", "teacher"))
    np.testing.assert_array_equal(
        claims.classes[1200:], evidence.references.labels[some]
    )


def test_labels_of_one_class_and_texts_without_words_are_no_error():
    evidence, _ = evidence_of(rows=200, references=150, poison=0)
    empty = evidence._replace(
        transfer=evidence.transfer._replace(texts=[" "] * 200),
        references=evidence.references._replace(texts=["\n"] * 150),
    )
    found = detect(empty)
    assert not found.verdict.rejected.any()
    assert (found.clean, found.suspects) == (True, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e._replace(trusted_on_transfer=None), "trusted"),
        (lambda e: e.take(np.arange(5))._replace(transfer=e.transfer), "transfer"),
    ],
    ids=["no trusted model", "other lengths"],
)
def test_evidence_that_does_not_fit_is_named(change, message):
    evidence, _ = evidence_of(rows=50, references=120, poison=5)
    with pytest.raises(ValueError, match=message):
        detect(change(evidence))


def test_too_few_references_for_the_level_are_named():
    evidence, _ = evidence_of(rows=50, references=60, poison=5)
    with pytest.raises(ValueError, match=r"alpha >= 0\.0164 with 60 references"):
        detect(evidence)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("false_rejection", 0, r"false_rejection in \(0, 1\)"),
        ("false_alarm", 1, r"false_alarm in \(0, 1\)"),
        ("groups", (), "groups not empty"),
        ("claims", ("label", "label"), "claims without repetition"),
        ("min_rows", 0, "min_rows > 0"),
        ("trigger_rows", 0, "trigger_rows > 0"),
        ("overdispersion", -1, "overdispersion >= 0"),
    ],
)
def test_settings_reject(field, value, message):
    with pytest.raises(ValueError, match=message):
        Detection(**{field: value})


@pytest.mark.parametrize("field", ["groups", "claims"])
def test_unknown_names_are_named(field):
    evidence, _ = evidence_of(rows=50, references=120, poison=5)
    with pytest.raises(ValueError, match=r"one of .*'lable'"):
        detect(evidence, Detection(**{field: ("lable",)}))


def test_every_honest_row_has_a_chance():
    evidence, _ = evidence_of()
    for claims in claims_of(evidence, ("teacher", "label")):
        assert ((claims.expected > 0) & (claims.expected < 1)).all()
    assert excess.LEAST_VARIANCE == 0.5


def test_a_reading_means_the_same_in_rows_and_references():
    """Rows of one balance of classes, references of another, in one order."""
    evidence, _ = evidence_of(poison=0)
    kept = np.flatnonzero((evidence.transfer.labels == 1) | (np.arange(1200) % 4 == 0))
    evidence = evidence.take(kept)
    readings = evidence.trusted_on_transfer, evidence.trusted_on_held_out
    odds = expectation.log_odds(np.concatenate([one.logits for one in readings]))
    for claims in claims_of(evidence, CLAIMS):
        for label in range(2):
            order = np.argsort(odds[:, label])
            assert (np.diff(claims.alike[order, label]) >= 0).all()
            assert (np.diff(claims.expected[order, label]) < 0).any()
        np.testing.assert_array_equal(
            claims.alike[: len(kept)], claims.expected[: len(kept)]
        )
