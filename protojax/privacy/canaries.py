"""Worst-case rows, planted so that a defence is judged by what it protects least.

Each function turns some ordinary rows into canaries of one kind and says which they
are; several are applied one after the other, the kinds handed on. A canary is a
candidate like any other row: its membership is drawn. What protects some kinds may fail
for another, so a defence is judged by its worst kind, and one that is known should meet
kinds that are chosen against it (`adaptive`).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.spatial import distance

from protojax import validate
from protojax.base import Examples
from protojax.privacy.findings import ALWAYS, ORDINARY

# (examples, rng, *, share, kinds, **inputs) -> (examples, kinds [rows]).
Canaries = Callable[..., tuple[Examples, np.ndarray]]

# Rows whose distances are held at once.
_BLOCK = 1000


def _ordinary(
    examples: Examples, kinds: np.ndarray | None, share: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """The kinds so far, the ordinary rows, and how many to turn into canaries."""
    num_rows = len(examples.texts)
    validate.same_length(texts=examples.texts, labels=examples.labels)
    kinds = np.full(num_rows, ORDINARY) if kinds is None else np.asarray(kinds)
    validate.shape((num_rows,), kinds=kinds)
    rows = np.flatnonzero(kinds == ORDINARY)
    validate.require(0 < share < 1, "share", share, "in (0, 1)")
    count = round(share * num_rows)
    allowed = f"to choose between 1 and {len(rows)} of {num_rows} rows"
    validate.require(1 <= count <= len(rows), "share", share, allowed)
    return kinds, rows, count


def _named(kinds: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """The kinds with some rows renamed; a name is never cut to the array's width."""
    chosen = np.zeros(len(kinds), bool)
    chosen[rows] = True
    return np.where(chosen, name, kinds)


