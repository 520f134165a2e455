"""The config that every study starts from, for the command line.

A config file in `experiments/configs/` starts from `defaults()` and changes some
fields. Every field can be set on the command line: `--config.kd.temperature=4`. The
fields are documented in `experiments/settings.py` and in the dataclasses it names.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from experiments import settings


def section(held: Any, **changes) -> ConfigDict:
    """The config of a dataclass of settings.

    Args:
        held: the dataclass.
        **changes: fields that differ.

    >>> section(settings.Nearest(), weight=2.0).weight
    2.0
    """
    found = ConfigDict(dataclasses.asdict(held))
    found.update(changes)
    return found


def encoder(model: str, **changes) -> ConfigDict:
    """The section of one model, see `settings.Encoder`.

    Args:
        model: a hub id, a local folder, or `"scratch"`.
        **changes: fields that differ from the defaults.
    """
    return section(settings.Encoder(), model=model, **changes)


def attack(trigger: str, channel: str, **changes) -> ConfigDict:
    """The section of one attack, see `settings.Attack`.

    Args:
        trigger: a name in `attacks.TRIGGERS`, `"file"` or `"searched"`.
        channel: `"data"`, `"logits"`, `"both"` or `"labels"`.
        **changes: fields that differ from the defaults.
    """
    return section(settings.Attack(), trigger=trigger, channel=channel, **changes)


def federation(**changes) -> ConfigDict:
    """The section of one federation, see `settings.Federation`.

    Args:
        **changes: fields that differ from the defaults.
    """
    return section(settings.Federation(), **changes)


def defaults() -> ConfigDict:
    """The config that every study starts from."""
    return section(settings.Settings())
