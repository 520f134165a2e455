"""Models that write, trained on sources and outputs."""

import dataclasses

from protojax.base import Texts
from protojax.federated.replicas import Surroundings
from protojax.models import language
from protojax.models.language import LanguageModel, build_writer, prompts_of
from protojax.pipelines.outputs.settings import OutputDefence, TokenDistillation, Writer
from protojax.pipelines.students import saved_model, scratch_tokenizer
from protojax.training import sequences
from protojax.training.objective import Objective, Spec
from protojax.training.trainer import Run


def objective_of(kd: TokenDistillation, **further) -> Objective:
    """The objective of a student that writes.

    Args:
        kd: what it learns of outputs.
        **further: `transforms` and `gradient` of the objective.
    """
    options = dataclasses.asdict(kd)
    del options["top_k"]
    return Objective(Spec("sequence", options), **further)


def teach(
    model: LanguageModel,
    settings: Writer,
    texts: Texts,
    objective: Objective,
    around: Surroundings,
    *,
    seed: int,
    name: str = "student",
    teacher: LanguageModel | None = None,
    top_k: int = 16,
) -> LanguageModel:
    """The trained model, saved below the folder of `around.store`.

    A model that is saved there is not trained again, and one whose training was killed
    goes on at its last checkpoint.

    Args:
        model: the model to start from, with its tokenizer.
        settings: of its training.
        texts: the rows that teach.
        objective: what is minimised.
        around: the surroundings of its run: lengths, storage and progress.
        seed: of the order of rows and of dropout.
        name: of the run and its folder.
        teacher: whose probabilities of tokens teach too, or None.
        top_k: how many of them are kept at each place.
    """

    def run() -> Run:
        around.describe(f"{name.replace('_', ' ')} learns")
        # BART was trained to write its first token itself.
        bart = model.config.family == "bart"
        begin = model.tokenizer.bos_token_id if bart else None
        prompts = prompts_of(model.tokenizer, settings.prompt, texts.sources)
        rows = sequences.tokenize(
            model, prompts, texts.outputs, around.lengths, begin_id=begin
        )
        columns = {}
        if teacher is not None:
            said = sequences.teacher_forced_outputs(
                teacher, rows, around.lengths, tokenizer=model.tokenizer, k=top_k
            )
            columns = sequences.columns_of(said)
        return Run(
            name,
            model,
            rows,
            None,
            settings,
            seed=seed,
            columns=columns,
            objective=objective,
        )

    folder = saved_model(name, run, around)
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
