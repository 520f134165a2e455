"""The tables of the documents that are made of records, and their places.

A table stands between two lines of a document,

    <!-- results: NAME -->
    <!-- end -->

of which the first names its kind and its record: `results` is every arm and column (in
one document only), `overview` a line an attack, `published` ours beside the published
figures. Documents are README.md, experiments/README.md and those in docs/.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from experiments.reports import results
from protojax import storage

ROOT = pathlib.Path(__file__).parents[2]


def whole(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of a record, with None for what was not measured."""
    measures = {name: None for m in results.MEASURES for name in (m, f"{m}_interval")}
    return [{**measures, "attack": None, **line} for line in summary]


def _cells(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict]]:
    """Returns the lines of each task and attack by their arms."""
    cells: dict[tuple[str, str], dict[str, dict]] = {}
    for line in whole(found["summary"]):
        if line["attack"]:
            cells.setdefault((line["task"], line["attack"]), {})[line["arm"]] = line
    return cells


def rendered(found: dict[str, Any]) -> str:
    """Returns the table of a record, and where it comes from."""
    summary = whole(found["summary"])
    counts = sorted({line["seeds"] for line in summary})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    commits = ", ".join(found["commits"])
    table = results.markdown(summary)
    return (
        f"{table}\n{seeds} seed(s), commit {commits}, jax {found['versions']['jax']}.\n"
    )


# Column of the overview -> the measure, and the arm that has it.
OVERVIEW = {
    "ASR: null": ("asr", "clean"),
    "plain": ("asr", "plain"),
    "anchor": ("asr", "anchor"),
    "audited": ("asr", "audited"),
    "excess": ("excess_asr", "audited"),
    "trigger": ("trigger_effect", "audited"),
    "found": ("quarantine_recall", "audited"),
    "kept: clean": ("target_kept", "clean"),
    "kept: audited": ("target_kept", "audited"),
    "accuracy: clean": ("clean_metric", "clean"),
    "accuracy: plain": ("clean_metric", "plain"),
    "accuracy: audited": ("clean_metric", "audited"),
}


def overview(found: dict[str, Any]) -> str:
    """Returns a table with a line for each attack that `audited` was run against.

    Args:
        found: a record.
    """
    rows = [["task", "attack", "seeds", *OVERVIEW]]
    for (task, attack), arms in _cells(found).items():
        if "audited" in arms:
            texts = [
                results.percent(arms[arm], measure) if arm in arms else results.EMPTY
                for measure, arm in OVERVIEW.values()
            ]
            rows.append([task, attack, str(arms["audited"]["seeds"]), *texts])
    return results.piped(rows, num_texts=2)


# Arm -> attack success and what is lost of the clean accuracy, in percent and points,
# as published for another setting; what stands beside them is ours.
PUBLISHED = {
    "plain": (92.0, 0.0),
    "dp_sgd": (54.0, 12.0),
    "adversarial": (38.0, 6.0),
    "nearest": (7.0, 2.0),
    "anchor": (),
    "audited": (),
}


def beside_published(found: dict[str, Any]) -> str:
    """Returns a table of the published figures and ours, of cells that have them all.

    Args:
        found: a record.
    """
    cells = {
        name: arms
        for name, arms in _cells(found).items()
        if PUBLISHED.keys() <= arms.keys()
    }
    names = ["published", *(f"{task}, {attack}" for task, attack in cells)]
    sides = [f"{name}: {side}" for side in ("ASR", "loss") for name in names]
    rows = [["arm", *sides]]
    for arm, published in PUBLISHED.items():
        measured = [
            (100 * arms[arm]["asr"], 100 * (plain["clean_metric"] - own))
            for arms in cells.values()
            for plain, own in [(arms["plain"], arms[arm]["clean_metric"])]
        ]
        values = zip(published or (None, None), *measured, strict=True)
        texts = [results.EMPTY if v is None else f"{v:.1f}" for s in values for v in s]
        rows.append([arm, *texts])
    return results.piped(rows, num_texts=1)


# What a line of a document may make a place for.
KINDS = {"results": rendered, "overview": overview, "published": beside_published}


def read() -> dict[pathlib.Path, str]:
    """Returns the documents that may hold tables, and their text."""
    found = [ROOT / "README.md", ROOT / "experiments/README.md"]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return {path: path.read_text() for path in found if path.exists()}


def write(texts: Mapping[pathlib.Path, str]) -> None:
    """Writes the documents that are no longer what they were."""
    for path, text in texts.items():
        if path.read_text() != text:
            with storage.atomic(path) as file:
                file.write(text.encode())


def filled(
    texts: Mapping[pathlib.Path, str], name: str, found: dict[str, Any]
) -> dict[pathlib.Path, str]:
    """Returns documents with the tables of a record in their places.

    Args:
        texts: the documents.
        name: of the record.
        found: what it holds.

    Raises:
        ValueError: not one place for its results, or one that does not end.
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
    """Returns a text with a table between the two lines that name its place.

    >>> placed("<!-- results: a -->\\nold\\n<!-- end -->\\n", "a", "new\\n")
    '<!-- results: a -->\\n\\nnew\\n\\n<!-- end -->\\n'
    """
    inside = rf"(?:(?!<!-- (?:{'|'.join(KINDS)}):).)*?"
    start = rf"(<!-- {kind}: {re.escape(name)} -->\n)"
    place = re.compile(rf"{start}{inside}(<!-- end -->)", re.S)
    text, count = place.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", page)
    if count != 1:
        raise ValueError(
            f"Expected one line '<!-- {kind}: {name} -->' followed by '<!-- end -->' "
            f"in a document, found {count}."
        )
    return text
