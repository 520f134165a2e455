"""Checks that need a study's data, and the estimate of its work, before it begins."""

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
from protojax.pipelines import inputs
from protojax.training import trainer


def preflight(context: Context, todo: list[Job]) -> Context:
    """The study with its searched triggers, after checks that need its data.

    Settings that are impossible for the data are refused before anything expensive is
    computed, and so are data that have changed since the study was begun. The search
    for a trigger needs the trusted model, which is trained here.

    Args:
        context: the study.
        todo: its jobs.

    Raises:
        ValueError: a feature layer beyond a model's depth, a target or source class
            that the task does not have, fewer prototypes than classes, classes of which
            a trusted model would see no reference, an attack or a defence on a
            regression task, or changed data.
    """
    # The layers of models depend on the settings only: one job per variant suffices.
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
        # A searched trigger is not known yet; its attack is checked below.
        if scenario.attack not in searched:
            _check_attack(context.config, scenario)
    # Only now, since a study that was refused may be begun again with other data.
    write_fingerprints(begun)
    context = adaptive_attacks.with_found(context, every)
    for scenario in every:
        if scenario.attack in searched:
            _check_attack(context.config, scenario)
    return context


def _check_attack(config: Settings, scenario: Scenario) -> None:
    """Checks that a scenario's attack is possible with the classes of its task."""
    if scenario.attack is None:
        return
    # These raise on regression tasks, and on classes that the task does not have.
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
    """The fingerprints by which a study recognises the data that it was begun with.

    Args:
        config: the study's settings.
        workdir: the study's folder.
        scenario: the scenario whose rows are hashed.

    Returns:
        Path -> name -> fingerprint, of the splits and of an attack's rows from a file.
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
        ValueError: the data have changed; names the file.
    """
    for path, now in found.items():
        if path.exists() and json.loads(path.read_text()) != now:
            raise ValueError(
                f"Expected the data that {path} was begun with, found others. "
                "Give another --workdir."
            )


def write_fingerprints(found: dict[pathlib.Path, dict[str, str]]) -> None:
    """Writes the `fingerprints` whose files do not exist yet."""
    for path, now in found.items():
        if not path.exists():
            storage.write_json(path, now)


@contextlib.contextmanager
def _named(variant: str) -> Iterator[None]:
    """Prefixes errors of the body with the name of a variant."""
    try:
        yield
    except ValueError as error:
        if not variant:
            raise
        raise ValueError(f"variants.{variant}: {error}") from error


def _check_layers(config: Settings, task: str) -> None:
    """Checks that every model has the layers whose hidden states are compared."""
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
        # At 1 / rows, publishing a random row outright would still count as private.
        validate.require(delta < 1 / rows, "dp.delta", delta, bound)
        student = _model_config(config, config.student, job.scenario.task)
        paths = traverse_util.flatten_dict(models.param_shapes(student))
        for name in config.dp.frozen:
            validate.one_of(sorted(set().union(*paths)), **{"dp.frozen": name})
    if task.problem == "regression":
        known = [name for name, arm in ARMS.items() if arm.scores]
        validate.one_of(known, arms=job.kind)
        return
    if uses_prototypes([ARMS[job.kind]]):
        least, found = task.num_labels, config.prototypes.num
        bound = f">= {least}, one a class"
        validate.require(found >= least, "prototypes.num", found, bound)
    attack = config.attacks.get(job.scenario.attack)
    searched = attack is not None and attack.trigger == "searched"
    if searched or ARMS[job.kind].asks_trusted_model:
        scenario = job.student_scenario.whole
        # References that hold a searched trigger are not known yet.
        owner = scenario.clean if searched else scenario
        known = scenarios.references(config, owner)
        inputs.check_classes(known.labels, task.label_names)


def work(config: Settings, workdir: pathlib.Path, trainings: list[Training]) -> float:
    """The remaining work of training, in the progress bar's units."""
    return sum(
        _work_of(varied(config, one.variant), one)
        for one in trainings
        if not is_trained(workdir, one)
    )


def _work_of(config: Settings, training: Training) -> float:
    """The work of one training: processed rows times the cost of a row."""
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
    """The config of a section's model for a task, read once for all seeds."""
    scenario = Scenario(task, config.seeds[0], None)
    return artifacts.build_model(config, section, scenario).config
