"""The briefly trained student of a scenario, its outputs computed once."""

import dataclasses

from experiments.runtime import Context
from experiments.world import artifacts
from experiments.world.scenarios import Scenario
from protojax import data, pipelines
from protojax.base import TeacherOutputs
from protojax.distillation import teacher
from protojax.training.objective import Objective


def warmed_up(
    context: Context, scenario: Scenario, objective: Objective
) -> TeacherOutputs:
    """The outputs of a briefly trained student on the transfer rows.

    Args:
        context: the study.
        scenario: the scenario.
        objective: of the student.
    """
    config, transfer = context.config, artifacts.transfer(context, scenario)
    model = artifacts.build_model(context.config, config.student, scenario)
    section = dataclasses.replace(config.student, epochs=config.filters.warmup_epochs)
    key = teacher.cache_key(
        model.params,
        data.fingerprint(
            transfer.logits,
            transfer.features,
            transfer.examples.labels,
            *transfer.examples.texts,
            *(transfer.examples.pairs or ()),
        ),
        repr((objective, section, config.features, config.data.buckets)),
    )
    # Variants of an arm may differ in anything that the key covers.
    name = f"{scenario.folder}/warmup_{key[:12]}"
    return teacher.cached_outputs(
        context.workdir / f"{name}.safetensors",
        key,
        lambda: pipelines.warm_up(
            name,
            model,
            transfer.examples,
            transfer.outputs,
            context.around,
            train=section,
            objective=objective,
            features=config.features,
            seed=scenario.seed,
        ),
    )
