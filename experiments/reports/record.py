"""Puts the results of studies into `experiments/README.md`, as they are.

    python -m experiments.record pilot runs/pilot --task=sst2_sentence

writes `experiments/results/pilot.jsonl` (a line for every row of the study: one student
of one seed), `experiments/results/pilot.json` (means and intervals, seeds, commits,
versions), and the table made of it between the README's two lines

    <!-- results: pilot -->
    <!-- end -->

so that no figure of it is typed by hand; a test holds every such table to its file. A
line `<!-- overview: pilot -->` makes a place for a line an attack, and one
`<!-- published: pilot -->` for ours beside the published figures.

A study too long for one machine and day is recorded in pieces: several folders at once,
and with `--add` beside what was recorded before. Their settings must be the same.
`--pictures` draws attack success against skill beside the files, and against the rate
of poison where attacks differ in it, for each task.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from experiments import runtime
from experiments.arms import ARMS, parse
from experiments.reports import report, results
from experiments.study import resume as settings_lib
from protojax import validate

FOLDER = pathlib.Path(__file__).parents[1] / "results"
README = pathlib.Path(__file__).parents[1] / "README.md"
# What tells rows apart; a row measured again takes the place of the former one.
IDENTITY = ("task", "attack", "arm", "seed")
# What is kept of a row.
KEPT = (
    *(*IDENTITY, "metric_name", "commit", "step_rows", "noise_multiplier"),
    "epsilon_nominal",
    *(name for name in results.MEASURES if name not in results.COMPARED),
)


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
            place for the table in the README.
    """
    path = FOLDER / f"{name}.json"
    before = json.loads(path.read_text()) if add and path.exists() else {}
    settings, rows = before.get("settings"), {}
    if before:
        file = path.with_suffix(".jsonl")
        bound = f"a study whose rows are in {file}"
        validate.require(file.exists(), "add", "none", bound)
        lines = file.read_text().splitlines()
        rows = {_identity(row): row for row in map(json.loads, lines)}
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
    versions = [json.loads((w / "versions.json").read_text()) for w in workdirs]
    versions += [before["versions"]] if before else []
    summary = results.summarise(results.compared(ordered))
    found = {
        "commits": sorted({row.get("commit", "unknown") for row in ordered}),
        "seeds": sorted({row["seed"] for row in ordered}),
        "versions": _all_of(versions),
        "settings": settings,
        "summary": [
            {key: value for key, value in line.items() if value is not None}
            for line in summary
        ],
    }
    text = filled(README.read_text(), name, found)
    with runtime.atomic(path.with_suffix(".jsonl")) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in ordered)
    runtime.write_json(path, found)
    with runtime.atomic(README) as file:
        file.write(text.encode())
    for task in sorted({row["task"] for row in ordered}) if pictures else ():
        lines = [line for line in summary if line["task"] == task]
        drawn = report.attack_pictures(lines, settings["attacks"])
        for ending, (figure, _) in drawn.items():
            ending = ending.removeprefix("_tradeoff")
            with runtime.atomic(FOLDER / f"{name}_{task}{ending}.png") as file:
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


def _identity(row: dict[str, Any]) -> tuple:
    """Returns what tells a row from others."""
    return tuple(row.get(name) for name in IDENTITY)


def _place(row: dict[str, Any]) -> tuple:
    """Returns where a row stands in the table."""
    kind, variant, where = parse(row["arm"])
    place = where, list(ARMS).index(kind), variant
    return row["task"], row.get("attack") or "", *place, row["seed"]


def filled(readme: str, name: str, found: dict[str, Any]) -> str:
    """Returns a README with the tables of a file in their places.

    Args:
        readme: the text.
        name: of the file.
        found: what it holds.
    """
    for kind, table in KINDS.items():
        if kind == "results" or f"<!-- {kind}: {name} -->" in readme:
            readme = placed(readme, name, table(found), kind=kind)
    return readme


def _summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the lines of a file, with None for what was not measured."""
    measures = {name: None for m in results.MEASURES for name in (m, f"{m}_interval")}
    return [{**measures, "attack": None, **line} for line in found["summary"]]


def _cells(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict]]:
    """Returns the lines of each task and attack by their arms."""
    cells: dict[tuple[str, str], dict[str, dict]] = {}
    for line in _summary(found):
        if line["attack"]:
            cells.setdefault((line["task"], line["attack"]), {})[line["arm"]] = line
    return cells


def rendered(found: dict[str, Any]) -> str:
    """Returns the table of a file in `experiments/results`, and where it comes from."""
    summary = _summary(found)
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
        found: a file in `experiments/results`.
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
        found: a file in `experiments/results`.
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


# What a line of the README may make a place for.
KINDS = {"results": rendered, "overview": overview, "published": beside_published}


def placed(readme: str, name: str, table: str, *, kind: str = "results") -> str:
    """Returns a text with a table between the two lines that name its place.

    >>> placed("<!-- results: a -->\\nold\\n<!-- end -->\\n", "a", "new\\n")
    '<!-- results: a -->\\n\\nnew\\n\\n<!-- end -->\\n'
    """
    inside = rf"(?:(?!<!-- (?:{'|'.join(KINDS)}):).)*?"
    start = rf"(<!-- {kind}: {re.escape(name)} -->\n)"
    place = re.compile(rf"{start}{inside}(<!-- end -->)", re.S)
    text, count = place.subn(lambda m: f"{m[1]}\n{table}\n{m[2]}", readme)
    if count != 1:
        raise ValueError(
            f"Expected one line '<!-- {kind}: {name} -->' followed by '<!-- end -->' "
            f"in {README}, found {count}."
        )
    return text


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the table")
    parser.add_argument(
        "workdir", type=pathlib.Path, nargs="+", help="a folder of the study"
    )
    parser.add_argument("--task", action="append", default=[], help="one to show")
    parser.add_argument("--add", action="store_true", help="to what was recorded")
    parser.add_argument("--pictures", action="store_true", help="one of each task")
    given = parser.parse_args()
    record(
        given.name,
        given.workdir,
        tasks=tuple(given.task),
        add=given.add,
        pictures=given.pictures,
    )


if __name__ == "__main__":
    main()
