"""Tables of records, and their places in the documents.

A table stands between two lines of a document,

    <!-- results: NAME -->
    <!-- end -->

The first line names the table's kind and its record: `results` has every arm and column
(in one document only), `overview` has a line per attack, or what a study of
`experiments.systems` has as its shorter table, and `published` compares our figures
with published ones. The documents are README.md, experiments/README.md and
those in docs/.
"""

import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from experiments.arms import ARMS, name_of
from experiments.reports import results
from experiments.systems import SYSTEMS
from protojax import storage, validate

ROOT = pathlib.Path(__file__).parents[2]
_FIGURES = {*"0123456789+-–"}


def whole(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a record, with None for measures that it does not have."""
    measures = {name: None for m in results.MEASURES for name in (m, f"{m}_interval")}
    return [{**measures, "attack": None, **line} for line in summary]


def _cells(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict]]:
    """The lines of a record by task and attack, then by arm."""
    cells: dict[tuple[str, str], dict[str, dict]] = {}
    for line in whole(found["summary"]):
        if line["attack"]:
            cells.setdefault((line["task"], line["attack"]), {})[line["arm"]] = line
    return cells


def rendered(found: dict[str, Any]) -> str:
    """The full table of a record, with its seeds, commits and JAX version."""
    if "system" in found:
        header, *lines = SYSTEMS[found["system"]].table_of(found["rows"])
        # Names come first; the first figure or dash ends them.
        names = itertools.takewhile(lambda cell: cell[0] not in _FIGURES, lines[0])
        table = results.piped([header, *lines], num_texts=len([*names]))
        commits = ", ".join(found["commits"])
        return f"{table}\nCommit {commits}, jax {found['versions']['jax']}.\n"
    summary = whole(found["summary"])
    counts = sorted({line["seeds"] for line in summary})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    commits = ", ".join(found["commits"])
    table = results.markdown(summary)
    return (
        f"{table}\n{seeds} seed(s), commit {commits}, jax {found['versions']['jax']}.\n"
    )


# The measures of the overview, in the order of its columns.
OVERVIEW = (
    "asr",
    "excess_asr",
    "trigger_effect",
    "quarantine_recall",
    "target_recall",
    "clean_metric",
)


def overview(found: dict[str, Any]) -> str:
    """A table with a line for each attack against which the defence was run.

    Of a study of `experiments.systems` it is the shorter table that its kind has.

    Args:
        found: a record.

    Raises:
        ValueError: of a kind of study that has none.
    """
    if "system" in found:
        some = [name for name, one in SYSTEMS.items() if one.overview_of]
        validate.one_of(some, **{"overview of a study of": found["system"]})
        header, *lines = SYSTEMS[found["system"]].overview_of(found["rows"])
        return results.piped([header, *lines], num_texts=2)
    columns = {
        arm.overview[measure]: (measure, name)
        for measure in OVERVIEW
        for name, arm in ARMS.items()
        if measure in arm.overview
    }
    rows, defence = [["task", "attack", "seeds", *columns]], name_of("recommended")
    for (task, attack), lines in _cells(found).items():
        if defence in lines:
            texts = [
                results.percent(lines[arm], measure) if arm in lines else results.EMPTY
                for measure, arm in columns.values()
            ]
            rows.append([task, attack, str(lines[defence]["seeds"]), *texts])
    return results.piped(rows, num_texts=2)


def beside_published(found: dict[str, Any]) -> str:
    """A table of published figures and ours, for cells with all arms concerned.

    The published figures are for another setting. Arms are sorted by published attack
    success, the highest first.

    Args:
        found: a record.
    """
    published = {
        name: arm.published for name, arm in ARMS.items() if arm.published is not None
    }
    worst_first = sorted(published, key=lambda arm: published[arm], reverse=True)
    undefended = name_of("undefended")
    cells = {
        name: lines
        for name, lines in _cells(found).items()
        # Whole cells only: gaps could not be compared with published figures.
        if published.keys() <= lines.keys()
    }
    names = ["published", *(f"{task}, {attack}" for task, attack in cells)]
    sides = [f"{name}: {side}" for side in ("ASR", "loss") for name in names]
    rows = [["arm", *sides]]
    for arm in worst_first:
        measured = [
            (100 * lines[arm]["asr"], 100 * (skill - lines[arm]["clean_metric"]))
            for lines in cells.values()
            for skill in [lines[undefended]["clean_metric"]]
        ]
        values = zip(published[arm] or (None, None), *measured, strict=True)
        texts = [results.EMPTY if v is None else f"{v:.1f}" for s in values for v in s]
        rows.append([arm, *texts])
    return results.piped(rows, num_texts=1)


# The kinds of tables that a line of a document may name.
KINDS = {"results": rendered, "overview": overview, "published": beside_published}


def read() -> dict[pathlib.Path, str]:
    """The texts of the documents that may hold tables."""
    found = [ROOT / "README.md", ROOT / "experiments/README.md"]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return {path: path.read_text() for path in found if path.exists()}


def write(texts: Mapping[pathlib.Path, str]) -> None:
    """Writes the documents whose text has changed."""
    for path, text in texts.items():
        if path.read_text() != text:
            with storage.atomic(path) as file:
                file.write(text.encode())


def filled(
    texts: Mapping[pathlib.Path, str], name: str, found: dict[str, Any]
) -> dict[pathlib.Path, str]:
    """The documents with the tables of a record in their places.

    Args:
        texts: the documents.
        name: the record's name.
        found: the record.

    Raises:
        ValueError: no place or several places for its results, or one without an end.
    """
    texts = dict(texts)
    for kind, table in KINDS.items():
        line = f"<!-- {kind}: {name} -->"
        holders = [path for path, text in texts.items() if line in text]
        if kind == "results":
            one = f"Expected the line '{line}' in one document below {ROOT}, found"
            if len(holders) != 1:
                raise ValueError(f"{one} {[str(path) for path in holders]}.")
        for path in holders:
            texts[path] = placed(texts[path], name, table(found), kind=kind)
    return texts


def placed(page: str, name: str, table: str, *, kind: str = "results") -> str:
    """The text with a table between the two lines that mark its place.

    >>> placed("<!-- results: a -->\\nold\\n<!-- end -->\\n", "a", "new\\n")
    '<!-- results: a -->\\n\\nnew\\n\\n<!-- end -->\\n'
    """
    # The text in between must not run past the start of another table.
    inside = rf"(?:(?!<!-- (?:{'|'.join(KINDS)}):).)*?"
    start = rf"(<!-- {kind}: {re.escape(name)} -->\n)"
    place = re.compile(rf"{start}{inside}(<!-- end -->)", re.S)
    # A function as replacement: a backslash in the table would be read as a group.
    text, count = place.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", page)
    if count != 1:
        raise ValueError(
            f"Expected one line '<!-- {kind}: {name} -->' followed by '<!-- end -->' "
            f"in a document, found {count}."
        )
    return text
