"""The results of a measurement of leakage: figures, checks, a sentence.

Holds no text. It is itself a membership oracle (who has it can tell which rows were in
the training data), so it is as private as the list of these rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The kind of rows that nobody changed or planted.
ORDINARY = "ordinary"
# The kind of rows that are in every pipeline and so no candidates.
ALWAYS = "always in"
# An attack that finds fewer rows of every kind is too weak to conclude.
POWER = 0.5


class Found(NamedTuple):
    """The figures of one attack on one kind of rows.

    Attributes:
        kind: of the rows.
        attack: its name.
        num_rows: how many rows.
        auc: the area under the ROC curve, of all pipelines together.
        rates: the share of members found at each level of false alarms, None where
            there are too few non-members for it.
        intervals: of the rates at 95 %, None where there is no rate.
    """

    kind: str
    attack: str
    num_rows: int
    auc: float
    rates: tuple[float | None, ...]
    intervals: tuple[tuple[float, float] | None, ...]


class Curve(NamedTuple):
    """The ROC curve of the strongest attack on one kind of rows, at fixed places.

    Strict as the rates of `Found`: nothing is interpolated between the places.

    Attributes:
        kind: of the rows.
        attack: its name.
        false_rates: rates of false alarms, rising; those that can be shown.
        rates: the share of members found at each.
        low: the lower ends of the intervals at 95 %, of each place by itself.
        high: their upper ends.
    """

    kind: str
    attack: str
    false_rates: tuple[float, ...]
    rates: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Calibrated(NamedTuple):
    """The figures of the test that holds its false alarms row by row, at first level.

    Attributes:
        kind: of the rows.
        rate: the mean share of members found.
        interval: of the rate at 95 %.
        false_rate: the share of non-members found; it should be the level.
    """

    kind: str
    rate: float
    interval: tuple[float, float]
    false_rate: float


class NullCheck(NamedTuple):
    """The finds of the attack with memberships that nobody trained with.

    Attributes:
        attack: its name.
        auc: mean over the draws, which should be 0.5.
        auc_half_width: of its interval at 99.9 %.
        rate: mean share found at the first level, which it should be; None without
            enough non-members.
        rate_half_width: of its interval at 99.9 %, or None.
        passed: whether both lie within.
    """

    attack: str
    auc: float
    auc_half_width: float
    rate: float | None
    rate_half_width: float | None
    passed: bool


class PowerCheck(NamedTuple):
    """The share of planted rows found where they should be found.

    Attributes:
        kind: the kind of rows that is found best.
        attack: the best attack on it.
        rate: the share found at the first level, or None.
        on_reference: whether this is the reference (a teacher), else the model itself.
        passed: whether the rate exceeds one half.
    """

    kind: str
    attack: str
    rate: float | None
    on_reference: bool
    passed: bool


class RowProfile(NamedTuple):
    """The leakage of each candidate row; never its text.

    Attributes:
        rows: `[candidates]`, int, indices into the rows that were given.
        kinds: `[candidates]`, str.
        labels: `[candidates]`, int.
        gaps: `[candidates]`, mean score with the row minus mean without it, in standard
            deviations of a row's scores.
        rates: `[candidates]`, the share of its pipelines in which the calibrated test
            finds the row.
    """

    rows: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray
    gaps: np.ndarray
    rates: np.ndarray


class Leakage(NamedTuple):
    """All that was found about one kind of model.

    Attributes:
        found: one for each kind of rows and attack.
        calibrated: one for each kind of rows but the naturally worst.
        null: the check with memberships drawn anew.
        power: the check that planted rows are found.
        profile: what leaks of each row.
        levels: rates of false alarms; sentences speak of the first.
        num_pipelines: how many models were trained.
        accuracy: mean over ordinary rows that a pipeline did not train on.
        member_accuracy: mean over ordinary rows that it did train on.
        smallest_rates: kind -> the least rate of false alarms that can be shown.
        curves: the ROC curve of each kind that has one.
    """

    found: tuple[Found, ...]
    calibrated: tuple[Calibrated, ...]
    null: NullCheck
    power: PowerCheck
    profile: RowProfile
    levels: tuple[float, ...]
    num_pipelines: int
    accuracy: float
    member_accuracy: float
    smallest_rates: dict[str, float]
    curves: tuple[Curve, ...]

    @property
    def conclusive(self) -> bool:
        """Whether the attack is neither biased nor too weak, and has rows enough."""
        enough = self.worst.rates[0] is not None
        return self.null.passed and self.power.passed and enough

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of rows, ordinary ones first."""
        return tuple(dict.fromkeys(one.kind for one in self.found))

    def strongest(self, kind: str) -> Found:
        """The attack that finds most rows of a kind at the first level.

        Args:
            kind: one of `kinds`.
        """
        return strongest([one for one in self.found if one.kind == kind])

    @property
    def worst(self) -> Found:
        """The strongest attack on the kind that leaks most; a defence is judged by it.

        Ordinary rows count only where no other kind has enough rows to be judged.
        """
        return worst_of(self.found)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The kinds with too few rows for the first level of false alarms."""
        return tuple(
            kind for kind in self.kinds if self.strongest(kind).rates[0] is None
        )

    @property
    def sentence(self) -> str:
        """The finding in one sentence, for people who are not from the field."""
        level, worst = self.levels[0], self.worst
        said = f"At {100 * level:g} % false alarms"
        unjudged = ", ".join(
            f"{kind} (from {100 * self.smallest_rates[kind]:.2g} %)"
            for kind in self.unjudged
        )
        beyond = f" Too few rows to say of: {unjudged}." if unjudged else ""
        if worst.rates[0] is None:
            return f"{said}, nothing can be said.{beyond}"
        shares = dict.fromkeys((worst.kind, ORDINARY))
        parts = [
            f"{_percent(self.strongest(kind).rates[0])} of 100 {kind} rows"
            for kind in shares
            if kind in self.kinds and kind not in self.unjudged
        ]
        said = f"{said}, {' and '.join(parts)} of the training data are recognised"
        if not self.null.passed:
            said = f"{said}, but memberships drawn anew are not at chance: no result."
        elif not self.power.passed:
            where = "the reference" if self.power.on_reference else "the model itself"
            said = (
                f"{said}, but the attack is too weak to conclude: in {where} it finds "
                f"{_percent(self.power.rate)} of 100 {self.power.kind} rows, no more."
            )
        else:
            said = f"{said}; a better attack may find more."
        return said + beyond

    def worst_rows(self, n: int = 10) -> list[dict[str, Any]]:
        """The candidate rows that leak most: index, kind, label, gap and rate.

        Args:
            n: how many at most.
        """
        order = np.lexsort((-self.profile.gaps, -self.profile.rates))[:n]
        return [
            {
                "row": int(self.profile.rows[place]),
                "kind": str(self.profile.kinds[place]),
                "label": int(self.profile.labels[place]),
                "gap": float(self.profile.gaps[place]),
                "rate": float(self.profile.rates[place]),
            }
            for place in order
        ]

    def table(self) -> str:
        """All figures in percent, with intervals at 95 %, and the sentence below."""
        levels = [f"TPR at {100 * level:g} %" for level in self.levels]
        lines = [["rows", "attack", "AUC", *levels]]
        for kind in self.kinds:
            for one in self.found:
                if one.kind == kind:
                    cells = map(_cell, one.rates, one.intervals)
                    lines.append([kind, one.attack, f"{one.auc:.3f}", *cells])
            for one in self.calibrated:
                if one.kind == kind:
                    attack = f"calibrated ({100 * one.false_rate:.2f} %)"
                    cell = _cell(one.rate, one.interval)
                    lines.append([kind, attack, "", cell, *[""] * (len(levels) - 1)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        null, power = self.null, self.power
        place = "reference" if power.on_reference else "model itself"
        return "\n".join(
            [
                *shown,
                f"{self.num_pipelines} pipelines; accuracy without the row "
                f"{100 * self.accuracy:.1f}, with it {100 * self.member_accuracy:.1f}",
                f"null ({null.attack}): AUC {null.auc:.3f}, "
                f"{_percent(null.rate)} found, {'passed' if null.passed else 'FAILED'}",
                f"power ({power.attack}, {power.kind}, {place}): "
                f"{_percent(power.rate)} found, "
                f"{'passed' if power.passed else 'FAILED'}",
                self.sentence,
            ]
        )

    def record(self) -> dict[str, Any]:
        """All figures but those of single rows, as JSON can hold them."""
        return {
            "found": [one._asdict() for one in self.found],
            "calibrated": [one._asdict() for one in self.calibrated],
            "null": self.null._asdict(),
            "power": self.power._asdict(),
            "levels": list(self.levels),
            "num_pipelines": self.num_pipelines,
            "accuracy": self.accuracy,
            "member_accuracy": self.member_accuracy,
            "smallest_rates": self.smallest_rates,
            "curves": [one._asdict() for one in self.curves],
            "conclusive": self.conclusive,
            "sentence": self.sentence,
        }


def strongest(found: Sequence[Found]) -> Found:
    """The one with the highest rate at the first level, or AUC where none has a rate.

    Args:
        found: at least one.
    """
    return max(found, key=lambda one: (_or_less(one.rates[0]), one.auc))


def worst_of(found: Sequence[Found]) -> Found:
    """The strongest attack on the kind of rows that leaks most.

    Ordinary rows count only where no other kind has enough rows to be judged.

    Args:
        found: at least one, of any kinds and attacks.
    """
    shown = [one for one in found if one.rates[0] is not None]
    planted = [one for one in shown if one.kind != ORDINARY]
    return strongest(planted or shown or found)


def _or_less(rate: float | None) -> float:
    return -1.0 if rate is None else rate


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def _cell(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None or interval is None:
        return _percent(rate)
    return f"{100 * rate:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
