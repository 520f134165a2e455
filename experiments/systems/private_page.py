"""The report of a study of students of private rows: report.html."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.systems import private
from protojax import storage
from protojax.pipelines.privacy import Recipe, named
from protojax.reports import leaks

NOISE = ("dp_teacher_vacuous", "dp_teacher_8", "dp_teacher_3", "dp_teacher_1")
# Recipes with all of the teacher's epochs, and with some of them.
STOPPED = {
    "teacher": "early",
    "student": "student_early",
    "student_hard": "student_early_hard",
}


def joined_of(
    results: Sequence[Mapping[str, Any]], base: Recipe
) -> list[tuple[str, list[str]]]:
    """The lines of the chart, each with the arms that it joins.

    They differ in one thing only, in its order: noise, or the teacher's epochs.

    Args:
        results: lines of results.jsonl.
        base: what the recipes are made from.

    >>> joined_of([{"arm": arm, "epochs": epochs} for arm, epochs in (
    ...     ("teacher", 9), ("teacher:6", 6), ("early", 2), ("student", 9))], Recipe())
    [('more noise', []), ('stopped early', ['early', 'teacher:6', 'teacher']),
    ('stopped early', ['student']), ('stopped early', [])]
    """
    arms = dict.fromkeys(row["arm"] for row in results)

    def epochs(arm: str) -> float:
        usual = named(arm, base).teacher.epochs
        own = [row for row in results if row["arm"] == arm]
        # Lines of earlier versions have no epochs.
        return float(np.mean([row.get("epochs", usual) for row in own]))

    found = [("more noise", [arm for arm in NOISE if arm in arms])]
    for whole, some in STOPPED.items():
        alike = [arm for arm in arms if arm.partition(":")[0] in (whole, some)]
        found.append(("stopped early", sorted(alike, key=epochs)))
    return found


def arms_of(results: Sequence[Mapping[str, Any]]) -> list[leaks.Arm]:
    """The arms of a study in the order of its results, each with all its seeds.

    Args:
        results: lines of results.jsonl.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in results:
        groups.setdefault(row["arm"], []).append(row)
    return [
        leaks.Arm(
            arm,
            tuple(row["accuracy"] / 100 for row in rows),
            tuple(row["record"] for row in rows),
            rows[0]["guarantee"],
            private.audits_of(rows),
        )
        for arm, rows in groups.items()
    ]


def notes_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The checks of the rows of each seed, a sentence each.

    Args:
        results: lines of results.jsonl.
    """
    return [
        f"Rows of seed {seed}: words alone tell members from others with an AUC of "
        f"{row['blind AUC']:.3f}, which is at chance, or nothing would be measured; "
        f"{row['public rows left out']} public rows were left out because they hold "
        "something of a private one."
        for seed, row in {row["seed"]: row for row in results}.items()
    ]


def write(
    config: ConfigDict, workdir: pathlib.Path, results: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
    """The path of report.html, which is written completely or not at all.

    Args:
        config: of the study.
        workdir: its folder.
        results: lines of results.jsonl.
    """
    title = (
        f"What students of {config.data.private:,} private rows of {config.task} "
        "give away"
    )
    path, base = workdir / "report.html", private.check(config).base
    with storage.atomic(path) as file:
        file.write(
            leaks.compared(
                title, arms_of(results), joined_of(results, base), notes_of(results)
            ).encode()
        )
    return path
