import collections

import numpy as np
import pytest

from experiments.settings import LabelNoise
from experiments.study import check
from experiments.world import label_noise, scenarios
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
