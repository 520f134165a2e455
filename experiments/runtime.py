"""The study in progress: its settings, folder, progress bar and lock."""

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
        workdir: the study's folder.
        progress: the progress bar of the whole study.
        task_id: the bar's task; advanced in rows x epochs x `trainer.row_cost`.
    """

    config: Settings
    workdir: pathlib.Path
    progress: Progress
    task_id: int

    def describe(self, text: str) -> None:
        """Shows a description of the current work next to the progress bar."""
        self.progress.update(self.task_id, description=text)

    def varied(self, variant: str) -> "Context":
        """The study with the settings of a variant; "" is the study itself."""
        if not variant:
            return self
        return self._replace(config=varied(self.config, variant))

    @property
    def around(self) -> Surroundings:
        """The environment of training runs: lengths, storage and the progress bar."""
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
    """A function of (context, ...) or (config, ...) with an LRU cache.

    The cache holds two results for each seed that trains at once, since an arm goes
    through all seeds before the next arm needs the same results.
    """
    of_size = functools.cache(lambda size: functools.lru_cache(size)(function))

    @functools.wraps(function)
    def ask(first: Context | Settings, *args, **options):
        config = first.config if isinstance(first, Context) else first
        return of_size(2 * config.replicas)(first, *args, **options)

    ask.cache_clear = of_size.cache_clear
    return ask


def varied(config: Settings, variant: str) -> Settings:
    """The settings with the changes of a variant; "" is none.

    >>> config = settings.make(
    ...     Settings(), {"variants": {"hot": {"kd": {"temperature": 9.0}}}})
    >>> varied(config, "hot").kd.temperature, config.kd.temperature
    (9.0, 2.0)
    """
    return settings.make(config, config.variants[variant]) if variant else config


@functools.cache
def commit() -> str | None:
    """The code's commit, with `-dirty` if files differ, or None outside git."""
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
    """Locks a study's folder for this process, and removes leftovers of killed ones.

    Only temporary files and folders of this program are removed; hidden files of the
    user stay.

    Args:
        workdir: the study's folder; leftovers directly in it are removed.
        folders: the study's own folders in it, such as those of its tasks; leftovers at
            any depth in them are removed.

    Raises:
        ValueError: another process works in the folder.
    """
    # Opened for appending, since a user may have a file of that name.
    with (workdir / ".lock").open("a") as file:
        try:
            # The system releases this lock however the process ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process works in {workdir}.") from None
        remove_leftovers(workdir)
        for name in folders:
            remove_leftovers(workdir / name, below=True)
        yield
