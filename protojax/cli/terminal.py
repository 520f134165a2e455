"""Terminal output of commands: warnings, a progress bar, errors in one line."""

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_LOGGER = logging.getLogger("protojax")
_LONGEST = 1500  # characters of an error


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose texts stay as they are written.

    Args:
        **options: of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation such as `--vers` would break once a second option fits.
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str):
        """Exits with status 2 after one line on standard error."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """The command of a call, for run.json.

    Args:
        name: of the command.
        arguments: those after the name.

    >>> " ".join(command_line("score", ["my rows.csv"]))
    "protojax score 'my rows.csv'"
    """
    return ["protojax", name, *map(shlex.quote, arguments)]


def guarded(prog: str, work: Callable[[], int], *, resumes: bool = True) -> int:
    """The exit status of some work; an error of its user is one line and status 2.

    Args:
        prog: the name of the command.
        work: returns the exit status.
        resumes: whether the work goes on where it was stopped.
    """
    # Advice for PyTorch, which nobody here uses; read when transformers is imported.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with logged():
            return work()
    except (OSError, ValueError, FloatingPointError) as error:
        # Messages of other libraries may have many lines.
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"{prog}: {said[:_LONGEST]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = " The same command goes on from here." if resumes else ""
        print(f"{prog}: stopped.{more}", file=sys.stderr)
        return 130


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """A context in which the library's log is printed to standard error."""
    handler = _Lines()
    handler.addFilter(Once())
    before = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    # Other libraries install handlers of all logs, which would print each line again.
    _LOGGER.propagate = False
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before[0])
        _LOGGER.propagate = before[1]


class Once(logging.Filter):
    """A filter that passes each message once; models are loaded many times."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        return new


class _Lines(logging.Handler):
    """Messages as lines of standard error; a warning says that it is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message."""
        loud = record.levelno >= logging.WARNING
        # Not a stream that is kept: a progress bar takes the place of stderr.
        print(f"{'warning: ' if loud else ''}{record.getMessage()}", file=sys.stderr)


def progress_bar(console: "Console") -> "Progress":
    """A progress bar with an estimate of the time left.

    Args:
        console: where it is shown.
    """
    # Imported here: the help has no need of it.
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=console,
        # Rich's default, 30 seconds, may hold no progress at all during an evaluation.
        speed_estimate_period=600,
    )


@contextlib.contextmanager
def progress() -> Iterator[tuple[Callable, Callable, Callable]]:
    """A progress bar with an estimate of the time left, on standard error.

    Yields:
        The functions of a `pipelines.Watch`: total, describe, advance.
    """
    # Imported here: the help has no need of it.
    from rich.console import Console

    bar = progress_bar(Console(stderr=True))
    with bar:
        task = bar.add_task("reading", total=None)
        yield (
            # From nothing again: a command may do one piece of work after another.
            lambda units: bar.update(task, total=units, completed=0),
            lambda text: bar.update(task, description=text),
            lambda units: bar.advance(task, units),
        )
        # What was done before a stop, or was not needed, is done too.
        bar.update(
            task, completed=bar.tasks[0].total or 1, total=bar.tasks[0].total or 1
        )


def show_paths(console: "Console", out: Path, names: Sequence[str]) -> None:
    """Prints where outputs are, never wrapped, so that they can be copied.

    Args:
        console: where they are shown.
        out: the folder of the outputs.
        names: of files and folders in it.
    """
    from rich.text import Text

    for name in names:
        console.print(Text(str(out / name)), soft_wrap=True)


def show_findings(
    lines: Sequence[str],
    counts: Mapping[str, int],
    findings: Any,
    metrics: Mapping[str, str],
    out: Path,
) -> None:
    """Prints what a defence found, and where it is written.

    Args:
        lines: the first sentence, then warnings.
        counts: of rows, by their name.
        findings: of the test, with `suspects` and `clean`.
        metrics: name -> value.
        out: the folder of the outputs.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # As text: brackets in a row must not be taken for markup.
    console.print(Text(lines[0]), style="bold", soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(line), soft_wrap=True)
    table = Table(show_header=False, box=None)
    strong = sum(suspect.strong for suspect in findings.suspects)
    for name, value in {
        **{name: f"{count:,}" for name, count in counts.items()},
        "suspects": f"{len(findings.suspects)}, of these triggers {strong}",
        "the set looks clean": "yes" if findings.clean else "no",
        **metrics,
    }.items():
        table.add_row(name, value)
    console.print(table)
    show_paths(console, out, ("student", "report.html"))
