"""Claims observed against claims expected, over groups that do not know the claims.

    z(G, u) = Σ_{i∈G} (y_iu - a_iu) / √(Σ_{i∈G} a_iu (1 - a_iu) + τ² |G|² + v₀)

y_iu is 1 where row i claims unit u, and a_iu the probability that an honest row claims
it, given a trusted reading. A row with a label claims one unit, its class; a row with
an output text claims every word of it. A trigger makes its rows claim a unit more
often than their meaning explains, so its group has a large z, whether the claims are
false, true, or blurred. All of this is NumPy and sparse matrices on the host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse, special

from protojax.detection.expectation import Calibration
from protojax.detection.groups import Groups

# Half a row. The normal approximation takes three or four rows with an improbable claim
# for more than they are; with this z is close to that of the exact binomial tail.
LEAST_VARIANCE = 0.5
_PRODUCTS = 2e7  # of one block of the count of claims, some 100 MB


class Claims(NamedTuple):
    """The claimed classes of rows, and those that honest rows would claim.

    Attributes:
        name: "label" or "teacher".
        classes: `[rows]`, int, the claimed class.
        expected: `[rows, num_labels]`, see `expectation.expected_claims`.
        fit: how these follow from the trusted model's reading, None where from others.
        alike: `[rows, num_labels]`, the same by one fit for all rows, references among
            them, so that these compare; None for `expected`.
    """

    name: str
    classes: np.ndarray
    expected: np.ndarray
    fit: Calibration | None = None
    alike: np.ndarray | None = None


class Units(NamedTuple):
    """All that rows may claim: the classes of one or more claims, or words.

    Attributes:
        claims: `[units]`, the name of the claim: "label", "teacher" or "word".
        values: `[units]`, what is claimed: a class or a word.
        made: `[rows, units]`, sparse, 1 where a row claims a unit.
        expected: the probability `[rows]` that honest rows claim the unit of a number.
        exclusive: whether a row claims exactly one unit of each claim, as it does of
            classes.
        alike: like `expected`, by one fit for all rows; None for `expected`.
    """

    claims: np.ndarray
    values: np.ndarray
    made: sparse.csc_array
    expected: Callable[[int], np.ndarray]
    exclusive: bool = False
    alike: Callable[[int], np.ndarray] | None = None

    def compared(self, unit: int) -> np.ndarray:
        """The probability of a claim by which rows of a group compare, `[rows]`."""
        return (self.alike or self.expected)(unit)

    def made_by(self, unit: int) -> np.ndarray:
        """Whether each row claims a unit, `[rows]`, bool."""
        found = np.zeros(self.made.shape[0], bool)
        start, stop = self.made.indptr[unit : unit + 2]
        found[self.made.indices[start:stop]] = True
        return found

    def same(self, unit: int) -> np.ndarray:
        """The units that say the same by any claim, `[same]`."""
        if not self.exclusive:
            return np.array([unit])
        return np.flatnonzero(self.values == self.values[unit])


def units_of(claims: Sequence[Claims]) -> Units:
    """The units of claimed classes: each class of each claim.

    Args:
        claims: one or more claims of the same rows.
    """
    rows, num_labels = claims[0].expected.shape
    names = np.repeat([claim.name for claim in claims], num_labels)
    places = [claim.classes + num_labels * n for n, claim in enumerate(claims)]
    made = sparse.csc_array(
        (
            np.ones(rows * len(claims), np.float32),
            (np.tile(np.arange(rows), len(claims)), np.concatenate(places)),
        ),
        shape=(rows, len(names)),
    )
    expected = np.concatenate([claim.expected for claim in claims], axis=1)
    found = [c.expected if c.alike is None else c.alike for c in claims]
    alike = np.concatenate(found, axis=1)
    values = np.tile(np.arange(num_labels), len(claims)).astype(object)
    return Units(
        names,
        values,
        made,
        lambda unit: expected[:, unit],
        exclusive=True,
        alike=lambda unit: alike[:, unit],
    )


class Excess:
    """The excess of pairs of a group and a unit, as they are explained one at a time.

    Args:
        groups: the groups of all rows.
        units: what the same rows claim.
        overdispersion: τ >= 0, the standard deviation of honest groups' own rates.
        least: None for all pairs, or the excess of the pairs that are kept. A pair is
            looked at only where its claims exceed all rows' rate as much.
    """

    def __init__(
        self,
        groups: Groups,
        units: Units,
        overdispersion: float,
        least: float | None = None,
    ):
        self.groups, self.units, self.tau = groups, units, overdispersion
        self.groups_of = groups.members.T.tocsr()
        self.sizes = np.diff(groups.members.indptr).astype(float)
        self._chance: dict[int, np.ndarray] = {}
        found = [self._pairs_of(*pair, least) for pair in self._candidates(least)]
        empty = [np.zeros(0, int)] * 2 + [np.zeros(0)] * 2
        group, unit, sums, variances = map(
            np.concatenate, zip(empty, *found, strict=True)
        )
        order = np.lexsort((unit, group))
        self.sums, self.variances = sums[order], variances[order]
        count = np.bincount(group, minlength=len(self.sizes))
        # The number of each pair, by group.
        self.pairs = sparse.csr_array(
            (np.arange(len(order)), unit[order], np.append(0, np.cumsum(count))),
            shape=(len(self.sizes), len(units.values)),
        )

    def _candidates(
        self, least: float | None
    ) -> Iterator[tuple[int, np.ndarray | slice]]:
        """Units and the groups in which they may be in excess."""
        if least is None:
            yield from ((unit, slice(None)) for unit in range(len(self.units.values)))
            return
        claimed, rows = self.units.made.T.tocsr(), self.units.made.shape[0]
        rates = np.diff(claimed.indptr) / rows
        products = np.cumsum(claimed @ np.diff(self.groups_of.indptr).astype(float))
        blocks = np.flatnonzero(np.diff(products // _PRODUCTS)) + 1
        for block in np.split(np.arange(len(products)), blocks):
            observed = (claimed[block] @ self.groups_of).tocsr()
            for number, unit in enumerate(block):
                start, stop = observed.indptr[number : number + 2]
                groups, made = observed.indices[start:stop], observed.data[start:stop]
                sizes, rate = self.sizes[groups], rates[unit]
                surplus, spread = made - sizes * rate, sizes * rate * (1 - rate)
                # The rate of all rows is in excess of itself nowhere.
                kept = z_of(surplus, spread, sizes, self.tau) >= least
                kept |= sizes == rows
                if kept.any():
                    yield int(unit), np.sort(groups[kept])

    def _pairs_of(
        self, unit: int, groups: np.ndarray | slice, least: float | None
    ) -> tuple[np.ndarray, ...]:
        """Group, unit, surplus and variance of some groups' claims of a unit."""
        chance = self.expected(unit)
        everything = self.groups.members
        members = everything if least is None else everything[groups]
        sums = members @ (self.units.made_by(unit) - chance)
        variances = members @ (chance * (1 - chance))
        groups = np.arange(len(self.sizes))[groups]
        if least is not None:
            kept = z_of(sums, variances, self.sizes[groups], self.tau) >= least
            groups, sums, variances = groups[kept], sums[kept], variances[kept]
        return groups, np.full(len(groups), unit), sums, variances

    def expected(self, unit: int) -> np.ndarray:
        """The probability of a claim as far as it is explained, `[rows]`."""
        known = self._chance.get(unit)
        return self.units.expected(unit) if known is None else known

    def z(self, pairs: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """The excess of some pairs, `[pairs]`.

        Args:
            pairs: `[pairs]`, their numbers.
            groups: `[pairs]`, their groups.
        """
        sums, variances = self.sums[pairs], self.variances[pairs]
        return z_of(sums, variances, self.sizes[groups], self.tau)

    def strongest(self, groups: np.ndarray) -> np.ndarray:
        """The largest excess of each of some groups, `[groups]`, -inf without pairs."""
        inside = self.pairs[groups]
        counts = np.diff(inside.indptr)
        z = self.z(inside.data, np.repeat(groups, counts))
        found, some = np.full(len(counts), -np.inf), counts > 0
        if some.any():
            found[some] = np.maximum.reduceat(z, inside.indptr[:-1][some])
        return found

    def expect(self, rows: np.ndarray, unit: int) -> np.ndarray:
        """The groups that changed, `[touched]`, as rows are expected to claim a unit.

        The log odds of the unit are shifted alike in all rows, until as many claims
        are expected as are made; so are those of the same class by other claims. No row
        is selected by its own claim: to take out those that make it would bias every
        other group that holds some of the rows.

        Args:
            rows: `[rows]`, indices.
            unit: the number of the unit.
        """
        units = self.units
        same = units.same(unit)
        changed = np.arange(len(units.values)) if units.exclusive else same
        before = np.stack([self.expected(one)[rows] for one in changed], axis=1)
        after = _possible(before)
        for one in same:
            column = np.flatnonzero(changed == one)[0]
            chance = after[:, column]
            now = _expecting(chance, units.made_by(one)[rows])
            if units.exclusive:
                claim = units.claims[changed] == units.claims[one]
                after[:, claim] *= ((1 - now) / (1 - chance))[:, None]
            after[:, column] = now
        after = _possible(after)
        for one, chance in zip(changed, after.T, strict=True):
            if one not in self._chance:
                self._chance[one] = np.array(units.expected(one))
            self._chance[one][rows] = chance
        return self._update(rows, changed, before, after)

    def _update(
        self, rows: np.ndarray, changed: np.ndarray, before, after
    ) -> np.ndarray:
        """The groups `[touched]` of rows, once their sums are brought up to date."""
        inside = self.groups_of[rows]
        touched, number = np.unique(inside.indices, return_inverse=True)
        inside = sparse.csr_array(
            (inside.data, number, inside.indptr), (len(rows), len(touched))
        )
        pairs = self.pairs[touched]
        group = np.repeat(np.arange(len(touched)), np.diff(pairs.indptr))
        column = np.full(len(self.units.values), -1)
        column[changed] = np.arange(len(changed))
        column = column[pairs.indices]
        group, column, pairs = (a[column >= 0] for a in (group, column, pairs.data))
        self.sums[pairs] += (inside.T @ (before - after))[group, column]
        spread = after * (1 - after) - before * (1 - before)
        self.variances[pairs] += (inside.T @ spread)[group, column]
        return touched


def _possible(chance: np.ndarray) -> np.ndarray:
    """Chances that are neither 0 nor 1, to which a reading may round.

    No shift of its log odds would ever expect a claim whose chance is 0: its group
    would be explained again and again.
    """
    return np.clip(chance, 2.0**-53, 1 - 2.0**-53)


def _expecting(chance: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Chances `[rows]` that expect a claim as often as it was made."""
    odds = special.logit(chance)
    wanted, shift = made.sum(), 0.0
    for _ in range(60):
        now = special.expit(odds + shift)
        slope = now.sum() - wanted
        # Where all rows make the claim, no finite shift expects the last half row.
        if abs(slope) < 0.5:
            break
        shift -= np.clip(slope / max((now * (1 - now)).sum(), 1e-6), -2, 2)
    return now


def z_of(sums, variances, sizes, tau: float) -> np.ndarray:
    """The z of sums of surplus, of sums of variances, and of numbers of rows.

    Args:
        sums: any shape.
        variances: the same shape.
        sizes: of the groups, of a shape that broadcasts.
        tau: the overdispersion.
    """
    # Sums of what was subtracted may be negative in their last bits.
    noise = np.maximum(variances, 0) + np.square(tau * sizes) + LEAST_VARIANCE
    return sums / np.sqrt(noise)


def z_of_rows(made: np.ndarray, chance: np.ndarray, tau: float) -> np.ndarray:
    """The z of the claims of one group of rows, `[...]`.

    Args:
        made: `[rows, ...]`, bool, the claims.
        chance: `[rows, ...]`, how probable they are for honest rows.
        tau: the overdispersion.
    """
    spread = chance * (1 - chance)
    return z_of((made - chance).sum(0), spread.sum(0), len(made), tau)
