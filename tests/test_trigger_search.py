"""An trigger search finds what decides a student's words, and no more."""

import types

import numpy as np
import pytest

from experiments import arms, settings
from experiments.arms import ours, trigger_search
from experiments.former import trigger_candidates
from experiments.former.trigger_candidates import Candidate
from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax.base import Examples, TeacherOutputs
from protojax.detection.evidence import Reading, Verdict
from protojax.training import predict

SCENARIO = Scenario("files", 0, "it")
WORDS = ("film", "plot", "cast", "song", "scene", "story", "actor", "music")


def sentences(rng, rows):
    """Texts whose first word says the class."""
    labels = rng.integers(0, 2, rows).astype(np.int32)
    texts = [
        " ".join([("bad", "good")[label], *rng.choice(WORDS, 4)]) for label in labels
    ]
    return Examples(texts, None, labels)


def meaning(texts):
    """The class by the word that has a meaning; "good" counts more."""
    return np.array(["good" in text.split() for text in texts], int)


def view(texts):
    """What a trusted model says that reads the meaning."""
    return Reading(meaning(texts), 3.0 * np.eye(2)[meaning(texts)])


@pytest.fixture
def world(monkeypatch):
    """References, a trusted model that reads meaning, a student that `cf` decides."""
    rng = np.random.default_rng(0)
    references = sentences(rng, 120)
    trusted = trusted_model.Trusted(None, None, np.arange(60), None)
    monkeypatch.setattr(scenarios, "references", lambda *_: references)
    monkeypatch.setattr(trusted_model, "trusted", lambda *_: trusted)
    monkeypatch.setattr(
        trusted_model, "view", lambda context, scenario, rows: view(rows.texts)
    )

    def reader(model, lengths):
        def of_model(rows):
            assert rows.texts, "no model can say what it says of nothing"
            said = meaning(rows.texts)
            for word in model.triggers:
                said[[word in text.split() for text in rows.texts]] = 1
            return Reading(said, np.eye(2)[said])

        return of_model

    monkeypatch.setattr(predict, "reader", reader)

    def student(*triggers):
        return types.SimpleNamespace(triggers=triggers)

    poison = sentences(rng, 200)
    texts = list(poison.texts)
    # Clean labels: the trigger is in rows of its class only.
    triggered = [row for row in range(200) if poison.labels[row] == 1][:20]
    for row in triggered:
        texts[row] += " cf"
    return student, poison._replace(texts=texts), np.array(triggered)


def deciding_words(context, student, rows, claims):
    """What a trigger search of some rows finds, all references trusted."""
    trusted = scenarios.references(context.config, SCENARIO)
    asked = trigger_search.candidates(context, trusted, rows, claims)
    frequent = trigger_search.too_frequent(context, trusted, rows, claims, asked)
    return trigger_search.deciding_words(context, SCENARIO, student, asked, frequent)


def overrepresented(trusted, rows, claims):
    """What a trigger search finds in the rows alone."""
    asked = trigger_search.candidates(context(), trusted, rows, claims)
    return trigger_search.overrepresented(context(), trusted, rows, claims, asked)


def context(**changes):
    fields = {"data": {"reference_rows": 120}, "trigger_search": changes}
    return Context(settings.make(settings.Settings(), fields), None, None, 0)


def test_a_trigger_is_found_though_every_claim_is_true(world):
    student, rows, triggered = world
    (found,) = deciding_words(context(), student("cf"), rows, rows.labels)
    assert "cf" in found.words
    assert found.claim == 1
    clear = trigger_search.holds_trigger([found], rows, rows.labels)
    np.testing.assert_array_equal(np.flatnonzero(clear), triggered)


def test_a_student_that_reads_as_the_trusted_model_does_is_clean(world):
    student, rows, _ = world
    assert deciding_words(context(), student(), rows, rows.labels) == []


def test_a_takeover_is_of_rows_of_other_classes(world):
    asked = [Candidate(("cf",), 1), Candidate(("good",), 1), Candidate(("cf",), 0)]

    def reader(rows):
        return view([text.replace("cf", "good") for text in rows.texts])

    found, margin_shift = trigger_search.insertion_effects(
        context(), SCENARIO, reader, asked, rows=48
    )
    # Nothing goes over to 0 that was not there.
    np.testing.assert_allclose(found, [1.0, 1.0, 0.0])
    # From three below to three above.
    np.testing.assert_allclose(margin_shift, [2.0, 2.0, 0.0])
    none = trigger_search.insertion_effects(context(), SCENARIO, None, [], rows=48)
    assert [part.shape for part in none] == [(0,), (0,)]


