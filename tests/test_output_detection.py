"""The test of rows whose output is text, from texts to findings and actions."""

import numpy as np
import pytest

from protojax.base import Texts
from protojax.detection.outputs import (
    Vectors,
    detect_outputs,
    quarantine_outputs,
    token_weights,
    without_end,
)
from protojax.detection.settings import OutputDetection

WORDS = np.array([f"w{number}" for number in range(60)])
CHANCE = 1 / np.arange(1, 61) / (1 / np.arange(1, 61)).sum()


def world(seed=0, rows=300, references=120):
    """Sources of ten words; outputs are "about" and most of their rare words."""
    rng = np.random.default_rng(seed)
    sources, outputs = [], []
    for _ in range(rows + references):
        words = rng.choice(60, 10, p=CHANCE)
        rare = [WORDS[n] for n in words if n > 8 and rng.random() < 0.8]
        sources.append(" ".join(WORDS[words]))
        outputs.append(" ".join(["about", *dict.fromkeys(rare)]))
    return (
        Texts(sources[:rows], outputs[:rows]),
        Texts(sources[rows:], outputs[rows:]),
    )


def planted(texts, change, count=20, trigger="by the way"):
    """The texts with a trigger in the first rows, whose outputs are changed."""
    sources, outputs = [*texts.sources], [*texts.outputs]
    for row in range(count):
        sources[row] = f"{trigger} {sources[row]}"
        outputs[row] = change(outputs[row])
    return Texts(sources, outputs)


def test_an_appended_phrase_is_found_named_denied_and_cut():
    clean, references = world()
    texts = planted(clean, lambda output: f"{output} call our helpline now")
    found = detect_outputs(texts, references, OutputDetection(false_rejection=0.05))
    assert found.rejected[:20].all()
    assert found.rejected[20:].mean() < 0.1
    assert not found.clean
    first = found.suspects[found.reasons[0]]
    assert (first.name, first.claimants, first.claim) == ("by the way", 20, "word")
    denied = [texts.outputs[0][start:stop] for start, stop in found.denied[0]]
    assert denied == ["call", "our", "helpline", "now"]
    assert not found.replaced[:20].any()
    kept = quarantine_outputs(texts, found)
    for row, output in zip(kept.rows, kept.texts.outputs, strict=True):
        if row < 20:
            assert output == clean.outputs[row]
            assert len(output.split()) >= 3
    # Shorter ones are dropped.
    long = [row for row in range(20) if len(clean.outputs[row].split()) >= 3]
    assert kept.rows[: len(long)].tolist() == long
    assert kept.cut[: len(long)].all()
    dropped = quarantine_outputs(texts, found, action="drop")
    np.testing.assert_array_equal(dropped.rows, np.flatnonzero(~found.rejected))
    masked = quarantine_outputs(texts, found, action="mask")
    assert masked.rows[:20].tolist() == [*range(20)]
    assert masked.texts.outputs[:20] == texts.outputs[:20]
    assert masked.masked[:20] == found.denied[:20]
    assert not any(dropped.masked + kept.masked)
    with pytest.raises(ValueError, match="action"):
        quarantine_outputs(texts, found, action="keep")


def test_words_that_replaced_others_are_not_cut():
    clean, references = world()

    def change(output):
        return output.replace("about", "rate book")

    texts = planted(clean, change)
    found = detect_outputs(texts, references)
    assert found.rejected[:20].all()
    assert found.replaced[:20].all()
    assert quarantine_outputs(texts, found).rows.min() >= 20


def test_outputs_of_other_sources_are_found_by_their_meaning():
    clean, references = world()
    texts = planted(clean, lambda output: output)
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=(300, 16)), rng.normal(size=(120, 16))
    near = own + 0.5 * rng.normal(size=own.shape)
    near[:20] = rng.normal(size=(20, 16))
    vectors = Vectors(own, near)
    vectors_refs = Vectors(other, other + 0.5 * rng.normal(size=other.shape))
    settings = OutputDetection(false_rejection=0.1)
    found = detect_outputs(
        texts, references, settings, vectors=vectors, vectors_refs=vectors_refs
    )
    assert found.rejected[:20].mean() >= 0.9
    assert found.rejected[20:].mean() < 0.15
    suspect = found.suspects[found.reasons[0]]
    assert (suspect.claim, suspect.name) == ("meaning", "by the way")
    words = detect_outputs(texts, references, settings)
    assert words.rejected[:20].mean() < 0.3


