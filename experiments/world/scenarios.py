"""A scenario of the grid: one attack on one task with one seed, and its rows.

The texts of attacker, defender and nodes, before and after the attack. Ground truth
(`Poisoned.rows`) is read only by the corruption of the teacher's channel, the `oracle`
arm and the metrics.
"""

import functools
import pathlib
import zlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.runtime import cached
from experiments.settings import Settings
from experiments.world import label_noise, tasks
from protojax import attacks, data, validate
from protojax.base import Examples
from protojax.data import partition

NO_ATTACK = "no_attack"  # the folder of scenarios without an attack
# The values that a column of poisoned rows may have.
MARKERS = {
    **dict.fromkeys(("0", "0.0", "false"), False),
    **dict.fromkeys(("1", "1.0", "true"), True),
}


class Scenario(NamedTuple):
    """One attack on one task with one seed; attack None is no attack.

    Attributes:
        task: a name in `tasks.TASKS`, or "files".
        seed: of all random draws.
        attack: a name in the config's `attacks`.
        federation: a name in the config's `federations`, if the scenario is one node's
            part of the rows; "" if it has all rows.
        node: the number of that node.
    """

    task: str
    seed: int
    attack: str | None
    federation: str = ""
    node: int = 0

    @property
    def folder(self) -> str:
        """The folder of the scenario's results, below the workdir."""
        folder = f"{self.task}/seed{self.seed}/{self.attack or NO_ATTACK}"
        if self.federation:
            folder += f"/{self.federation}_node{self.node:03d}"
        return folder

    @property
    def clean(self) -> "Scenario":
        """The same scenario without its attack."""
        return self._replace(attack=None)

    @property
    def whole(self) -> "Scenario":
        """The scenario of all nodes together."""
        return self._replace(federation="", node=0)


class TaskData(NamedTuple):
    """A task's splits, made before any attack."""

    task: tasks.Task
    splits: data.Splits


@functools.lru_cache(maxsize=2)
def _load_task(name: str, root: str, files) -> tuple[Examples, Examples, tasks.Task]:
    """The training rows, test rows and task, read once for all seeds."""
    if name != "files":
        return tasks.load_task(name, root=root, encoding=files.encoding)
    return tasks.load_files(
        files.train,
        files.test,
        text=files.text,
        label=files.label,
        pair=files.pair or None,
        source=files.source or None,
        problem=files.problem,
        metric=files.metric,
        encoding=files.encoding,
    )


@cached
def task_data(config: Settings, task: str, seed: int) -> TaskData:
    """The splits of a task, which depend on the seed only."""
    section = config.data
    train, test, resolved = _load_task(task, section.root, section.files)
    if section.validation_rows:
        most, rows = len(train.texts) - 1, section.validation_rows
        validate.require(rows <= most, "data.validation_rows", rows, f"<= {most}")
        # Takes the test set's place, so that no choice can be made on the test rows.
        train, test = data.held_out(train, rows)
    noise, clean = section.label_noise, Scenario(task, seed, None)
    if noise.share:
        train = label_noise.balanced(train, noise, draws(clean, "balance"))
    splits = data.split(
        train,
        test,
        transfer_rows=section.transfer_rows,
        reference_rows=section.reference_rows,
        test_rows=section.test_rows,
        seed=seed,
        label_names=resolved.label_names,
    )
    if noise.words:
        rng = draws(clean, "label noise")
        words = label_noise.words_of(splits.transfer, noise, rng)
        splits = splits._replace(
            **{
                name: label_noise.mislabelled(
                    getattr(splits, name), words, resolved.num_labels, rng
                )
                for name in ("transfer", "references")
            }
        )
    return TaskData(resolved, splits)


class ReadyRows(NamedTuple):
    """The rows of a poisoned copy of a task.

    Attributes:
        texts: clean text -> poisoned text, of the rows that were changed.
        test: triggered test rows, with the labels of the file.
    """

    texts: dict[str, str]
    test: Examples


@functools.lru_cache(maxsize=2)
def ready_rows(config: Settings, task: str, attack: str) -> ReadyRows:
    """The rows in the files of an attack whose trigger is "file"."""
    section = config.data
    clean, _, resolved = _load_task(task, section.root, section.files)
    validate.require(clean.pairs is None, "task", task, "one of single texts")
    files = config.attacks[attack].files
    root = pathlib.Path(section.root)
    copy, test = tasks.load_poisoned(
        resolved,
        str(root / files.train),
        str(root / files.test),
        marker=files.marker,
        encoding=section.files.encoding,
    )
    found, rows = len(copy.texts), len(clean.texts)
    validate.require(
        found == rows, f"rows of {files.train}", found, f"{rows}, as {task} has"
    )
    # Without a marker, a row that differs counts as poisoned.
    changed = [a != b for a, b in zip(clean.texts, copy.texts, strict=True)]
    if copy.sources is not None:
        for marker in set(copy.sources):
            validate.one_of(MARKERS, **{files.marker: marker.strip().lower()})
        changed = [MARKERS[marker.strip().lower()] for marker in copy.sources]
    pairs = zip(clean.texts, copy.texts, changed, strict=True)
    return ReadyRows({a: b for a, b, differs in pairs if differs}, test)


