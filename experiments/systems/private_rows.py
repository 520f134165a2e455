"""Private and public rows of a study, and the worst cases planted among them."""

from collections.abc import Sequence

import numpy as np

from experiments.systems.privacy_settings import Private
from experiments.world.tasks import load_task
from protojax import data, validate
from protojax.base import Examples
from protojax.data.examples import text_keys
from protojax.pipelines.privacy import Rows
from protojax.privacy.canaries import CANARIES
from protojax.privacy.findings import ORDINARY
from protojax.privacy.overlap import scan

_WORDS = 512  # columns of hashed word counts


def split(config: Private, seed: int) -> tuple[Rows, np.ndarray, dict[str, int]]:
    """The rows of a seed, the kind of each private one, and what was left out.

    Args:
        config: of the study.
        seed: of the split and the planted rows.

    Raises:
        ValueError: where the task has too few rows, or is a regression.
    """
    train, test, task = load_task(config.task, root=config.data.root)
    kind = np.asarray(train.labels).dtype
    integer = np.issubdtype(kind, np.integer)
    validate.require(integer, "task", config.task, "of classification")
    # One of equal texts, and none of the test's: a row twice is a member and none.
    rows_of = {key: row for row, key in enumerate(text_keys(train))}
    for key in text_keys(test):
        rows_of.pop(key, None)
    order = np.random.default_rng(seed).permutation(list(rows_of.values()))
    sizes = config.data.private, config.data.public
    bound = f"at most {len(order)} with data.public, as {config.task} has"
    validate.require(sum(sizes) <= len(order), "data.private", sizes[0], bound)
    private = data.take(train, order[: sizes[0]])
    public = data.take(train, order[sizes[0] : sum(sizes)])
    overlap = scan(texts_of(public), texts_of(private))
    public = data.take(public, ~overlap.failed)
    left_out = {"public rows left out": int(overlap.failed.sum()), **overlap.counts()}
    private, kinds = _planted(config, private, public, seed)
    return Rows(private, public, test, task.num_labels), kinds, left_out


def texts_of(examples: Examples) -> list[str]:
    """First and second texts of each row as one.

    >>> texts_of(Examples(["a", "b"], ["c", "d"], [0, 1]))
    ['a c', 'b d']
    """
    columns = [part for part in examples[:2] if part is not None]
    return [" ".join(row) for row in zip(*columns, strict=True)]


def _planted(
    config: Private, private: Examples, public: Examples, seed: int
) -> tuple[Examples, np.ndarray]:
    """The private rows with worst cases among them, and the kind of each."""
    rng, kinds = np.random.default_rng((seed, 1)), None
    vectors, near = _vectors(texts_of(private)), _vectors(texts_of(public))
    needs = {
        "outliers": {"vectors": vectors},
        "adaptive": {"vectors": vectors, "public_vectors": near},
    }
    # Twins last, since they append rows.
    for name in sorted(config.planted, key=lambda name: name == "twins"):
        private, kinds = CANARIES[name](
            private, rng, share=config.share, kinds=kinds, **needs.get(name, {})
        )
    if kinds is None:
        kinds = np.full(len(private.texts), ORDINARY)
    return private, kinds


def _vectors(texts: Sequence[str]) -> np.ndarray:
    """Hashed word counts of unit length, `[rows, words]`."""
    # Loading it takes a second.
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=_WORDS).transform(texts).toarray()
