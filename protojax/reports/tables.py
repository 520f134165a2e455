"""Tables that a user opens in a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from protojax import storage
from protojax.reports.facts import Facts

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay as they are.

    >>> safe("=1+1"), safe("one"), safe(-1)
    ("'=1+1", 'one', -1)
    """
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return "'" + cell
    return cell


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Writes a table, completely or not at all.

    Args:
        path: the file.
        header: names of the columns.
        rows: cells of each row.
    """
    with storage.atomic(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.flush()
        # The caller closes the file itself.
        text.detach()


def verdict_table(facts: Facts) -> tuple[list[str], list[list[object]]]:
    """The header and the rows of the table of verdicts.

    Args:
        facts: of the defence.

    Returns:
        The names of the columns, and for each row of the user its cells.
    """
    names, verdict = facts.label_names, facts.findings.verdict
    pair = ["pair"] if facts.rows.pairs is not None else []
    header = ["line", "text", *pair, "label", "teacher_says", "trusted_model_says"]
    header += ["p", "rejected", "claim", "z", "group"]
    rows = []
    for row, text in enumerate(facts.rows.texts):
        number = int(facts.findings.reasons[row])
        reason = facts.findings.suspects[number] if number >= 0 else None
        group = f"{reason.kind}: {reason.name}" if reason else ""
        cells = [int(facts.lines[row]), text]
        cells += [facts.rows.pairs[row]] if pair else []
        cells += [
            names[facts.rows.labels[row]] if facts.labelled else "",
            names[facts.teacher_classes[row]],
            names[facts.trusted_classes[row]],
            float(np.round(verdict.p_values[row], 6)),
            str(bool(verdict.rejected[row])).lower(),
            reason.claim if reason else "",
            round(reason.z, 3) if reason else "",
            group,
        ]
        rows.append([safe(cell) for cell in cells])
    return header, rows