def _trigger(config: Settings, scenario: Scenario) -> attacks.Trigger:
    """The trigger of a scenario's attack."""
    attack = config.attacks[scenario.attack]
    if attack.trigger == "file":
        texts = ready_rows(config, scenario.task, scenario.attack).texts
        return lambda text, rng: texts[text]
    if attack.trigger == "searched":
        words = attack.found[scenario.whole.folder]
        return attacks.sentence(words, position=attack.position)
    return attacks.TRIGGERS[attack.trigger](
        position=attack.position, **attack.trigger_args
    )


def _decoy(attack) -> attacks.Trigger | None:
    """The decoy of an attack, a part of its trigger in clean rows, or None."""
    if not attack.decoy_rate:
        return None
    return attacks.DECOYS[attack.trigger](
        position=attack.position, **attack.trigger_args
    )


def draws(scenario: Scenario, purpose: str) -> np.random.Generator:
    """A generator for one purpose, independent of others and of other scenarios."""
    # Seeded by name, so that a new draw elsewhere leaves all others as they were.
    name = f"{scenario.task}/{scenario.attack}/{purpose}"
    if scenario.federation:
        name += f"/{scenario.federation}/{scenario.node}"
    # Not `hash`, which Python salts anew in every process.
    return np.random.default_rng([scenario.seed, zlib.crc32(name.encode())])


def key(scenario: Scenario, purpose: str) -> jax.Array:
    """A PRNG key for one purpose."""
    return jax.random.key(draws(scenario, purpose).integers(2**31))


def rows_of(config: Settings, scenario: Scenario) -> np.ndarray:
    """The transfer rows of a scenario or node, by their numbers among those of all."""
    if not scenario.federation:
        return np.arange(len(poisoned(config, scenario).rows))
    return node_rows(config, scenario._replace(node=0))[scenario.node]


@functools.lru_cache(maxsize=2)
def node_rows(config: Settings, scenario: Scenario) -> list[np.ndarray]:
    """The transfer rows of each node of a scenario's federation.

    Hostile nodes, the last ones, hold all of the poison: each poisoned row of an honest
    node is exchanged for a clean row of theirs, so that the sizes of the nodes do not
    change.

    Raises:
        ValueError: if there is more poison than the hostile nodes have rows.
    """
    section = config.federations[scenario.federation]
    examples = task_data(config, scenario.task, scenario.seed).splits.transfer
    keys = examples.sources if section.partition == "source" else examples.labels
    if keys is None:
        raise ValueError(
            f"Expected rows with a source to partition {scenario.task} by, found none: "
            "name their column in data.files.source, and files as the task."
        )
    parts = partition.PARTITIONS[section.partition](
        keys,
        section.nodes,
        # Of the clean scenario, so that nodes hold the same rows under every attack.
        rng=draws(
            Scenario(scenario.task, scenario.seed, None),
            f"{section.partition} partition",
        ),
        **section.partition_args,
    )
    if section.hostile and scenario.attack:
        truth = poisoned(config, scenario.whole).rows
        # The same rows under every rule, so that rules differ in nothing else.
        rng = draws(scenario.whole, f"exchange/{section.partition}")
        parts = _give_poison(parts, truth, section.hostile, rng)
    return parts


def _give_poison(parts, poisoned_rows: np.ndarray, hostile: int, rng):
    """The rows of nodes after an exchange: the `hostile` last hold all poison."""
    owner = np.empty(len(poisoned_rows), np.int64)
    for node, rows in enumerate(parts):
        owner[rows] = node
    theirs = owner >= len(parts) - hostile
    arriving = np.flatnonzero(poisoned_rows & ~theirs)
    leaving = np.flatnonzero(~poisoned_rows & theirs)
    validate.require(
        len(arriving) <= len(leaving),
        "hostile",
        hostile,
        f"enough nodes for {poisoned_rows.sum()} poisoned rows",
    )
    leaving = rng.choice(leaving, len(arriving), replace=False)
    # An exchange: sizes, and with them weights and batches, stay as they were.
    owner[arriving], owner[leaving] = owner[leaving], owner[arriving]
    return [np.flatnonzero(owner == node) for node in range(len(parts))]


