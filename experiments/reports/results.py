"""The results of a study from its rows: null and excess ASR, means and intervals."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from experiments import runtime
from experiments.arms import is_recommended, known, name_of
from protojax import evals, storage

PACKAGES = (
    "protojax",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "numpy",
)
# The measures that are averaged over seeds.
MEASURES = (
    "clean_metric",
    "asr",
    "untriggered_asr",
    "null_asr",
    "excess_asr",
    "trigger_effect",
    "robust_accuracy",
    "target_recall",
    "quarantine_precision",
    "quarantine_recall",
    "false_rejection",
    "detection_auc",
    "step_seconds",
    "bytes_per_node",
    "node_variance",
    "worst_node",
    "round_seconds",
    "bytes_sent",
    "step_ratio",
)
# The measures among them that need other rows, see `compared`.
COMPARED = ("null_asr", "excess_asr", "trigger_effect", "step_ratio")


def versions() -> dict[str, Any]:
    """The versions of the code, its packages and the devices."""
    return {
        "commit": runtime.commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
    }


def note_versions(workdir: pathlib.Path) -> None:
    """Adds the versions of this run to `versions.json` if they have changed."""
    known, now = read_versions(workdir), versions()
    # With the last run's only: a return to earlier versions is noted as well.
    if known[-1:] != [now]:
        storage.write_json(workdir / "versions.json", [*known, now])


def read_versions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The distinct versions of a study's runs, the oldest first."""
    path = workdir / "versions.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    # Earlier versions of this code stored only the last run.
    return found if isinstance(found, list) else [found]


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the measures that compare arms of one task, attack and seed.

    `null_asr` is the ASR of the clean student, and `excess_asr` the excess over it.
    `trigger_effect` is the part of the excess that the trigger causes: the increase
    that it brings in the rate at which rows are classified as the target, minus the
    same increase in the clean student; the rest is a class bias. `step_ratio` is the
    training time per row relative to plain distillation. An arm in a federation is
    compared with arms in the same federation, if the study has them.

    >>> cell = {"task": "t", "attack": "a", "seed": 0, "step_seconds": 1.0}
    >>> rows = [
    ...     {**cell, "arm": "clean", "asr": 0.25, "untriggered_asr": 0.125},
    ...     {**cell, "arm": "x", "asr": 1.0, "untriggered_asr": 0.375}]
    >>> [(row["excess_asr"], row["trigger_effect"]) for row in compared(rows)]
    [(0.0, 0.0), (0.75, 0.5)]
    """
    found = {(row["task"], row["attack"], row["seed"], row["arm"]): row for row in rows}
    null, undefended = name_of("null"), name_of("undefended")

    def other(row: dict[str, Any], arm: str) -> dict[str, Any]:
        _, at, where = row["arm"].partition("@")
        cell = row["task"], row["attack"], row["seed"]
        return found.get((*cell, f"{arm}{at}{where}"), found.get((*cell, arm), {}))

    def raised(row: dict[str, Any]) -> float | None:
        rates = row.get("asr"), row.get("untriggered_asr")
        return None if None in rates else rates[0] - rates[1]

    def seconds(row: dict[str, Any]) -> float:
        # By the row: the batches of a private student have another size.
        return row.get("step_seconds", 0.0) / row.get("step_rows", 1)

    made = []
    for row in rows:
        clean, plain = other(row, null), other(row, undefended)
        base, lifts = clean.get("asr"), [raised(row), raised(clean)]
        measured = base is not None and row["asr"] is not None
        # If every dispatch compiled, no step was timed.
        timed = seconds(plain) > 0 and seconds(row) > 0
        # Times are comparable only in the same units and with as many replicas.
        alike = ("step_rows" in row) == ("step_rows" in plain)
        side_by_side = [one.get("replicas", 1) for one in (row, plain)]
        timed = timed and alike and side_by_side[0] == side_by_side[1]
        made.append(
            {
                **row,
                "null_asr": base,
                "excess_asr": evals.excess(row["asr"], base) if measured else None,
                "trigger_effect": None if None in lifts else lifts[0] - lifts[1],
                "step_ratio": seconds(row) / seconds(plain) if timed else None,
            }
        )
    return made


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean and 95 % interval over seeds for each task, attack and arm.

    Each measure `m` gives `m` (the mean) and `m_interval` (half the width of the
    Student interval, None with one seed).

    >>> row = {"task": "t", "attack": None, "arm": "a", "metric_name": "accuracy"}
    >>> rows = [{**row, "seed": 0, "asr": 0.25}, {**row, "seed": 1, "asr": 0.75}]
    >>> summary, = summarise(rows)
    >>> summary["seeds"], summary["asr"], round(summary["asr_interval"], 3)
    (2, 0.5, 3.177)
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["attack"], row["arm"]), []).append(row)
    found = []
    for (task, attack, arm), members in groups.items():
        summary = {
            "task": task,
            "attack": attack,
            "arm": arm,
            "metric_name": members[0]["metric_name"],
            "seeds": len(members),
        }
        for measure in MEASURES:
            values = [row[measure] for row in members if row.get(measure) is not None]
            mean, half = evals.mean_interval(values) if values else (None, None)
            summary[measure], summary[f"{measure}_interval"] = mean, half
        # Rows from before this field existed all took their noise from the seed.
        private = [row for row in members if row.get("noise_multiplier") is not None]
        if any(row.get("epsilon_nominal", True) for row in private):
            summary["epsilon_nominal"] = True
        found.append(summary)
    for line in found:
        line["front"] = _on_front(line, found)
    return found


FEW = 4  # the number of defences up to which no front is marked


def _on_front(line: dict[str, Any], lines: list[dict[str, Any]]) -> bool | None:
    """Whether an arm is on the Pareto front of ASR and clean metric.

    None without an attack, for hypothetical arms, which are not defences, and among so
    few defences that they can be compared at a glance. Arms with equal values are all
    on the front.

    >>> found = {"plain": (0.9, 0.9), "defended": (0.2, 0.9), "nad": (0.3, 0.95),
    ...     "cube": (0.3, 0.9), "abl": (0.2, 0.9)}
    >>> lines = [{"task": "t", "attack": "a", "arm": arm, "asr": asr,
    ...     "clean_metric": clean} for arm, (asr, clean) in found.items()]
    >>> [_on_front(line, lines) for line in lines]
    [False, True, True, False, True]
    """
    if line["asr"] is None or known(line["arm"]).hypothetical:
        return None
    rivals = [
        other
        for other in lines
        if (other["task"], other["attack"]) == (line["task"], line["attack"])
        and not known(other["arm"]).hypothetical
    ]
    if len(rivals) <= FEW:
        return None
    return not any(
        other["asr"] <= line["asr"]
        and other["clean_metric"] >= line["clean_metric"]
        and (other["asr"], other["clean_metric"]) != (line["asr"], line["clean_metric"])
        for other in rivals
    )


def write(workdir: pathlib.Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The results, after writing them to `results.json` and `results.md`."""
    rows = compared(rows)
    results = {"rows": rows, "summary": summarise(rows)}
    storage.write_json(workdir / "results.json", results)
    with storage.atomic(workdir / "results.md") as file:
        file.write(markdown(results["summary"]).encode())
    return results