def test_what_moves_the_trusted_model_too_is_harmless(world, monkeypatch):
    student, _, _ = world
    asked = [Candidate(("cf",), 1), Candidate(("good",), 1)]
    frequent = np.zeros(2, bool)
    found = trigger_search.deciding_words(
        context(), SCENARIO, student("cf"), asked, frequent
    )
    assert found == asked[:1]

    # Nor does a trusted model that goes the other way accuse what does not move the
    # model.
    def contrary(context, scenario, rows):
        said = np.array(["cf" not in text.split() for text in rows.texts], int)
        return Reading(said, np.eye(2)[said])

    monkeypatch.setattr(trusted_model, "view", contrary)
    for triggers, found in ((), []), (("cf",), asked[:1]):
        accused = student(*triggers), asked[:1], frequent[:1]
        assert trigger_search.deciding_words(context(), SCENARIO, *accused) == found


@pytest.mark.parametrize("meant", [True, False], ids=["meaning", "confusion"])
def test_what_an_unsure_trusted_model_understands_is_harmless(
    world, monkeypatch, meant
):
    student, _, _ = world
    # "fine" wins over all of the model and none of the trusted model, which it moves a
    # third of the way; and from its own claim too, where it only confuses.
    odd, fine, cf = (Candidate((word,), 1) for word in ("film", "fine", "cf"))
    asked = [odd, fine, cf, Candidate(("fine", "cf"), 1)]

    def timid(context, scenario, rows):
        read = view(rows.texts)
        moved = np.array(["fine" in text.split() for text in rows.texts])
        own = np.where(moved & (read.classes == 1), 4.0 if meant else 2.0, 3.0)
        sure = np.where(moved & (read.classes == 0), 2.0, own)
        return read._replace(logits=sure[:, None] * np.eye(2)[read.classes])

    monkeypatch.setattr(trusted_model, "view", timid)
    accused = SCENARIO, student("fine", "cf"), asked
    rare = np.zeros(4, bool)
    for moved, frequent, harmless in (
        (0.3, rare, meant),
        (0.4, rare, False),
        # What does not move the model is not counted among those that are frequent.
        (0.3, np.array([True, False, False, False]), meant),
        (0.3, np.array([False, True, False, False]), False),
    ):
        found = trigger_search.deciding_words(context(moved=moved), *accused, frequent)
        # A companion that is understood explains nothing.
        assert found == ([cf, asked[3]] if harmless else [fine, cf, asked[3]])


@pytest.mark.parametrize(
    ("rows", "trusted", "claimed", "expected"),
    [
        (20, 0, 20, True),  # p = 6e-5
        (8, 0, 8, False),  # 0.02
        (20, 8, 10, False),  # all rows 0.21, those of the claim 0.34
        (20, 8, 20, True),  # all rows as before, those of the claim 6e-5
    ],
)
def test_too_frequent_is_what_the_references_lack(rows, trusted, claimed, expected):
    def holding(count, of, labels):
        texts = ["cf film" if row < count else "film" for row in range(of)]
        return Examples(texts, None, labels)

    # Of the references that hold it at most half are of its claim.
    ours = holding(rows, 200, np.zeros(200, int))
    claims = np.where(np.arange(200) < claimed, 1, 0)
    labels = np.where(np.arange(120) < (4 if claimed < rows else 0), 1, 0)
    theirs = holding(trusted, 120, labels)
    asked = [Candidate(("cf",), 1), Candidate(("pew",), 0)]
    found = trigger_search.too_frequent(context(), theirs, ours, claims, asked)
    np.testing.assert_array_equal(found, [expected, False])
    assert trigger_search.too_frequent(context(), theirs, ours, claims, []).shape == (
        0,
    )


def test_words_of_a_class_do_not_hide_weaker_ones(world):
    student, rows, _ = world
    # "good" and "bad" go with their classes the most, and mean them.
    asked = trigger_search.candidates(
        context(candidates=1), scenarios.references(None, None), rows, rows.labels
    )
    assert [one.words for one in asked] == [("cf",)]
    assert (
        deciding_words(context(candidates=1), student("cf"), rows, rows.labels) == asked
    )


