"""The briefly trained student of a cell, its outputs computed once."""

import dataclasses

from experiments.runtime import Context
from experiments.world import artifacts, scenario
from experiments.world.scenario import Cell
from protojax import data, pipelines
from protojax.base import TeacherOutputs
from protojax.distillation import teacher
from protojax.training.objective import Objective


def warmed_up(
    context: Context, cell: Cell, objective: Objective
) -> tuple[TeacherOutputs, TeacherOutputs]:
    """The outputs of a briefly trained student on transfer rows and on references.

    Args:
        context: the study.
        cell: the cell.
        objective: what the student minimises.
    """
    config, transfer = context.config, artifacts.transfer(context, cell)
    references = scenario.references(context.config, cell)
    everything = data.concatenate(transfer.examples, references)
    model = artifacts.build_model(context.config, config.student, cell)
    section = dataclasses.replace(
        config.student, epochs=config.quarantine.warmup_epochs
    )
    key = teacher.cache_key(
        model.params,
        data.fingerprint(transfer.logits, transfer.features, *everything.texts),
        repr((objective, section, config.features, config.data.buckets)),
    )
    # Variants of an arm may differ in any of it.
    name = f"{cell.folder}/warmup_{key[:12]}"
    outputs = teacher.cached_outputs(
        context.workdir / f"{name}.safetensors",
        key,
        lambda: pipelines.warm_up(
            name,
            model,
            transfer.examples,
            transfer.outputs,
            references,
            context.around,
            train=section,
            objective=objective,
            features=config.features,
            seed=cell.seed,
        ),
    )
    return pipelines.parted(outputs, len(transfer.logits))
