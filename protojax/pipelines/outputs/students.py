"""Models that write, trained on sources and outputs."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from protojax.base import Prototypes, Texts
from protojax.federated.replicas import Surroundings
from protojax.models import language, saved
from protojax.models.language import LanguageModel
from protojax.pipelines.outputs.settings import TokenDistillation, Writer
from protojax.training import sequences, trainer
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
    prototypes: Prototypes | None = None,
    columns: Mapping[str, np.ndarray] = MappingProxyType({}),
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
        prototypes: those of the objective's constraint, or None.
        columns: further columns of the batch.
    """
    store = around.store(name)
    folder = store.folder / "model"
    if not folder.exists():
        around.describe(f"{name.replace('_', ' ')} learns")
        # BART was trained to write its first token itself.
        bart = model.config.family == "bart"
        begin = model.tokenizer.bos_token_id if bart else None
        rows = sequences.tokenize(model, *texts, around.lengths, begin_id=begin)
        given = dict(columns)
        if teacher is not None:
            said = sequences.teacher_forced_outputs(
                teacher, rows, around.lengths, tokenizer=model.tokenizer, k=top_k
            )
            given = {**sequences.columns_of(said), **given}
        run = Run(
            name,
            model,
            rows,
            None,
            settings,
            seed=seed,
            columns=given,
            objective=objective,
            prototypes=prototypes,
        )
        trained = trainer.train(
            run, lengths=around.lengths, store=store, on_progress=around.on_progress
        )
        saved.save(folder, model._replace(params=trained.params))
        trainer.remove_checkpoints(store)
    # From the file in any case, so that a resumed run has the same model.
    saved.check(folder, run=store.folder)
    return language.load_language_model(
        folder, dtype=settings.dtype, remat=settings.remat
    )