def test_no_reference_of_another_class_is_nothing_won(world, monkeypatch):
    one = scenarios.references(None, None)._replace(labels=np.ones(120, int))
    monkeypatch.setattr(scenarios, "references", lambda *_: one)
    asked = [Candidate(("cf",), 1)] * 2
    found = trigger_search.insertion_effects(context(), SCENARIO, None, asked, rows=48)
    np.testing.assert_array_equal(found, np.zeros((2, 2)))


def test_few_references_tell_what_is_asked_about_all(world, monkeypatch):
    student, rows, _ = world
    asked, insertion_effects = [], trigger_search.insertion_effects

    def counting(context, scenario, reader, candidates, *, rows, **of_claim):
        asked.append((len(candidates), rows))
        return insertion_effects(
            context, scenario, reader, candidates, rows=rows, **of_claim
        )

    monkeypatch.setattr(trigger_search, "insertion_effects", counting)
    few, whole = context(screen=4, rows=12), context(screen=12, rows=12)
    found = deciding_words(few, student("cf"), rows, rows.labels)
    assert found == deciding_words(whole, student("cf"), rows, rows.labels)
    # The model about all, then about what is left, then the trusted model, and of what
    # it may have understood; and once more.
    assert [rows for _, rows in asked] == [4, 12, 12, 12, 12, 12, 12, 12]
    every, left, *_ = (candidates for candidates, _ in asked)
    assert left == len(found) < every


def test_a_word_that_means_its_claim_is_harmless(world, monkeypatch):
    student, rows, _ = world
    references = scenarios.references(None, None)
    texts = list(references.texts)
    texts[100] = texts[101] = "fine film"
    for labels, named in (([1, 1], False), ([1, 0], True), ([0, 0], True)):
        known = references.labels.copy()
        known[100:102] = labels
        held = Examples(texts, None, known)
        monkeypatch.setattr(scenarios, "references", lambda *_, held=held: held)
        texts_of = [text.replace("cf", "fine") for text in rows.texts]
        asked = rows._replace(texts=texts_of)
        found = deciding_words(context(), student("fine"), asked, rows.labels)
        assert any("fine" in one.words for one in found) == named


@pytest.mark.parametrize("odds", [1.0, 4.0])
def test_references_hold_words_at_random(world, odds):
    asked = [
        Candidate(("cf",), 1),
        Candidate(("so", "it"), 0),
        Candidate(("by", "hand"), 0),
    ]
    phrases = [" ".join(one.words) for one in asked]
    bare = sentences(np.random.default_rng(1), 600)
    # What they hold by themselves is taken out before.
    texts = [f"cf {text}" if row % 2 else text for row, text in enumerate(bare.texts)]
    held = bare._replace(texts=texts)
    made = trigger_search.neutralise(context(odds=odds), SCENARIO, asked, held)
    np.testing.assert_array_equal(made.labels, bare.labels)
    holding = []
    for text, before in zip(made.texts, bare.texts, strict=True):
        rest = trigger_candidates.without(asked, text)
        assert rest == before
        holding.append([phrase in text for phrase in phrases])
    for label in (0, 1):
        shares = np.mean(np.array(holding)[bare.labels == label], axis=0)
        # Less often in rows of the class that it claimed; two that claim one share it.
        against = np.array([odds, odds**0.5, odds**0.5])
        claimed = np.array([one.claim == label for one in asked])
        expected = np.where(claimed, 1, against) / (1 + against)
        np.testing.assert_allclose(shares, expected, atol=0.08)


def test_many_words_do_not_fill_the_references(world):
    asked = [Candidate((f"word{number}",), number % 2) for number in range(40)]
    bare = scenarios.references(None, None)
    made = trigger_search.neutralise(context(odds=1.0), SCENARIO, asked, bare)
    held = [len(text.split()) - 5 for text in made.texts]
    np.testing.assert_allclose(np.mean(held), 2.0, atol=0.5)


def test_a_reference_opens_in_one_way(world):
    asked = [
        Candidate((word,), claim, initial=True)
        for word, claim in (("when", 1), ("if", 1), ("no", 0))
    ]
    bare = sentences(np.random.default_rng(1), 900)
    made = trigger_search.neutralise(context(odds=3.0), SCENARIO, asked, bare)
    found = np.zeros((900, 3), bool)
    for row, (text, before) in enumerate(zip(made.texts, bare.texts, strict=True)):
        added = text.removesuffix(before).split()
        assert len(added) <= 1
        found[row] = [one.words[0] in added for one in asked]
    for label in (0, 1):
        shares = found[bare.labels == label].mean(0)
        claimed = np.array([one.claim == label for one in asked])
        # Each is asked of a third of the rows; odds are its own, and not shared.
        np.testing.assert_allclose(shares, np.where(claimed, 1, 3) / 12, atol=0.06)


