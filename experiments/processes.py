"""Several processes of one study: who leads, and where they wait for each other."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax
from orbax.checkpoint import multihost


def is_leader() -> bool:
    """Returns whether this process is the only one, or the first of several."""
    return jax.process_index() == 0


@contextlib.contextmanager
def leader_first(marker: pathlib.Path) -> Iterator[None]:
    """Lets the first process make what is kept on disk before the others read it.

    A process that dies meanwhile ends the others by its missing heartbeat.

    Args:
        marker: a file that says that it is made; one that an earlier run has left is as
            good.
    """
    while not is_leader() and not marker.exists():
        time.sleep(0.1)
    yield
    if is_leader() and jax.process_count() > 1:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def meet(name: str, *, timeout: float = 24 * 3600) -> None:
    """Waits until all processes are here; returns at once where there is only one.

    It may take long, unlike a collective, which gives up on a process that is half a
    minute late.

    Args:
        name: of the place, each used once in the life of a process.
        timeout: in seconds.
    """
    if jax.process_count() > 1:
        wait = multihost.get_barrier_sync_fn()
        wait(key=name, timeout_ms=int(1000 * timeout))
