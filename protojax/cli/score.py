"""The command `protojax score`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protojax.cli.terminal import Parser, guarded

PROG = "protojax score"
_DESCRIPTION = """\
Writes the class and the probabilities that a student gives to each row of a file. All
columns of the file are kept, and so is the order of its rows.
"""
_EPILOG = """\
example:
  protojax score run/student --rows new.jsonl --out scored.jsonl

Columns and lengths are those of the run that made the student, where run.json stands
beside it.
"""


def main(arguments: Sequence[str]) -> int:
    """The exit status of `protojax score`.

    Args:
        arguments: those after the name of the command.
    """
    found = parser().parse_args(arguments)
    return guarded(PROG, lambda: _score(found))


def parser() -> Parser:
    """The parser of the command's arguments."""
    made = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    add = made.add_argument
    add("student", metavar="DIR", help="the folder of a student, or any classifier")
    add("--rows", required=True, metavar="FILE", help="the rows to score")
    add("--out", required=True, metavar="FILE", help="to write, .jsonl or .csv")
    add("--text", metavar="COL", help="the column of the text (text)")
    add("--pair", metavar="COL", help="the column of the second text (none)")
    add("--encoding", metavar="NAME", help="of a text file (utf-8)")
    add("--max-length", metavar="N", help="tokens of a row (128)")
    return made


def _score(found: argparse.Namespace) -> int:
    """Scores the rows, and prints how many."""
    from protojax import pipelines, validate
    from protojax.pipelines import settings

    before = _settings_of(Path(found.student))
    columns = settings.Columns(
        **{
            name: value
            for name in ("text", "pair", "encoding")
            for value in [getattr(found, name) or before.get(f"columns.{name}")]
            if value
        }
    )
    longest = found.max_length or str(before.get("lengths.max_length") or "128")
    validate.require(longest.isdigit(), "--max-length", longest, "a number > 0")
    lengths = settings.with_max_length(settings.Defence().lengths, int(longest))
    count = pipelines.score(
        found.student, found.rows, found.out, columns=columns, lengths=lengths
    )
    print(f"{count:,} rows scored: {found.out}")
    return 0


def _settings_of(student: Path) -> dict[str, Any]:
    """The settings of the run that made a student, none where it is not known."""
    path = student.parent / "run.json"
    try:
        return dict(json.loads(path.read_text())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