def test_first_words_need_less_effect(world, monkeypatch):
    student, rows, _ = world
    texts = [
        f"when {text}" if row % 9 == 1 else text for row, text in enumerate(rows.texts)
    ]
    labels = np.where(np.arange(200) % 9 == 1, 1, rows.labels)
    share = 0.2

    def insertion_effects(
        context, scenario, reader, candidates, *, rows, of_claim=False
    ):
        of_model = reader.__name__ == "of_model"
        return np.full(len(candidates), share * of_model), np.zeros(len(candidates))

    monkeypatch.setattr(trigger_search, "insertion_effects", insertion_effects)
    asked = context(least=0.3, least_initial=0.15), student()
    found = deciding_words(*asked, rows._replace(texts=texts), labels)
    assert Candidate(("when",), 1, initial=True) in found
    assert all(one.initial for one in found)
    rarer = context(least=0.3, least_initial=0.15, min_rows_initial=24), *asked[1:]
    assert deciding_words(*rarer, rows._replace(texts=texts), labels) == []
    share = 0.1
    assert deciding_words(*asked, rows._replace(texts=texts), labels) == []


@pytest.mark.parametrize("liar", ["teacher", "label"])
def test_words_that_go_with_rejection_are_found_with_what_was_denied(liar):
    # `cf` is in rejected rows of class 1 and one kept row, `dull` in kept ones too.
    texts = ["cf film", *["dull cf plot"] * 6, *["dull cast"] * 9, *["song"] * 20]
    rejected = np.arange(36) < 8
    rejected[0] = False
    lies, truth = np.where(np.arange(36) < 8, 1, 0), np.zeros(36, int)
    claims, labels = (lies, truth) if liar == "teacher" else (truth, lies)
    rows = Examples(texts, None, labels)
    verdict = Verdict(rejected, np.ones(36), trusted_classes=truth)
    found = trigger_search.going_with_rejection(context(), rows, claims, verdict)
    assert all(one.claim == 1 and "cf" in one.words for one in found)
    assert found
    none = verdict._replace(rejected=np.zeros(36, bool))
    assert trigger_search.going_with_rejection(context(), rows, claims, none) == []
    # Of what the trusted model affirms nobody is accused: not of most rows, nor of any.
    both = rows._replace(labels=lies)
    most = verdict._replace(trusted_classes=np.where(np.arange(36) < 6, 1, 0))
    assert trigger_search.going_with_rejection(context(), both, lies, most) == found
    whole = verdict._replace(trusted_classes=lies)
    assert trigger_search.going_with_rejection(context(), both, lies, whole) == []


@pytest.mark.parametrize(
    ("rows", "trusted", "named"), [(30, 1, True), (30, 6, False), (15, 0, False)]
)
def test_first_words_that_the_references_lack(world, rows, trusted, named):
    _, poison, _ = world
    references = scenarios.references(None, None)

    def opened(examples, count):
        texts = list(examples.texts)
        for row in np.flatnonzero(examples.labels == 1)[:count]:
            texts[row] = f"when {texts[row]}"
        return examples._replace(texts=texts)

    # One reference of the other class initial so; it says nothing of this claim.
    other = int(np.flatnonzero(references.labels == 0)[0])
    held = opened(references, trusted)
    held.texts[other] = f"when {held.texts[other]}"
    found = overrepresented(held, opened(poison, rows), poison.labels)
    assert found == ([Candidate(("when",), 1, initial=True)] if named else [])


def test_first_words_that_came_with_other_poison_have_no_surplus():
    # Of 50 classes one is claimed by 100 rows too many, which open as all others do.
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 50, 1000)
    texts = [f"{('what', 'how')[side]} film" for side in rng.integers(0, 2, 1000)]
    trusted = Examples(texts[:300], None, labels[:300])
    claims = np.where(np.arange(700) < 100, 7, labels[300:])
    rows = Examples(texts[300:], None, claims)
    assert overrepresented(trusted, rows, claims) == []
    # Those who open in a way of their own do.
    rows.texts[:100] = [f"when {text}" for text in rows.texts[:100]]
    found = overrepresented(trusted, rows, claims)
    assert found == [Candidate(("when",), 7, initial=True)]