def own_references(config: Settings, scenario: Scenario) -> np.ndarray:
    """The references that a student learns from: all, or a node's share of them.

    Every node gets all of them to test its rows by; if it learned from all, each
    reference would count as often as there are nodes.
    """
    rows = np.arange(num_references(config))
    if not scenario.federation:
        return rows
    return rows[scenario.node :: config.federations[scenario.federation].nodes]


@functools.lru_cache(maxsize=16)
def poisoned(config: Settings, scenario: Scenario) -> attacks.Poisoned:
    """The transfer set as the attack leaves it, and the ground truth."""
    if scenario.federation:
        examples, truth = poisoned(config, scenario.whole)
        rows = rows_of(config, scenario)
        return attacks.Poisoned(data.take(examples, rows), truth[rows])
    examples = task_data(config, scenario.task, scenario.seed).splits.transfer
    if scenario.attack is None:
        return attacks.Poisoned(examples, np.zeros(len(examples.texts), bool))
    attack = config.attacks[scenario.attack]
    # A ready trigger exists only for the rows that the file has changed.
    eligible = None
    if attack.trigger == "file":
        ready = ready_rows(config, scenario.task, scenario.attack).texts
        eligible = np.array([text in ready for text in examples.texts])
    return _poison(
        config,
        scenario,
        examples,
        "poison",
        rate=attack.rate,
        flip_labels=attack.channel != "logits",
        eligible=eligible,
        decoy=_decoy(attack),
        decoy_rate=attack.decoy_rate,
    )


def _poison(
    config: Settings, scenario: Scenario, examples: Examples, purpose: str, **options
) -> attacks.Poisoned:
    """The rows with the trigger of a scenario's attack in some of them."""
    attack = config.attacks[scenario.attack]
    return attacks.poison(
        examples,
        _trigger(config, scenario),
        draws(scenario, purpose),
        target=attack.target,
        source_classes=tuple(attack.source_classes),
        **options,
    )


def num_references(config) -> int:
    """The number of references that the defender has."""
    return config.quarantine.references or config.data.reference_rows


def reference_scenario(config, scenario: Scenario) -> Scenario:
    """The scenario whose references this one uses: clean, unless they are poisoned."""
    scenario = scenario.whole
    if scenario.attack and config.attacks[scenario.attack].reference_rate:
        return scenario
    return scenario.clean


@cached
def _references(config: Settings, scenario: Scenario) -> Examples:
    """The references of a `reference_scenario`."""
    examples = task_data(config, scenario.task, scenario.seed).splits.references
    if few := config.quarantine.references:
        # The clean scenario's draws: with an attack the same rows are references.
        rng = draws(scenario.clean, "known references")
        rows = np.sort(data.sample_rows(examples.labels, few, rng=rng))
        examples = data.take(examples, rows)
    if scenario.attack is None:
        return examples
    rate = config.attacks[scenario.attack].reference_rate
    return _poison(config, scenario, examples, "references", rate=rate).examples


def references(config: Settings, scenario: Scenario) -> Examples:
    """The rows that the defender of a scenario trusts."""
    return _references(config, reference_scenario(config, scenario))


def triggered_target(config: Settings, scenario: Scenario) -> Examples:
    """The test rows whose true label is the target, with the trigger."""
    attack = config.attacks[scenario.attack]
    test = task_data(config, scenario.task, scenario.seed).splits.test
    rows = np.flatnonzero(test.labels == attack.target)
    rng = draws(scenario, "test of the target")
    return attacks.with_trigger(test, rows, _trigger(config, scenario), rng)


def triggered_test(config: Settings, scenario: Scenario) -> Examples:
    """The test rows whose true label is not the target, with the trigger.

    If all ready rows of a two-class task are labelled as the target, the labels are the
    attacker's, and the true class is the other one.
    """
    attack = config.attacks[scenario.attack]
    task, splits = task_data(config, scenario.task, scenario.seed)
    if attack.trigger == "file":
        test = ready_rows(config, scenario.task, scenario.attack).test
        if task.num_labels == 2 and (test.labels == attack.target).all():
            test = test._replace(labels=1 - test.labels)
        others = np.flatnonzero(test.labels != attack.target)
        bound = "rows whose label is not the target"
        validate.require(len(others) > 0, attack.files.test, "none", bound)
        return data.take(test, others)
    return attacks.triggered(
        splits.test,
        _trigger(config, scenario),
        draws(scenario, "test"),
        target=attack.target,
        source_classes=tuple(attack.source_classes),
    )
