"""Groups that explain claims in excess, the strongest first, and the rows of them."""

from typing import NamedTuple

import numpy as np

from protojax.detection.excess import Excess, Units, z_of, z_of_rows
from protojax.detection.groups import Groups


class Explanation(NamedTuple):
    """A group of rows that claim a unit more often than their meaning explains.

    Attributes:
        name: what the rows share.
        kind: the kind of the group.
        unit: the number of the claimed unit.
        z: the excess.
        members: `[members]`, the rows of the group.
        claimants: `[claimants]`, those that make the claim.
        expected: how many of the members honest claims would be.
    """

    name: str
    kind: str
    unit: int
    z: float
    members: np.ndarray
    claimants: np.ndarray
    expected: float


def explain(
    groups: Groups,
    units: Units,
    *,
    overdispersion: float = 0.02,
    least: float = 3.0,
    min_rows: int = 3,
    most: int = 1000,
) -> list[Explanation]:
    """The groups that explain an excess of claims, the strongest first.

    The strongest group is narrowed to the rows of it that share more, as long as that
    makes it stronger than chance would: two common words that are a trigger only
    together end up as their intersection. Then the group's claims are expected, so what
    other groups merely shared with it is not suspected, and the next group is the
    strongest of what is left.

    Args:
        groups: groups of all rows, the rows under test and the references alike.
        units: what the same rows claim.
        overdispersion: τ.
        least: the z below which nothing is explained.
        min_rows: the fewest rows of a narrowed group.
        most: the most groups.

    Returns:
        The explanations.

    Source: an additive logistic model fitted by forward stages, Friedman, Hastie and
    Tibshirani 2000; greedy selection as in matching pursuit, Mallat and Zhang 1993.
    """
    # Explained claims of a class make others more probable, so all pairs are kept.
    state = Excess(groups, units, overdispersion, None if units.exclusive else least)
    best = state.strongest(np.arange(len(groups.names)))
    found: list[Explanation] = []
    while len(best) and len(found) < most:
        group = int(best.argmax())
        if best[group] < least:
            break
        one = _strongest(state, group, min_rows)
        found.append(one)
        touched = state.expect(one.members, one.unit)
        best[touched] = state.strongest(touched)
    # Narrowed, or with rows that other groups explained, a later one may be stronger.
    return sorted(found, key=lambda one: -one.z)


_SHARED = 0.9  # nearly all


def _strongest(state: Excess, group: int, min_rows: int) -> Explanation:
    """The explanation by one group, narrowed while that makes it stronger."""
    pairs = state.pairs[[group]]
    z = state.z(pairs.data, np.full(pairs.nnz, group))
    unit = int(pairs.indices[z.argmax()])
    value, chosen = float(z.max()), [group]
    made, expected = state.units.made_by(unit), state.expected(unit)
    rows = state.groups.rows(group)
    while True:
        inside, chance = state.groups_of[rows], expected[rows]
        surplus, spread = made[rows] - chance, chance * (1 - chance)
        sizes = np.asarray(inside.sum(0)).ravel()
        within = z_of(inside.T @ surplus, inside.T @ spread, sizes, state.tau)
        within[sizes < min_rows] = -np.inf
        narrower = int(within.argmax())
        # The largest of many z² exceeds another by 2 log(many) by chance alone.
        tried = np.count_nonzero(within > -np.inf)
        if within[narrower] <= np.sqrt(value**2 + 2 * np.log(max(tried, 1))):
            break
        value = float(within[narrower])
        rows = rows[np.isin(rows, state.groups.rows(narrower))]
        chosen.append(narrower)
    claimants = _claimants(state, rows, unit)
    name, kind = _name(state, chosen, claimants)
    total = float(expected[rows].sum())
    return Explanation(name, kind, unit, value, rows, claimants, total)


def _claimants(
    state: Excess, rows: np.ndarray, unit: int, least: float = 3.0
) -> np.ndarray:
    """The rows that claim a unit, or the same by another claim that is in excess."""
    found = np.zeros(len(rows), bool)
    for same in state.units.same(unit):
        made, chance = state.units.made_by(same)[rows], state.expected(same)[rows]
        if same == unit or z_of_rows(made, chance, state.tau) >= least:
            found |= made
    return rows[found]


def _name(state: Excess, chosen: list[int], claimants: np.ndarray) -> tuple[str, str]:
    """The name and kind of what nearly all claimants share, as long as it can be."""
    groups = state.groups
    shared = np.asarray(state.groups_of[claimants].sum(0)).ravel()
    # Of what nearly all share, the longest; where two are as long, what more share.
    common = np.flatnonzero(shared >= _SHARED * len(claimants))
    common = [g for g in common if groups.kinds[g] == "phrase"]
    longest = max(
        common, key=lambda g: (len(groups.names[g].split()), shared[g]), default=None
    )
    if longest is not None:
        return str(groups.names[longest]), "phrase"
    together = " + ".join(str(groups.names[g]) for g in chosen)
    return together, str(groups.kinds[chosen[0]])


def row_scores(found: list[Explanation], units: Units) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each row by suspicion, and the explanation that it has.

    Rows are ordered by the z of the group that explains them and, within a group, by
    how improbable their own claim is, by one fit for rows under test and references.
    Each has a fit of its own too, by which one of both might come first in every group.
    Rows that no group explains share rank 0.

    Args:
        found: from `explain`.
        units: those given to it.

    Returns:
        Scores `[rows]`, larger being more suspicious, and the number of each row's
        explanation `[rows]`, -1 for none.
    """
    rows = units.made.shape[0]
    reason, z, unlikely = np.full(rows, -1), np.zeros(rows), np.zeros(rows)
    for number, one in enumerate(found):
        # A row that several groups explain has the strongest of them.
        new = one.claimants[z[one.claimants] < one.z]
        reason[new], z[new] = number, one.z
        unlikely[new] = -units.compared(one.unit)[new]
    order = np.lexsort((unlikely, z))
    scores = np.empty(rows)
    scores[order] = np.arange(rows)
    scores[reason < 0] = 0
    return scores, reason