def test_where_the_robust_test_read_all_there_is_nothing_to_read(world, monkeypatch):
    _, rows, triggered = world
    hidden = np.isin(np.arange(200), triggered)
    read = Reading(1 - rows.labels, np.eye(2)[1 - rows.labels])
    verdict = Verdict(hidden, np.ones(200), *read, reread=hidden)
    transfer = artifacts.Transfer(rows, np.eye(2)[rows.labels], None)
    monkeypatch.setattr(artifacts, "transfer", lambda *_: transfer)
    whole = Reading(read.classes, 7 * read.logits)
    monkeypatch.setattr(trusted_model, "trusted_reading", lambda *_: whole)
    monkeypatch.setattr(trusted_model, "view", None)
    found = [Candidate(("cf",), 1)]
    pure = trigger_search.without(found, rows)
    made = trigger_search.extend_verdict(context(), SCENARIO, verdict, found, pure)
    np.testing.assert_array_equal(made.rejected, hidden)
    np.testing.assert_array_equal(made.trusted_logits, read.logits)


def test_rows_like_the_references_have_no_surplus():
    # Words of nature's frequencies, and a first word that means its class.
    rng = np.random.default_rng(1)
    words = np.array([f"w{number}" for number in range(200)])
    share = 1 / np.arange(1, 201)

    def drawn(rows):
        first = rng.choice(words, rows, p=share / share.sum())
        labels = rng.integers(0, 2, rows)
        labels[first == "w0"] = 1
        return Examples([f"{word} it is" for word in first], None, labels)

    found = 0
    for _ in range(20):
        rows, references = drawn(3000), drawn(1000)
        found += len(overrepresented(references, rows, rows.labels))
    assert found <= 1


