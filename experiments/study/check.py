"""Checks a config and its folder before hours are spent."""

import functools
import importlib.util
from collections.abc import Iterable

import jax
import ml_collections
import numpy as np
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from experiments import runtime
from experiments.arms import federated
from experiments.arms.quarantine import GROUPS, least_rate
from experiments.world import adaptive_attacks, trusted_model
from experiments.world import tasks as tasks_lib
from experiments.world.scenario import NO_ATTACK, num_references
from protojax import attacks, training, validate
from protojax.data import partition
from protojax.distillation import TRANSFORMS, losses, schedules
from protojax.distillation.margin import ASSIGNMENTS
from protojax.federated import aggregation, communication, gossip
from protojax.models.config import DTYPES
from protojax.prototypes import geometry

CHANNELS = ("data", "logits", "both", "labels")
FEATURE_SPACES = ("teacher", "student")
CLAIMS = ("teacher", "label")


def check(config: ConfigDict) -> None:
    """Raises on a config that could not run, before anything is computed.

    Args:
        config: from a config file, with overrides applied.

    Raises:
        ValueError: naming the field, the value found and what is allowed.
    """
    for field in ("tasks", "seeds", "arms"):
        _distinct(**{field: config[field]})
    for task in config.tasks:
        validate.one_of([*tasks_lib.TASKS, "files"], task=task)
    if "files" in config.tasks:
        for field, bound in (
            ("train", "a file of your rows"),
            ("text", "a column's name"),
            ("label", "a column's name"),
        ):
            value = config.data.files[field]
            validate.require(bool(value), f"data.files.{field}", value, bound)
    _check_settings(config)
    for name, fields in config.variants.items():
        _check_variant(config, name, fields)
    for arm in config.arms:
        _check_arm(config, "arms", arm)
    for name, section in config.federations.items():
        _check_federation(f"federations.{name}", section)
    validate.positive(
        steps_per_dispatch=config.steps_per_dispatch,
        checkpoint_every=config.checkpoint_every,
        seeds_at_once=config.seeds_at_once,
        **{"evaluation.batch_size": config.evaluation.batch_size},
    )
    for name, section in config.attacks.items():
        _check_attack(config, name, section)


def _check_settings(config: ConfigDict) -> None:
    """Checks what a variant may change."""
    for role in ("teacher", "student", "anchor"):
        _check_encoder(role, config[role])
    _check_data(config.data)
    _check_objective(config)
    _check_quarantine(config)


# A student's own settings; what it shares with others stays what it is.
VARYING = (
    *("kd", "nearest", "fine_tuning", "dp", "adversarial", "filters", "audit"),
    *("quarantine", "prototypes", "margin", "features", "student"),
)


def _check_variant(config: ConfigDict, name: str, fields: ConfigDict) -> None:
    """Checks the fields that a variant of the study changes, and what they become."""
    prefix = f"variants.{name}"
    plain = bool(name) and not set(name) & set("/+@.")
    validate.require(plain, "variant's name", name, "without '/', '+', '@' and '.'")
    for section, changes in fields.items():
        validate.one_of(VARYING, **{prefix: section})
        is_section = isinstance(changes, ConfigDict)
        bound = "fields and their values"
        validate.require(is_section, f"{prefix}.{section}", changes, bound)
        for field in changes:
            # It decides what trains the anchor, which variants share.
            known = [name for name in config[section] if name != "calibration_share"]
            validate.one_of(known, **{f"{prefix}.{section}": field})
    try:
        _check_settings(runtime.varied(config, name))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{prefix}: {error}") from error


def _distinct(**fields) -> None:
    """Each named field must be a non-empty list without repetition."""
    for name, values in fields.items():
        validate.require(len(values) > 0, name, values, "not empty")
        repeated = len(set(values)) < len(values)
        validate.require(not repeated, name, values, "without repetition")


def _check_encoder(role: str, section: ConfigDict) -> None:
    """Checks one model's section."""
    for field in ("epochs", "batch_size"):
        validate.positive(**{f"{role}.{field}": section[field]})
    for field in ("dropout", "attention_dropout"):
        value = section[field]
        validate.require(0 <= value < 1, f"{role}.{field}", value, "in [0, 1)")
    for field in ("dtype", "products"):
        validate.one_of(DTYPES, **{f"{role}.{field}": section[field]})
    if section.model == "scratch":
        validate.require(
            not section.layers, f"{role}.layers", section.layers, "() from scratch"
        )
    try:
        training.adamw(**runtime.optimizer_of(section))
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from error


