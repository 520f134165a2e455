"""Validation of a study's config before anything is computed."""

import functools
import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import runtime, settings
from experiments.arms import ARMS, Arm, merges, parse
from experiments.settings import Attack, Settings
from experiments.world import adaptive_attacks, trusted_model
from experiments.world import tasks as tasks_lib
from experiments.world.scenarios import NO_ATTACK, num_references
from protojax import attacks, validate
from protojax.data import partition
from protojax.federated.settings import Federation

# The sections that a variant may change: settings of a student that no teacher or
# trusted model depends on.
VARYING = (
    *("kd", "nearest", "fine_tuning", "dp", "adversarial", "filters", "detection"),
    *("quarantine", "prototypes", "margin", "features", "student"),
)


def check(config: ConfigDict) -> Settings:
    """The validated settings of a config.

    Every section validates itself; constraints between sections are checked here,
    before anything is computed.

    Args:
        config: from a config file, with overrides applied.

    Raises:
        ValueError: naming the field, the value found and the allowed values.
    """
    fields = config.to_dict()
    # Without variants at first, so that an error in one can name it.
    found = settings.make(Settings(), {**fields, "variants": {}})
    for name, changes in fields["variants"].items():
        _check_variant(found, name, changes)
    found = settings.make(found, {"variants": fields["variants"]})
    for task in found.tasks:
        validate.one_of([*tasks_lib.TASKS, "files"], task=task)
    if "files" in found.tasks:
        for field, bound in (
            ("train", "a file of your rows"),
            ("text", "a column's name"),
            ("label", "a column's name"),
        ):
            value = getattr(found.data.files, field)
            validate.require(bool(value), f"data.files.{field}", value, bound)
    _check_between(found)
    for name in found.variants:
        try:
            _check_between(runtime.varied(found, name))
        except ValueError as error:
            raise ValueError(f"variants.{name}: {error}") from error
    for arm in found.arms:
        _check_arm(found, "arms", arm)
    for name, section in found.federations.items():
        with validate.prefixed(f"federations.{name}"):
            _check_federation(section)
    for name, section in found.attacks.items():
        _check_attack(found, name, section)
    return found


def _check_variant(config: Settings, name: str, fields: Mapping[str, Any]) -> None:
    """Checks the fields that a variant changes, and the resulting settings."""
    prefix = f"variants.{name}"
    # The name is part of arms' names and of folders.
    plain = bool(name) and not set(name) & set("/+@.")
    validate.require(plain, "variant's name", name, "without '/', '+', '@' and '.'")
    for section, changes in fields.items():
        validate.one_of(VARYING, **{prefix: section})
        is_section = isinstance(changes, Mapping)
        bound = "fields and their values"
        validate.require(is_section, f"{prefix}.{section}", changes, bound)
        for field in changes:
            known = sorted(vars(getattr(config, section)))
            validate.one_of(known, **{f"{prefix}.{section}": field})
    try:
        settings.make(config, fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{prefix}: {error}") from error


def _check_between(config: Settings) -> None:
    """Checks constraints between sections, and that the test can reject any row."""
    layers, weights = config.features.layers, config.margin.layer_weights
    bound = f"as long as features.layers={layers}"
    fits = len(weights) == len(layers)
    validate.require(fits, "margin.layer_weights", weights, bound)
    most, known = config.data.reference_rows, config.quarantine.references
    bound = f"in 0..{most}, data.reference_rows"
    validate.require(0 <= known <= most, "quarantine.references", known, bound)
    arms = [ARMS[kind] for kind in kinds_of(config)]
    known = num_references(config)
    if asks_words(arms):
        neighbours = config.filters.outlier_neighbours
        others = known - math.ceil(known / trusted_model.FOLDS)
        bound = f"<= {others}, the references that are not held out"
        enough = neighbours <= others
        validate.require(enough, "filters.outlier_neighbours", neighbours, bound)
    if uses_trusted_model(config, arms):
        bound = f">= {trusted_model.FOLDS}, one for each trusted model"
        enough = known >= trusted_model.FOLDS
        validate.require(enough, "number of references", known, bound)
    if any(arm.tests for arm in arms):
        rate = config.detection.false_rejection
        bound = f">= {1 / (known + 1):.4f}, the least that {known} references can show"
        enough = rate * (known + 1) >= 1
        validate.require(enough, "detection.false_rejection", rate, bound)
    if uses_prototypes(arms):
        # Nodes that fit their own have a share of the references each.
        shares = [s for s in config.federations.values() if s.prototypes == "local"]
        least = known // max((section.nodes for section in shares), default=1)
        number, bound = config.prototypes.num, f"<= {least}, the references"
        bound += " of a node" if shares else ""
        validate.require(number <= least, "prototypes.num", number, bound)


def _check_arm(config: Settings, field: str, name: str) -> None:
    """Checks an arm's name and the names of its variant and federation."""
    kind, variant, federation = parse(name)
    validate.one_of(ARMS, **{field: kind})
    named, arm = all(name.replace("@", "+").split("+")), ARMS[kind]
    validate.require(named, field, name, "a name behind + and @")
    together = arm.in_federations or not federation
    validate.require(together, field, name, "another arm in a federation")
    if variant:
        validate.one_of(config.variants, **{f"{field}, after +,": variant})
    for package in arm.packages:
        # Only looked for: nothing of it is needed before the training.
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"Expected {field} without {kind!r}, which needs {package}: "
                "pip install 'protojax[dp]'"
            )
    if federation:
        validate.one_of(config.federations, **{f"{field}, after @,": federation})


