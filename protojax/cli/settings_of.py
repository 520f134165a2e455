"""Settings out of flags, and out of `--set FIELD=VALUE`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def add_set(add: Callable) -> None:
    """Adds the flag `--set`.

    Args:
        add: `add_argument` of a parser or a group.
    """
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field; may be repeated",
    )


def with_max_length(config: Any, found: argparse.Namespace) -> Any:
    """The settings with rows of `--max-length` tokens, where it is given.

    Args:
        config: the settings so far, with `lengths`.
        found: the parsed arguments.

    Raises:
        ValueError: it is no number.
    """
    from protojax import validate
    from protojax.pipelines import settings

    if found.max_length is None:
        return config
    is_number = found.max_length.isdigit()
    validate.require(is_number, "--max-length", found.max_length, "a number > 0")
    lengths = settings.with_max_length(config.lengths, int(found.max_length))
    return dataclasses.replace(config, lengths=lengths)


def with_flags(
    config: Any, found: argparse.Namespace, fields: Mapping[str, str]
) -> Any:
    """The settings with those that flags give.

    Args:
        config: the defaults.
        found: the parsed arguments.
        fields: flag -> the field that it sets.
    """
    from protojax.pipelines import settings

    for flag, path in fields.items():
        value = getattr(found, flag)
        if value is not None:
            config = settings.with_field(config, path, value)
    return config


def with_set(config: Any, found: argparse.Namespace) -> Any:
    """The settings with those that `--set` gives.

    Args:
        config: the settings so far.
        found: the parsed arguments.
    """
    from protojax import validate
    from protojax.pipelines import settings

    for given in found.set:
        path, equals, value = given.partition("=")
        validate.require(bool(equals), "--set", given, "FIELD=VALUE")
        config = settings.with_field(config, path.strip(), value.strip())
    return config
