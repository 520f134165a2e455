"""The figures of all attacks on all kinds of rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from protojax.evals import detection_auc
from protojax.privacy.findings import ORDINARY, Calibrated, Curve, Found, strongest
from protojax.privacy.membership_attacks import MEMBERSHIP_ATTACKS
from protojax.privacy.rates import (
    Resampled,
    bootstrap_band,
    bootstrap_interval,
    found_rate,
    found_rates,
    mean_of_members,
    true_positive_rate,
)

# The name under which the rows of `naturally_worst` are listed.
WORST = "naturally worst"
# The rates of false alarms of a curve, as far as there are non-members for them.
_DECADES = (0.0001, 0.001, 0.01, 0.1)
GRID = tuple(round(step * decade, 6) for decade in _DECADES for step in (1, 2, 5))


class Study(NamedTuple):
    """The input of figures: all arrays hold candidates alone."""

    members: np.ndarray
    kinds: np.ndarray
    groups: np.ndarray | None
    worst: np.ndarray
    attacks: tuple[str, ...]
    levels: tuple[float, ...]
    num_draws: int
    seed: int

    def masks(self) -> Iterator[tuple[str, np.ndarray]]:
        """The kinds, ordinary rows first, and where they are, `[pipelines, rows]`."""
        names = sorted(np.unique(self.kinds).tolist(), key=lambda k: (k != ORDINARY, k))
        for name in names:
            yield name, np.broadcast_to(self.kinds == name, self.members.shape)
            if name == ORDINARY:
                yield WORST, self.worst

    def interval(self, statistic: Resampled) -> tuple[float, float]:
        """The interval of a statistic at 95 %."""
        return bootstrap_interval(
            statistic,
            self.members,
            groups=self.groups,
            num_draws=self.num_draws,
            seed=self.seed,
        )


def evidence_of(scores: np.ndarray, study: Study) -> dict[str, np.ndarray]:
    """Evidence of each attack, `[pipelines, rows]`; each kind is attacked by itself."""
    found = {name: np.empty(scores.shape) for name in study.attacks}
    # An attacker knows what kind a row is, and kinds spread differently.
    for kind in np.unique(study.kinds):
        rows = study.kinds == kind
        for name in study.attacks:
            attack = MEMBERSHIP_ATTACKS[name]
            found[name][:, rows] = attack(scores[:, rows], study.members[:, rows])
    return found


def figures(
    evidence: dict[str, np.ndarray], study: Study, *, intervals: bool
) -> tuple[Found, ...]:
    """The figures of each kind and attack; evidence is from `evidence_of`."""
    members, figures = study.members, []
    for kind, where in study.masks():
        for attack, values in evidence.items():
            rates, ends = [], []
            for level in study.levels:
                rate = true_positive_rate(
                    values[where], members[where], max_false_positive_rate=level
                )
                end = None
                if rate is not None and intervals:
                    end = study.interval(
                        found_rate(
                            values, members, max_false_positive_rate=level, where=where
                        )
                    )
                rates.append(rate)
                ends.append(end)
            area = detection_auc(values[where], members[where])
            num_rows = int(where[0].sum())
            figures.append(
                Found(kind, attack, num_rows, area, tuple(rates), tuple(ends))
            )
    return tuple(figures)


def curves(
    evidence: dict[str, np.ndarray], study: Study, found: tuple[Found, ...]
) -> tuple[Curve, ...]:
    """The curve of the strongest attack on each kind; none with too few non-members."""
    members, curves = study.members, []
    for kind, where in study.masks():
        attack = strongest([one for one in found if one.kind == kind]).attack
        values = evidence[attack]
        rates = {
            level: true_positive_rate(
                values[where], members[where], max_false_positive_rate=level
            )
            for level in GRID
        }
        rates = {level: rate for level, rate in rates.items() if rate is not None}
        if not rates:
            continue
        levels = tuple(rates)
        low, high = bootstrap_band(
            found_rates(values, members, levels=levels, where=where),
            members,
            groups=study.groups,
            num_draws=study.num_draws,
            seed=study.seed,
        )
        ends = tuple(low.tolist()), tuple(high.tolist())
        curves.append(Curve(kind, attack, levels, tuple(rates.values()), *ends))
    return tuple(curves)


def calibrated(hits: np.ndarray, study: Study) -> tuple[Calibrated, ...]:
    """The figures of the calibrated test on each kind."""
    return tuple(
        Calibrated(
            kind,
            float(hits[where & study.members].mean()),
            study.interval(mean_of_members(hits, study.members, where=where)),
            float(hits[where & ~study.members].mean()),
        )
        for kind, where in study.masks()
        # Rows chosen for low scores elsewhere pass a test against these too often.
        if kind != WORST
    )
