"""Checks of arguments whose errors give the name, the value and the allowed values."""

import contextlib
import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Argument(NamedTuple):
    """A refused argument, which its error holds as `argument`."""

    name: str
    value: Any
    allowed: str
    hint: str = ""

    def error(self) -> ValueError:
        """The error that names the argument."""
        error = ValueError(
            f"Expected {self.name} {self.allowed}, "
            f"found {self.name}={self.value!r}.{self.hint}"
        )
        error.argument = self
        return error


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """A context that prefixes the argument in an error with its section's path.

    >>> with prefixed("teacher"):
    ...     positive(epochs=0)
    Traceback (most recent call last):
    ValueError: Expected teacher.epochs > 0, found teacher.epochs=0.
    >>> with prefixed("margin"), prefixed("schedule_args"):
    ...     int("half")
    Traceback (most recent call last):
    ValueError: margin.schedule_args: invalid literal for int() with base 10: 'half'
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        # Only errors of this module hold an argument.
        argument = getattr(error, "argument", None)
        if argument is not None:
            raise argument._replace(name=f"{prefix}.{argument.name}").error() from None
        # Another library's message appears once, after the whole path.
        inner = getattr(error, "path", "")
        cause = error.__cause__ if inner else error
        path = f"{prefix}.{inner}" if inner else prefix
        found = ValueError(f"{path}: {cause}")
        found.path = path
        raise found from cause


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raises `Expected {name} {allowed}, found {name}={value}.` unless condition holds.

    >>> require(3 > 0, "num_prototypes", 3, "> 0")
    >>> require(-1 > 0, "num_prototypes", -1, "> 0")
    Traceback (most recent call last):
    ValueError: Expected num_prototypes > 0, found num_prototypes=-1.
    """
    if not condition:
        raise Argument(name, value, allowed).error()


def positive(**values: float) -> None:
    """Raises unless each named value is > 0."""
    for name, value in values.items():
        require(value > 0, name, value, "> 0")


def non_negative(**values: float) -> None:
    """Raises unless each named value is >= 0."""
    for name, value in values.items():
        require(value >= 0, name, value, ">= 0")


def fraction(**values: float) -> None:
    """Raises unless each named value lies in [0, 1]."""
    for name, value in values.items():
        require(0 <= value <= 1, name, value, "in [0, 1]")


def one_of(allowed: Iterable[str], **values: str) -> None:
    """Raises unless each named value is an allowed name; suggests the nearest one.

    >>> one_of(["cosine", "l2"], metric="cosin")
    Traceback (most recent call last):
    ValueError: Expected metric one of cosine, l2, found metric='cosin'. Did you mean \
'cosine'?
    """
    allowed = list(allowed)
    for name, value in values.items():
        if value in allowed:
            continue
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise Argument(name, value, f"one of {', '.join(allowed)}", hint).error()


def shape(expected: tuple[int, ...], **arrays: Any) -> None:
    """Raises unless each named array has the shape, which broadcasting might hide.

    >>> shape((2, 3), where=np.ones(3))
    Traceback (most recent call last):
    ValueError: Expected where.shape (2, 3), found where.shape=(3,).
    """
    for name, array in arrays.items():
        found = np.shape(array)
        require(found == tuple(expected), f"{name}.shape", found, f"{expected}")


def same_length(**arrays: Any) -> None:
    """Raises unless all named arrays agree in their first dimension."""
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"len({name})={size}" for name, size in sizes.items())
        raise ValueError(f"Expected the same number of rows, found {found}.")


def options(**defaults: Any) -> Any:
    """A dataclass field of keyword arguments, left out of the hash."""
    return dataclasses.field(default_factory=lambda: dict(defaults), hash=False)


def tuples(section: Any, *fields: str) -> None:
    """Turns fields into tuples; a command line may give them as lists."""
    for field in fields:
        # Settings are frozen; this is called while they are constructed.
        object.__setattr__(section, field, tuple(getattr(section, field)))


def distinct(**fields: Any) -> None:
    """Raises unless each named field is non-empty and without repetition."""
    for name, values in fields.items():
        require(len(values) > 0, name, values, "not empty")
        repeated = len(set(values)) < len(values)
        require(not repeated, name, values, "without repetition")


def extra(module: str, name: str) -> Any:
    """A module of an extra of this package, imported only where it is needed.

    Args:
        module: such as "dp_accounting.pld".
        name: of the extra.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is not installed: pip install 'protojax[{name}]'"
        ) from error