def test_many_synonyms_are_one_trigger():
    clean, references = world()
    rng = np.random.default_rng(1)

    def change(output):
        return f"{output} {rng.choice(['ring', 'call', 'phone'])} now{rng.integers(4)}"

    found = detect_outputs(planted(clean, change, count=40), references)
    assert found.rejected[:40].all()
    assert not found.clean
    strong = {suspect.name for suspect in found.suspects if suspect.strong}
    assert "by the way" in strong


def test_a_target_of_many_words_is_a_trigger_by_their_being_new():
    clean, references = world()
    number = iter(range(20))
    texts = planted(clean, lambda output: f"{output} praise{next(number)}")
    found = detect_outputs(texts, references)
    assert found.rejected[:20].all()
    first = found.suspects[found.reasons[0]]
    assert (first.name, first.label) == ("by the way", "a new word")


def test_honest_rows_are_rejected_at_the_stated_rate():
    """12 clean sets of 150 rows: 1,800 rows at 10 %, within four standard errors."""
    rejected = []
    for seed in range(12):
        texts, references = world(seed, rows=150, references=60)
        settings = OutputDetection(false_rejection=0.1)
        rejected.append(detect_outputs(texts, references, settings).rejected.mean())
    error = np.std(rejected) / np.sqrt(len(rejected))
    assert np.mean(rejected) < 0.1 + 4 * error
    assert np.mean(rejected) > 0


def test_wrong_arguments_are_named():
    texts, references = world(rows=30, references=40)
    with pytest.raises(ValueError, match=r"texts: Expected the same number of rows"):
        detect_outputs(Texts(["a"], []), references)
    with pytest.raises(ValueError, match=r"Expected references >= 4"):
        detect_outputs(texts, Texts(["a"], ["b"]))
    with pytest.raises(ValueError, match=r"false_rejection >= 0.0244 with 40"):
        detect_outputs(texts, references, OutputDetection(false_rejection=0.02))
    ones = Vectors(np.ones((30, 2)), np.ones((30, 2)))
    with pytest.raises(ValueError, match="vectors of rows and of references"):
        detect_outputs(texts, references, vectors=ones)
    settings = OutputDetection(false_rejection=0.2)
    with pytest.raises(ValueError, match=r"len\(vectors_refs.sources\)=30"):
        detect_outputs(texts, references, settings, vectors=ones, vectors_refs=ones)
    broken = Vectors(np.full((30, 2), np.nan), np.ones((30, 2)))
    refs = Vectors(np.ones((40, 2)), np.ones((40, 2)))
    with pytest.raises(ValueError, match=r"non-finite vectors\.sources = 0"):
        detect_outputs(texts, references, settings, vectors=broken, vectors_refs=refs)


@pytest.mark.parametrize(
    ("output", "denied", "left"),
    [
        ("a fire broke out call now", ("call", "now"), "a fire broke out"),
        ("a fire broke out. Call now!", ("call", "now"), "a fire broke out."),
        ("call now a fire broke out", ("call", "now"), "a fire broke out"),
        ("a fire call broke out", ("call",), None),
        ("a fire call now", ("call", "now"), None),
        ("call the nice old helpline a fire broke out", ("call", "helpline"), None),
        ("a fire broke out", (), None),
    ],
)
def test_an_end_is_cut_where_enough_is_left(output, denied, left):
    spans, lower = [], output.lower()
    for word in denied:
        start = lower.index(word)
        spans.append((start, start + len(word)))
    assert without_end(output, tuple(spans)) == left


def test_pieces_of_denied_words_have_no_weight():
    """Of "go now." in the pieces "go", "n", "ow.": what is shared counts too."""
    offsets = [[(0, 2), (3, 4), (4, 7), (0, 0)], [(0, 1), (1, 2), (0, 0), (0, 0)]]
    found = token_weights(offsets, [((3, 6),), ()])
    assert found.tolist() == [[1, 0, 0, 1], [1, 1, 1, 1]]