def percent(summary: dict[str, Any], measure: str) -> str:
    """The mean and interval of a share in percent, such as `86.1±0.4`.

    >>> percent({"asr": 0.861, "asr_interval": 0.004}, "asr")
    '86.1±0.4'
    """
    mean, half = summary[measure], summary[f"{measure}_interval"]
    if mean is None:
        return EMPTY
    return f"{100 * mean:.1f}" + ("" if half is None else f"±{100 * half:.1f}")


def _mean(layout: str, scale: float = 1.0) -> Callable[[dict[str, Any], str], str]:
    """A function that formats the mean of a measure."""

    def write(summary: dict[str, Any], measure: str) -> str:
        mean = summary[measure]
        return EMPTY if mean is None else layout.format(scale * mean)

    return write


def _mark(summary: dict[str, Any], measure: str) -> str:
    """A tick if a measure is true."""
    return "✓" if summary.get(measure) else ""


EMPTY = "–"
# Column -> its measure and the function that formats it.
COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any], str], str]]] = {
    "clean": ("clean_metric", percent),
    "ASR": ("asr", percent),
    "untriggered": ("untriggered_asr", percent),
    "null": ("null_asr", percent),
    "excess": ("excess_asr", percent),
    "trigger": ("trigger_effect", percent),
    "robust": ("robust_accuracy", percent),
    "target": ("target_recall", percent),
    "Pareto": ("front", _mark),
    "prec.": ("quarantine_precision", percent),
    "recall": ("quarantine_recall", percent),
    "f. rej.": ("false_rejection", percent),
    "AUC": ("detection_auc", _mean("{:.3f}")),
    "step": ("step_seconds", _mean("{:.0f} ms", 1e3)),
    "× plain": ("step_ratio", _mean("{:.2f}")),
    "memory": ("bytes_per_node", _mean("{:.1f} kB", 1e-3)),
    "worst node": ("worst_node", percent),
    "variance": ("node_variance", _mean("{:.1f}", 1e4)),
    "sent": ("bytes_sent", _mean("{:.1f} MB", 1e-6)),
}
MEANINGS = {
    "ASR": "triggered test rows, their true label not the target, that the student "
    "calls the target",
    "untriggered": "the same rows without the trigger",
    "null": "triggered, of a student distilled without the attack",
    "excess": "ASR less null, what the attack gained",
    "trigger": "the part of the excess that the trigger brings: ASR less untriggered, "
    "less "
    "the same of the clean student; the rest is a class bias",
    "robust": "triggered rows that still get their true label",
    "target": "triggered rows of the target's own class that keep it; a student that "
    "learned the opposite of a trigger loses them",
    "Pareto": "no other defence has a lower ASR and as good a clean metric",
    "prec.": "of the quarantine, against the ground truth that no defence sees",
    "recall": "of the quarantine too",
    "f. rej.": "clean rows that it rejects",
    "AUC": "how well its p-values order poisoned and clean rows",
    "× plain": "training time a row, in units of plain distillation's",
    "memory": "of the prototypes, per node",
    "worst node": "accuracy on its own mix of classes, of the honest nodes",
    "variance": "of that accuracy over the honest nodes, in squared points",
    "sent": "by and to one node, in all",
}


