"""The study in progress: its settings, its folder, its progress bar, its lock."""

import contextlib
import fcntl
import functools
import pathlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.progress import Progress

from experiments import settings
from experiments.settings import Settings
from protojax.federated.replicas import Surroundings
from protojax.storage import remove_leftovers
from protojax.training.programs import logger as logger
from protojax.training.trainer import Store


class Context(NamedTuple):
    """One study in progress.

    Attributes:
        config: the study's settings.
        workdir: where everything is written.
        progress: the bar over the whole study.
        task_id: the bar's row; advanced in rows x epochs x `trainer.row_cost`.
    """

    config: Settings
    workdir: pathlib.Path
    progress: Progress
    task_id: int

    def describe(self, text: str) -> None:
        """Says beside the bar what is going on."""
        self.progress.update(self.task_id, description=text)

    def varied(self, variant: str) -> "Context":
        """The study as one of its variants sees it; "" is the study itself."""
        return self._replace(config=varied(self.config, variant))

    @property
    def around(self) -> Surroundings:
        """What training runs are given: lengths, stores, the progress bar."""
        config = self.config

        def store(name: str) -> Store:
            folder = self.workdir / name
            return Store(folder, config.checkpoint_every, config.keep_checkpoints)

        return Surroundings(
            config.lengths,
            store,
            self.describe,
            lambda units: self.progress.advance(self.task_id, units),
        )


def cached(function):
    """LRU-caches a function of (context, ...) or (config, ...).

    Two results for each seed that is trained at once, since an arm goes over all seeds
    before the next one asks for the same.
    """
    of_size = functools.cache(lambda size: functools.lru_cache(size)(function))

    @functools.wraps(function)
    def ask(first: Context | Settings, *args, **options):
        config = first.config if isinstance(first, Context) else first
        return of_size(2 * config.replicas)(first, *args, **options)

    ask.cache_clear = of_size.cache_clear
    return ask


def varied(config: Settings, variant: str) -> Settings:
    """The settings with the fields of one of their variants; "" is none.

    >>> config = settings.make(
    ...     Settings(), {"variants": {"hot": {"kd": {"temperature": 9.0}}}})
    >>> varied(config, "hot").kd.temperature, config.kd.temperature
    (9.0, 2.0)
    """
    return settings.make(config, config.variants[variant]) if variant else config


@functools.cache
def commit() -> str | None:
    """The code's commit, `-dirty` where files differ, None outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed package has no history


@contextlib.contextmanager
def only_process(workdir: pathlib.Path, folders: Sequence[str] = ()) -> Iterator[None]:
    """Holds a study's folder for this process, and clears what a killed one left.

    Only temporary files and folders of this program go; a user's hidden ones stay.

    Args:
        workdir: the study's folder.
        folders: those in it that are the study's own, such as its tasks'; cleared with
            all below them, `workdir` itself without.

    Raises:
        ValueError: another process works in it.
    """
    # Not emptied: a user may have a file of that name.
    with (workdir / ".lock").open("a") as file:
        try:
            # Freed by the system however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in {workdir}.") from None
        remove_leftovers(workdir)
        for name in folders:
            remove_leftovers(workdir / name, below=True)
        yield
