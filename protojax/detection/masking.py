"""Triggers that the trusted model has learned: rows read without what they share.

Where references hold the trigger too, the trusted model expects its claim, and there is
no excess. Read without the trigger's own words, its rows claim a class that nothing in
them explains. The same is true of a word that alone carries a class. But put into other
texts, a trigger decides what the model reads, and a word with a meaning hardly does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from protojax import data
from protojax.base import Examples
from protojax.detection import conformal, excess, expectation, rewriting
from protojax.detection.evidence import Reading
from protojax.detection.excess import Claims
from protojax.detection.expectation import Calibration
from protojax.detection.groups import Groups
from protojax.detection.settings import Detection

# (rows of the pool [asked], the same rows with other texts) -> the trusted reading. A
# reference is read by a model that did not learn from it, as in the test.
Reread = Callable[[np.ndarray, Examples], Reading]
_SHOWN = 150  # references that a phrase is put into


class Masked(NamedTuple):
    """A group that was read without what its rows share.

    Attributes:
        group: its number.
        rows: `[members]`, its rows.
        expected: per claim `[members, num_labels]`, what honest rows would claim.
        z: the largest excess over claims and classes.
        label: that class.
        claimants: how many rows make that claim.
    """

    group: int
    rows: np.ndarray
    expected: tuple[np.ndarray, ...]
    z: float
    label: int
    claimants: int


def learned_triggers(
    groups: Groups,
    claims: Sequence[Claims],
    calibrations: Sequence[Calibration],
    pool: Examples,
    first_reference: int,
    reread: Reread,
    settings: Detection,
) -> list[Masked]:
    """The groups of words that stand apart once they are read without these words.

    Words with a meaning have an excess of their own when they are left out, so a group
    is compared with the other groups that were read like this, never with a level, and
    its words have to flip references of other classes that they are put into.

    Args:
        groups: of the pool.
        claims: of the pool, one or more.
        calibrations: of each claim.
        pool: the transfer rows, then the references.
        first_reference: the place of the first reference in it.
        reread: the trusted model.
        settings: of the test.
    """
    asked = lopsided(groups, claims, most=settings.reread_groups)
    if not len(asked):
        return []

    def masked(wanted: list[tuple[int, np.ndarray]]) -> list[Masked]:
        odds = _read_without(groups, wanted, pool, reread)
        return [
            _masked(group, rows, part, claims, calibrations, settings.overdispersion)
            for (group, rows), part in zip(wanted, odds, strict=True)
        ]

    # A part of a large group tells as much as all of it.
    parts = [(group, _some(groups.rows(group), settings)) for group in asked]
    found = masked(parts)
    p_values = conformal.tail_p_values([one.z for one in found], groups=len(found))
    references = np.arange(first_reference, len(pool.texts))
    apart = [
        (one.group, groups.rows(one.group))
        for one, p in zip(found, p_values, strict=True)
        if settings.is_trigger(p, one.claimants)
        and _flips(groups, one, pool, references, reread) >= settings.flips
    ]
    return masked(apart) if apart else []


def _flips(
    groups: Groups, one: Masked, pool: Examples, references: np.ndarray, reread: Reread
) -> float:
    """The share of references of other classes that a group's words flip to its claim.

    References that the trusted model already reads as the claim are left out.
    """
    phrase = tuple(groups.names[one.group].split(" "))
    held = np.isin(references, groups.rows(one.group))
    others = references[(pool.labels[references] != one.label) & ~held][:_SHOWN]
    if not len(others):
        return 0.0
    before = data.take(pool, others)
    after = rewriting.with_phrases(before, [phrase], seed=0)
    read = [reread(others, texts).logits.argmax(1) for texts in (before, after)]
    before_is, after_is = (classes == one.label for classes in read)
    return float(after_is[~before_is].mean()) if not before_is.all() else 0.0


def _some(rows: np.ndarray, settings: Detection) -> np.ndarray:
    """At most `settings.reread_rows` of some rows, evenly spread."""
    step = -(-len(rows) // settings.reread_rows)
    return rows[:: max(step, 1)]


def _read_without(
    groups: Groups,
    wanted: Sequence[tuple[int, np.ndarray]],
    pool: Examples,
    reread: Reread,
) -> list[np.ndarray]:
    """The log odds of rows of each group, read without what these share."""
    texts = [
        rewriting.without_phrase(
            data.take(pool, rows), tuple(groups.names[group].split(" "))
        )
        for group, rows in wanted
    ]
    everything = functools.reduce(data.concatenate, texts)
    rows = [rows for _, rows in wanted]
    # One call for all groups, so that they share batches.
    odds = expectation.log_odds(reread(np.concatenate(rows), everything).logits)
    return np.split(odds, np.cumsum([len(part) for part in rows])[:-1])


def lopsided(
    groups: Groups,
    claims: Sequence[Claims],
    *,
    most: int = 60,
    fewest: int = 20,
    least: float = 4.0,
) -> np.ndarray:
    """The groups of words whose claims differ most from all rows', `[asked]`, int.

        z(G, u) = (k - n b) / √(n b (1 - b)),    k of n rows claim u, b of all rows do

    A group that nearly lies in one already chosen is left out.

    Args:
        groups: of all rows.
        claims: one or more claims of the same rows.
        most: the most groups.
        fewest: so many are chosen in any case: a trigger is compared with the others.
        least: the smallest z of all further ones.
    """
    sizes = np.diff(groups.members.indptr)
    score = np.full(len(sizes), -np.inf)
    for claim in claims:
        made = claim.classes[:, None] == np.arange(claim.expected.shape[1])
        base = made.mean(0)
        spread = np.sqrt(np.outer(sizes, base * (1 - base)) + excess.LEAST_VARIANCE)
        gap = (groups.members @ made.astype(float) - np.outer(sizes, base)) / spread
        score = np.maximum(score, gap.max(1, initial=-np.inf))
    score[~np.isin(groups.kinds, rewriting.WRITTEN)] = -np.inf
    chosen, order = [], np.argsort(-score, kind="stable")
    covered = np.zeros((0, groups.members.shape[1]), bool)
    for group in order[score[order] > -np.inf]:
        if len(chosen) == most or (len(chosen) >= fewest and score[group] < least):
            break
        rows = groups.rows(group)
        if len(covered) and covered[:, rows].mean(1).max() >= 0.9:
            continue
        own = np.zeros((1, covered.shape[1]), bool)
        own[0, rows] = True
        covered = np.concatenate([covered, own])
        chosen.append(group)
    return np.array(chosen, int)


def _masked(
    group: int,
    rows: np.ndarray,
    odds: np.ndarray,
    claims: Sequence[Claims],
    calibrations: Sequence[Calibration],
    overdispersion: float,
) -> Masked:
    """A group by the reading of its rows without what they share."""
    expected = tuple(one.expected(odds) for one in calibrations)
    best, label, claimants = -np.inf, 0, 0
    for claim, chance in zip(claims, expected, strict=True):
        made = claim.classes[rows, None] == np.arange(chance.shape[1])
        z = excess.z_of_rows(made, chance, overdispersion)
        if z.max() > best:
            best, label = float(z.max()), int(z.argmax())
            claimants = int(made[:, label].sum())
    return Masked(int(group), rows, expected, best, label, claimants)
