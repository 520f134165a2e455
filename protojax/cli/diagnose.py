"""The command `protojax diagnose`."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from protojax.cli import settings_of
from protojax.cli.terminal import Parser, guarded, progress, show_paths

PROG = "protojax diagnose"
_DESCRIPTION = """\
Says what stands in the way of a student that shall learn from a teacher, for any two
decoders: the gap between them, drift, noise of the teacher's tail, wrong steps.
"""
_EPILOG = """\
example:
  protojax diagnose --teacher big/ --student small/ --prompts questions.csv \\
    --answers answer --out found/

It writes found/report.html (read this first), diagnosis.json and texts.json. Files are
CSV, TSV, JSONL or Parquet, told by their suffix. --set takes any field of
protojax.pipelines.distillability.DiagnosisSettings, as
  --set draws=4 --set starts=1,2,4 --set prompt=chat
"""
# flag -> the field that it sets.
_FIELDS = {
    "text": "text",
    "answers": "answers",
    "encoding": "encoding",
    "most": "most",
    "max_new": "max_new",
    "seed": "seed",
}


def main(arguments: Sequence[str]) -> int:
    """The exit status of `protojax diagnose`.

    Args:
        arguments: those after the name of the command.
    """
    found = parser().parse_args(arguments)
    return guarded(PROG, lambda: _diagnose(found), resumes=False)


def parser() -> Parser:
    """The parser of the command's arguments."""
    made = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    _add(made.add_argument)
    return made


def _add(add: Callable) -> None:
    """Adds the flags."""
    add("--teacher", required=True, metavar="DIR", help="a decoder, used as it is")
    add("--student", required=True, metavar="DIR", help="a decoder, used as it is")
    add("--prompts", required=True, metavar="FILE", help="what both are asked")
    add("--out", required=True, metavar="DIR", help="the folder to write to")
    add("--text", metavar="COL", help="the column of the prompt (prompt)")
    add("--answers", metavar="COL", help="the column of the right answer (none)")
    add("--encoding", metavar="NAME", help="of a text file (utf-8)")
    add("--most", metavar="N", help="prompts that are read (128)")
    add("--max-new", metavar="N", help="tokens of a text (64)")
    add("--seed", metavar="N", help="of all draws (0)")
    settings_of.add_set(add)


def config_of(found: argparse.Namespace) -> Any:
    """The settings that arguments ask for.

    Args:
        found: the parsed arguments.
    """
    from protojax.pipelines.distillability import DiagnosisSettings

    config = DiagnosisSettings()
    if found.max_new is not None and found.max_new.isdigit():
        # Fewer tokens than the default beginnings have.
        starts = [start for start in config.starts if start < int(found.max_new)]
        config = DiagnosisSettings(starts=tuple(starts))
    config = settings_of.with_flags(config, found, _FIELDS)
    return settings_of.with_set(config, found)


def _diagnose(found: argparse.Namespace) -> int:
    """Runs the pipeline, and prints what came of it."""
    # The settings first: they are checked in a moment.
    config = config_of(found)
    from protojax.pipelines import distillability

    with progress() as (_, describe, _):
        result = distillability.diagnose(
            found.teacher,
            found.student,
            found.prompts,
            out=found.out,
            config=config,
            describe=describe,
        )
    show(result)
    return 0


def show(result: Any) -> None:
    """Prints what a diagnosis found.

    Args:
        result: a `pipelines.distillability.Diagnosis`.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # As text: brackets must not be taken for markup.
    console.print(Text(result.headline), style="bold")
    table = Table(show_header=False, box=None)
    for trap in result.traps:
        lost = "not measured" if trap.severity is None else f"{trap.severity:.0%}"
        measure = "" if trap.severity is None else trap.measure
        table.add_row(trap.name, lost, Text(measure))
    console.print(table)
    show_paths(console, result.out, ("report.html",))
