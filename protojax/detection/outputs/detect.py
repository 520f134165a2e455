"""The test of rows whose output is text: which to reject, and which words they deny.

Two tests, each of one round, as of classes (`protojax.detection.detect`). Words see a
phrase, a name or a clause that is put into outputs, but not a true output of another
text; its meaning does not fit. A phrase behind a true output hardly moves its meaning.
"""

import dataclasses
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.base import Examples, Texts
from protojax.detection.conformal import require_finite
from protojax.detection.detect import Judgement, grouped, judge
from protojax.detection.evidence import Suspect
from protojax.detection.excess import Units
from protojax.detection.groups import Groups, tokens_of
from protojax.detection.outputs.denial import (
    Spans,
    denied_words,
    new_words,
    places_of,
)
from protojax.detection.outputs.units import NEW, foreign, words_claimed
from protojax.detection.settings import OutputDetection

# Of the references: each is judged by the others, so that all learn and all judge. A
# row beside a reference that was counted is expected to be like it, and no row beside a
# row under test is, so the references of a fold are in no pool that they were counted
# for.
FOLDS = 2


class Vectors(NamedTuple):
    """Vectors of sources and outputs, by any encoder.

    Attributes:
        sources: `[rows, dim]`.
        outputs: `[rows, dim]`.
    """

    sources: ArrayLike
    outputs: ArrayLike