def _check_data(section: ConfigDict) -> None:
    """Checks where rows come from and how long they are."""
    validate.positive(
        **{
            f"data.{field}": section[field]
            for field in ("reference_rows", "max_length", "vocab_size")
        }
    )
    validate.non_negative(
        **{
            f"data.{field}": section[field]
            for field in ("transfer_rows", "test_rows", "validation_rows")
        }
    )
    buckets = tuple(section.buckets)
    validate.require(
        bool(buckets)
        and list(buckets) == sorted(set(buckets))
        and buckets[-1] >= section.max_length,
        "data.buckets",
        buckets,
        f"ascending, the last >= data.max_length={section.max_length}",
    )


def _check_objective(config: ConfigDict) -> None:
    """Checks what the student minimises."""
    validate.one_of(losses.DIVERGENCES, **{"kd.divergence": config.kd.divergence})
    validate.positive(**{"kd.temperature": config.kd.temperature})
    validate.share(**{"kd.hard_weight": config.kd.hard_weight})
    validate.non_negative(
        **{
            "kd.hidden_weight": config.kd.hidden_weight,
            "margin.weight": config.margin.weight,
            "margin.value": config.margin.value,
            "nearest.weight": config.nearest.weight,
        }
    )
    validate.positive(
        **{
            f"dp.{name}": value
            for name, value in config.dp.items()
            if name not in ("frozen", "reproducible")
        }
    )
    is_names = not isinstance(config.dp.frozen, str)
    validate.require(is_names, "dp.frozen", config.dp.frozen, "a tuple of names")
    validate.require(config.dp.delta < 1, "dp.delta", config.dp.delta, "in (0, 1)")
    # A smaller batch may be empty, and a step without rows adds no noise.
    least = config.dp.batch_size
    validate.require(least >= 32, "dp.batch_size", least, ">= 32")
    microbatch = config.dp.microbatch
    validate.require(8 % microbatch == 0, "dp.microbatch", microbatch, "1, 2, 4 or 8")
    for section in ("filters", "fine_tuning", "audit"):
        fields = {f"{section}.{field}": v for field, v in config[section].items()}
        validate.positive(**fields)
    for field in ("isolated_share", "outlier_share"):
        share = config.filters[field]
        validate.require(share < 1, f"filters.{field}", share, "in (0, 1)")
    odds = config.audit.odds
    validate.require(odds >= 1, "audit.odds", odds, ">= 1")
    screen, bound = config.audit.screen, "<= audit.rows"
    validate.require(screen <= config.audit.rows, "audit.screen", screen, bound)
    for field in ("least", "least_opening", "surplus"):
        share = config.audit[field]
        validate.require(share <= 1, f"audit.{field}", share, "in (0, 1]")
    rows = config.filters.min_cluster_rows
    validate.require(rows >= 2, "filters.min_cluster_rows", rows, ">= 2")
    if "onion" in kinds_of(config):
        neighbours, trusted = config.filters.outlier_neighbours, _trusted(config)
        validate.require(
            neighbours <= trusted,
            "filters.outlier_neighbours",
            neighbours,
            f"<= {trusted}, the references that do not calibrate",
        )
    try:
        TRANSFORMS["adversarial"](None, dim=1, **config.adversarial)
    except ValueError as error:
        raise ValueError(f"adversarial: {error}") from error
    validate.one_of(("mean", "cls"), **{"features.pooling": config.features.pooling})
    validate.one_of(geometry.METRICS, **{"prototypes.metric": config.prototypes.metric})
    _distinct(**{"features.layers": config.features.layers})
    layers, weights = config.features.layers, config.margin.layer_weights
    validate.require(
        len(weights) == len(layers),
        "margin.layer_weights",
        weights,
        f"as long as features.layers={layers}",
    )
    validate.one_of(ASSIGNMENTS, **{"margin.assignment": config.margin.assignment})
    for field in ("schedule", "weight_schedule"):
        name = config.margin[field]
        validate.one_of(schedules.SCHEDULES, **{f"margin.{field}": name})
        try:
            schedules.SCHEDULES[name](0.1, **config.margin[f"{field}_args"])
        except TypeError as error:
            raise ValueError(f"margin.{field}_args: {error}") from error


def _check_arm(config: ConfigDict, field: str, arm: str) -> None:
    """Checks an arm's name, and that of its federation."""
    kind, variant, federation = arms_lib.parse(arm)
    validate.one_of(arms_lib.ARMS, **{field: kind})
    named = all(arm.replace("@", "+").split("+"))
    validate.require(named, field, arm, "a name behind + and @")
    alone = not arms_lib.ARMS[kind].in_federations
    bound = "another arm in a federation"
    validate.require(not (federation and alone), field, arm, bound)
    audits = arms_lib.ARMS[kind].audits
    if variant:
        validate.one_of(config.variants, **{f"{field}, after +,": variant})
        # They audit the student of another arm as the study has it.
        others = sorted({*config.variants[variant]} - {"audit"})
        own = not audits or not others
        bound = f"{kind!r} with changes of audit only, not of {others}"
        validate.require(own, field, arm, bound)
        config = runtime.varied(config, variant)
    trusted = config.quarantine.train_on_references or not audits
    bound = "another arm where quarantine.train_on_references is False"
    validate.require(trusted, field, arm, bound)
    groups = config.quarantine.groups
    asked = "wary" in (kind, *arms_lib.ARMS[kind].needs)
    useful = not asked or "tokens" in groups
    validate.require(useful, field, arm, f"another arm where groups are {groups}")
    if kind == "dp_sgd":
        for package in ("jax_privacy", "dp_accounting"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"Expected {field} without 'dp_sgd', which needs {package}: "
                    "pip install 'protojax[dp]'"
                )
    if federation:
        validate.one_of(config.federations, **{f"{field}, after @,": federation})


