"""Puts the results of studies into the repository and its documents, as they are.

    python -m experiments.reports.record pilot runs/pilot --task=sst2_sentence

writes `experiments/records/pilot.jsonl` (settings and versions first, then a line for
every row of the study: one student of one seed). It also writes the table of means and
intervals into the document that holds the two lines

    <!-- results: pilot -->
    <!-- end -->

so that no figure is typed by hand; a test compares every such table with its record.
`pages` describes these lines and the other kinds of tables. Without a folder, the
tables of an existing record are written again.

A study too long for one machine or day is recorded in parts: several folders at once,
or, with `--add`, in addition to the rows recorded before. Their settings must be the
same. `--pictures` draws, for each task, attack success against skill, and against the
poisoning rate if attacks differ in it.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.arms import ARMS, parse
from experiments.reports import pages, report, results
from experiments.study import resume
from experiments.study.parts import joined
from experiments.systems import SYSTEMS
from protojax import storage, validate

FOLDER = pathlib.Path(__file__).parents[1] / "records"
# The fields that identify a row; a row measured again replaces the former one.
IDENTITY = resume.PARTS.key
# The fields of a row that a record keeps.
KEPT = (
    *(*IDENTITY, "metric_name", "commit", "evaluated_commit"),
    *("step_rows", "noise_multiplier", "epsilon_nominal"),
    *(name for name in results.MEASURES if name not in results.COMPARED),
)


def names() -> list[str]:
    """The names of all records."""
    found = [*FOLDER.glob("*.jsonl"), *FOLDER.glob("*.json")]
    return sorted(path.stem for path in found)


def load(name: str) -> dict[str, Any]:
    """A record: `commits`, `seeds`, `versions`, `settings` and `summary`.

    That of a study of `experiments.systems` has `system`, `commits`, `versions`,
    `settings` and `rows`. The oldest records are a `.json` with a summary only.

    >>> sorted(load("quickstart"))
    ['commits', 'seeds', 'settings', 'summary', 'versions']
    """
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        return json.loads(path.with_suffix(".json").read_text())
    head, *rows = map(json.loads, path.read_text().splitlines())
    if "system" in head:
        return {**head, "rows": rows}
    return _found(rows, **head)


def _found(rows: list[dict[str, Any]], *, settings, versions) -> dict[str, Any]:
    """The record with the summary of its rows."""
    summary = results.summarise(results.compared(rows))
    return {
        "commits": sorted(set().union(*map(_commits, rows))),
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
        name: the record's name.
        workdirs: the folders that hold the parts of the study.
        tasks: the tasks to record; () is all.
        add: whether to keep the rows that were recorded before.
        pictures: whether to draw each task.

    Raises:
        ValueError: no row of these tasks, folders with different settings, or no place
            for the table in any document.
    """
    if "system" in json.loads((workdirs[0] / "config.json").read_text()):
        bound = "not with a study whose results are lines"
        validate.require(not tasks, "task", tasks, bound)
        validate.require(not pictures, "pictures", pictures, bound)
        _record_lines(name, workdirs, add=add)
        return
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
        # Refused where the parts were run with different settings.
        settings = resume.joined(settings or config, config, f"{workdir} and {path}")
        for row in _rows(workdir, tasks):
            rows[_identity(row)] = {
                key: row.get(key)
                for key in KEPT
                # No nulls, except `asr`: every row has it, and None means no attack.
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
    # Before anything is written: a document without a place for the table is an error.
    texts = pages.filled(pages.read(), name, found)
    _write(path, head, ordered)
    # The record with rows replaces an old one without.
    path.with_suffix(".json").unlink(missing_ok=True)
    pages.write(texts)
    for task in sorted({row["task"] for row in ordered}) if pictures else ():
        lines = [line for line in found["summary"] if line["task"] == task]
        drawn = report.attack_pictures(pages.whole(lines), settings["attacks"])
        for ending, (figure, _) in drawn.items():
            ending = ending.removeprefix("_tradeoff")
            with storage.atomic(FOLDER / f"{name}_{task}{ending}.png") as file:
                figure.savefig(file, format="png", dpi=100)


def _record_lines(name: str, workdirs: Sequence[pathlib.Path], *, add: bool) -> None:
    """Records a study of `experiments.systems`: the lines of its folders.

    A line that was measured again replaces the former one.

    Raises:
        ValueError: no lines, folders of different studies, or no place for the table.
    """
    before = load(name) if add and name in names() else {}
    bound = "a record of lines, as the folders hold"
    validate.require(not before or "system" in before, "add", name, bound)
    settings, rows = [*before.get("settings", ())], before.get("rows", [])
    system = before.get("system")
    for workdir in workdirs:
        config = _portable(json.loads((workdir / "config.json").read_text()))
        found = config.pop("system", None)
        system = system or found
        validate.require(found == system, "workdir", workdir, f"of {system}")
        settings.append(config)
        lines = (workdir / "results.jsonl").read_text().splitlines()
        rows += map(json.loads, lines)
    validate.require(bool(rows), "workdir", workdirs, "with results")
    parts = SYSTEMS[system].parts
    # Refused where the parts were run with different settings.
    where = ", ".join(map(str, [FOLDER / f"{name}.jsonl", *workdirs]))
    functools.reduce(lambda a, b: joined(a, b, parts, where), settings)
    settings = [one for n, one in enumerate(settings) if one not in settings[:n]]
    rows = [*{tuple(row[key] for key in parts.key): row for row in rows}.values()]
    versions = [found for w in workdirs for found in results.read_versions(w)]
    commits = {*before.get("commits", ()), *(found["commit"] for found in versions)}
    versions += [before["versions"]] if before else []
    head = {
        "system": system,
        "settings": settings,
        "versions": _all_of(versions),
        "commits": sorted(commits),
    }
    texts = pages.filled(pages.read(), name, {**head, "rows": rows})
    _write(FOLDER / f"{name}.jsonl", head, rows)
    pages.write(texts)


def _write(
    path: pathlib.Path, head: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    """Writes a record, a row a line, so that a diff shows the rows that changed."""
    with storage.atomic(path) as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in (head, *rows))


def _all_of(versions: list[dict[str, Any]]) -> dict[str, Any]:
    """The versions of all parts of a study; values that differ are joined.

    >>> _all_of([{"jax": "1", "numpy": "2"}, {"jax": "3", "numpy": "2"}])
    {'jax': '1, 3', 'numpy': '2'}
    """
    found = {}
    for name in dict.fromkeys(name for piece in versions for name in piece):
        # Each row has its own commit, see `_commits`.
        if name != "commit":
            said = [piece[name] for piece in versions if name in piece]
            same = all(value == said[0] for value in said)
            texts = sorted({part for value in said for part in str(value).split(", ")})
            found[name] = said[0] if same else ", ".join(texts)
    return found


def _portable(value: Any) -> Any:
    """The settings without folders of this machine; paths keep their last two parts.

    >>> _portable({"data": {"root": "/data"}, "model": "/there/minilm/model"})
    {'data': {}, 'model': 'minilm/model'}
    """
    if isinstance(value, dict):
        return {key: _portable(v) for key, v in value.items() if key != "root"}
    if isinstance(value, str) and pathlib.PurePath(value).is_absolute():
        return "/".join(pathlib.PurePath(value).parts[-2:])
    return value


def _rows(workdir: pathlib.Path, tasks: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a study's folder for some tasks, or for all with ()."""
    found = [json.loads(path.read_text()) for path in workdir.glob("*/seed*/*/*.json")]
    # A scenario's folder holds other files too, such as a searched trigger.
    return [
        row for row in found if "arm" in row and row["task"] in (tasks or [row["task"]])
    ]


def _commits(row: dict[str, Any]) -> set[str]:
    """The commits that trained and evaluated the student of a row."""
    names = ("commit", "evaluated_commit")
    return {row[name] for name in names if row.get(name)} or {"unknown"}


def _identity(row: dict[str, Any]) -> tuple:
    """The values of `IDENTITY` in a row."""
    return tuple(row.get(name) for name in IDENTITY)


def _place(row: dict[str, Any]) -> tuple:
    """The sort key of a row in the table."""
    kind, variant, where = parse(row["arm"])
    place = where, list(ARMS).index(kind), variant
    return row["task"], row.get("attack") or "", *place, row["seed"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Records the study that the command line names, or rewrites its tables."""
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
