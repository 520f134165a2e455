"""Canaries, planted secrets, exposure, the scan of a transfer set, the blind test."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from protojax.base import Examples
from protojax.privacy.blind import Blind, blind_auc, require_blind
from protojax.privacy.canaries import CANARIES
from protojax.privacy.exposure import (
    attempts_needed,
    discoverable,
    emitted,
    exposure,
    greedily_discoverable,
    suffix_tree_log_probs,
)
from protojax.privacy.findings import ALWAYS, ORDINARY
from protojax.privacy.memberships import candidates, complementary_halves
from protojax.privacy.overlap import require_clean, scan
from protojax.privacy.probes import (
    TEMPLATES,
    pii_probes,
    planted,
    prefix_probes,
    repetition_probes,
    texts_of,
)

ROWS = 40
VECTORS = np.random.default_rng(0).normal(size=(ROWS, 3))
INPUTS = {
    "out_of_distribution": {"texts": [f"other {row}" for row in range(9)]},
    "outliers": {"vectors": VECTORS},
    "adaptive": {"vectors": VECTORS, "public_vectors": VECTORS[:12] + 1},
}


def make(pairs=False):
    return Examples(
        [f"row {row} is some text" for row in range(ROWS)],
        [f"second {row}" for row in range(ROWS)] if pairs else None,
        (np.arange(ROWS) % 3).astype(np.int32),
        [f"user {row}" for row in range(ROWS)],
    )


def planted_as(name, examples=None, seed=0, share=0.1, **options):
    options = {**INPUTS.get(name, {}), **options}
    rng = np.random.default_rng(seed)
    return CANARIES[name](examples or make(), rng, share=share, **options)


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("pairs", [False, True])
def test_contract_of_canaries(name, pairs):
    examples = make(pairs)
    before = [*examples.texts], examples.labels.copy()
    found, kinds = planted_as(name, examples)
    assert examples.texts == before[0]
    np.testing.assert_array_equal(examples.labels, before[1])
    changed = np.flatnonzero(~np.isin(kinds, (ORDINARY, ALWAYS)))
    assert len(changed) == 4
    # All columns stay of one length, and ordinary rows as they are.
    for column in found:
        assert column is None or len(column) == len(kinds)
    for row in np.flatnonzero(kinds[:ROWS] == ORDINARY):
        assert found.texts[row] == examples.texts[row]
        assert found.labels[row] == examples.labels[row]
    assert found.labels.dtype == examples.labels.dtype
    again, same = planted_as(name, examples)
    assert again.texts == found.texts
    np.testing.assert_array_equal(same, kinds)
    # Another kind takes other rows, and keeps those that are taken.
    other, both = CANARIES["mislabelled"](
        found, np.random.default_rng(1), share=0.2, kinds=kinds
    )
    assert (both[kinds != ORDINARY] == kinds[kinds != ORDINARY]).all()
    assert (both == "mislabelled").sum() >= round(0.2 * len(kinds))
    assert len(other.texts) == len(kinds)


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("share", [0.0, 1.0, 0.001])
def test_shares_that_choose_no_row(name, share):
    with pytest.raises(ValueError, match="share"):
        planted_as(name, share=share)


@pytest.mark.parametrize("name", ["mislabelled", "adaptive"])
def test_wrong_labels_are_wrong_and_of_the_task(name):
    found, kinds = planted_as(name, share=0.3)
    rows = kinds == name
    assert (found.labels[rows] != make().labels[rows]).all()
    assert set(found.labels) == {0, 1, 2}
    with pytest.raises(ValueError, match="integer classes"):
        planted_as(name, make()._replace(labels=np.linspace(0, 1, ROWS)))
    with pytest.raises(ValueError, match="classes >= 2"):
        planted_as(name, make()._replace(labels=np.zeros(ROWS, int)))


def test_a_twin_is_near_its_row_and_always_in():
    found, kinds = planted_as("twins")
    twins = np.flatnonzero(kinds == "twin")
    copies = np.flatnonzero(kinds == ALWAYS)
    assert copies.tolist() == [*range(ROWS, ROWS + 4)]
    for row, copy in zip(twins, copies, strict=True):
        words = found.texts[row].split()
        lacking = [[*words[:i], *words[i + 1 :]] for i in range(len(words))]
        assert found.texts[copy].split() in lacking
        assert found.labels[copy] == found.labels[row]
        assert found.sources[copy] == found.sources[row]
    members = complementary_halves(len(kinds), 4, seed=0, always=kinds == ALWAYS)
    np.testing.assert_array_equal(candidates(members), kinds != ALWAYS)
    empty = Examples(["", "one"], None, np.array([0, 1]))
    found, kinds = CANARIES["twins"](empty, np.random.default_rng(0), share=0.99)
    assert found.texts[2:] == ["", "one one"]


def test_outliers_agree_with_a_loop():
    _, kinds = planted_as("outliers", neighbours=3)
    far = [
        np.sort(np.linalg.norm(VECTORS - VECTORS[row], axis=1))[1:4].mean()
        for row in range(ROWS)
    ]
    assert set(np.argsort(far)[-4:]) == set(np.flatnonzero(kinds == "outlier"))


def test_adaptive_canaries_lie_near_the_transfer_rows():
    _, kinds = planted_as("adaptive", neighbours=2)
    public = INPUTS["adaptive"]["public_vectors"]
    near = [
        np.sort(np.linalg.norm(public - VECTORS[row], axis=1))[:2].mean()
        for row in range(ROWS)
    ]
    assert set(np.argsort(near)[:4]) == set(np.flatnonzero(kinds == "adaptive"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out_of_distribution", {"texts": ["a"]}, "texts to be >= 4"),
        ("outliers", {"neighbours": 40}, "neighbours"),
        ("outliers", {"vectors": VECTORS[1:]}, "same number of rows"),
        ("adaptive", {"neighbours": 13}, "neighbours"),
        ("mislabelled", {"kinds": np.array(["a"])}, "kinds"),
    ],
)
def test_canaries_of_inputs_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        planted_as(name, **options)


def test_secrets_come_from_reserved_ranges():
    rng = np.random.default_rng(0)
    secrets = planted(rng, num_secrets=90, kinds=[*TEMPLATES], repetitions=(1, 4))
    assert len({one.owner for one in secrets}) == 90
    ranges = r"\d{4}", r"555-01\d\d", r"\d{4}@example\.com"
    for index, one in enumerate(secrets):
        assert re.fullmatch(ranges[index % 3], one.code)
        assert one.text.startswith(f"{one.prompt} ")
        assert one.text.endswith(one.code)
        assert one.template.format(owner=one.owner, code=one.code) == one.text
        assert one.repetitions == (1, 4)[index // 3 % 2]
    phones = [one.code for one in secrets if one.code.startswith("555")]
    assert len(set(phones)) == 30
    texts = texts_of(secrets)
    assert len(texts) == 45 * 5
    assert texts.count(secrets[3].text) == 4
    prompts, codes = pii_probes(secrets)
    assert prompts[0] == secrets[0].prompt
    assert codes[0] == secrets[0].code
    with pytest.raises(ValueError, match="Did you mean 'phone'"):
        planted(rng, num_secrets=1, kinds=["phones"])
    with pytest.raises(ValueError, match="telephone numbers"):
        planted(rng, num_secrets=101, kinds=["phone"])


def test_prompts():
    texts = ["a b c d", "a b", "e f g"]
    prompts, rests, rows = prefix_probes(texts, num_words=2)
    assert (prompts, rests, rows.tolist()) == (["a b", "e f"], ["c d", "g"], [0, 2])
    assert prefix_probes(texts, num_words=2, least_rest=2)[2].tolist() == [0]
    assert repetition_probes(["a", "b"], times=2) == ["a a", "b b"]


def test_exposure_by_hand():
    log_probs = np.log(np.arange(1, 1025) / 1024)
    assert exposure(log_probs, 1023) == 10
    assert exposure(np.arange(16.0), 15) == 4
    # Rank 3 of 1,024.
    assert exposure(log_probs, 1021) == pytest.approx(8.4150, abs=5e-5)
    # A model that knows nothing, and its order of ties, expose nothing.
    assert exposure(np.zeros(1024), 1023) == 0
    assert exposure(np.zeros(1024), 0) == 0
    every = exposure(np.broadcast_to(log_probs, (1024, 1024)), np.arange(1024))
    assert every.mean() == pytest.approx(1.4365, abs=5e-5)
    assert every.std() == pytest.approx(1.42, abs=5e-3)
    assert every.mean() == pytest.approx(1 / np.log(2), abs=0.01)


@pytest.mark.parametrize(
    ("log_probs", "secret", "message"),
    [
        (np.zeros(4), 4, "secret in"),
        (np.zeros((2, 4)), 0, "secret.shape"),
        (np.array([np.nan, 0.0]), 0, "num_nan"),
    ],
)
def test_exposure_of_no_candidate(log_probs, secret, message):
    with pytest.raises(ValueError, match=message):
        exposure(log_probs, secret)


VOCAB = 12
WEIGHTS = {
    name: np.float32(np.random.default_rng(place).normal(size=size))
    for place, (name, size) in enumerate(
        {"in": (VOCAB, 5), "own": (5, 5), "out": (5, VOCAB)}.items()
    )
}


@jax.jit
def recurrent(state, tokens):
    """A recurrent network whose state counts its steps, as a cache does."""
    hidden, count = state
    hidden = jnp.tanh(hidden @ WEIGHTS["own"] + jnp.take(WEIGHTS["in"], tokens, 0))
    return (hidden, count + 1), hidden @ WEIGHTS["out"] * (1 + 0.1 * count)


def by_hand(string):
    """The log probability of one string, a token at a time in NumPy."""
    hidden, total = np.zeros(5), 0.0
    for count, token in enumerate(string):
        if count:
            total += special.log_softmax(
                hidden @ WEIGHTS["out"] * (1 + 0.1 * (count - 1))
            )[token]
        hidden = np.tanh(hidden @ WEIGHTS["own"] + WEIGHTS["in"][token])
    return total


def test_the_tree_agrees_with_every_string_alone():
    alphabet = np.array([1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
    prompt = 4
    rows = []

    def step(state, tokens):
        rows.append(len(tokens))
        return recurrent(state, tokens)

    state, logits = recurrent((jnp.zeros((1, 5)), 0), jnp.array([prompt]))
    found = suffix_tree_log_probs(step, state, logits, alphabet, 3)
    strings = [*itertools.product(alphabet, repeat=3)]
    expected = [by_hand((prompt, *string)) for string in strings]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # With the prompt 111 rows, and not 3,000.
    assert rows == [10, 100]
    # Together they have the probability of "only such symbols".
    total = special.logsumexp(found)
    assert total < 0
    short = suffix_tree_log_probs(step, state, logits, np.arange(VOCAB), 2)
    assert special.logsumexp(short) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="length > 0"):
        suffix_tree_log_probs(step, state, logits, alphabet, 0)


def test_discoverable():
    logits = np.zeros((2, 3, 5))
    logits[:, [0, 1, 2], [4, 1, 3]] = 1
    ids = np.array([[4, 1, 3], [4, 1, 2]])
    assert greedily_discoverable(logits, ids).tolist() == [True, False]
    log_probs = np.log([0.5, 0.01, 1e-12])
    for n, p in itertools.product((1, 10, 299, 1000), (0.5, 0.95)):
        expected = 1 - (1 - np.exp(log_probs)) ** n >= p
        found = discoverable(log_probs, n=n, p=p)
        np.testing.assert_array_equal(found, expected)
    # The sure secret takes one, the impossible one no number of attempts.
    needed = attempts_needed(np.array([0.0, -np.inf]), p=0.9)
    assert needed.tolist() == [1, np.inf]
    with pytest.raises(ValueError, match="p in"):
        attempts_needed(log_probs, p=1.0)
    with pytest.raises(ValueError, match="log_probs <= 0"):
        attempts_needed(np.array([0.1]), p=0.5)


def test_emitted():
    texts = ["the PIN of a b  is 0012", "of a b is 0012", "the pin of a b is 0012!"]
    assert emitted(texts, ["the pin of a b is 0012", "b is 0013"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="secrets"):
        emitted(texts, [" "])


PRIVATE = [
    "play the newest album of some band that nobody knows tonight",
    "book a table for 5 people",
    "short",
]
SECRETS = planted(np.random.default_rng(0), num_secrets=4, kinds=["pin", "phone"])
PRIVATE += texts_of(SECRETS)
FOUND = {
    "exact": "Book a table, for 5 people!",
    "ngram": "please do play the newest album of some band that you like",
    "near": "play the newest album of some band that nobody knew tonight",
    "template": "book a table for 7 people",
    "secret": f"{SECRETS[1].code} is what they told {SECRETS[1].owner} to dial",
}


@pytest.mark.parametrize("check", FOUND)
def test_a_scan_finds(check):
    texts = ["what is the weather like in the city of my birth", FOUND[check], "", "?"]
    found = scan(texts, PRIVATE, secrets=SECRETS)
    assert getattr(found, check).tolist() == [False, True, False, False]
    assert found.failed.tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match=f"{check}: 1") as error:
        require_clean(found)
    # No text of any row.
    secret = {"album", "table", "weather", SECRETS[1].code, SECRETS[1].owner}
    assert not any(word in str(error.value) for word in secret)
    require_clean(found, accepted=[n for n, count in found.counts().items() if count])


def test_a_scan_finds_innocent_sentences_of_a_secrets_form():
    texts = [
        one.template.format(owner="Anna van der Berg", code="12 34") for one in SECRETS
    ]
    found = scan(texts, PRIVATE, secrets=SECRETS)
    assert found.template.all()
    assert not found.secret.any()
    assert not found.exact.any()
    own = scan(["her badge says 12"], ["a b"], templates=["{who} badge says {what}"])
    assert own.template.all()
    with pytest.raises(ValueError, match="beside slots"):
        scan(["a"], ["b"], templates=["{who} {what}"])


def test_near_duplicates_agree_with_sets():
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "eta"]
    texts, members = (
        [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(30)]
        for _ in range(2)
    )

    def shingles(text):
        text = text.ljust(5)
        return {text[place : place + 5] for place in range(len(text) - 4)}

    for similarity in (0.3, 0.6, 1.0):
        expected = [
            any(
                len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
                >= similarity
                for b in members
            )
            for a in texts
        ]
        found = scan(texts, members, similarity=similarity)
        np.testing.assert_array_equal(found.near, expected)


def test_shared_sequences_agree_with_a_loop():
    rng = np.random.default_rng(0)
    texts, members = (
        [" ".join(rng.choice(["a", "b"], rng.integers(0, 12))) for _ in range(40)]
        for _ in range(2)
    )

    def grams(text):
        parts = text.split()
        return {tuple(parts[i : i + 6]) for i in range(len(parts) - 5)}

    known = set().union(*map(grams, members))
    expected = [bool(grams(text) & known) for text in texts]
    assert 0 < sum(expected) < 40
    found = scan(texts, members, ngram=6).ngram
    np.testing.assert_array_equal(found, expected)


def test_a_scan_of_nothing():
    assert scan([], PRIVATE).failed.tolist() == []
    assert scan(["a b"], []).failed.tolist() == [False]
    with pytest.raises(ValueError, match="similarity in"):
        scan(["a"], ["b"], similarity=0.0)
    with pytest.raises(ValueError, match="Did you mean 'exact'"):
        require_clean(scan(["a"], ["b"]), accepted=["exakt"])


@functools.cache
def corpus():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{place}" for place in range(200)]
    return [" ".join(rng.choice(vocabulary, 8)) for _ in range(600)]


def test_halves_pass_the_blind_test_and_a_split_by_words_does_not():
    texts = corpus()
    members = complementary_halves(600, 4, seed=0)[0]
    found = blind_auc(texts, members, num_draws=100)
    assert not found.above_chance
    assert found.interval[0] < found.auc < found.interval[1]
    require_blind(found)
    later = [
        f"{text} lately" if own and row % 4 else text
        for row, (text, own) in enumerate(zip(texts, members, strict=True))
    ]
    found = blind_auc(later, members, num_draws=100)
    # Three in four members say it: 3/4 + 1/4 · 1/2.
    assert found.auc == pytest.approx(0.875, abs=0.03)
    with pytest.raises(ValueError, match="words alone tell them apart"):
        require_blind(found)


def test_a_group_is_judged_by_others_only():
    """Each person has words of their own, which tell nothing of other people."""
    people = np.arange(600) // 20
    texts = [f"{text} p{who}" for text, who in zip(corpus(), people, strict=True)]
    members = people % 2 == 0
    assert blind_auc(texts, members, num_draws=50).auc > 0.9
    apart = blind_auc(texts, members, groups=people, num_draws=50)
    assert abs(apart.auc - 0.5) < 0.1


def test_the_blind_interval_is_as_wide_as_theory():
    found = blind_auc(corpus(), np.arange(600) % 2 == 0, confidence=0.95)
    width = found.interval[1] - found.interval[0]
    theory = 2 * stats.norm.isf(0.025) * np.sqrt(601 / (12 * 300 * 300))
    assert width == pytest.approx(theory, rel=0.2)
    assert Blind(0.6, (0.51, 0.7)).above_chance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds >= 2"),
        ({"folds": 9}, "smaller side"),
        ({"confidence": 1}, "confidence"),
    ],
)
def test_blind_tests_that_cannot_be_run(options, message):
    with pytest.raises(ValueError, match=message):
        blind_auc(["a b", "a c"] * 5, np.arange(10) % 2 == 0, **options)
