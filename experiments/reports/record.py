"""Puts the results of studies into the repository and its documents, as they are.

    python -m experiments.reports.record pilot runs/pilot --task=sst2_sentence

writes `experiments/records/pilot.jsonl` (settings and versions first, then a line for
every row of the study: one student of one seed), and the table of means and intervals
made of it into whatever document holds the two lines

    <!-- results: pilot -->
    <!-- end -->

so that no figure of it is typed by hand; a test holds every such table to its record.
The lines are those of `pages`, which says what other tables there are. Without a folder
the tables of a record are written anew.

A study too long for one machine and day is recorded in pieces: several folders at once,
and with `--add` beside what was recorded before. Their settings must be the same.
`--pictures` draws attack success against skill beside the files, and against the rate
of poison where attacks differ in it, for each task.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.arms import ARMS, parse
from experiments.reports import pages, report, results
from experiments.study import resume as settings_lib
from protojax import storage, validate

FOLDER = pathlib.Path(__file__).parents[1] / "records"
# What tells rows apart; a row measured again takes the place of the former one.
IDENTITY = ("task", "attack", "arm", "seed")
# What is kept of a row.
KEPT = (
    *(*IDENTITY, "metric_name", "commit", "evaluated_commit"),
    *("step_rows", "noise_multiplier", "epsilon_nominal"),
    *(name for name in results.MEASURES if name not in results.COMPARED),
)


def names() -> list[str]:
    """Returns the names of all records."""
    found = [*FOLDER.glob("*.jsonl"), *FOLDER.glob("*.json")]
    return sorted(path.stem for path in found)


def load(name: str) -> dict[str, Any]:
    """Returns a record: `commits`, `seeds`, `versions`, `settings` and `summary`.

    The oldest have neither rows nor settings, only what was made of them, in a `.json`.

    >>> sorted(load("quickstart"))
    ['commits', 'seeds', 'settings', 'summary', 'versions']
    """
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        return json.loads(path.with_suffix(".json").read_text())
    head, *rows = map(json.loads, path.read_text().splitlines())
    return _found(rows, **head)


def _found(rows: list[dict[str, Any]], *, settings, versions) -> dict[str, Any]:
    """Returns what a record's rows come to."""
    summary = results.summarise(results.compared(rows))
    return {
        "commits": sorted({row.get("commit", "unknown") for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
        "versions": versions,
        "settings": settings,
        "summary": [
            {key: value for key, value in line.items() if value is not None}
            for line in summary
        ],
    }


def record(
    name: str,
    workdirs: Sequence[pathlib.Path],
    *,
    tasks: tuple[str, ...] = (),
    add: bool = False,
    pictures: bool = False,
) -> None:
    """Writes the results of a study into the repository.

    Args:
        name: of the table.
        workdirs: the folders that hold the study's pieces.
        tasks: those to show; () is all.
        add: whether rows that were recorded before stay.
        pictures: whether to draw each task.

    Raises:
        ValueError: no row of these tasks, other settings in another folder, or no
            place for the table in any document.
    """
    path = FOLDER / f"{name}.jsonl"
    before, rows = {}, {}
    if add and name in names():
        bound = f"a study whose rows are in {path}"
        validate.require(path.exists(), "add", "none", bound)
        before, *lines = map(json.loads, path.read_text().splitlines())
        rows = {_identity(row): row for row in lines}
    settings = before.get("settings")
    for workdir in workdirs:
        config = _portable(json.loads((workdir / "config.json").read_text()))
        settings = settings_lib.joined(
            settings or config, config, f"{workdir} and {path}"
        )
        for row in _rows(workdir, tasks):
            rows[_identity(row)] = {
                key: row.get(key)
                for key in KEPT
                if key in (*IDENTITY, "asr") or row.get(key) is not None
            }
    if not rows:
        raise ValueError(
            f"Expected rows of {tasks or 'any task'} in {workdirs}, found none."
        )
    ordered = sorted(rows.values(), key=_place)
    versions = [found for w in workdirs for found in results.read_versions(w)]
    versions += [before["versions"]] if before else []
    head = {"settings": settings, "versions": _all_of(versions)}
    found = _found(ordered, **head)
    texts = pages.filled(pages.read(), name, found)
    with storage.atomic(path) as file:
        lines = (json.dumps(line).encode() + b"\n" for line in (head, *ordered))
        file.writelines(lines)
    # What had no rows is replaced by what has.
    path.with_suffix(".json").unlink(missing_ok=True)
    pages.write(texts)
    for task in sorted({row["task"] for row in ordered}) if pictures else ():
        lines = [line for line in found["summary"] if line["task"] == task]
        drawn = report.attack_pictures(pages.whole(lines), settings["attacks"])
        for ending, (figure, _) in drawn.items():
            ending = ending.removeprefix("_tradeoff")
            with storage.atomic(FOLDER / f"{name}_{task}{ending}.png") as file:
                figure.savefig(file, format="png", dpi=100)


def _all_of(versions: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the versions of all pieces, those that differ side by side.

    >>> _all_of([{"jax": "1", "numpy": "2"}, {"jax": "3", "numpy": "2"}])
    {'jax': '1, 3', 'numpy': '2'}
    """
    found = {}
    for name in dict.fromkeys(name for piece in versions for name in piece):
        if name != "commit":
            said = [piece[name] for piece in versions if name in piece]
            same = all(value == said[0] for value in said)
            texts = sorted({part for value in said for part in str(value).split(", ")})
            found[name] = said[0] if same else ", ".join(texts)
    return found


def _portable(value: Any) -> Any:
    """Returns settings without the folders of one machine, files by their end.

    >>> _portable({"data": {"root": "/data"}, "model": "/there/minilm/model"})
    {'data': {}, 'model': 'minilm/model'}
    """
    if isinstance(value, dict):
        return {key: _portable(v) for key, v in value.items() if key != "root"}
    if isinstance(value, str) and pathlib.PurePath(value).is_absolute():
        return "/".join(pathlib.PurePath(value).parts[-2:])
    return value


def _rows(workdir: pathlib.Path, tasks: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the rows of a folder that are of some tasks."""
    found = [json.loads(path.read_text()) for path in workdir.glob("*/seed*/*/*.json")]
    # A cell's folder holds other files too, such as a trigger that was searched.
    return [
        row for row in found if "arm" in row and row["task"] in (tasks or [row["task"]])
    ]


def _commits(row: dict[str, Any]) -> set[str]:
    """Returns the commits that trained and that evaluated the student of a row."""
    names = ("commit", "evaluated_commit")
    return {row[name] for name in names if row.get(name)} or {"unknown"}


def _identity(row: dict[str, Any]) -> tuple:
    """Returns what tells a row from others."""
    return tuple(row.get(name) for name in IDENTITY)


def _place(row: dict[str, Any]) -> tuple:
    """Returns where a row stands in the table."""
    kind, variant, where = parse(row["arm"])
    place = where, list(ARMS).index(kind), variant
    return row["task"], row.get("attack") or "", *place, row["seed"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the table")
    parser.add_argument(
        "workdir", type=pathlib.Path, nargs="*", help="a folder of the study"
    )
    parser.add_argument("--task", action="append", default=[], help="one to show")
    parser.add_argument("--add", action="store_true", help="to what was recorded")
    parser.add_argument("--pictures", action="store_true", help="one of each task")
    given = parser.parse_args(arguments)
    if not given.workdir:
        pages.write(pages.filled(pages.read(), given.name, load(given.name)))
        return
    record(
        given.name,
        given.workdir,
        tasks=tuple(given.task),
        add=given.add,
        pictures=given.pictures,
    )


if __name__ == "__main__":
    main()
