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


def number() -> int:
    """Returns which process this is, 0 for the first."""
    return jax.process_index()


def are_several() -> bool:
    """Returns whether this process is one of several."""
    return jax.process_count() > 1


def wait_for_leader(marker: pathlib.Path) -> None:
    """Waits until the first process has made what others read, see `leader_first`."""
    while not is_leader() and not marker.exists():
        time.sleep(0.1)


@contextlib.contextmanager
def leader_first(marker: pathlib.Path) -> Iterator[None]:
    """Lets the first process make what is kept on disk before the others read it.

    A process that dies meanwhile ends the others by its missing heartbeat.

    Args:
        marker: a file that says that it is made; one that an earlier run has left is as
            good.
    """
    wait_for_leader(marker)
    yield
    if is_leader() and are_several():
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
    if are_several():
        wait = multihost.get_barrier_sync_fn()
        wait(key=name, timeout_ms=int(1000 * timeout))