def _check_federation(prefix: str, section: ConfigDict) -> None:
    """Checks one federation's section, and that its rule stands so few nodes."""
    validate.positive(
        **{
            f"{prefix}.{field}": section[field]
            for field in ("nodes", "rounds", "merge_prototypes_every", "nodes_at_once")
        }
    )
    validate.require(
        0 <= section.hostile < section.nodes,
        f"{prefix}.hostile",
        section.hostile,
        f"in 0..{section.nodes - 1}",
    )
    validate.share(**{f"{prefix}.prototype_decay": section.prototype_decay})
    for field, known in (
        ("partition", partition.PARTITIONS),
        ("topology", ("server", "local", *gossip.TOPOLOGIES, "given")),
        ("aggregator", aggregation.AGGREGATORS),
        ("prototypes", ("server", "local")),
        ("prototype_precision", communication.PRECISIONS),
        ("anchor", ("references", "weights")),
        ("update_attack", ("", *attacks.UPDATE_ATTACKS)),
        ("prototype_attack", ("", *attacks.PROTOTYPE_ATTACKS)),
    ):
        validate.one_of(known, **{f"{prefix}.{field}": section[field]})
    for field in ("update_attack", "prototype_attack"):
        validate.require(
            not section[field] or section.hostile > 0,
            f"{prefix}.{field}",
            section[field],
            f"'' without {prefix}.hostile",
        )
    least = section.nodes
    try:
        frozen = ml_collections.FrozenConfigDict(section)
        mixing = federated.mixing_of(frozen)
        if mixing is not None:
            validate.require(
                len(mixing) == section.nodes, "mixing", len(mixing), "a row a node"
            )
            least = int((mixing > 0).sum(1).min())
        # The rules count what they are given, which needs no numbers.
        updates = jax.ShapeDtypeStruct((least, 1), np.float32)
        jax.eval_shape(federated.rule_of(frozen), updates)
        if section.update_attack:
            attack = attacks.UPDATE_ATTACKS[section.update_attack]
            hostile = np.arange(section.nodes) >= section.nodes - section.hostile
            attack = functools.partial(attack, **section.update_attack_args)
            updates = np.ones((section.nodes, 1), np.float32)
            attack(updates, hostile, jax.random.key(0))
        keys = np.repeat(np.arange(2), 10 * section.nodes)
        partition.PARTITIONS[section.partition](
            [str(key) for key in range(len(keys))]
            if section.partition == "source"
            else keys,
            section.nodes,
            rng=np.random.default_rng(0),
            **section.partition_args,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{prefix}: {error}") from error


def _check_attack(config: ConfigDict, name: str, section: ConfigDict) -> None:
    """Checks one attack's section."""
    prefix = f"attacks.{name}"
    triggers = (*attacks.TRIGGERS, "file", "searched")
    validate.one_of(triggers, **{f"{prefix}.trigger": section.trigger})
    validate.one_of(CHANNELS, **{f"{prefix}.channel": section.channel})
    validate.one_of(attacks.LOGIT_ATTACKS, **{f"{prefix}.logits": section.logits})
    validate.require(0 < section.rate < 1, f"{prefix}.rate", section.rate, "in (0, 1)")
    validate.one_of(
        ("", *attacks.FEATURE_ATTACKS), **{f"{prefix}.features": section.features}
    )
    for field, allowed in (
        ("decoy_rate", section.trigger in attacks.DECOYS),
        ("reference_rate", section.trigger != "file"),
    ):
        value, bound = section[field], "in [0, 1)" if allowed else "0 for this trigger"
        validate.require(
            0 <= value < 1 and (allowed or not value), f"{prefix}.{field}", value, bound
        )
    by_channel = section.channel in ("logits", "both") or not section.features
    validate.require(
        by_channel, f"{prefix}.features", section.features, "'' in this channel"
    )
    # A student of the teacher alone sees no label.
    validate.require(
        section.channel != "labels" or config.kd.hard_weight > 0,
        "kd.hard_weight",
        config.kd.hard_weight,
        f"> 0, as {prefix} attacks labels",
    )
    for field in ("train", "test"):
        value, wanted = section.files[field], section.trigger == "file"
        bound = "a file" if wanted else "'' unless the trigger is 'file'"
        validate.require(bool(value) == wanted, f"{prefix}.files.{field}", value, bound)
    validate.non_negative(
        **{f"{prefix}.strength": section.strength, f"{prefix}.target": section.target}
    )
    validate.require(
        name != NO_ATTACK and "/" not in name, "attack's name", name, "another"
    )
    for arm in section.arms:
        _check_arm(config, f"{prefix}.arms", arm)
    for task in section.tasks:
        validate.one_of([*tasks_lib.TASKS, "files"], **{f"{prefix}.tasks": task})
    _check_trigger(prefix, section, config.data.validation_rows)


def _check_trigger(prefix: str, section: ConfigDict, validation_rows: int) -> None:
    """Checks what an attack's trigger is made of."""
    args = section.trigger_args
    if section.trigger == "searched":
        for name, value in args.items():
            validate.one_of(adaptive_attacks.SEARCH, **{f"{prefix}.trigger_args": name})
            validate.positive(**{f"{prefix}.trigger_args.{name}": value})
    elif section.trigger == "file":
        validate.require(not args, f"{prefix}.trigger_args", args, "{} with files")
        validate.require(
            validation_rows == 0,
            "data.validation_rows",
            validation_rows,
            f"0 with {prefix}, whose triggered rows are a file's",
        )
    else:
        try:
            attacks.TRIGGERS[section.trigger](position=section.position, **args)
        except TypeError as error:
            raise ValueError(f"{prefix}.trigger_args: {error}") from error


def _check_quarantine(config: ConfigDict) -> None:
    """Checks the defence's section, and that it can reject anything at all."""
    section = config.quarantine
    validate.one_of(("replace", "drop"), **{"quarantine.action": section.action})
    validate.one_of(trusted_model.ANCHORS, **{"quarantine.anchor": section.anchor})
    validate.require(
        0 <= section.references <= config.data.reference_rows,
        "quarantine.references",
        section.references,
        f"in 0..{config.data.reference_rows}, data.reference_rows",
    )
    for field, known in (
        ("groups", GROUPS),
        ("spaces", FEATURE_SPACES),
        ("claims", CLAIMS),
    ):
        _distinct(**{f"quarantine.{field}": section[field]})
        for name in section[field]:
            validate.one_of(known, **{f"quarantine.{field}": name})
    _distinct(**{"quarantine.resolutions": section.resolutions})
    for field in ("false_rejection", "calibration_share"):
        value = section[field]
        validate.require(0 < value < 1, f"quarantine.{field}", value, "in (0, 1)")
    validate.positive(
        **{
            "quarantine.num_neighbours": section.num_neighbours,
            "quarantine.warmup_epochs": section.warmup_epochs,
            "quarantine.rounds": section.rounds,
            "quarantine.resolutions": min(section.resolutions),
            "prototypes.num": config.prototypes.num,
            "prototypes.num_iters": config.prototypes.num_iters,
        }
    )
    kinds, rows = kinds_of(config), _trusted(config)
    if uses_anchor(config, kinds):
        held_out = num_references(config) - rows
        least = least_rate(held_out, len(section.groups))
        validate.require(
            section.false_rejection >= least,
            "quarantine.false_rejection",
            section.false_rejection,
            f">= {least:.4f}, the least that {held_out} calibration references "
            f"and {len(section.groups)} kinds of groups can show",
        )
    if uses_prototypes(config, kinds):
        validate.require(
            config.prototypes.num <= rows,
            "prototypes.num",
            config.prototypes.num,
            f"<= {rows}, the references that train the anchor",
        )


def kinds_of(config: ConfigDict) -> set[str]:
    """The kinds of arms that a study trains; unknown names are left out."""
    asked = [
        *config.arms,
        *(arm for one in config.attacks.values() for arm in one.arms),
    ]
    kinds = {arms_lib.parse(arm).kind for arm in asked} & set(arms_lib.ARMS)
    return kinds.union(*(arms_lib.ARMS[kind].needs for kind in kinds))


def uses_anchor(config: ConfigDict, kinds: Iterable[str]) -> bool:
    """Whether arms of these kinds, or an attack of the study, ask the anchor."""
    searched = any(one.trigger == "searched" for one in config.attacks.values())
    return searched or any(arms_lib.ARMS[kind].anchored for kind in kinds)


def uses_prototypes(config: ConfigDict, kinds: Iterable[str]) -> bool:
    """Whether arms of these kinds, or an attack of the study, need prototypes."""
    return "nearest" in kinds or uses_anchor(config, kinds)


def _trusted(config: ConfigDict) -> int:
    """The number of references that do not calibrate."""
    known = num_references(config)
    return known - round(config.quarantine.calibration_share * known)
