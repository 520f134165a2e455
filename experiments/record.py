"""Puts the results of a study into `experiments/README.md`, as they are.

    python -m experiments.record pilot runs/pilot --task=sst2_sentence

writes `experiments/results/pilot.json` (means and intervals, seeds, commits, versions),
and the table made of it between the README's two lines

    <!-- results: pilot -->
    <!-- end -->

so that no figure of it is typed by hand; a test holds every such table to its file.
"""

import argparse
import json
import pathlib
import re
from typing import Any

from experiments import results, runtime
from experiments.arms import ARMS, parse

FOLDER = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parent / "README.md"


def record(name: str, workdir: pathlib.Path, *, tasks: tuple[str, ...] = ()) -> None:
    """Writes a study's results into the repository.

    Args:
        name: of the table.
        workdir: the study's folder.
        tasks: those to show; () is all.

    Raises:
        ValueError: no row of these tasks, or no place for the table in the README.
    """
    rows = [json.loads(path.read_text()) for path in workdir.glob("*/seed*/*/*.json")]
    # A cell's folder holds other files too, such as a trigger that was searched.
    rows = [row for row in rows if "arm" in row and (not tasks or row["task"] in tasks)]
    if not rows:
        raise ValueError(
            f"Expected rows of {tasks or 'any task'} in {workdir}, found none."
        )
    rows.sort(key=_place)
    summary = results.summarise(results.compared(rows))
    versions = json.loads((workdir / "versions.json").read_text())
    found = {
        "commits": sorted({row["commit"] or "unknown" for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
        "versions": {k: v for k, v in versions.items() if k != "commit"},
        "summary": [
            {key: value for key, value in line.items() if value is not None}
            for line in summary
        ],
    }
    text = placed(README.read_text(), name, rendered(found))
    runtime.write_json(FOLDER / f"{name}.json", found)
    with runtime.atomic(README) as file:
        file.write(text.encode())


def _place(row: dict[str, Any]) -> tuple:
    """Returns where a row stands in the table."""
    kind, variant, where = parse(row["arm"])
    place = where, list(ARMS).index(kind), variant
    return row["task"], row["attack"], *place, row["seed"]


def rendered(found: dict[str, Any]) -> str:
    """Returns the table of a file in `experiments/results`, and where it comes from."""
    measures = {name: None for m in results.MEASURES for name in (m, f"{m}_interval")}
    summary = [{**measures, "attack": None, **line} for line in found["summary"]]
    seeds, commits = len(found["seeds"]), ", ".join(found["commits"])
    table = results.markdown(summary)
    return (
        f"{table}\n{seeds} seed(s), commit {commits}, jax {found['versions']['jax']}.\n"
    )


def placed(readme: str, name: str, table: str) -> str:
    """Returns a text with a table between the two lines that name its place.

    >>> placed("<!-- results: a -->\\nold\\n<!-- end -->\\n", "a", "new\\n")
    '<!-- results: a -->\\n\\nnew\\n\\n<!-- end -->\\n'
    """
    inside = r"(?:(?!<!-- results:).)*?"
    start = rf"(<!-- results: {re.escape(name)} -->\n)"
    place = re.compile(rf"{start}{inside}(<!-- end -->)", re.S)
    text, count = place.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", readme)
    if count != 1:
        raise ValueError(
            f"Expected one line '<!-- results: {name} -->' followed by '<!-- end -->' "
            f"in {README}, found {count}."
        )
    return text


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the table")
    parser.add_argument("workdir", type=pathlib.Path, help="the study's folder")
    parser.add_argument("--task", action="append", default=[], help="one to show")
    given = parser.parse_args()
    record(given.name, given.workdir, tasks=tuple(given.task))


if __name__ == "__main__":
    main()
