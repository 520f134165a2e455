"""Errors and warnings of a study, in the terminal and in files."""

import contextlib
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

from rich.logging import RichHandler


@contextlib.contextmanager
def error_kept(path: pathlib.Path) -> Iterator[None]:
    """Writes the traceback of an error in the body to a file, and raises it again.

    `run` prints such an error in one line only. If the file cannot be written, for
    example on a full disk, the error is raised all the same.
    """
    try:
        yield
    except (ValueError, OSError):
        with contextlib.suppress(OSError):
            path.write_text(traceback.format_exc())
        raise


def is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is not just a copy of an error that is raised as well.

    Orbax, through absl, logs an error with its traceback in each of its threads. On a
    full disk these fill pages, although `run` prints the error itself.
    """
    return not (record.name == "absl" and record.exc_info)


def log_to_terminal() -> None:
    """Shows all warnings in the terminal, and info messages of protojax."""
    from protojax.cli.terminal import Once

    handler = RichHandler(show_path=False, show_time=False)
    handler.addFilter(is_news)
    handler.addFilter(Once())
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[handler], force=True
    )
    logging.getLogger("protojax").setLevel(logging.INFO)


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Ends a process at once, without the usual shutdown, if the body fails.

    The shutdown of JAX waits for the other processes, which wait for this one. The exit
    status is 1, as with a single process, for an error that would occur again.
    """
    try:
        yield
    except BaseException as error:
        said = isinstance(error, SystemExit)
        hint = "If another process has died, start all again: they go on from there.\n"
        text = error.code if said else traceback.format_exc() + hint
        print(text, file=sys.stderr)
        sys.stderr.flush()
        os._exit(1 if said else os.EX_SOFTWARE)
