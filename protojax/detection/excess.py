"""Claims observed against claims expected, over groups that do not know the claims.

    z(G, u) = Σ_{i∈G} (y_iu - a_iu) / √(Σ_{i∈G} a_iu (1 - a_iu) + τ² |G|² + v₀)

y_iu is 1 where row i claims class u, and a_iu the probability that an honest row claims
it, given the trusted model's reading. A trigger makes its rows claim one class more
often than their meaning explains, so its group has a large z, whether the claims are
false, true, or blurred. All of this is NumPy and sparse matrices on the host.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, special, stats

from protojax.detection.groups import Groups

# Half a row. The normal approximation takes three or four rows with an improbable claim
# for more than they are; with this z is close to that of the exact binomial tail.
LEAST_VARIANCE = 0.5


class Claims(NamedTuple):
    """The claims of rows, and those that honest rows would make.

    Attributes:
        name: "label" or "teacher".
        classes: `[rows]`, int, the claimed class.
        expected: `[rows, num_labels]`, see `expectation.expected_claims`.
    """

    name: str
    classes: np.ndarray
    expected: np.ndarray


class Explanation(NamedTuple):
    """A group of rows that make a claim more often than their meaning explains.

    Attributes:
        name: what the rows share.
        kind: the kind of the group.
        claim: "label" or "teacher".
        label: the claimed class.
        z: the excess.
        members: `[members]`, the rows of the group.
        claimants: `[claimants]`, those that make the claim.
        expected: how many of the members honest claims would be.
    """

    name: str
    kind: str
    claim: str
    label: int
    z: float
    members: np.ndarray
    claimants: np.ndarray
    expected: float


class Excess:
    """The excess of every group and class, as groups are explained one at a time.

    Args:
        groups: the groups of all rows.
        claims: one or more claims of the same rows.
        overdispersion: τ >= 0, the standard deviation of honest groups' own rates.
    """

    def __init__(self, groups: Groups, claims: list[Claims], overdispersion: float):
        self.groups, self.tau = groups, overdispersion
        self.groups_of = groups.members.T.tocsr()
        self.sizes = np.diff(groups.members.indptr).astype(float)
        labels = np.arange(claims[0].expected.shape[1])
        # [claims, rows, num_labels], then the same sums over groups
        self.made = np.stack([claim.classes[:, None] == labels for claim in claims])
        self.expected = np.stack([claim.expected for claim in claims])
        self.sums = np.stack([groups.members @ s for s in self.made - self.expected])
        self.variances = np.stack([groups.members @ v for v in self.spread()])

    def spread(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The variance of claims, `[claims, rows, num_labels]`."""
        return self.expected[:, rows] * (1 - self.expected[:, rows])

    def z(self, groups: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The excess of some groups, `[claims, groups, num_labels]`."""
        sizes = self.sizes[groups][:, None]
        return z_of(self.sums[:, groups], self.variances[:, groups], sizes, self.tau)

    def expect(self, rows: np.ndarray, label: int) -> np.ndarray:
        """The groups that changed, `[touched]`, as rows are expected to claim a class.

        The log odds of the class are shifted alike in all rows, until as many claims
        are expected as are made. No row is selected by its own claim: to take out those
        that make it would bias every other group that holds some of the rows.

        Args:
            rows: `[rows]`, indices.
            label: the class.
        """
        before, spread = self.expected[:, rows], self.spread(rows)
        after = np.stack(
            [
                _expecting(chance, made, label)
                for chance, made in zip(before, self.made[:, rows], strict=True)
            ]
        )
        self.expected[:, rows] = after
        inside = self.groups_of[rows]
        touched, number = np.unique(inside.indices, return_inverse=True)
        inside = sparse.csr_array(
            (inside.data, number, inside.indptr), (len(rows), len(touched))
        )
        for claim, change in enumerate(before - after):
            self.sums[claim, touched] += inside.T @ change
        for claim, change in enumerate(self.spread(rows) - spread):
            self.variances[claim, touched] += inside.T @ change
        return touched


def _expecting(chance: np.ndarray, made: np.ndarray, label: int) -> np.ndarray:
    """Chances `[rows, num_labels]` that expect a class as often as it was claimed."""
    odds = special.logit(chance[:, label])
    wanted, shift = made[:, label].sum(), 0.0
    for _ in range(60):
        now = special.expit(odds + shift)
        slope = now.sum() - wanted
        # Where all rows make the claim, no finite shift expects the last half row.
        if abs(slope) < 0.5:
            break
        shift -= np.clip(slope / max((now * (1 - now)).sum(), 1e-6), -2, 2)
    found = chance * ((1 - now) / (1 - chance[:, label]))[:, None]
    found[:, label] = now
    return found


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


def explain(
    groups: Groups,
    claims: list[Claims],
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
        claims: one or more claims of the same rows.
        overdispersion: τ.
        least: the z below which nothing is explained.
        min_rows: the fewest rows of a narrowed group.
        most: the most groups.

    Returns:
        The explanations.

    Source: an additive logistic model fitted by forward stages, Friedman, Hastie and
    Tibshirani 2000; greedy selection as in matching pursuit, Mallat and Zhang 1993.
    """
    state = Excess(groups, claims, overdispersion)
    best = state.z().max((0, 2), initial=-np.inf)
    found: list[Explanation] = []
    while len(best) and len(found) < most:
        group = int(best.argmax())
        if best[group] < least:
            break
        one = _strongest(state, claims, group, min_rows)
        found.append(one)
        touched = state.expect(one.members, one.label)
        best[touched] = state.z(touched).max((0, 2))
    # Narrowed, or with rows that other groups explained, a later one may be stronger.
    return sorted(found, key=lambda one: -one.z)


_SHARED = 0.9  # nearly all


def _strongest(
    state: Excess, claims: list[Claims], group: int, min_rows: int
) -> Explanation:
    """The explanation by one group, narrowed while that makes it stronger."""
    z = state.z(np.array([group]))[:, 0]
    claim, label = (int(index) for index in np.unravel_index(z.argmax(), z.shape))
    value, chosen = float(z.max()), [group]
    rows = state.groups.rows(group)
    while True:
        inside, chance = state.groups_of[rows], state.expected[claim, rows, label]
        surplus, spread = state.made[claim, rows, label] - chance, chance * (1 - chance)
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
    claimants = _claimants(state, rows, label, claim)
    name, kind = _name(state, chosen, claimants)
    expected = float(state.expected[claim, rows, label].sum())
    return Explanation(
        name, kind, claims[claim].name, label, value, rows, claimants, expected
    )


def _claimants(
    state: Excess, rows: np.ndarray, label: int, claim: int, least: float = 3.0
) -> np.ndarray:
    """The rows that make the claim, or another of the same class that is in excess."""
    made, chance = state.made[:, rows, label], state.expected[:, rows, label]
    counts = z_of_rows(made.T, chance.T, state.tau) >= least
    counts[claim] = True
    return rows[made[counts].any(0)]


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


def tail_p_values(z: ArrayLike, *, groups: int, tail: int = 40) -> np.ndarray:
    """The probability that the strongest honest group is as strong, for each group.

        p_j = 1 - (1 - (1 + x_j / ν)^-ν)^(k - 1),  x_j = (z_j² - z_k²) / 2s²,  ν = 3k/4

    The k-th strongest of the groups is where the tail begins, beyond which z² of honest
    groups falls off exponentially. s² is estimated in the middle of the tail, ranks k/5
    to k/2, which the few groups of an attack do not reach. Common words with a meaning
    that the trusted model misses make s² larger than the 1 of normal numbers. ν allows
    for the estimate: with it, p is uniform for normal numbers (simulated).

    Args:
        z: `[explained]`, the excess of explanations, in any order.
        groups: how many groups were tested. With fewer than ten explanations there is
            no tail to estimate, and honest groups are taken for normal numbers of
            variance 2, the most that real text has shown.
        tail: k, or all explanations where there are fewer.

    Returns:
        `[explained]`.

    Source: spacings of exponential order statistics, Rényi 1953.

    >>> honest = np.sqrt(2 * np.log(1000 / np.arange(1, 60)))
    >>> p = tail_p_values(np.append(honest, 12.0), groups=1000)
    >>> bool(p[-1] < 1e-9), bool(p[0] > 0.1)
    (True, True)
    """
    z = np.asarray(z, float)
    if len(z) < 10:
        return -np.expm1(groups * stats.norm.logcdf(z / np.sqrt(2)))
    order = np.sort(np.square(z) * np.sign(z))[::-1] / 2
    k = min(tail, len(z))
    # The expected height of rank j above rank k is s² (1/j + … + 1/(k - 1)).
    heights = np.cumsum(1 / np.arange(k - 1, 0, -1.0))[::-1]
    middle = np.arange(k // 5, k // 2)
    scale = np.mean((order[middle] - order[k - 1]) / heights[middle])
    above = np.maximum(np.square(z) * np.sign(z) / 2 - order[k - 1], 0)
    freedom = 0.75 * k
    chance = (1 + above / max(scale, 1e-9) / freedom) ** -freedom
    return -np.expm1((k - 1) * np.log1p(-np.minimum(chance, 1 - 1e-12)))


def row_scores(
    found: list[Explanation], claims: list[Claims]
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each row by suspicion, and the explanation that it has.

    Rows are ordered by the z of the group that explains them and, within a group, by
    how improbable their own claim is. Rows that no group explains share rank 0.

    Args:
        found: from `explain`.
        claims: those given to it.

    Returns:
        Scores `[rows]`, larger being more suspicious, and the number of each row's
        explanation `[rows]`, -1 for none.
    """
    rows = len(claims[0].classes)
    reason, z, unlikely = np.full(rows, -1), np.zeros(rows), np.zeros(rows)
    named = {claim.name: claim for claim in claims}
    for number, one in enumerate(found):
        # A row that several groups explain has the strongest of them.
        new = one.claimants[z[one.claimants] < one.z]
        reason[new], z[new] = number, one.z
        unlikely[new] = 1 - named[one.claim].expected[new, one.label]
    order = np.lexsort((unlikely, z))
    scores = np.empty(rows)
    scores[order] = np.arange(rows)
    scores[reason < 0] = 0
    return scores, reason
