"""What a study is asked before it begins: what only its data can tell, how long."""

import functools

from experiments import adaptive, cells, ingredients, runtime
from experiments.arms import ARMS
from experiments.cells import Cell
from experiments.jobs import DONE, Job, needed
from experiments.runtime import Context
from protojax import _validate, models


def preflight(context: Context, todo: list[Job]) -> None:
    """Raises on what only the data can tell is impossible, before hours are spent.

    A trigger that is searched takes an anchor, which is trained here.

    Args:
        context: the study.
        todo: its rows.

    Raises:
        ValueError: a feature layer beyond a model's depth, a target or source beyond
            the classes, too few prototypes for them, or an attack or a defence on a
            task that has scores instead of classes.
    """
    for role in ("teacher", "student", "anchor") if todo else ():
        depth = _model_config(
            context, context.config[role], todo[0].cell.task
        ).num_layers
        for layer in context.config.features.layers:
            _validate.require(
                -depth - 1 <= layer <= depth,
                "features.layers",
                layer,
                f"in {-depth - 1}..{depth}, the states of the {role}",
            )
    searched = {
        name
        for name, attack in context.config.attacks.items()
        if attack.trigger == "searched"
    }
    # Those whose trigger takes an anchor to be found come last.
    for cell in sorted(
        dict.fromkeys(job.cell for job in todo), key=lambda c: c.attack in searched
    ):
        task, splits = cells.task_data(context, cell.task, cell.seed)
        arms_run = [job.kind for job in todo if job.cell == cell]
        rows, expected = len(splits.transfer.texts), context.config.dp.batch_size
        if "dp_sgd" in arms_run:
            bound = f"<= {rows}, the transfer rows of {cell.task}"
            _validate.require(expected <= rows, "dp.batch_size", expected, bound)
            delta = context.config.dp.delta
            bound = f"< 1 / {rows}, the transfer rows of {cell.task}"
            _validate.require(delta < 1 / rows, "dp.delta", delta, bound)
        if task.problem == "regression":
            for arm in arms_run:
                _validate.one_of(("clean", "plain", "references"), arms=arm)
        else:
            least = task.num_labels
            found = context.config.prototypes.num
            _validate.require(
                found >= least, "prototypes.num", found, f">= {least}, one a class"
            )
        if cell.attack is not None:
            adaptive.prepare(context, cell)
            # These refuse scores, and classes that the task does not have.
            cells.poisoned(context, cell)
            cells.triggered_test(context, cell)
            try:
                cells.references(context, cell)
            except ValueError as error:
                name = f"attacks.{cell.attack}.reference_rate"
                raise ValueError(f"{name}: {error}") from error


def work(context: Context, todo: list[Job]) -> float:
    """Returns the training that is left, in the progress bar's units."""
    config, runs = context.config, {}
    for job in todo:
        splits = cells.task_data(context, job.cell.task, job.cell.seed).splits
        rows, few = len(splits.transfer.texts), len(splits.references.texts)
        passes = {
            "references": few * config.anchor.epochs,
            "fine_tuned": few * config.fine_tuning.epochs,
            "nad": few * config.fine_tuning.epochs,
            "dp_sgd": rows * config.dp.epochs,
        }
        teacher = ingredients.teacher_cell(context, job.student_cell).folder
        held_out = round(few * config.quarantine.calibration_share)
        models_of = {
            other.student: (
                config.student,
                passes.get(other.kind, rows * config.student.epochs),
            )
            for other in (job, *needed(config, job))
        }
        if job.kind != "references":
            models_of[f"{teacher}/teacher"] = (
                config.teacher,
                rows * config.teacher.epochs,
            )
        if ARMS[job.kind].anchored:
            folder = f"{cells.reference_cell(config, job.cell).folder}/anchor_encoder"
            models_of[folder] = (config.anchor, (few - held_out) * config.anchor.epochs)
        for name, (section, work) in models_of.items():
            folder = context.workdir / name
            if not (folder / "model").exists() and not (folder / DONE).exists():
                runs[name] = work * runtime.row_cost(
                    _model_config(context, section, job.cell.task)
                )
    return sum(runs.values())


@functools.cache
def _model_config(context: Context, section, task: str) -> models.EncoderConfig:
    """Returns the config of a section's model on a task, read once for all seeds."""
    cell = Cell(task, context.config.seeds[0], None)
    return ingredients.build_model(context, section, cell).config