def table(summary: list[dict[str, Any]]) -> list[list[str]]:
    """The results as rows of strings, with a header first and without empty columns."""
    used = {
        name: (measure, write)
        for name, (measure, write) in COLUMNS.items()
        if any(line.get(measure) is not None for line in summary)
    }
    rows = [["task", "attack", "arm", *used]]
    for line in summary:
        rows.append(
            [
                line["task"],
                line["attack"] or "none",
                line["arm"],
                *(write(line, measure) for measure, write in used.values()),
            ]
        )
    return rows


def meanings(summary: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The meanings of the table's columns that need one.

    They include a note on private arms whose noise follows from a recorded seed.
    """
    found = [(name, MEANINGS[name]) for name in table(summary)[0] if name in MEANINGS]
    nominal = {line["arm"] for line in summary if line.get("epsilon_nominal")}
    if nominal:
        meaning = (
            "nominal, since the noise follows from the seed, which is written down"
        )
        found.append((f"ε of {', '.join(sorted(nominal))}", meaning))
    return found


def legend(summary: list[dict[str, Any]]) -> str:
    """The meanings of the columns as one paragraph."""
    seeds = max(line["seeds"] for line in summary)
    parts = "; ".join(f"{name}: {meaning}" for name, meaning in meanings(summary))
    return f"In percent, mean ± 95 % interval over {seeds} seed(s). {parts}."


def markdown(summary: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    return piped(table(summary), num_texts=3)


def piped(rows: list[list[str]], *, num_texts: int) -> str:
    """The rows of strings as a table in Markdown.

    Args:
        rows: the rows of the table, the header first.
        num_texts: the number of text columns, which come first; the others hold
            figures and are aligned to the right.

    >>> print(piped([["a", "b"], ["c", "1"]], num_texts=1), end="")
    | a | b |
    | --- | --: |
    | c | 1 |
    """
    names, *rows = rows
    rule = ["---"] * num_texts + ["--:"] * (len(names) - num_texts)
    return "".join(f"| {' | '.join(row)} |\n" for row in (names, rule, *rows))


def show(console: Console, table: Table) -> None:
    """Prints a table at its full width.

    A narrow window then wraps lines, whereas Rich would cut off figures.
    """
    options = console.options.update(max_width=999)
    needed = Measurement.get(console, options, table).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = width


def tables(results: dict[str, Any]) -> list[Table]:
    """The results as Rich tables for the terminal, one for each task and attack."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in results["summary"]:
        groups.setdefault((line["task"], line["attack"] or "none"), []).append(line)
    found = []
    for (task, attack), lines in groups.items():
        shown = Table(
            title=f"{task}, attack: {attack}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        (_, _, *names), *rows = table(lines)
        for index, name in enumerate(names):
            shown.add_column(name, justify="right" if index else "left", no_wrap=True)
        for _, _, *row in rows:
            shown.add_row(*row, style="green" if is_recommended(row[0]) else "")
        found.append(shown)
    return found
