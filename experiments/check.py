"""Checks a config and its folder before hours are spent."""

import json
import pathlib

import ml_collections
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from experiments import runtime
from experiments import tasks as tasks_lib
from experiments.quarantine import GROUPS
from protojax import _validate, attacks, losses, schedules

CHANNELS = ("data", "logits", "both")
FEATURE_SPACES = ("teacher", "student")
CLAIMS = ("teacher", "label")


def check(config: ConfigDict) -> None:
    """Raises on a config that could not run, before anything is computed.

    Args:
        config: from a config file, with overrides applied.

    Raises:
        ValueError: naming the field, the value found and what is allowed.
    """
    for task in config.tasks:
        _validate.one_of([*tasks_lib.TASKS, "files"], task=task)
    _validate.require(len(config.tasks) > 0, "tasks", config.tasks, "not empty")
    _validate.require(len(config.seeds) > 0, "seeds", config.seeds, "not empty")
    _validate.positive(
        steps_per_dispatch=config.steps_per_dispatch,
        checkpoint_every=config.checkpoint_every,
        reference_rows=config.data.reference_rows,
        max_length=config.data.max_length,
        **{"prototypes.num": config.prototypes.num},
    )
    for arm in config.arms:
        _validate.one_of(arms_lib.ARMS, arms=arm)
    for name, section in config.attacks.items():
        _check_attack(name, section)
    for role in ("teacher", "student", "anchor"):
        section = config[role]
        _validate.positive(
            **{
                f"{role}.{field}": section[field]
                for field in ("epochs", "batch_size", "learning_rate", "clip_norm")
            }
        )
    _validate.one_of(losses.DIVERGENCES, **{"kd.divergence": config.kd.divergence})
    _validate.positive(**{"kd.temperature": config.kd.temperature})
    _validate.share(**{"kd.hard_weight": config.kd.hard_weight})
    _validate.one_of(("mean", "cls"), **{"features.pooling": config.features.pooling})
    _validate.one_of(
        ("cosine", "l2"), **{"prototypes.metric": config.prototypes.metric}
    )
    layers, weights = config.features.layers, config.margin.layer_weights
    _validate.require(
        len(weights) == len(layers),
        "margin.layer_weights",
        weights,
        f"as long as features.layers={layers}",
    )
    for field in ("schedule", "weight_schedule"):
        _validate.one_of(
            schedules.SCHEDULES, **{f"margin.{field}": config.margin[field]}
        )
    _check_quarantine(config.quarantine)


def _check_attack(name: str, section: ConfigDict) -> None:
    """Checks one attack's section."""
    prefix = f"attacks.{name}"
    _validate.one_of(attacks.TRIGGERS, **{f"{prefix}.trigger": section.trigger})
    _validate.one_of(CHANNELS, **{f"{prefix}.channel": section.channel})
    _validate.one_of(attacks.LOGIT_ATTACKS, **{f"{prefix}.logits": section.logits})
    _validate.require(0 < section.rate < 1, f"{prefix}.rate", section.rate, "in (0, 1)")
    for arm in section.arms:
        _validate.one_of(arms_lib.ARMS, **{f"{prefix}.arms": arm})
    try:
        attacks.TRIGGERS[section.trigger](
            position=section.position, **section.trigger_args
        )
    except TypeError as error:
        raise ValueError(f"{prefix}.trigger_args: {error}") from error


def _check_quarantine(section: ConfigDict) -> None:
    """Checks the defence's section."""
    _validate.one_of(("replace", "drop"), **{"quarantine.action": section.action})
    for groups in section.groups:
        _validate.one_of(GROUPS, **{"quarantine.groups": groups})
    for space in section.spaces:
        _validate.one_of(FEATURE_SPACES, **{"quarantine.spaces": space})
    for claim in section.claims:
        _validate.one_of(CLAIMS, **{"quarantine.claims": claim})
    for field in ("groups", "spaces", "claims", "resolutions"):
        _validate.require(
            len(section[field]) > 0, f"quarantine.{field}", section[field], "not empty"
        )
    for field in ("false_rejection", "calibration_share"):
        value = section[field]
        _validate.require(0 < value < 1, f"quarantine.{field}", value, "in (0, 1)")
    _validate.positive(
        **{
            f"quarantine.{field}": section[field]
            for field in ("num_neighbours", "warmup_epochs")
        }
    )


# A study may grow along these fields; all others are fixed once it has begun.
GROWING = ("tasks", "seeds", "arms", "attacks")


def open_workdir(
    config: ml_collections.FrozenConfigDict, workdir: pathlib.Path
) -> None:
    """Makes the study's folder, or checks that it belongs to this config.

    Args:
        config: the resolved config, written to `config.json`.
        workdir: the folder.

    Raises:
        ValueError: the folder holds a study with other settings; names them.
    """
    now = json.loads(config.to_json())
    path = workdir / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        fixed = [(k, before.get(k), now[k]) for k in now if k not in GROWING]
        fixed += [
            (f"attacks.{name}", before["attacks"][name], now["attacks"][name])
            for name in before["attacks"].keys() & now["attacks"].keys()
        ]
        changed = _differences(fixed)
        if changed:
            raise ValueError(
                f"{workdir} holds a study with other settings: {'; '.join(changed)}. "
                "Give another --workdir, or delete that folder."
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"Expected --workdir empty or a study's, found {workdir} with other files."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    runtime.write_json(path, now)


def _differences(fields) -> list[str]:
    """Returns `name: before -> now` of all leaves that differ."""
    found = []
    for name, before, now in fields:
        if isinstance(before, dict) and isinstance(now, dict):
            # Which arms an attack runs may grow too.
            keys = sorted((before.keys() | now.keys()) - {"arms"})
            found += _differences(
                (f"{name}.{key}", before.get(key), now.get(key)) for key in keys
            )
        elif before != now:
            found.append(f"{name} was {before!r}, now {now!r}")
    return found
