"""The outputs of a student on rows and references, and the facts of the reports."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from protojax import prototypes
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.detection.evidence import Evidence, Findings, Suspect, Verdict
from protojax.detection.rewriting import holding, phrases_of
from protojax.federated.replicas import Surroundings
from protojax.models import Model
from protojax.pipelines import _jobs, students
from protojax.pipelines._jobs import Job
from protojax.reports import Facts, Reaction

# A student that says the class on so many more of the rows with a trigger has it.
_REACTS, _REACTS_ROWS = 0.1, 3


class StudentView(NamedTuple):
    """The outputs of a student on the rows and references.

    Attributes:
        rows: its outputs on the rows as they arrived.
        rewritten: its outputs on the rows without the words of triggers.
        references: its outputs on the references.
        prototypes: the class prototypes of its features on the references.
        metric: of the distance to prototypes.
    """

    rows: TeacherOutputs
    rewritten: TeacherOutputs
    references: TeacherOutputs
    prototypes: Prototypes
    metric: str


def view_of(
    job: Job,
    student: Model,
    evidence: Evidence,
    learned: Evidence,
    around: Surroundings,
) -> StudentView:
    """The outputs of a student on the rows and references.

    Args:
        job: the inputs.
        student: the trained student.
        evidence: as it arrived.
        learned: without the words of triggers.
        around: the surroundings of the runs.
    """
    rows = _jobs.ask(job, student, "student_on_rows", evidence.transfer, around)
    known = evidence.references
    on_references = _jobs.ask(job, student, "student_on_references", known, around)
    rewritten = rows
    if learned.transfer.texts != evidence.transfer.texts or (
        learned.transfer.pairs != evidence.transfer.pairs
    ):
        rewritten = _jobs.ask(
            job, student, "student_on_rewritten", learned.transfer, around
        )
    config = job.config
    keys = jax.random.split(
        jax.random.key(config.seed), on_references.features.shape[1]
    )
    layers = students.layer_prototypes(
        on_references, known.labels, config.prototypes, keys
    )
    last = Prototypes(*(leaf[-1] for leaf in layers))
    last = prototypes.without_rare(last, config.least_count)
    return StudentView(rows, rewritten, on_references, last, config.prototypes.metric)


def facts_of(
    job: Job,
    student: Model,
    evidence: Evidence,
    learned: Evidence,
    findings: Findings,
    view: StudentView,
    around: Surroundings,
) -> Facts:
    """Everything that the reports tell.

    Args:
        job: the inputs.
        student: the trained student.
        evidence: as it arrived.
        learned: without the words of triggers.
        findings: the result of the test.
        view: what the student says.
        around: the surroundings of the runs.
    """
    labels, rows = evidence.references.labels, evidence.transfer
    said = {"student": (view.rows, view.rewritten)}
    if job.teacher is not None:
        said = {"teacher": (evidence.teacher, learned.teacher), **said}
    classes = {
        name: tuple(outputs.logits.argmax(-1) for outputs in both)
        for name, both in said.items()
    }
    on_references = evidence.teacher_on_references.logits
    metrics = {
        "teacher on the references": _jobs.teacher_agreement(on_references, labels),
        "trusted model on references it did not learn from": float(
            np.mean(evidence.trusted_on_held_out.classes == labels)
        ),
        **_on_test(job, student, around),
    }
    untrusted = _untrusted_lines(job, findings.verdict)
    found = reactions(rows, learned.transfer, findings, classes)
    return Facts(
        label_names=job.label_names,
        rows=rows,
        lines=job.rows.lines,
        labelled=job.rows.labelled,
        references=evidence.references,
        findings=findings,
        teacher_classes=evidence.teacher.logits.argmax(-1),
        trusted_classes=evidence.trusted_on_transfer.classes,
        features=view.rows.features[:, -1],
        prototypes=view.prototypes,
        nearest=nearest_references(view, labels, 3 if job.config.shows_texts else 0),
        reactions=found,
        metrics=metrics,
        teacher_asked=job.teacher is not None,
        false_rejection=job.config.detection.false_rejection,
        untrusted_lines=untrusted,
        warnings=_warnings(job, untrusted, found),
        generated=job.config.writer.model != "",
    )


def _on_test(job: Job, student: Model, around: Surroundings) -> dict[str, float]:
    """The accuracy of teacher and student on the test rows, if there are any."""
    if job.test is None:
        return {}
    models = {"teacher": job.teacher, "student": student}
    found = {}
    for name, model in models.items():
        if model is not None:
            rows = job.test.examples
            logits = _jobs.ask(job, model, f"{name}_on_test", rows, around).logits
            share = float(np.mean(logits.argmax(-1) == rows.labels))
            found[f"{name} on the test file"] = share
    return found


def _untrusted_lines(job: Job, verdict: Verdict) -> tuple[int, ...]:
    """The lines of the references that carry a trigger."""
    if verdict.untrusted is None:
        return ()
    return tuple(job.references.lines[verdict.untrusted].tolist())


def _warnings(
    job: Job,
    untrusted: Sequence[int],
    reactions: Sequence[Reaction],
) -> tuple[str, ...]:
    """Warnings for the reader, of the references and of the student."""
    found = []
    if job.config.writer.model:
        found.append(
            f"The {len(job.references.lines)} references are texts that a language "
            "model wrote, with labels of the teacher that is under suspicion: more "
            "honest rows are rejected than is stated (3 % for 1 where it was "
            "measured), triggers may not be told for certain, or may be told where "
            "there are none, and one that the public texts hold is not seen."
        )
    if untrusted:
        found.append(
            f"{len(untrusted)} of {len(job.references.lines)} references carry a "
            "suspected trigger and were left out: see where they came from. Their "
            "lines are in run.json."
        )
    for one in reactions:
        more = one.with_it - one.without_it
        if one.model == "student" and more >= max(_REACTS_ROWS, _REACTS * one.rows):
            found.append(
                f"The student still reacts to a trigger: it says the class on "
                f"{one.with_it} of {one.rows} rows with it, on {one.without_it} "
                "without it."
            )
    if job.student_is_of_teacher:
        found.append(
            "The student started from layers of the teacher, whose weights are "
            "untrusted: a trigger that is in none of the rows may have stayed in them."
        )
    return tuple(found)


def reactions(
    rows: Examples,
    rewritten: Examples,
    findings: Findings,
    said: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[Reaction, ...]:
    """The classes that models give to rows with a trigger, with and without its words.

    Args:
        rows: as they arrived.
        rewritten: the same without the words of triggers.
        findings: the result of the test.
        said: name of a model -> its classes of both, each `[rows]`.
    """
    found = []
    has_text = np.array([bool(text.strip()) for text in rewritten.texts])
    for number, suspect in enumerate(findings.suspects):
        held = np.flatnonzero(has_trigger(rows, suspect) & has_text)
        if not len(held):
            continue
        for model, (with_it, without_it) in said.items():
            counts = (
                int(np.sum(classes[held] == suspect.label))
                for classes in (with_it, without_it)
            )
            found.append(Reaction(number, model, len(held), *counts))
    return tuple(found)


def has_trigger(rows: Examples, suspect: Suspect) -> np.ndarray:
    """The mask of the rows that hold all words of a strong suspect, `[rows]`.

    Args:
        rows: the rows.
        suspect: from `detect`; no row holds one that has no words, or is not strong.
    """
    phrases = phrases_of(rows, [suspect])
    held = [holding(rows, [phrase]) for phrase in phrases]
    return np.all(held, axis=0) if held else np.zeros(len(rows.texts), bool)


def nearest_references(
    view: StudentView, labels: np.ndarray, most: int = 3
) -> list[list[int]]:
    """The references of a prototype's class that are nearest to it.

    Args:
        view: of the student.
        labels: `[references]`, int.
        most: how many for each prototype.
    """
    distances = distances_of(view)
    found = []
    for number, label in enumerate(np.asarray(view.prototypes.labels)):
        own = np.flatnonzero(labels == label)
        order = np.argsort(distances[own, number], kind="stable")[:most]
        found.append(own[order].tolist())
    return found


def distances_of(view: StudentView) -> np.ndarray:
    """The distances of the references to all prototypes, `[references, prototypes]`.

    Args:
        view: of the student.
    """
    return np.asarray(
        prototypes.distances(
            view.references.features[:, -1],
            view.prototypes.vectors,
            metric=view.metric,
        )
    )