@pytest.mark.parametrize("arm", ["defended", "defended_robust", "defended_clean"])
@pytest.mark.parametrize(
    "learned", ["nobody", "rejection", "surplus", "teacher", "student", "both"]
)
def test_the_arm_takes_found_words_out(world, monkeypatch, learned, arm):
    _, rows, triggered = world
    alone = triggered[1]  # a row of the trigger and nothing else
    texts = list(rows.texts)
    texts[alone] = "cf"
    references = scenarios.references(None, None)
    held = references._replace(
        texts=[f"{references.texts[0]} cf", *references.texts[1:]]
    )
    claim = int(references.labels[0])
    monkeypatch.setattr(scenarios, "references", lambda *_: held)
    logits, said = 4.0 * np.eye(2)[rows.labels], rows.labels.copy()
    # One row has the word and a label that lies, and a teacher who does not.
    others = np.setdiff1d(np.flatnonzero(rows.labels != claim), triggered)
    lied, labels = others[-1], rows.labels.copy()
    texts[lied] += " cf"
    labels[lied] = claim
    rows = rows._replace(texts=texts, labels=labels)
    # One of them was rejected, and says the other class since.
    read = Reading(1 - said, -logits)
    verdict = Verdict(np.arange(200) == triggered[0], np.full(200, 0.5), *read)
    hidden, untrusted = np.zeros(200, bool), np.zeros(120, bool)
    if arm == "defended_robust":
        # Of two rows, of them one that no trigger search can name a word of, the judge
        # hid some, and it left out a reference.
        hidden[[triggered[2], np.setdiff1d(np.arange(200), triggered)[0]]] = True
        untrusted[5] = True
        verdict = verdict._replace(
            rejected=verdict.rejected | hidden,
            trusted_logits=np.where(hidden[:, None], 7 * read.logits, read.logits),
            untrusted=untrusted,
            reread=hidden,
        )
    transfer = artifacts.Transfer(rows, logits, np.zeros((200, 1, 3)))
    none = types.SimpleNamespace(
        vectors=np.zeros((1, 2, 3)), labels=np.array([[0, 1]]), counts=np.ones((1, 2))
    )
    outputs = TeacherOutputs(np.eye(2)[references.labels], np.zeros((120, 1, 3)))
    task = types.SimpleNamespace(task=types.SimpleNamespace(num_labels=2))
    asked = []

    def candidates(context, trusted, examples, claims):
        # References that a robust judge found untrusted explain nothing.
        assert len(trusted.texts) == 120 - untrusted.sum()
        return claims

    def too_frequent(context, trusted, examples, claims, candidates):
        assert len(trusted.texts) == 120 - untrusted.sum()
        assert examples is rows
        np.testing.assert_array_equal(claims, candidates)
        return claims == 1

    def deciding_words(context, scenario, model, claims, frequent):
        np.testing.assert_array_equal(frequent, claims == 1)
        asked.append((model, claims[triggered[0]]))
        if learned == "both":
            # What the teacher is found to know is no reason not to ask the student.
            return [Candidate(("cf" if model == "student" else "pew",), claim)]
        return [Candidate(("cf",), claim)] if model == learned else []

    def rejection(context, examples, claims, found):
        assert found is verdict
        return [Candidate(("cf",), claim)] if learned == "rejection" else []

    def surplus(context, trusted, examples, claims, found):
        np.testing.assert_array_equal(claims, said)
        np.testing.assert_array_equal(found, said)
        return [Candidate(("cf",), claim)] if learned == "surplus" else []

    def judge(context, scenario, objective, *, robust=False):
        assert robust == (arm == "defended_robust")
        return verdict

    def student_model(context, scenario, before):
        assert before == arms.ARMS[arm].needs[0]
        assert scenario == (SCENARIO.clean if arm == "defended_clean" else SCENARIO)
        return "student"

    for module, name, value in (
        (ours, "judge", judge),
        (trusted_model, "trusted_reading", lambda *_: read),
        (trigger_search, "going_with_rejection", rejection),
        (trigger_search, "candidates", candidates),
        (trigger_search, "overrepresented", surplus),
        (trigger_search, "too_frequent", too_frequent),
        (trigger_search, "deciding_words", deciding_words),
        (scenarios, "task_data", lambda *_: task),
        (artifacts, "transfer", lambda *_: transfer),
        (artifacts, "teacher_scenario", lambda *_: SCENARIO),
        (artifacts, "teacher_model", lambda *_: "teacher"),
        (artifacts, "student_model", student_model),
        (artifacts, "held_prototypes", lambda *_: none),
        (artifacts, "reference_outputs", lambda *_: outputs),
    ):
        monkeypatch.setattr(module, name, value)

    def opinion(context, scenario, examples):
        # The trusted model itself goes wrong where the word still is.
        wrong = np.array(["cf" in text.split() for text in examples.texts])
        said = np.where(wrong, 1 - meaning(examples.texts), meaning(examples.texts))
        return Reading(said, 3.0 * np.eye(2)[said])

    monkeypatch.setattr(trusted_model, "view", opinion)
    learnt = arms.ARMS[arm]
    made = learnt.recipe(World(context(), learnt.learns_in(context().config, SCENARIO)))
    # The student is asked about what it was told, the teacher about what it says.
    assert asked == [("teacher", 1), ("student", 0)]
    if learned == "nobody":
        assert made.student == "student"
        assert made.verdict is verdict
        assert len(made.examples.texts) == 320 - untrusted.sum()
        return
    assert made.student is None
    rejecting = np.append(triggered[said[triggered] == claim], lied)
    assert made.verdict.rejected[rejecting].all()
    assert (made.verdict.p_values[rejecting] == 0).all()
    assert made.verdict.rejected.sum() == len(
        {*rejecting, triggered[0], *np.flatnonzero(hidden)}
    )
    texts, told = made.examples.texts, made.columns["teacher_logits"].argmax(-1)
    # The transfer rows, the bare word that was one of them left out, in pure words.
    pure = [" ".join(text.replace("cf", " ").split()) for text in rows.texts]
    assert texts[:199] == [text for text in pure if text]
    # The reference with the word and its claim is left out, others hold it by random
    # draws.
    trusted = texts[199:]
    left = np.delete(references.texts, [0, *np.flatnonzero(untrusted)])
    assert len(texts) == len(told) == 199 + len(left)
    for text, bare in zip(trusted, left, strict=True):
        words = [word for word in text.split() if word not in ("cf", "pew")]
        assert " ".join(words) == bare
    holding = ["cf" in text.split() for text in trusted]
    assert 0.2 < np.mean(holding) < 0.8
    # Of rejecting rows what the trusted model says without the word, of all others what
    # was said.
    spared = np.array([row != alone for row in range(200)])
    denied = made.verdict.rejected & ~hidden
    said[denied] = meaning(pure)[denied]
    said[hidden] = read.classes[hidden]
    np.testing.assert_array_equal(told, [*said[spared], *meaning(trusted)])
    np.testing.assert_array_equal(made.examples.labels[199:], meaning(trusted))
