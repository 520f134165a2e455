"""Labels that people got wrong where common words are, in transfer rows and references.

Real labels are not wrong at random: annotators read some words in another way, and most
data have more rows of one class. An honest set with such labels looks much like one
with a trigger that is a common word.
"""

import numpy as np

from experiments.settings import LabelNoise
from protojax import data, validate
from protojax.base import Examples
from protojax.detection.groups import tokens_of

# The share of rows that hold a common word, and the range of its rate of wrong labels.
HELD, WRONG = (0.01, 0.08), (0.3, 0.5)


def balanced(
    examples: Examples, noise: LabelNoise, rng: np.random.Generator
) -> Examples:
    """The most rows of which a given share is of the majority class.

    Args:
        examples: clean rows.
        noise: `majority` and its `share`; a share of 0 leaves all rows.
        rng: chooses the rows of the classes that have too many.

    Raises:
        ValueError: a majority that no row is of, or that all rows are of.

    >>> rows = Examples(list("abcdef"), None, np.array([0, 0, 0, 1, 1, 1]))
    >>> noise = LabelNoise(majority=1, share=0.75)
    >>> balanced(rows, noise, np.random.default_rng(0)).labels.tolist()
    [0, 1, 1, 1]
    """
    if not noise.share:
        return examples
    own = examples.labels == noise.majority
    bound = "a class of some rows, not of all"
    valid = own.any() and not own.all()
    validate.require(valid, "label_noise.majority", noise.majority, bound)
    return data.take(examples, of_share(own, noise.share, rng))


def of_share(own: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The most rows of which a given share is of one class, in ascending order.

    Args:
        own: `[rows]`, bool, whether a row is of the class; some are, some are not.
        share: in (0, 1).
        rng: chooses the rows of the side that has too many.

    Raises:
        ValueError: all rows are of the class, or none.

    >>> own = np.array([True, True, True, False])
    >>> of_share(own, 0.5, np.random.default_rng(0)).shape
    (2,)
    """
    bound = f"between 0 and {len(own)}, all rows"
    validate.require(own.any() and not own.all(), "rows of a class", own.sum(), bound)
    odds = share / (1 - share)
    counts = min(own.sum(), (~own).sum() * odds), min((~own).sum(), own.sum() / odds)
    kept = [
        rng.choice(np.flatnonzero(part), round(count), replace=False)
        for part, count in zip((own, ~own), counts, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def words_of(
    examples: Examples, noise: LabelNoise, rng: np.random.Generator
) -> dict[str, float]:
    """Common words and the share of wrong labels in rows that hold them.

    Args:
        examples: clean rows.
        noise: how many words.
        rng: chooses the words and their shares, within `HELD` and `WRONG`.

    Raises:
        ValueError: more words than are common.
    """
    held: dict[str, int] = {}
    for text in examples.texts:
        for word in set(filter(str.isalpha, tokens_of(text))):
            held[word] = held.get(word, 0) + 1
    low, high = (share * len(examples.texts) for share in HELD)
    # Sorted, because the order of a set of words differs between processes.
    common = sorted(word for word, rows in held.items() if low <= rows <= high)
    bound = f"<= {len(common)}, the words that {HELD} of the rows hold"
    validate.require(
        noise.words <= len(common), "label_noise.words", noise.words, bound
    )
    chosen = rng.choice(common, noise.words, replace=False) if noise.words else ()
    return {str(word): float(rng.uniform(*WRONG)) for word in chosen}


def mislabelled(
    examples: Examples,
    words: dict[str, float],
    num_labels: int,
    rng: np.random.Generator,
) -> Examples:
    """The rows with wrong labels in a share of those that hold a word.

    Args:
        examples: clean rows.
        words: word -> the share of wrong labels in rows that hold it.
        num_labels: the number of classes.
        rng: chooses the rows, and their wrong classes, each as probable as the others.

    Raises:
        ValueError: less than two classes.
    """
    validate.require(num_labels > 1, "classes with label_noise", num_labels, "> 1")
    labels = np.array(examples.labels)
    for row, text in enumerate(examples.texts):
        right = np.prod([1 - words.get(word, 0.0) for word in set(tokens_of(text))])
        # Drawn for each row, so that no row's label depends on another row.
        missed, step = rng.random() >= right, rng.integers(1, num_labels)
        if missed:
            labels[row] = (labels[row] + step) % num_labels
    return examples._replace(labels=labels)