def _wrong(
    labels: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The labels with those of some rows replaced by another class of the task."""
    integer = np.issubdtype(np.asarray(labels).dtype, np.integer)
    validate.require(
        integer, "labels.dtype", str(np.asarray(labels).dtype), "integer classes"
    )
    classes, places = np.unique(labels, return_inverse=True)
    validate.require(len(classes) >= 2, "classes", len(classes), ">= 2")
    # Adding 1 to K - 1 modulo K never gives the true class.
    shifts = rng.integers(1, len(classes), size=len(rows))
    wrong = np.array(labels)
    wrong[rows] = classes[(places[rows] + shifts) % len(classes)]
    return wrong


def mislabelled(
    examples: Examples,
    rng: np.random.Generator,
    *,
    share: float = 0.1,
    kinds: np.ndarray | None = None,
) -> tuple[Examples, np.ndarray]:
    """Rows with the label of another class: only who trained on one believes it.

    Args:
        examples: all rows; they are not changed.
        rng: chooses rows and labels.
        share: of all rows, in (0, 1).
        kinds: `[rows]`, str, the kinds so far; only "ordinary" rows are chosen.

    Returns:
        The examples, and the kind of each row.

    Raises:
        ValueError: a share that chooses no row or more than there are, a regression
            task, or a single class.

    Source: Aerni, Zhang and Tramèr 2024, arXiv:2404.17399.

    >>> clean = Examples(["a", "b", "c", "d"], None, np.array([0, 1, 0, 1]))
    >>> rng = np.random.default_rng(0)
    >>> found, kinds = mislabelled(clean, rng, share=0.25)
    >>> kinds.tolist(), found.labels.tolist()
    (['ordinary', 'ordinary', 'ordinary', 'mislabelled'], [0, 1, 0, 0])
    """
    kinds, rows, count = _ordinary(examples, kinds, share)
    chosen = np.sort(rng.choice(rows, size=count, replace=False))
    labels = _wrong(examples.labels, chosen, rng)
    return examples._replace(labels=labels), _named(kinds, chosen, "mislabelled")


def twins(
    examples: Examples,
    rng: np.random.Generator,
    *,
    share: float = 0.1,
    kinds: np.ndarray | None = None,
) -> tuple[Examples, np.ndarray]:
    """Rows of which a near-duplicate is in every training, and so no candidate.

    The near-duplicate lacks one word, or has a word twice where there is one only. It
    is appended with the row's label and source and the kind "always in": memberships
    take `always=kinds == "always in"`. It may hide the row, or make its scores rise.

    Args:
        examples: all rows; they are not changed.
        rng: chooses rows and words.
        share: of all rows, in (0, 1).
        kinds: `[rows]`, str, the kinds so far; only "ordinary" rows are chosen.

    Returns:
        The examples, with the near-duplicates at the end, and the kind of each row.

    Raises:
        ValueError: a share that chooses no row or more than there are.

    >>> clean = Examples(["so it goes", "well"], None, np.array([0, 1]))
    >>> found, kinds = twins(clean, np.random.default_rng(0), share=0.5)
    >>> found.texts, kinds.tolist()
    (['so it goes', 'well', 'well well'], ['ordinary', 'twin', 'always in'])
    """
    kinds, rows, count = _ordinary(examples, kinds, share)
    chosen = np.sort(rng.choice(rows, size=count, replace=False))
    texts, pairs, sources = list(examples.texts), examples.pairs, examples.sources
    for row in chosen:
        words = texts[row].split()
        place = int(rng.integers(max(1, len(words))))
        left = words[:place] + words[place + 1 :]
        texts.append(" ".join(left if left else words * 2))
    found = Examples(
        texts,
        None if pairs is None else [*pairs, *(pairs[row] for row in chosen)],
        np.append(examples.labels, np.asarray(examples.labels)[chosen]),
        None if sources is None else [*sources, *(sources[row] for row in chosen)],
    )
    kinds = _named(kinds, chosen, "twin")
    return found, np.concatenate([kinds, np.full(count, ALWAYS)])


def out_of_distribution(
    examples: Examples,
    rng: np.random.Generator,
    *,
    texts: Sequence[str],
    share: float = 0.1,
    kinds: np.ndarray | None = None,
) -> tuple[Examples, np.ndarray]:
    """Rows whose first text is replaced by one of another source; labels are kept.

    Args:
        examples: all rows; they are not changed.
        rng: chooses rows and texts.
        texts: of the other source, at least as many as rows are chosen; each is used
            once.
        share: of all rows, in (0, 1).
        kinds: `[rows]`, str, the kinds so far; only "ordinary" rows are chosen.

    Returns:
        The examples, and the kind of each row.

    Raises:
        ValueError: too few texts, or a share that chooses no row or too many.

    >>> clean = Examples(["a", "b"], None, np.array([0, 1]))
    >>> rng = np.random.default_rng(0)
    >>> found, kinds = out_of_distribution(clean, rng, texts=["x"], share=0.5)
    >>> found.texts, kinds.tolist()
    (['a', 'x'], ['ordinary', 'out of distribution'])
    """
    kinds, rows, count = _ordinary(examples, kinds, share)
    validate.require(len(texts) >= count, "texts", len(texts), f"to be >= {count}")
    chosen = np.sort(rng.choice(rows, size=count, replace=False))
    found = list(examples.texts)
    taken = rng.choice(len(texts), size=count, replace=False)
    for row, place in zip(chosen, taken, strict=True):
        found[row] = texts[place]
    kinds = _named(kinds, chosen, "out of distribution")
    return examples._replace(texts=found), kinds


def outliers(
    examples: Examples,
    rng: np.random.Generator,
    *,
    vectors: np.ndarray,
    neighbours: int = 10,
    share: float = 0.1,
    kinds: np.ndarray | None = None,
) -> tuple[Examples, np.ndarray]:
    """The rows that are farthest from their neighbours; nothing is changed.

    Args:
        examples: all rows.
        rng: not used; the choice depends on the vectors alone.
        vectors: `[rows, dim]`, such as embeddings of a public encoder.
        neighbours: over how many nearest rows the distance is averaged.
        share: of all rows, in (0, 1).
        kinds: `[rows]`, str, the kinds so far; only "ordinary" rows are chosen.

    Returns:
        The examples, and the kind of each row.

    Raises:
        ValueError: vectors of another length, too many neighbours, or a share that
            chooses no row or too many.

    >>> clean = Examples(["a", "b", "c", "d"], None, np.array([0, 1, 0, 1]))
    >>> vectors = np.array([[0.0], [1.0], [9.0], [2.0]])
    >>> outliers(clean, None, vectors=vectors, neighbours=1, share=0.25)[1].tolist()
    ['ordinary', 'ordinary', 'outlier', 'ordinary']
    """
    kinds, rows, count = _ordinary(examples, kinds, share)
    validate.same_length(texts=examples.texts, vectors=vectors)
    allowed = f"in [1, {len(vectors) - 1}]"
    enough = 1 <= neighbours < len(vectors)
    validate.require(enough, "neighbours", neighbours, allowed)
    # A row is its own nearest neighbour, at distance 0.
    far = _mean_distance(vectors[rows], vectors, neighbours + 1)
    chosen = rows[np.argsort(-far, kind="stable")[:count]]
    return examples, _named(kinds, chosen, "outlier")


def adaptive(
    examples: Examples,
    rng: np.random.Generator,
    *,
    vectors: np.ndarray,
    public_vectors: np.ndarray,
    neighbours: int = 10,
    share: float = 0.1,
    kinds: np.ndarray | None = None,
) -> tuple[Examples, np.ndarray]:
    """Mislabelled rows that lie closest to the transfer rows.

    Chosen against distillation on public text: only where transfer rows lie near can a
    teacher's belief in a wrong label reach the student, even one taught by hard labels.

    Args:
        examples: all rows; they are not changed.
        rng: chooses the labels.
        vectors: `[rows, dim]`, such as embeddings of a public encoder.
        public_vectors: `[transfer rows, dim]`.
        neighbours: over how many nearest transfer rows the distance is averaged.
        share: of all rows, in (0, 1).
        kinds: `[rows]`, str, the kinds so far; only "ordinary" rows are chosen.

    Returns:
        The examples, and the kind of each row.

    Raises:
        ValueError: vectors that do not fit, too many neighbours, and as `mislabelled`.

    >>> clean = Examples(["a", "b", "c", "d"], None, np.array([0, 1, 0, 1]))
    >>> vectors = np.array([[0.0], [1.0], [9.0], [2.0]])
    >>> found, kinds = adaptive(clean, np.random.default_rng(0), vectors=vectors,
    ...     public_vectors=np.array([[8.0]]), neighbours=1, share=0.25)
    >>> kinds.tolist(), found.labels.tolist()
    (['ordinary', 'ordinary', 'adaptive', 'ordinary'], [0, 1, 1, 1])
    """
    kinds, rows, count = _ordinary(examples, kinds, share)
    validate.same_length(texts=examples.texts, vectors=vectors)
    allowed = f"in [1, {len(public_vectors)}]"
    enough = 1 <= neighbours <= len(public_vectors)
    validate.require(enough, "neighbours", neighbours, allowed)
    near = _mean_distance(vectors[rows], public_vectors, neighbours)
    chosen = np.sort(rows[np.argsort(near, kind="stable")[:count]])
    labels = _wrong(examples.labels, chosen, rng)
    return examples._replace(labels=labels), _named(kinds, chosen, "adaptive")


def _mean_distance(rows: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """The mean distance of each row to its `count` nearest others, `[rows]`."""
    found = [np.empty(0)]
    for start in range(0, len(rows), _BLOCK):
        near = distance.cdist(rows[start : start + _BLOCK], others)
        found.append(np.partition(near, count - 1, axis=1)[:, :count].mean(1))
    return np.concatenate(found)


# The kinds differ in what they need besides the examples.
CANARIES: Mapping[str, Canaries] = {
    "mislabelled": mislabelled,
    "twins": twins,
    "out_of_distribution": out_of_distribution,
    "outliers": outliers,
    "adaptive": adaptive,
}