def cosines_of(vectors: Vectors) -> np.ndarray:
    """The cosine of each source and its output, `[rows]`; 0 for a zero vector.

    Args:
        vectors: of the rows.

    >>> cosines_of(Vectors([[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    first, second = (np.asarray(part, float) for part in vectors)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.maximum(norms, 1e-12)


class OutputFindings(NamedTuple):
    """The result of the test of outputs.

    Attributes:
        rejected: `[rows]`, bool.
        p_values: `[rows]`, lower is more suspicious.
        suspects: every group with a rejected row, the strongest of each test first.
            Their `label` is the word in excess, or how badly outputs fit.
        reasons: `[rows]`, the number of a row's suspect, -1 for none.
        denied: `[rows]`, the beginnings and ends of the words of a rejected output that
            its groups deny; none where the meaning alone is denied.
        replaced: `[rows]`, bool, where denied words stand in the place of others, which
            outputs of the same group lack.
        clean: whether the set as a whole looks clean: no group is strong.
    """

    rejected: np.ndarray
    p_values: np.ndarray
    suspects: tuple[Suspect, ...]
    reasons: np.ndarray
    denied: tuple[Spans, ...]
    replaced: np.ndarray
    clean: bool


def detect_outputs(
    texts: Texts,
    references: Texts,
    settings: OutputDetection | None = None,
    *,
    vectors: Vectors | None = None,
    vectors_refs: Vectors | None = None,
) -> OutputFindings:
    """The rows whose outputs are not what honest outputs of their sources would be.

    Guarantee: as `protojax.detection.detect` gives it, over both tests together; of two
    tests the smaller p-value is doubled.

    Args:
        texts: the rows under test.
        references: trusted rows.
        settings: of the test; None for the defaults.
        vectors: of the rows, for the test of meaning; None leaves it out.
        vectors_refs: of the references, by the same encoder.

    Raises:
        ValueError: on too few references for the level, columns of different lengths,
            or vectors that are not finite or of one side only.
    """
    settings = settings or OutputDetection()
    for name, part in (("texts", texts), ("references", references)):
        with validate.prefixed(name):
            validate.same_length(sources=part.sources, outputs=part.outputs)
    given = [part is not None for part in (vectors, vectors_refs)]
    bound = "of rows and of references, or of neither"
    validate.require(given[0] == given[1], "vectors", given, bound)
    bound = f">= {2 * FOLDS}, two a fold"
    count = len(references.sources)
    validate.require(count >= 2 * FOLDS, "references", count, bound)
    if all(given):
        cosines = _cosines("vectors", vectors, texts)
        cosines_refs = _cosines("vectors_refs", vectors_refs, references)
        tests = 2
    else:
        tests = 1
    least = tests / (1 + count)
    bound = f">= {least:.3g} with {count} references"
    rate = settings.false_rejection
    validate.require(rate >= least, "false_rejection", rate, bound)
    # The level of each test.
    settings = dataclasses.replace(settings, false_alarm=settings.false_alarm / tests)
    own = _own_rates(references, settings)
    rows, found = len(texts.sources), [[] for _ in range(tests)]
    for fold in range(FOLDS):
        judged = np.arange(count) % FOLDS == fold
        trusted = references.take(~judged)
        pool = texts.join(references.take(judged))
        groups = _groups(pool.sources, settings)
        units = [_words(pool, trusted, settings, own)]
        if tests == 2:
            whole = np.append(cosines, cosines_refs[judged])
            units.append(foreign(whole, cosines_refs[~judged]))
        for part, one in zip(found, units, strict=True):
            part.append((one, judge(groups, one, rows, settings)))
    known = {word for output in references.outputs for word in tokens_of(output)}
    return _together(found, texts, known, rate)


def _groups(sources: Iterable[str], settings: OutputDetection) -> Groups:
    """The groups of sources."""
    sources = list(sources)
    return grouped(Examples(sources, None, np.zeros(len(sources))), settings)


def _words(pool: Texts, trusted: Texts, settings: OutputDetection, own: bool) -> Units:
    """The words of outputs as claims."""
    return words_claimed(
        pool,
        trusted,
        shrinkage=settings.shrinkage,
        own=own,
        min_rows=settings.min_rows,
    )


def _own_rates(references: Texts, settings: OutputDetection) -> bool:
    """Whether words' own rates of being copied leave references less in excess.

    The level is what few references exceed. The better of both has the lower one on
    references alone, so that no row under test takes part in the choice.
    """
    even = np.arange(len(references.sources)) % FOLDS == 0
    pool, trusted = references.take(even), references.take(~even)
    groups, levels = _groups(pool.sources, settings), []
    for own in (False, True):
        found = judge(groups, _words(pool, trusted, settings, own), 0, settings)
        z = np.append([one.z for one in found.explanations], 0.0)[found.reasons]
        levels.append(np.quantile(z, 1 - settings.false_rejection))
    return levels[1] < levels[0]


def _cosines(name: str, vectors: Vectors, texts: Texts) -> np.ndarray:
    """The cosine of each source and its output, `[rows]`."""
    first, second = (np.asarray(part, float) for part in vectors)
    validate.shape(first.shape, **{f"{name}.outputs": second})
    validate.same_length(**{f"{name}.sources": first, "texts": texts.sources})
    require_finite(**{f"{name}.sources": first, f"{name}.outputs": second})
    return cosines_of(Vectors(first, second))


def _together(
    tests: list[list[tuple[Units, Judgement]]],
    texts: Texts,
    known: Set[str],
    rate: float,
) -> OutputFindings:
    """The findings of all tests and folds as one.

    A test's p-value counts the references of all folds, each in its own fold. Of the
    tests the smallest counts, times their number.
    """
    rows = len(texts.outputs)
    every = [judgement for test in tests for _, judgement in test]
    # The references of each fold may show that a group is honest.
    strong = np.any(
        [np.all([one.strong[:rows] for _, one in test], axis=0) for test in tests],
        axis=0,
    )
    counted = [[_exceeding(one, rows) for _, one in test] for test in tests]
    p_values = np.stack([_cross_conformal(folds) for folds in counted])
    # The fold in which fewer references exceed a row says more about it.
    share = [count / (1 + total) for folds in counted for count, total in folds]
    by = np.argmin(share, axis=0)
    p_value = np.minimum(1, len(tests) * p_values.min(0))
    rejected = (p_value <= rate) | strong
    suspects, reasons = _reported(every, by, rejected)
    called = np.isin(np.arange(len(suspects)), reasons[strong])
    suspects = tuple(
        suspect._replace(strong=bool(one))
        for suspect, one in zip(suspects, called, strict=True)
    )
    words, replaced = zip(
        *(denied_words(*one, rejected) for one in tests[0]), strict=True
    )
    denied = tuple(
        _places(set().union(*found), source, output, known)
        for source, output, *found in zip(*texts, *words, strict=True)
    )
    return OutputFindings(
        rejected,
        p_value,
        suspects,
        reasons,
        denied,
        np.any(replaced, axis=0),
        clean=not strong.any(),
    )


def _places(words: set[str], source: str, output: str, known: Set[str]) -> Spans:
    """The places of denied words; where new ones are, of all that are new."""
    if NEW in words:
        words = words | new_words(output, source, known)
    return places_of(words, output)


def _reported(
    judgements: Sequence[Judgement], by: np.ndarray, rejected: np.ndarray
) -> tuple[tuple[Suspect, ...], np.ndarray]:
    """The suspects of all tests and folds, each once, and the number of each row's.

    Args:
        judgements: of the tests and folds.
        by: `[rows]`, which of them says most about a row.
        rejected: `[rows]`, bool.
    """
    known: dict[tuple, Suspect] = {}
    of_row: dict[int, tuple] = {}
    for place, one in enumerate(judgements):
        shown, reasons = one.reported(rejected & (by == place))
        keys = [(suspect.claim, suspect.name, suspect.label) for suspect in shown]
        for key, suspect in zip(keys, shown, strict=True):
            if key not in known or suspect.z > known[key].z:
                known[key] = suspect
        of_row |= {row: keys[reasons[row]] for row in np.flatnonzero(reasons >= 0)}
    order = sorted(known, key=lambda key: -known[key].z)
    number = {key: place for place, key in enumerate(order)}
    reasons = np.full(len(rejected), -1)
    for row, key in of_row.items():
        reasons[row] = number[key]
    return tuple(known[key] for key in order), reasons


def _exceeding(one: Judgement, rows: int) -> tuple[np.ndarray, int]:
    """The number of references that score as high as each row `[rows]`, and of all.

    References with a trigger are no honest rows, which the level is for.
    """
    references = np.sort(one.scores[rows:][~one.strong[rows:]])
    below = np.searchsorted(references, one.scores[:rows], side="left")
    return len(references) - below, len(references)


def _cross_conformal(folds: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """The p-values of rows that are compared with each fold's references, `[rows]`.

    Source: Vovk, Cross-conformal predictors, 2015.
    """
    counts, totals = zip(*folds, strict=True)
    return (1 + np.sum(counts, axis=0)) / (1 + sum(totals))
