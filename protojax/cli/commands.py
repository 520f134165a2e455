"""The commands of `protojax`: `COMMANDS`, from which its help is made."""

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from protojax import __version__
from protojax.cli.terminal import Parser


class Command(NamedTuple):
    """One command.

    Attributes:
        line: its description, one line of the help.
        run: takes the arguments after the name and returns the exit status; None means
            0. It imports its modules when called, so that the help appears at once.
    """

    line: str
    run: Callable[[Sequence[str]], int | None]


def _imported(module: str) -> Callable[[Sequence[str]], int | None]:
    """The function `main` of a module of this package, imported when it is called."""

    def run(arguments: Sequence[str]) -> int | None:
        return importlib.import_module(f"protojax.cli.{module}").main(arguments)

    return run


COMMANDS: dict[str, Command] = {
    "calibrate": Command(
        "Makes a language model easier or harder to distil.", _imported("calibrate")
    ),
    "defend": Command(
        "Tests your own rows, and distils a student from those that pass.",
        _imported("defend"),
    ),
    "diagnose": Command(
        "Says what holds a student of a teacher back, for two decoders.",
        _imported("diagnose"),
    ),
    "privatise": Command(
        "Makes a student of private rows, and measures what it gives away.",
        _imported("privatise"),
    ),
    "score": Command("Scores new rows with a student.", _imported("score")),
}

STUDIES = """\
Studies are run in a checkout of the repository, from its root:
  python -m experiments.run --config=quickstart.py
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of a command.

    Args:
        arguments: those after `protojax`; None for those of the command line.

    Raises:
        SystemExit: with status 0 after `--help` and `--version`, with 2 and one line on
            stderr if the arguments are not understood.
    """
    parser = _parser()
    found = parser.parse_args(arguments)
    if found.command is None:
        parser.print_help()
        return 0
    if found.command not in COMMANDS:
        # Imported late: it loads NumPy, which no other code here needs.
        from protojax import validate

        try:
            validate.one_of(COMMANDS, command=found.command)
        except ValueError as error:
            parser.error(str(error))
    return COMMANDS[found.command].run(found.arguments) or 0


def _parser() -> Parser:
    """The parser of the arguments before those of a command."""
    parser = Parser(
        prog="protojax",
        usage="%(prog)s [--help] [--version] [COMMAND ...]",
        description="Robust knowledge distillation of language models in JAX.",
        epilog=f"{_listed()}\n{STUDIES}",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _listed() -> str:
    """The list of commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {command.line}" for name, command in COMMANDS.items())
    return "\n".join(["commands:", *lines, ""])
