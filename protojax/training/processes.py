"""Several processes of one study: which one leads, and how they are synchronised."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

import jax
from orbax.checkpoint import multihost


def is_leader() -> bool:
    """Whether this process is the only one, or the first of several."""
    return jax.process_index() == 0


def number() -> int:
    """The number of this process, 0 for the first."""
    return jax.process_index()


def are_several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def use_all_cores() -> int:
    """The number of devices, after making each core of a CPU one of its own.

    Small models that train side by side use one core each; a single device would
    compute them one after the other. Has no effect once JAX has been used, nor where
    XLA_FLAGS sets the number of devices.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        own = getattr(os, "sched_getaffinity", None)  # Linux only
        cores = len(own(0)) if own else os.cpu_count() or 1
        # An error where JAX has been used.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cores)
    return jax.device_count()


def wait_for_leader(marker: pathlib.Path) -> None:
    """Waits until the first process has written `marker`, see `leader_first`."""
    # Polled on disk: a collective would fail before a long training has ended.
    while not is_leader() and not marker.exists():
        time.sleep(0.1)


@contextlib.contextmanager
def leader_first(marker: pathlib.Path) -> Iterator[None]:
    """Runs the body in the first process before all others.

    The others then read from disk what the first has written. If the first process
    dies meanwhile, its missing heartbeat ends the others.

    Args:
        marker: the file that says that the first process is done; one left by an
            earlier run counts too.
    """
    wait_for_leader(marker)
    yield
    if is_leader() and are_several():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def meet(name: str, *, timeout: float = 24 * 3600) -> None:
    """Waits until all processes have called it; does nothing with a single process.

    The wait may be long, whereas a collective fails if a process is half a minute late.

    Args:
        name: the barrier's name, used only once in the life of a process.
        timeout: in seconds.
    """
    if are_several():
        # A barrier of the coordination service, which takes a timeout of hours.
        wait = multihost.get_barrier_sync_fn()
        wait(key=name, timeout_ms=int(1000 * timeout))
