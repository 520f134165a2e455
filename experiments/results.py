"""From the rows of a study to its results: null and excess ASR, means, intervals."""

import importlib.metadata
import pathlib
import platform
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from experiments import runtime
from protojax import evals

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
# What is averaged over seeds.
MEASURES = (
    "clean_metric",
    "asr",
    "untriggered_asr",
    "null_asr",
    "excess_asr",
    "robust_accuracy",
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
)


def versions() -> dict[str, Any]:
    """Returns what a result depends on beside its config."""
    return {
        "commit": runtime.commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
    }


def with_null(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to each row the ASR of the clean student of its cell, and the excess.

    For an arm in a federation that is the clean student of the same federation, if the
    study has it.

    >>> cell = {"task": "t", "attack": "a", "seed": 0}
    >>> rows = [{**cell, "arm": "clean", "asr": 0.25}, {**cell, "arm": "x", "asr": 1.0}]
    >>> [row["excess_asr"] for row in with_null(rows)]
    [0.0, 0.75]
    """
    null = {
        (row["task"], row["attack"], row["seed"], row["arm"]): row["asr"]
        for row in rows
    }
    found = []
    for row in rows:
        _, at, where = row["arm"].partition("@")
        cell = row["task"], row["attack"], row["seed"]
        base = null.get((*cell, f"clean{at}{where}"), null.get((*cell, "clean")))
        known = base is not None and row["asr"] is not None
        found.append(
            {
                **row,
                "null_asr": base,
                "excess_asr": evals.excess(row["asr"], base) if known else None,
            }
        )
    return found


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and 95 % interval over seeds of each task, attack and arm.

    Each measure `m` comes as `m` (the mean) and `m_interval` (half the width of the
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
        found.append(summary)
    return found


def write(workdir: pathlib.Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes `results.json` and `results.md` and returns what the former holds."""
    rows = with_null(rows)
    results = {"rows": rows, "summary": summarise(rows)}
    runtime.write_json(workdir / "results.json", results)
    with runtime.atomic(workdir / "results.md") as file:
        file.write(markdown(results["summary"]).encode())
    return results


def percent(summary: dict[str, Any], measure: str) -> str:
    """Returns a share as `86.1±0.4`, in percent.

    >>> percent({"asr": 0.861, "asr_interval": 0.004}, "asr")
    '86.1±0.4'
    """
    mean, half = summary[measure], summary[f"{measure}_interval"]
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" + ("" if half is None else f"±{100 * half:.1f}")


COLUMNS = {
    "clean": "clean_metric",
    "ASR": "asr",
    "bare": "untriggered_asr",
    "null": "null_asr",
    "excess": "excess_asr",
    "robust": "robust_accuracy",
    "prec.": "quarantine_precision",
    "recall": "quarantine_recall",
    "f. rej.": "false_rejection",
}
FEDERATED = ("worst node", "variance", "sent")


def federated(summary: list[dict[str, Any]]) -> bool:
    """Returns whether some arm ran over many nodes."""
    return any(line["bytes_sent"] is not None for line in summary)


def header(summary: list[dict[str, Any]]) -> list[str]:
    """Returns the names of the table's columns; a federation adds three."""
    names = ["task", "attack", "arm", *COLUMNS, "step", "memory"]
    return [*names, *FEDERATED] if federated(summary) else names


def legend(summary: list[dict[str, Any]]) -> str:
    """Returns what the columns under `header` mean."""
    seeds = max(line["seeds"] for line in summary)
    found = (
        f"In percent, mean ± 95 % interval over {seeds} seed(s); bare is the ASR "
        "without the trigger, prec. and recall are the quarantine's, memory is that of "
        "the prototypes."
    )
    if federated(summary):
        found += (
            " worst node and variance (squared points) are over the honest nodes, sent "
            "is what one node sends and receives in all."
        )
    return found


def table_rows(summary: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of the table under `header`, one list of strings a row."""
    found = []
    for line in summary:
        sent, variance = line["bytes_sent"], line["node_variance"]
        cells = [
            line["task"],
            line["attack"] or "none",
            line["arm"],
            *(percent(line, measure) for measure in COLUMNS.values()),
            f"{1e3 * line['step_seconds']:.0f} ms",
            f"{(line['bytes_per_node'] or 0) / 1000:.1f} kB",
            percent(line, "worst_node"),
            "–" if variance is None else f"{1e4 * variance:.1f}",
            "–" if sent is None else f"{sent / 1e6:.1f} MB",
        ]
        found.append(cells[: len(header(summary))])
    return found


def markdown(summary: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown, for a README."""
    names = header(summary)
    rows = [names, ["---"] * 3 + ["--:"] * (len(names) - 3), *table_rows(summary)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def show(console: Console, table: Table) -> None:
    """Prints a table as wide as it is.

    A narrow window wraps long lines rather than lose their figures.
    """
    options = console.options.update(max_width=999)
    needed = Measurement.get(console, options, table).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = width


def tables(results: dict[str, Any]) -> list[Table]:
    """Returns the results for the terminal, a table for each task and attack."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in results["summary"]:
        groups.setdefault((line["task"], line["attack"] or "none"), []).append(line)
    found = []
    for (task, attack), lines in groups.items():
        table = Table(
            title=f"{task}, attack: {attack}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for index, name in enumerate(header(lines)[2:]):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for _, _, *row in table_rows(lines):
            table.add_row(*row, style="green" if row[0].startswith("anchor") else "")
        found.append(table)
    return found
