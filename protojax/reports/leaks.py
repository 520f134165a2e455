"""The pages of what pipelines give away of private rows: of one, and of several.

Made from records (`Leakage.record()`), which hold neither texts nor single rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax.privacy.findings import Found, strongest, worst_of
from protojax.reports import privacy
from protojax.reports.chart import Axis, Line, Point, chart
from protojax.reports.page import rendered

ORACLE = "This report is itself a membership oracle: keep it as you keep the data."
# A recipe that costs more accuracy than this is no rival of the plain teacher.
COST = 0.01
# Recipes so near the best accuracy are drawn once more by themselves.
NEAR = 0.03
_LEAST = 1e-4  # nothing less is drawn
_LIMITS = (
    "A single checkpoint: recipes are measured, at half of the rows, over many runs.",
    "Worst cases of kinds that are not in the table, and attacks that are not in it.",
    "Attacks on weights, on many queries of one row, or of someone who changes rows.",
    "Rows that belong together, such as those of one person, as a group.",
    "Whether texts can be extracted: a classifier says classes, not texts.",
    "Other tasks, sizes and models than these.",
)

_UNAUDITED = "Epsilon: where it is stated, it is from noise and sampling, not audited."


class Arm(NamedTuple):
    """The measurements of one recipe.

    Attributes:
        name: of the recipe.
        accuracies: on test rows, a share for each seed.
        records: of `Leakage`, one for each seed.
        guarantee: epsilon, delta, noise and whether nominal, or None.
        audits: of a stated epsilon, one for each seed that has one; see
            `privacy.audited`.
    """

    name: str
    accuracies: tuple[float, ...]
    records: tuple[Mapping[str, Any], ...]
    guarantee: Mapping[str, Any] | None
    audits: tuple[Mapping[str, Any], ...] = ()

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.accuracies))

    @property
    def worst(self) -> tuple[Found, ...]:
        """The strongest attack on the kind of rows that leaks most, for each seed."""
        return tuple(worst_of(_found(record)) for record in self.records)

    @property
    def rate(self) -> float | None:
        """The mean share of worst-case rows that are found, None without enough."""
        return _mean([one.rates[0] for one in self.worst])

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval of a single seed, or the range of several."""
        if self.rate is None:
            return None
        if len(self.worst) == 1:
            low, high = self.worst[0].intervals[0]
            return low, high
        rates = [one.rates[0] for one in self.worst]
        return min(rates), max(rates)

    @property
    def checked(self) -> bool:
        """Whether null and power passed and there were enough rows, in every seed."""
        return all(record["conclusive"] for record in self.records)


def page_of(facts: privacy.PrivacyFacts) -> str:
    """The HTML of the report of one pipeline, readable without a network.

    Args:
        facts: of the run.
    """
    record = facts.leakage and facts.leakage.record()
    return rendered(
        "privacy.html.jinja",
        facts=facts,
        headline=privacy.headline(facts),
        oracle=ORACLE,
        measured=record and measured(record),
        stated=privacy.stated(facts),
        audited=privacy.audited(facts.audit),
        accuracy=_percent(facts.accuracy),
        mean_accuracy=_percent(facts.pipeline_accuracy),
        limits=privacy.limits(facts.leakage is not None),
    )


def compared(
    title: str,
    arms: Sequence[Arm],
    joined: Sequence[tuple[str, Sequence[str]]],
    notes: Sequence[str] = (),
) -> str:
    """The HTML of the report of several recipes.

    Args:
        title: what was studied.
        arms: at least one; "teacher" is what the others are compared with.
        joined: names of lines, each with the arms that it joins; a name that comes
            again is in the legend once. Arms that are missing are passed over.
        notes: what else was measured or checked, a sentence each.
    """
    kinds = dict.fromkeys(
        one["kind"] for arm in arms for record in arm.records for one in record["found"]
    )
    base = _base(arms)
    rows = [
        {
            "number": number,
            "name": arm.name,
            "accuracy": f"{100 * arm.accuracy:.1f}",
            "gap": f"{100 * (arm.accuracy - base.accuracy):+.1f}" if base else "–",
            "kinds": [_cell(_kind(arm, kind), None) for kind in kinds],
            "worst": _cell(arm.rate, arm.ends),
            "epsilon": _epsilon(arm.guarantee),
            "audit": privacy.audit_cell(arm.audits),
            "audits": [privacy.audited(one) for one in arm.audits],
            "checked": arm.checked,
            "measured": [measured(record) for record in arm.records],
        }
        for number, arm in enumerate(arms, 1)
    ]
    return rendered(
        "recipes.html.jinja",
        title=title,
        headline=headline(arms),
        oracle=ORACLE,
        level=f"{100 * _level(arms):g} %",
        near=f"{100 * NEAR:g}",
        seeds=max(len(arm.records) for arm in arms),
        pipelines=sorted({r["num_pipelines"] for arm in arms for r in arm.records}),
        kinds=list(kinds),
        rows=rows,
        audited=any(arm.audits for arm in arms),
        undrawn=[arm.name for arm in arms if arm.rate is None],
        fronts=_fronts(arms, joined),
        notes=notes,
        limits=_LIMITS if any(arm.audits for arm in arms) else (_UNAUDITED, *_LIMITS),
    )