def _check_federation(section: Federation) -> None:
    """Checks a federation's options, and that its rule accepts its number of nodes."""
    least = section.nodes
    mixing = merges.mixing_of(section)
    if mixing is not None:
        rows, bound = len(mixing), "a row a node"
        validate.require(rows == section.nodes, "mixing", rows, bound)
        least = int((mixing > 0).sum(1).min())
    # The rules check the number of nodes by shapes, so abstract values suffice.
    updates = jax.ShapeDtypeStruct((least, 1), np.float32)
    jax.eval_shape(merges.rule_of(section), updates)
    if section.update_attack:
        attack = attacks.UPDATE_ATTACKS[section.update_attack]
        hostile = np.arange(section.nodes) >= section.nodes - section.hostile
        attack = functools.partial(attack, **section.update_attack_args)
        # Run on values: some options depend on which nodes are hostile.
        attack(np.ones((section.nodes, 1), np.float32), hostile, jax.random.key(0))
    # A partition of dummy rows, to validate its arguments.
    keys = np.repeat(np.arange(2), 10 * section.nodes)
    sources = [str(key) for key in range(len(keys))]
    partition.PARTITIONS[section.partition](
        sources if section.partition == "source" else keys,
        section.nodes,
        rng=np.random.default_rng(0),
        **section.partition_args,
    )


def _check_attack(config: Settings, name: str, section: Attack) -> None:
    """Checks one attack against the rest of the study."""
    prefix = f"attacks.{name}"
    other = name != NO_ATTACK and "/" not in name
    # It names a folder, beside the one of scenarios without an attack.
    validate.require(other, "attack's name", name, "another")
    # A student that learns from the teacher alone sees no label.
    weight, bound = config.kd.hard_weight, f"> 0, as {prefix} attacks labels"
    seen = section.channel != "labels" or weight > 0
    validate.require(seen, "kd.hard_weight", weight, bound)
    if section.trigger == "file":
        rows = config.data.validation_rows
        bound = f"0 with {prefix}, whose triggered rows are a file's"
        validate.require(rows == 0, "data.validation_rows", rows, bound)
    for arm in section.arms:
        _check_arm(config, f"{prefix}.arms", arm)
    for task in section.tasks:
        validate.one_of([*tasks_lib.TASKS, "files"], **{f"{prefix}.tasks": task})
    with validate.prefixed(prefix):
        _check_trigger(section)


def _check_trigger(section: Attack) -> None:
    """Checks the settings of an attack's trigger."""
    args = section.trigger_args
    for field in ("train", "test"):
        value, wanted = getattr(section.files, field), section.trigger == "file"
        bound = "a file" if wanted else "'' unless the trigger is 'file'"
        validate.require(bool(value) == wanted, f"files.{field}", value, bound)
    if section.trigger == "searched":
        for name, value in args.items():
            validate.one_of(adaptive_attacks.SEARCH, trigger_args=name)
            validate.positive(**{f"trigger_args.{name}": value})
    elif section.trigger == "file":
        validate.require(not args, "trigger_args", args, "{} with files")
    else:
        with validate.prefixed("trigger_args"):
            attacks.TRIGGERS[section.trigger](position=section.position, **args)


def kinds_of(config: Settings) -> set[str]:
    """The kinds of arms that a study trains, without unknown names."""
    asked = [
        *config.arms,
        *(arm for one in config.attacks.values() for arm in one.arms),
    ]
    kinds = {parse(arm).kind for arm in asked} & set(ARMS)
    return kinds.union(*(ARMS[kind].needs for kind in kinds))


def asks_words(arms: Iterable[Arm]) -> bool:
    """Whether one of the arms scores words against trusted texts."""
    return any(arm.scores_words for arm in arms)


def uses_trusted_model(config: Settings, arms: Iterable[Arm]) -> bool:
    """Whether one of the arms, or an attack of the study, uses the trusted model."""
    searched = any(one.trigger == "searched" for one in config.attacks.values())
    return searched or any(arm.asks_trusted_model for arm in arms)


def uses_prototypes(arms: Iterable[Arm]) -> bool:
    """Whether prototypes constrain one of the arms."""
    return any(arm.constrained for arm in arms)
