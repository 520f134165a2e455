import collections
import json

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from experiments.settings import LabelNoise
from experiments.study import check, preflight, runner
from experiments.world import label_noise, scenarios
from protojax import data
from protojax.base import Examples
from tests.test_study import tiny


def rows_of(count, words, seed=0):
    """Returns rows that hold each word with its rate, all of class 0."""
    rng = np.random.default_rng(seed)
    texts = [
        " ".join(["it", *(word for word, rate in words.items() if rng.random() < rate)])
        for _ in range(count)
    ]
    return Examples(texts, None, np.zeros(count, np.int32))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, (60, 30)), (0.5, (30, 30)), (0.8, (7, 30))]
)
def test_as_many_rows_as_a_share_allows(share, expected):
    rows = rows_of(90, {})._replace(labels=np.repeat([0, 1], [60, 30]))
    noise = LabelNoise(majority=1, share=share)
    found = label_noise.balanced(rows, noise, np.random.default_rng(0))
    counts = collections.Counter(found.labels.tolist())
    assert (counts[0], counts[1]) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("labels", [np.zeros(9), np.ones(9)])
def test_a_majority_needs_others(labels):
    rows = rows_of(9, {})._replace(labels=labels)
    with pytest.raises(ValueError, match=r"label_noise.majority a class of some rows"):
        label_noise.balanced(
            rows, LabelNoise(majority=1, share=0.7), np.random.default_rng(0)
        )


def test_words_are_common_but_not_everywhere():
    rows = rows_of(1000, {"often": 0.5, "some": 0.05, "few": 0.04, "rare": 0.001})
    noise = LabelNoise(words=2)
    found = label_noise.words_of(rows, noise, np.random.default_rng(0))
    assert set(found) == {"some", "few"}
    assert all(0.3 <= rate <= 0.5 for rate in found.values())
    assert label_noise.words_of(rows, LabelNoise(), np.random.default_rng(0)) == {}
    with pytest.raises(ValueError, match=r"label_noise.words <= 2"):
        label_noise.words_of(rows, LabelNoise(words=3), np.random.default_rng(0))


@pytest.mark.parametrize(("text", "rate"), [("a", 0.4), ("a b", 0.7), ("b", 0.5)])
def test_wrong_labels_are_as_frequent_as_stated(text, rate):
    count = 4000
    rows = Examples([text, "c"] * count, None, np.zeros(2 * count, np.int32))
    found = label_noise.mislabelled(
        rows, {"a": 0.4, "b": 0.5}, 3, np.random.default_rng(0)
    )
    labels = found.labels.reshape(count, 2)
    assert not labels[:, 1].any()
    error = np.sqrt(rate * (1 - rate) / count)
    assert np.mean(labels[:, 0] > 0) == pytest.approx(rate, abs=3 * error)
    # Both wrong classes are equally probable.
    assert np.mean(labels[:, 0] == 1) == pytest.approx(rate / 2, abs=3 * error)
    assert not rows.labels.any()


def test_scores_have_no_wrong_class():
    with pytest.raises(ValueError, match=r"classes with label_noise > 1, found .*=1"):
        label_noise.mislabelled(rows_of(3, {}), {}, 1, np.random.default_rng(0))


def test_a_majority_changes_no_test_row(tmp_path):
    config = tiny(tmp_path)
    before = scenarios.task_data(check.check(config), "files", 0).splits
    config.data.label_noise.share = 0.7
    even = scenarios.task_data(check.check(config), "files", 0).splits
    assert even.transfer.labels.mean() == pytest.approx(0.7, abs=0.03)
    assert even.test.labels.tolist() == before.test.labels.tolist()


def test_a_study_learns_wrong_labels_and_is_measured_by_right_ones(
    tmp_path, monkeypatch
):
    config = tiny(tmp_path)
    config.arms, config.attacks = ("references",), {}
    # Whatever takes a while to compile is left out.
    config.trusted_model.epochs, config.data.buckets = 1, (16,)
    config.student.dropout = 0.0
    monkeypatch.setattr(preflight, "_check_layers", lambda *_: None)
    path = tmp_path / "train.tsv"
    header, *lines = path.read_text().splitlines()
    # Words that a few rows hold, as only these are called common.
    lines = [
        f"slow {line}" if row % 20 == 0 else f"loud {line}" if row % 20 == 1 else line
        for row, line in enumerate(lines)
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    right = scenarios.task_data(check.check(config), "files", 0).splits
    config.data.label_noise.words = 2
    bar = Progress(console=Console(quiet=True))
    (row,) = runner.run(check.check(config), tmp_path / "run", bar)
    assert 0 <= row["clean_metric"] <= 1
    splits = scenarios.task_data(check.check(config), "files", 0).splits
    for name in ("transfer", "references", "test"):
        before, after = getattr(right, name), getattr(splits, name)
        assert after.texts == before.texts
        wrong = np.flatnonzero(after.labels != before.labels)
        assert all(after.texts[row][:4] in ("slow", "loud") for row in wrong)
        assert (len(wrong) > 0) == (name != "test")
    # These are the labels that the study began with, and that its students learned.
    begun = json.loads((tmp_path / "run/files/seed0/data.json").read_text())
    known = splits.references
    assert begun["references"] == data.fingerprint(*known.texts, known.labels)