def headline(arms: Sequence[Arm]) -> str:
    """The first sentence of a comparison.

    Args:
        arms: at least one.
    """
    base = _base(arms)
    level = f"At {100 * _level(arms):g} % false alarms"
    if base is None:
        return "No plain teacher was measured that others could be compared with."
    if base.rate is None:
        return f"{level}, nothing can be said: too few worst-case rows."
    said = (
        f"{level}, {_hundred(base.rate)} worst-case rows are recognised in the plain "
    )
    said += "teacher"
    if not base.checked:
        return f"{said}, but a check of the measurement failed: no result."
    rivals = [
        arm
        for arm in arms
        if arm is not base
        and arm.checked
        and arm.rate is not None
        and arm.accuracy >= base.accuracy - COST
    ]
    said += f". Of {len(arms) - 1} other recipes, "
    if not rivals:
        return f"{said}none costs at most 1 point of accuracy and could be judged."
    best = min(rivals, key=lambda arm: arm.rate)
    if best.rate >= base.rate:
        return f"{said}none that costs at most 1 point of accuracy gives away less."
    return (
        f"{said}{best.name} gives away least at no more than 1 point of accuracy: "
        f"{_hundred(best.rate)}; a better attack may find more."
    )


def measured(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a page on one record: sentence, kinds, curve and checks.

    Args:
        record: of `Leakage`.
    """
    found, levels = _found(record), record["levels"]
    tests = {one["kind"]: one for one in record["calibrated"]}
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        best, test = strongest([one for one in found if one.kind == kind]), None
        if kind in tests:
            one = tests[kind]
            test = _cell(one["rate"], one["interval"]), _percent(one["false_rate"])
        rows.append(
            {
                "kind": kind,
                "rows": best.num_rows,
                "attack": best.attack,
                "share": best.rates[0],
                "cells": [*map(_cell, best.rates, best.intervals)],
                "auc": f"{best.auc:.3f}",
                "test": test,
                "smallest": f"{100 * record['smallest_rates'][kind]:.2g} %",
            }
        )
    return {
        "sentence": record["sentence"],
        "levels": [f"{100 * level:g} %" for level in levels],
        "rows": rows,
        # Records of earlier versions have none.
        "roc": _roc(record.get("curves", ())),
        "pipelines": record["num_pipelines"],
        "inside": _percent(record["member_accuracy"]),
        "outside": _percent(record["accuracy"]),
        "checks": _checks(record),
    }


def _checks(record: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The null and the power, in words, each with whether it passed."""
    null, power = record["null"], record["power"]
    level = f"{100 * record['levels'][0]:g} %"
    chance = (
        "with memberships drawn anew, which nobody trained with, the strongest attack "
        f"({null['attack']}) must be at chance: AUC {null['auc']:.3f}, and 0.5 "
        f"± {null['auc_half_width']:.3f} is chance"
    )
    if null["rate"] is not None:
        chance += (
            f"; {_percent(null['rate'])} found at {level} false alarms, and {level} "
            f"± {100 * null['rate_half_width']:.2f} is chance"
        )
    where = "a plain teacher" if power["on_reference"] else "the model itself"
    strength = (
        f"in {where}, more than half of some kind of rows must be found at {level} "
        f"false alarms, or the attack is too weak to conclude: "
        f"{_percent(power['rate'])} of the {power['kind']} rows are, by "
        f"{power['attack']}"
    )
    return [
        (f"Null: {chance}.", null["passed"]),
        (f"Power: {strength}.", power["passed"]),
    ]


def _roc(curves: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The chart of the curves of all kinds; None where there is none."""
    if not curves:
        return None
    least = min(min(one["false_rates"]) for one in curves)
    low = max(_LEAST, 10.0 ** math.floor(math.log10(least) + 1e-9))
    axes = (
        Axis("false alarms: non-members taken for members", low, 1.0),
        Axis("members recognised", low, 1.0),
    )
    lines = [Line("chance", [low, 1.0], [low, 1.0], dashed=True)]
    for number, one in enumerate(curves):
        lines.append(
            Line(
                f"{one['kind']} ({one['attack']})",
                one["false_rates"],
                one["rates"],
                one["low"],
                one["high"],
                colour=number,
                marked=True,
            )
        )
    return chart("Members recognised against false alarms, by kind", *axes, lines)


def _fronts(
    arms: Sequence[Arm], joined: Sequence[tuple[str, Sequence[str]]]
) -> list[Mapping[str, Any]]:
    """The charts of accuracy against leakage: of all arms, and of the most accurate."""
    numbers = {arm.name: number for number, arm in enumerate(arms, 1)}
    shown = {arm.name: arm for arm in arms if arm.rate is not None}
    if not shown:
        return []
    best = max(arm.accuracy for arm in shown.values())
    near = {name: arm for name, arm in shown.items() if arm.accuracy >= best - NEAR}
    several = 1 < len(near) < len(shown)
    chosen = [shown, near] if several else [shown]
    return [_front(some, numbers, _level(arms), joined) for some in chosen]


def _front(
    shown: Mapping[str, Arm],
    numbers: Mapping[str, int],
    level: float,
    joined: Sequence[tuple[str, Sequence[str]]],
) -> Mapping[str, Any]:
    """The chart of accuracy against the share of worst-case rows found."""
    ends = [end for arm in shown.values() for end in (arm.rate, *arm.ends)]
    low = max(_LEAST, 0.7 * min([level, *(end for end in ends if end > 0)]))
    accuracies = [arm.accuracy for arm in shown.values()]
    edge = max(0.002, 0.08 * (max(accuracies) - min(accuracies)))
    span = max(0.0, min(accuracies) - edge), min(1.0, max(accuracies) + edge)
    axes = (
        Axis("accuracy on test rows", *span, log=False),
        Axis("worst-case rows recognised", low, 1.0),
    )
    lines = [Line("chance", span, [level, level], dashed=True)]
    names = list(dict.fromkeys(name for name, _ in joined))
    of_arm: dict[str, int] = {}
    for name, members in joined:
        through = [shown[member] for member in members if member in shown]
        if len(through) < 2:
            continue
        colour = names.index(name)
        again = colour in of_arm.values()
        of_arm |= {arm.name: colour for arm in through}
        places = [arm.accuracy for arm in through], [arm.rate for arm in through]
        lines.append(Line("" if again else name, *places, colour=colour))
    points = [
        Point(
            str(numbers[name]),
            f"{name}: accuracy {_percent(arm.accuracy)}, {_cell(arm.rate, arm.ends)} "
            "found",
            arm.accuracy,
            arm.rate,
            arm.ends,
            of_arm.get(name),
        )
        for name, arm in shown.items()
    ]
    return chart("Accuracy against worst-case leakage", *axes, lines, points)


def _found(record: Mapping[str, Any]) -> list[Found]:
    return [Found(**one) for one in record["found"]]


def _base(arms: Sequence[Arm]) -> Arm | None:
    """The plain teacher, or None."""
    return next((arm for arm in arms if arm.name == "teacher"), None)


def _level(arms: Sequence[Arm]) -> float:
    return arms[0].records[0]["levels"][0]


def _kind(arm: Arm, kind: str) -> float | None:
    """The mean share found of a kind, by the strongest attack in each seed."""
    rates = []
    for record in arm.records:
        there = [one for one in _found(record) if one.kind == kind]
        rates.append(strongest(there).rates[0] if there else None)
    return _mean(rates)


def _mean(rates: Sequence[float | None]) -> float | None:
    missing = any(rate is None for rate in rates)
    return None if missing else float(np.mean(rates))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _hundred(share: float) -> str:
    return f"{100 * share:.1f} of 100"


def _cell(rate: float | None, ends: Sequence[float] | None) -> str:
    if rate is None:
        return "–"
    if ends is None:
        return f"{100 * rate:.1f}"
    return f"{100 * rate:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _epsilon(guarantee: Mapping[str, Any] | None) -> str:
    """The stated epsilon, with an asterisk where it is nominal."""
    if guarantee is None:
        return "–"
    return f"{guarantee['epsilon']:.3g}{'*' if guarantee['nominal'] else ''}"
