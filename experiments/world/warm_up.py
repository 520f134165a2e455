"""A briefly trained student, whose features no teacher's channel controls."""

import dataclasses

import numpy as np

from experiments.runtime import Context
from experiments.settings import Encoder
from experiments.world import artifacts, scenario
from experiments.world.scenario import Cell
from protojax import data
from protojax.base import Examples, TeacherOutputs
from protojax.distillation import teacher
from protojax.models import Model
from protojax.training import predict, trainer
from protojax.training.objective import Objective
from protojax.training.trainer import Run


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
        lambda: _train(context, cell, name, objective, section, model, everything),
    )
    parts = (np.split(part, [len(transfer.logits)]) for part in outputs)
    first, second = zip(*parts, strict=True)
    return TeacherOutputs(*first), TeacherOutputs(*second)


def _train(
    context: Context,
    cell: Cell,
    name: str,
    objective: Objective,
    section: Encoder,
    model: Model,
    everything: Examples,
) -> TeacherOutputs:
    """The outputs of a student over all rows after a short training."""
    context.describe(name)
    config, transfer = context.config, artifacts.transfer(context, cell)
    around = context.around
    run = Run(
        name,
        model,
        predict.tokenize(model, transfer.examples, config.lengths),
        transfer.examples.labels,
        section,
        seed=cell.seed,
        objective=objective,
        columns={
            "teacher_logits": transfer.logits,
            "teacher_features": transfer.features,
        },
    )
    trained = trainer.train(
        run,
        lengths=around.lengths,
        store=around.store(name),
        on_progress=around.on_progress,
    )
    model = model._replace(params=trained.params)
    outputs = predict.ask(model, everything, config.lengths, config.features)
    trainer.remove_checkpoints(around.store(name))
    return outputs
