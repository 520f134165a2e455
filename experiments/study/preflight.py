"""What a study is asked before it begins: what only its data can tell, how long."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator

from flax import traverse_util

from experiments.arms import ARMS
from experiments.runtime import Context, varied
from experiments.settings import Encoder, Settings
from experiments.study.check import uses_prototypes
from experiments.study.grid import Job, Training, is_trained
from experiments.world import adaptive_attacks, artifacts, scenarios
from experiments.world.scenarios import Scenario
from protojax import data, models, storage, validate
from protojax.base import Examples
from protojax.models import EncoderConfig
from protojax.training import trainer


def preflight(context: Context, todo: list[Job]) -> Context:
    """The study with its searched triggers, once nothing in its data forbids it.

    What only the data can tell is impossible is said before hours are spent. Data are
    held to those that the study was begun with. A trigger that is searched takes an
    trusted model, which is trained here.

    Args:
        context: the study.
        todo: its rows.

    Raises:
        ValueError: a feature layer beyond a model's depth, a target or source beyond
            the classes, too few prototypes for them, or an attack or a defence on a
            task that has scores instead of classes.
    """
    for variant, job in {job.variant: job for job in todo}.items():
        with _named(variant):
            _check_layers(context.varied(variant).config, job.scenario.task)
    searched = {
        name
        for name, attack in context.config.attacks.items()
        if attack.trigger == "searched"
    }
    every, begun = list(dict.fromkeys(job.scenario for job in todo)), {}
    for scenario in every:
        found = fingerprints(context.config, context.workdir, scenario)
        check_unchanged(found)
        begun |= found
        task, splits = scenarios.task_data(context.config, scenario.task, scenario.seed)
        for job in todo:
            if job.scenario == scenario:
                with _named(job.variant):
                    _check_job(context.varied(job.variant).config, job, task, splits)
        if scenario.attack not in searched:
            _check_attack(context.config, scenario)
    # Not before: a study that is refused may be begun again with other data.
    write_fingerprints(begun)
    context = adaptive_attacks.with_found(context, every)
    for scenario in every:
        if scenario.attack in searched:
            _check_attack(context.config, scenario)
    return context


def _check_attack(config: Settings, scenario: Scenario) -> None:
    """Checks that a scenario's attack can be made: on classes, those of its task."""
    if scenario.attack is None:
        return
    # These refuse scores, and classes that the task does not have.
    scenarios.poisoned(config, scenario)
    scenarios.triggered_test(config, scenario)
    try:
        scenarios.references(config, scenario)
    except ValueError as error:
        name = f"attacks.{scenario.attack}.reference_rate"
        raise ValueError(f"{name}: {error}") from error


def fingerprints(
    config: Settings, workdir: pathlib.Path, scenario: Scenario
) -> dict[pathlib.Path, dict[str, str]]:
    """What holds a study to the data that it was begun with.

    Args:
        config: the study's.
        workdir: its folder.
        scenario: which rows.

    Returns:
        Path -> name -> fingerprint: of the splits, and of an attack's ready rows.
    """
    splits = scenarios.task_data(config, scenario.task, scenario.seed).splits
    now = {
        name: data.fingerprint(*part.texts, *(part.pairs or ()), part.labels)
        for name, part in splits._asdict().items()
        if isinstance(part, Examples)
    }
    folder = workdir / scenario.task
    found = {folder / f"seed{scenario.seed}" / "data.json": now}
    if scenario.attack and config.attacks[scenario.attack].trigger == "file":
        ready = scenarios.ready_rows(config, scenario.task, scenario.attack)
        content = json.dumps(ready.texts, sort_keys=True)
        now = data.fingerprint(content, *ready.test.texts, ready.test.labels)
        found[folder / f"{scenario.attack}.json"] = {"ready": now}
    return found


def check_unchanged(found: dict[pathlib.Path, dict[str, str]]) -> None:
    """Checks `fingerprints` against those that were written when the study began.

    Raises:
        ValueError: if the data are others; names the file.
    """
    for path, now in found.items():
        if path.exists() and json.loads(path.read_text()) != now:
            raise ValueError(
                f"Expected the data that {path} was begun with, found others. "
                "Give another --workdir."
            )


def write_fingerprints(found: dict[pathlib.Path, dict[str, str]]) -> None:
    """Writes those `fingerprints` that were not written yet."""
    for path, now in found.items():
        if not path.exists():
            storage.write_json(path, now)


@contextlib.contextmanager
def _named(variant: str) -> Iterator[None]:
    """Puts the name of a variant before an error of its own."""
    try:
        yield
    except ValueError as error:
        if not variant:
            raise
        raise ValueError(f"variants.{variant}: {error}") from error


def _check_layers(config: Settings, task: str) -> None:
    """Checks that every model has the layers whose states are compared."""
    for role in ("teacher", "student", "trusted_model"):
        depth = _model_config(config, getattr(config, role), task).num_layers
        for layer in config.features.layers:
            validate.require(
                -depth - 1 <= layer <= depth,
                "features.layers",
                layer,
                f"in {-depth - 1}..{depth}, the states of the {role}",
            )


def _check_job(config: Settings, job: Job, task, splits) -> None:
    """Checks an arm against the rows and classes of its task."""
    rows = len(splits.transfer.texts)
    if ARMS[job.kind].private:
        expected, delta = config.dp.batch_size, config.dp.delta
        bound = f"<= {rows}, the transfer rows of {job.scenario.task}"
        validate.require(expected <= rows, "dp.batch_size", expected, bound)
        bound = f"< 1 / {rows}, the transfer rows of {job.scenario.task}"
        validate.require(delta < 1 / rows, "dp.delta", delta, bound)
        student = _model_config(config, config.student, job.scenario.task)
        paths = traverse_util.flatten_dict(models.param_shapes(student))
        for name in config.dp.frozen:
            validate.one_of(sorted(set().union(*paths)), **{"dp.frozen": name})
    if task.problem == "regression":
        known = [name for name, arm in ARMS.items() if arm.scores]
        validate.one_of(known, arms=job.kind)
    elif uses_prototypes(config, [ARMS[job.kind]]):
        least, found = task.num_labels, config.prototypes.num
        bound = f">= {least}, one a class"
        validate.require(found >= least, "prototypes.num", found, bound)


def work(config: Settings, workdir: pathlib.Path, trainings: list[Training]) -> float:
    """The training that is left, in the progress bar's units."""
    return sum(
        _work_of(varied(config, one.variant), one)
        for one in trainings
        if not is_trained(workdir, one)
    )


def _work_of(config: Settings, training: Training) -> float:
    """The work of one training: rows gone through times the cost of a row."""
    scenario = training.scenario
    if training.tuning is not None:
        wanted = training.tuning(config, scenario)
        passed = len(wanted.examples.texts) * wanted.train.epochs
        model = wanted.model.config
    else:
        splits = scenarios.task_data(config, scenario.task, scenario.seed).splits
        rows, known = len(splits.transfer.texts), scenarios.num_references(config)
        model = _model_config(config, config.student, scenario.task)
        passed = ARMS[training.job.kind].passes(config, rows, known)
    return passed * trainer.row_cost(model)


@functools.cache
def _model_config(config: Settings, section: Encoder, task: str) -> EncoderConfig:
    """The config of a section's model on a task, read once for all seeds."""
    scenario = Scenario(task, config.seeds[0], None)
    return artifacts.build_model(config, section, scenario).config
