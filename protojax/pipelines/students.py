"""A student distilled from the rows that passed the test and the trusted rest."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import data
from protojax import prototypes as prototypes_lib
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.data.wordpiece import train_wordpiece
from protojax.detection.detect import Findings
from protojax.detection.evidence import Evidence, Verdict
from protojax.detection.quarantine import (
    REFERENCE_LOG_ODDS,
    TrainingRows,
    training_rows,
    with_references,
)
from protojax.detection.rewriting import phrases_of, with_phrases
from protojax.distillation.settings import Distillation, Margin
from protojax.federated.replicas import Surroundings
from protojax.models import Model, hf, saved
from protojax.pipelines.settings import Encoder
from protojax.prototypes.settings import Prototypes as PrototypeSettings
from protojax.training import predict, trainer
from protojax.training.objective import Objective, Spec
from protojax.training.predict import Features
from protojax.training.trainer import Run

# References that a trigger is put into, at least, to be unlearned.
_FEWEST_SHOWN = 50


class Lesson(NamedTuple):
    """What a student learns from, and how.

    Attributes:
        rows: texts and the columns of a batch.
        objective: what it minimises.
        prototypes: constrain the student, or None.
    """

    rows: TrainingRows
    objective: Objective
    prototypes: Prototypes | None


def objective_of(
    kd: Distillation,
    features: Features,
    margin: Margin | None = None,
    *,
    metric: str = "cosine",
) -> Objective:
    """The objective of distillation, with the prototype constraint if there is one.

    Args:
        kd: of distillation.
        features: the hidden states that are compared with prototypes.
        margin: of the constraint, None for none.
        metric: of the distance to prototypes.

    >>> objective_of(Distillation(), Features()).transforms
    ()
    """
    options = {**vars(kd), "layers": features.layers, "pooling": features.pooling}
    loss = Spec("distillation", options)
    if margin is None:
        return Objective(loss)
    weight = Spec(margin.weight_schedule, margin.weight_schedule_args, (margin.weight,))
    constraint = {
        "weight": weight,
        "margin": Spec(margin.schedule, margin.schedule_args, (margin.value,)),
        "assignment": margin.assignment,
        "metric": metric,
        "layer_weights": margin.layer_weights,
    }
    return Objective(loss, (Spec("prototype", constraint),))


def layer_prototypes(
    outputs: TeacherOutputs,
    labels: np.ndarray,
    settings: PrototypeSettings,
    keys: Sequence[jax.Array],
) -> Prototypes:
    """The class prototypes of each layer's features on the references.

    Args:
        outputs: a model's outputs on the references; features may have no layers.
        labels: `[references]`, int, their classes.
        settings: their number over all classes, at most that of the references.
        keys: `[layers]`, of the initial centres.

    Returns:
        Prototypes with a leading `[layers]` axis, on the host.
    """
    classes = len(np.unique(labels))
    num = max(classes, min(settings.num, len(labels)))
    sets = [
        prototypes_lib.class_prototypes(
            key,
            outputs.features[:, layer],
            labels,
            outputs.logits.shape[1],
            num_prototypes=num,
            metric=settings.metric,
            num_iters=settings.num_iters,
        )
        for layer, key in enumerate(keys)
    ]
    if not sets:
        return Prototypes(np.zeros((0, num, 0)), *np.zeros((2, 0, num)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(sets))


def lesson(
    evidence: Evidence,
    verdict: Verdict,
    *,
    kd: Distillation,
    margin: Margin,
    features: Features,
    prototypes: PrototypeSettings,
    seed: int,
) -> Lesson:
    """What a student learns from tested rows and from the references.

    Rejected rows get the trusted model's targets. Rows without any text are left out:
    those that held nothing but words that were removed.

    Args:
        evidence: rows, references and the teacher's outputs on both, as the student may
            see them.
        verdict: of the rows, with the trusted model's reading of those rejected.
        kd: the objective of distillation.
        margin: the prototype constraint; left out where the teacher has no features.
        features: the hidden states that are compared with prototypes.
        prototypes: of the teacher's features.
        seed: of the initial prototypes.
    """
    evidence = without_untrusted(evidence, verdict)
    references, outputs = evidence.references, evidence.teacher_on_references
    keys = jax.random.split(jax.random.key(seed), outputs.features.shape[1])
    centres = layer_prototypes(outputs, references.labels, prototypes, keys)
    rows = training_rows(evidence, verdict, centres)
    rows = with_references(rows, references, outputs)
    rows = rows.take(np.flatnonzero(has_text(rows.examples)))
    if len(centres.vectors) == 0:
        columns = {k: v for k, v in rows.columns.items() if k != "teacher_features"}
        objective = objective_of(kd, features)
        return Lesson(rows._replace(columns=columns), objective, None)
    objective = objective_of(kd, features, margin, metric=prototypes.metric)
    return Lesson(rows, objective, centres)


def without_untrusted(evidence: Evidence, verdict: Verdict) -> Evidence:
    """The evidence without the references that no student should learn from.

    Args:
        evidence: with all references.
        verdict: names those that hold a trigger, if there are any.
    """
    if verdict.untrusted is None or not verdict.untrusted.any():
        return evidence
    kept = np.flatnonzero(~verdict.untrusted)
    return evidence._replace(
        references=data.take(evidence.references, kept),
        teacher_on_references=evidence.teacher_on_references.take(kept),
    )


def to_unlearn(
    evidence: Evidence,
    learned: Evidence,
    verdict: Verdict,
    findings: Findings,
    seed: int,
) -> tuple[Evidence, Verdict]:
    """The evidence with further rows that hold the words of triggers, and its verdict.

    A student that starts from the teacher's own layers has learned what the teacher
    has, so that it is not enough to keep the words from it. It is shown the rows with
    them, under the targets of the same rows without them, and references of all classes
    that they were put into: otherwise they would come to mean the other classes.

    Args:
        evidence: as it arrived.
        learned: the same without the words of triggers.
        verdict: of the rows without them.
        findings: the result of the test.
        seed: of the choice of references, and of places in them.
    """
    before, after = evidence.transfer, learned.transfer
    changed = np.array(
        [
            before.texts[row] != after.texts[row]
            or (before.pairs is not None and before.pairs[row] != after.pairs[row])
            for row in range(len(before.texts))
        ]
    )
    parts = [
        (after, learned.teacher, _fields_of(verdict)),
        (
            data.take(before, changed),
            learned.teacher.take(changed),
            [field[changed] for field in _fields_of(verdict)],
        ),
    ]
    rng, known = np.random.default_rng(seed), without_untrusted(learned, verdict)
    references = known.references
    for suspect in findings.suspects:
        phrases = phrases_of(data.concatenate(before, references), [suspect])
        if not phrases:
            continue
        count = min(len(references.texts), max(suspect.claimants, _FEWEST_SHOWN))
        chosen = rng.choice(len(references.texts), count, replace=False)
        copies = with_phrases(data.take(references, chosen), phrases, seed)
        outputs, labels = known.teacher_on_references.take(chosen), copies.labels
        sure = REFERENCE_LOG_ODDS * np.eye(outputs.logits.shape[1])[labels]
        fields = [np.ones(count, bool), np.zeros(count), labels, sure]
        parts.append((copies, outputs, fields))
    examples, outputs, fields = zip(*parts, strict=True)
    both = learned._replace(
        transfer=functools.reduce(data.concatenate, examples),
        teacher=TeacherOutputs(*map(np.concatenate, zip(*outputs, strict=True))),
    )
    joined = map(np.concatenate, zip(*fields, strict=True))
    return both, Verdict(*joined, untrusted=verdict.untrusted)


def _fields_of(verdict: Verdict) -> list[np.ndarray]:
    """The fields of a verdict that have an entry for each row."""
    return list(verdict[:4])


def has_text(examples: Examples) -> np.ndarray:
    """The mask of the rows with more than white space in each text, `[rows]`.

    >>> has_text(Examples(["a", " "], None, np.zeros(2))).tolist()
    [True, False]
    """
    columns = [part for part in examples[:2] if part is not None]
    return np.array([all(map(str.strip, row)) for row in zip(*columns, strict=True)])


def distil(
    model: Model,
    settings: Encoder,
    taught: Lesson,
    around: Surroundings,
    *,
    seed: int,
    name: str = "student",
) -> Model:
    """The trained student, saved below the folder of `around.store`.

    A student that is saved there is not trained again, and one whose training was
    killed goes on at its last checkpoint.

    Args:
        model: the model to start from, with its tokenizer.
        settings: of its training.
        taught: what it learns from.
        around: the surroundings of its run: lengths, storage and progress.
        seed: of the order of rows and of dropout.
        name: of the run and its folder.
    """

    def run() -> Run:
        around.describe("the student learns")
        return Run(
            name,
            model,
            predict.tokenize(model, taught.rows.examples, around.lengths),
            taught.rows.examples.labels,
            settings,
            seed=seed,
            columns=taught.rows.columns,
            objective=taught.objective,
            prototypes=taught.prototypes,
        )

    folder = saved_model(name, run, around)
    return hf.load_hf(
        folder, num_labels=model.config.num_labels, **settings.computation
    )


def saved_model(name: str, run: Callable[[], Run], around: Surroundings) -> Path:
    """The folder of the model that a run trains, below the folder of `around.store`.

    A model that is saved there is not trained again.

    Args:
        name: of the run and its folder.
        run: called if the model has to be trained.
        around: the surroundings of the run.
    """

    def trained() -> Model:
        made = run()
        ended = trainer.train(
            made,
            lengths=around.lengths,
            store=around.store(name),
            on_progress=around.on_progress,
        )
        return made.model._replace(params=ended.params)

    return kept_model(name, trained, around)


def kept_model(name: str, trained: Callable[[], Model], around: Surroundings) -> Path:
    """The folder of a trained model, below the folder of `around.store`.

    Args:
        name: of the run and its folder.
        trained: called if the model is not saved there yet.
        around: the surroundings of the run.
    """
    store = around.store(name)
    folder = store.folder / "model"
    if not folder.exists():
        saved.save(folder, trained())
        trainer.remove_checkpoints(store)
    # Loaded from here in any case, so that a resumed run has the same model.
    saved.check(folder, run=store.folder)
    return folder


def scratch_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A tokenizer trained on texts, for a model from scratch.

    Args:
        texts: the texts.
        vocab_size: of the vocabulary, which is larger where the texts have too many
            characters for it.
    """
    size = max(vocab_size, 2 * len(set("".join(texts))) + 300)
    return hf.wrap_tokenizer(train_wordpiece(texts, vocab_size=size))
