"""Detectors that look at rows one by one, to compare the test of outputs with.

Each maps texts under test and references to the rejected rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from protojax.base import Texts
from protojax.detection.conformal import conformal_p_values
from protojax.detection.excess import z_of
from protojax.detection.groups import tokens_of
from protojax.detection.outputs import Vectors
from protojax.detection.outputs.units import words_claimed
from protojax.prototypes import kmeans, nearest_prototype
from protojax.prototypes.settings import Prototypes


def by_score(scores: np.ndarray, scores_refs: np.ndarray, rate: float) -> np.ndarray:
    """The rows that score as high as few references do, `[rows]`, bool.

    Args:
        scores: `[rows]`, larger being more suspicious.
        scores_refs: `[references]`.
        rate: at which honest rows may be rejected.
    """
    zeros = [np.zeros(len(part)) for part in (scores, scores_refs)]
    return conformal_p_values(scores, scores_refs, *zeros, alpha=rate) <= rate


def lift(texts: Texts, references: Texts, rate: float) -> np.ndarray:
    """The rows whose outputs have words or pairs that references rarely have.

    The score is the largest excess of a word or pair over its rate in references,
    whatever the sources are.

    Args:
        texts: the rows under test.
        references: trusted rows.
        rate: at which honest rows may be rejected.
    """
    count = CountVectorizer(
        ngram_range=(1, 2), tokenizer=tokens_of, token_pattern=None, binary=True
    )
    found = count.fit_transform([*texts.outputs, *references.outputs]).tocsr()
    rows = len(texts.outputs)
    own, other = (
        np.asarray(part.sum(0)).ravel() for part in (found[:rows], found[rows:])
    )
    share = (other + 0.5) / (len(references.outputs) + 1)
    z = z_of(own - rows * share, rows * share * (1 - share), np.array(rows), 0.0)
    found.data = z[found.indices]
    scores = found.max(axis=1).toarray().ravel()
    return by_score(scores[:rows], scores[rows:], rate)


def sequential(
    vectors: Vectors,
    vectors_refs: Vectors,
    rate: float,
    *,
    settings: Prototypes | None = None,
    shrinkage: float = 4.0,
) -> np.ndarray:
    """Rows whose output's prototype is rare given their source's prototype.

    Sequential anchors: one set of prototypes for sources and one for outputs, of which
    the nearest is what a row says and claims. With N references of source s and claim
    o, p(o | s) = (N_{so} + shrinkage · p(o)) / (N_s + shrinkage), where p(o) is the
    share of o, with one more reference spread over all.

    Args:
        vectors: of the rows under test.
        vectors_refs: of trusted rows, one half fitted and counted, one half compared
            with.
        rate: at which honest rows may be rejected.
        settings: of both sets of prototypes; None for the defaults.
        shrinkage: how many references the claim's own share weighs.
    """
    settings = settings or Prototypes()
    count = len(vectors_refs.sources)
    counted = np.arange(count) % 2 == 0
    places, sizes = [], []
    for side, (rows, references) in enumerate(zip(vectors, vectors_refs, strict=True)):
        rows, references = (np.asarray(part, np.float32) for part in (rows, references))
        trusted = references[counted]
        centres = kmeans(
            jax.random.key(side),
            jnp.asarray(trusted),
            min(settings.num, len(trusted)),
            num_iters=settings.num_iters,
            metric=settings.metric,
        )
        every = jnp.asarray(np.concatenate([rows, references]))
        nearest, _ = nearest_prototype(every, centres, metric=settings.metric)
        places.append(np.asarray(nearest))
        sizes.append(len(centres.counts))
    table, rows = np.zeros(sizes), len(vectors.sources)
    source, claim = places
    np.add.at(table, (source[rows:][counted], claim[rows:][counted]), 1)
    share = (table.sum(0) + 1 / sizes[1]) / (table.sum() + 1)
    chance = (table + shrinkage * share) / (table.sum(1, keepdims=True) + shrinkage)
    scores = -np.log(chance[source, claim])
    return by_score(scores[:rows], scores[rows:][~counted], rate)


def clusters(
    texts: Texts,
    references: Texts,
    *,
    suspicious: float = 0.1,
    number: int = 8,
    tight: float = 0.5,
) -> np.ndarray:
    """Rows of outputs that their sources do not support and that are like each other.

    After RFTC (2025, arXiv:2505.23015), which asks a reference generator where we
    count: rows whose words are least expected are clustered by the TF-IDF of their
    outputs, and a tight cluster is rejected. Its thresholds are set by hand.

    Args:
        texts: the rows under test.
        references: trusted rows, one half counted and one half compared with.
        suspicious: the share of references that are expected as little.
        number: of clusters.
        tight: the mean cosine with its centre that makes a cluster tight.
    """
    half = len(references.outputs) // 2
    counted = np.arange(len(references.outputs)) < half
    trusted, pool = references.take(counted), texts.join(references.take(~counted))
    units = words_claimed(pool, trusted, shrinkage=4.0, own=True)
    total = np.zeros(len(pool.outputs))
    for unit in range(len(units.values)):
        made = units.made_by(unit)
        total[made] += units.expected(unit)[made]
    words = np.maximum(np.asarray(units.made.sum(1)).ravel(), 1)
    score, rows = -total / words, len(texts.outputs)
    asked = np.flatnonzero(by_score(score[:rows], score[rows:], suspicious))
    rejected = np.zeros(rows, bool)
    if len(asked) < number:
        return rejected
    vectors = TfidfVectorizer(tokenizer=tokens_of, token_pattern=None).fit_transform(
        [texts.outputs[row] for row in asked]
    )
    model = KMeans(number, n_init=3, random_state=0).fit(vectors)
    centres = model.cluster_centers_ / np.linalg.norm(
        model.cluster_centers_, axis=1, keepdims=True
    )
    cosine = np.asarray(vectors @ centres.T)[np.arange(len(asked)), model.labels_]
    for cluster in range(number):
        own = model.labels_ == cluster
        if own.sum() > 2 and cosine[own].mean() >= tight:
            rejected[asked[own]] = True
    return rejected
