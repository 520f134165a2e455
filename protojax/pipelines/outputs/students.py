"""Models that write, trained on sources and outputs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protojax.base import Prototypes, Texts
from protojax.data.sequences import Sequences
from protojax.federated.aggregation import AGGREGATORS
from protojax.federated.replicas import Surroundings
from protojax.federated.rounds import train_rounds
from protojax.federated.settings import Federation
from protojax.models import language
from protojax.models.language import LanguageModel, build_writer, prompts_of
from protojax.pipelines.outputs.settings import OutputDefence, TokenDistillation, Writer
from protojax.pipelines.students import kept_model, saved_model, scratch_tokenizer
from protojax.training import sequences
from protojax.training.objective import Objective, Spec
from protojax.training.predict import SequenceLengths
from protojax.training.trainer import Run

# The columns of a training run, see `trainer.Run`.
Columns = Mapping[str, np.ndarray]


def objective_of(
    kd: TokenDistillation,
    *,
    consistency: Mapping[str, float] | None = None,
    **further,
) -> Objective:
    """The objective of a student that writes.

    Args:
        kd: what it learns of outputs.
        consistency: options of `distillation.consistent_loss`, None to leave it out.
        **further: `transforms` and `gradient` of the objective.
    """
    options = dataclasses.asdict(kd)
    del options["top_k"]
    loss = Spec("sequence", options)
    if consistency is not None:
        loss = Spec("consistent", {**options, **consistency})
    return Objective(loss, **further)


def said_by(
    teacher: LanguageModel,
    student: LanguageModel,
    lengths: SequenceLengths,
    top_k: int,
) -> Callable[[Sequences], Columns]:
    """The function from rows to what a teacher says along their outputs.

    Args:
        teacher: whose probabilities of tokens teach.
        student: whose tokenizer made the rows.
        lengths: how rows are padded.
        top_k: how many tokens are kept at each place.
    """
    return lambda rows: sequences.columns_of(
        sequences.teacher_forced_outputs(
            teacher, rows, lengths, tokenizer=student.tokenizer, k=top_k
        )
    )


class Lesson(NamedTuple):
    """The rows that a model that writes learns from, and how.

    Attributes:
        texts: the rows that teach.
        objective: what is minimised.
        columns: the rows as tokens -> further columns of the batches.
        prototypes: for an objective with a prototype constraint.
    """

    texts: Texts
    objective: Objective
    columns: Callable[[Sequences], Columns] = lambda rows: {}
    prototypes: Prototypes | None = None


def teach(
    model: LanguageModel,
    settings: Writer,
    lesson: Lesson,
    around: Surroundings,
    *,
    seed: int,
    name: str = "student",
) -> LanguageModel:
    """The trained model, saved below the folder of `around.store`.

    A model that is saved there is not trained again, and one whose training was killed
    goes on at its last checkpoint.

    Args:
        model: the model to start from, with its tokenizer.
        settings: of its training.
        lesson: what it learns from.
        around: the surroundings of its run: lengths, storage and progress.
        seed: of the order of rows and of dropout.
        name: of the run and its folder.
    """

    def run() -> Run:
        around.describe(f"{name.replace('_', ' ')} learns")
        return _run_of(model, settings, lesson, around, seed, name)

    return _loaded(saved_model(name, run, around), settings)


def teach_nodes(
    model: LanguageModel,
    settings: Writer,
    lessons: Sequence[Lesson],
    federation: Federation,
    around: Surroundings,
    *,
    seed: int,
    name: str = "student",
) -> LanguageModel:
    """The model of a server whose nodes learned, saved and resumed as by `teach`.

    Args:
        model: the model that all nodes start from.
        settings: of the training on each node.
        lessons: of each node, with one objective.
        federation: the rounds, the server's rule and its options.
        around: the surroundings of the run.
        seed: of the order of rows and of dropout.
        name: of the run and its folder.
    """

    def trained() -> LanguageModel:
        around.describe(f"{name.replace('_', ' ')} learns on {len(lessons)} nodes")
        params = train_rounds(
            [_run_of(model, settings, one, around, seed, name) for one in lessons],
            around,
            functools.partial(
                AGGREGATORS[federation.aggregator], **federation.aggregator_args
            ),
            rounds=federation.rounds,
            at_once=federation.nodes_at_once,
            rule=f"{federation.aggregator} {dict(federation.aggregator_args)}",
        )
        return model._replace(params=params)

    return _loaded(kept_model(name, trained, around), settings)


def _run_of(
    model: LanguageModel,
    settings: Writer,
    lesson: Lesson,
    around: Surroundings,
    seed: int,
    name: str,
) -> Run:
    """The run that trains a model on a lesson."""
    begin = sequences.begin_id_of(model)
    prompts = prompts_of(model.tokenizer, settings.prompt, lesson.texts.sources)
    rows = sequences.tokenize(
        model, prompts, lesson.texts.outputs, around.lengths, begin_id=begin
    )
    return Run(
        name,
        model,
        rows,
        None,
        settings,
        seed=seed,
        columns=lesson.columns(rows),
        objective=lesson.objective,
        prototypes=lesson.prototypes,
    )


def _loaded(folder: Path, settings: Writer) -> LanguageModel:
    """The model of a folder, with the computation of its settings."""
    return language.load_language_model(
        folder, dtype=settings.dtype, remat=settings.remat
    )


def fresh_student(
    config: OutputDefence, rows: Texts, references: Texts, *, seed: int
) -> LanguageModel:
    """The student before training.

    Args:
        config: names its source, or its sizes.
        rows: under test. Only their sources train the tokenizer of a model from
            scratch: a phrase in their outputs would become a token.
        references: the trusted rows.
        seed: of fresh weights.
    """
    texts = [*rows.sources, *references.sources, *references.outputs]
    return build_writer(
        config.student,
        seed=seed,
        tokenizer=lambda: scratch_tokenizer(texts, config.vocab_size),
    )
