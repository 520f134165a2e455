"""The trusted models of a scenario, one for each fold of the references."""

import functools

import numpy as np

from experiments.runtime import Context, cached
from experiments.settings import Settings
from experiments.world import artifacts, scenarios
from experiments.world.artifacts import Tuning
from experiments.world.scenarios import Scenario
from protojax.federated.replicas import Surroundings
from protojax.pipelines import FineTuning
from protojax.pipelines.trusted_folds import TrustedFolds, fold_tunings, trusted_folds

FOLDS = 3


def folds(context: Context, scenario: Scenario) -> TrustedFolds:
    """The trusted models of a scenario, and their readings for the test.

    They must have been trained, see `tunings`. All references teach, and all are read
    by a model that did not see them. Nodes have the same models, so their predictions
    on a row are computed once.

    Args:
        context: the study.
        scenario: the scenario, or one node's part of it.
    """
    whole = _folds(context, scenario.whole)
    if not scenario.federation:
        return whole
    return whole.take(scenarios.rows_of(context.config, scenario))


@cached
def _folds(context: Context, scenario: Scenario) -> TrustedFolds:
    """The same for the rows of all nodes together."""
    config = context.config
    owner = scenarios.reference_scenario(config, scenario)
    task = scenarios.task_data(config, scenario.task, scenario.seed).task
    return trusted_folds(
        config.trusted_model,
        task.num_labels,
        scenarios.poisoned(config, scenario).examples,
        scenarios.references(config, owner),
        _within(context.around, _folder(config, owner)),
        folds=FOLDS,
        seed=owner.seed,
    )


def around(context: Context, scenario: Scenario) -> Surroundings:
    """The surroundings in which trusted models read a scenario's rows again."""
    return _within(context.around, f"{scenario.folder}/trusted_folds")


def tunings(config: Settings, scenario: Scenario) -> list[tuple[str, Tuning]]:
    """The folder below the workdir, and the training, of each trusted model."""
    folder = _folder(config, scenarios.reference_scenario(config, scenario))
    return [
        (f"{folder}/trusted_model_{fold}", functools.partial(_tuning, fold=fold))
        for fold in range(FOLDS)
    ]


def held_out(found: TrustedFolds) -> np.ndarray:
    """The references that the first of the trusted models did not learn from."""
    return np.flatnonzero(found.readers[len(found.on_rows.classes) :] == 0)


def _tuning(config: Settings, scenario: Scenario, *, fold: int) -> FineTuning:
    """The training of the trusted model of one fold."""
    owner = scenarios.reference_scenario(config, scenario)
    found = fold_tunings(
        artifacts.build_model(config, config.trusted_model, owner),
        config.trusted_model,
        scenarios.references(config, owner),
        folds=FOLDS,
        seed=owner.seed,
    )[fold]
    return found._replace(name=f"{_folder(config, owner)}/{found.name}")


def _folder(config: Settings, owner: Scenario) -> str:
    """The folder of the models of a `scenarios.reference_scenario`."""
    few = config.quarantine.references
    # A variant with fewer references has models of its own in the same workdir.
    return f"{owner.folder}/folds" + (f"_{few}" if few else "")


def _within(around: Surroundings, folder: str) -> Surroundings:
    """The surroundings of runs whose names are below a folder of the workdir."""
    return around._replace(store=lambda name: around.store(f"{folder}/{name}"))
