"""Settings out of flags, and out of `--set FIELD=VALUE`."""

import argparse
from collections.abc import Mapping
from typing import Any


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
