"""One function from a user's rows, references and teacher to a defended student."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protojax.base import Examples
from protojax.detection.evidence import Evidence
from protojax.federated.replicas import Surroundings
from protojax.models import Model
from protojax.pipelines import _facts, _jobs, _outputs, _run_file, students
from protojax.pipelines._facts import StudentView
from protojax.pipelines._jobs import Job
from protojax.pipelines.fine_tuning import fine_tune
from protojax.pipelines.rewriting import rewritten
from protojax.pipelines.settings import Defence
from protojax.pipelines.trusted_folds import fold_tunings, tested, trusted_folds
from protojax.reports import Facts
from protojax.training import trainer
from protojax.training.trainer import Store


class Watch(NamedTuple):
    """What is called while a defence runs.

    Attributes:
        total: once, with all the work of training.
        describe: with a description of the current work.
        advance: with work done.
    """

    total: Callable[[float], None] = lambda units: None
    describe: Callable[[str], None] = lambda text: None
    advance: Callable[[float], None] = lambda units: None


class Defended(NamedTuple):
    """The result of a defence.

    Attributes:
        facts: what was found, the verdict on each row among it.
        student: the model, with its tokenizer and label names.
        out: the folder that everything was written to.
    """

    facts: Facts
    student: Model
    out: Path


def defend(
    rows: str | Path,
    references: str | Path | None = None,
    teacher: str | Path | None = None,
    *,
    student: str,
    trusted_model: str | None = None,
    teacher_logits: str | None = None,
    test: str | Path | None = None,
    public: str | Path | None = None,
    config: Defence | None = None,
    out: str | Path,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> Defended:
    """A student distilled from rows of which those that look poisoned were rejected.

    The teacher is used as it is. A trusted model learns from the references alone; rows
    that share something and claim a class more often than it expects are rejected, the
    words of triggers are removed, and a student learns from the rest. The same call
    goes on where a killed one stopped.

    Args:
        rows: the file under test: CSV, TSV, JSONL or Parquet.
        references: a file of trusted rows; None where `columns.reference` marks them;
            "generated" where `config.writer` writes them after texts of `public` and
            the teacher labels them.
        teacher: the folder of the teacher, or its name on the Hugging Face Hub.
        student: the folder of a pretrained encoder, "FOLDER:0,2,5" for some of its
            layers, "layers:0,2,5" of the teacher, or "scratch".
        trusted_model: the folder of a pretrained encoder, or "scratch"; by default what
            the student starts from, unless that is the teacher.
        teacher_logits: instead of a teacher an npz file, or "columns".
        test: a file of trusted test rows, to measure accuracy on.
        public: a file of texts like the rows that nobody under suspicion has written,
            for references that are generated.
        config: all other settings; None for the defaults.
        out: the folder to write to.
        watch: is told of the progress.
        command: the command line, for run.json.

    Raises:
        OSError, ValueError: in one line, before anything is written, where an input is
            missing or does not fit.
    """
    config, watch, out = config or Defence(), watch or Watch(), Path(out)
    job = _jobs.prepare(
        config,
        rows=rows,
        references=references,
        teacher=teacher,
        student=student,
        trusted_model=trusted_model,
        teacher_logits=teacher_logits,
        test=test,
        public=public,
        describe=watch.describe,
    )
    clock = _run_file.Clock(_run_file.open_run(out, job.identity))
    work = out / _run_file.WORK
    around = Surroundings(
        config.lengths,
        lambda name: Store(work / name, every=config.every),
        watch.describe,
        watch.advance,
    )
    about = _run_file.about(job.paths)
    recorded = _run_file.recorded(
        out, job.identity, paths=job.paths, seconds=clock.seconds, command=command
    )
    with recorded as finish:
        facts, model, view = _run(job, around, watch, clock)
        _outputs.write(out, facts, model, view, about)
        clock("reports")
        finish(_outputs.result_of(facts))
    return Defended(facts, model, out)


def _run(
    job: Job, around: Surroundings, watch: Watch, clock: Callable[[str], None]
) -> tuple[Facts, Model, StudentView]:
    """What was found in the rows, the student, and what it says."""
    config, width = job.config, job.config.lengths.buckets[-1]
    texts = _all_texts(job.references.examples)
    trusted = _jobs.model_of(config.trusted_model, job, texts, max_positions=width)
    texts += _all_texts(job.rows.examples)
    student = _jobs.model_of(config.student, job, texts, max_positions=width)
    watch.total(_work(job, trusted, student))
    evidence = _asked(job, around)
    clock("teacher")
    known, section = evidence.references, config.trusted_model
    parts = {"folds": config.folds, "seed": config.seed}
    wanted = fold_tunings(trusted, section, known, **parts)
    fine_tune(wanted, around.store("").folder, around)
    classes = len(job.label_names)
    folds = trusted_folds(section, classes, evidence.transfer, known, around, **parts)
    clock("trusted model")
    around.describe("the rows are tested")
    evidence, findings = tested(evidence, folds, config.detection, around)
    clock("test")
    learned, verdict = rewritten(
        evidence,
        findings,
        ask=_jobs.asking(job, around),
        read=lambda examples: folds.read(examples, around),
    )
    shown = learned, verdict
    # Other weights know no trigger; those of the teacher have to unlearn it.
    if job.student_is_of_teacher:
        shown = students.to_unlearn(evidence, learned, verdict, findings, config.seed)
    taught = students.lesson(
        *shown,
        kd=config.kd,
        margin=config.margin,
        features=config.features,
        prototypes=config.prototypes,
        seed=config.seed,
    )
    student = students.distil(student, config.student, taught, around, seed=config.seed)
    student = student._replace(label_names=job.label_names)
    clock("student")
    view = _facts.view_of(job, student, evidence, learned, around)
    facts = _facts.facts_of(job, student, evidence, learned, findings, view, around)
    clock("outputs of the student")
    return facts, student, view


def _all_texts(examples: Examples) -> list[str]:
    """First and second texts."""
    return [*examples.texts, *(examples.pairs or ())]


def _work(job: Job, trusted: Model, student: Model) -> float:
    """The work of all training, in the units that runs report."""
    references, config = len(job.references.examples.texts), job.config
    # Each fold's model learns from the references of all others.
    known = references * (config.folds - 1) * config.trusted_model.epochs
    learned = (len(job.rows.examples.texts) + references) * config.student.epochs
    return known * trainer.row_cost(trusted.config) + learned * trainer.row_cost(
        student.config
    )


def _asked(job: Job, around: Surroundings) -> Evidence:
    """The evidence before any model was trusted."""
    rows, references = job.rows.examples, job.references.examples
    if job.teacher is not None:
        on_rows = _jobs.ask(job, job.teacher, "teacher_on_rows", rows, around)
        on_references = _jobs.ask(
            job, job.teacher, "teacher_on_references", references, around
        )
    else:
        on_rows, on_references = job.given.rows, job.given.references
    if not job.rows.labelled:
        # The only claim there is.
        rows = rows._replace(labels=on_rows.logits.argmax(-1).astype(np.int32))
    return Evidence(rows, on_rows, references, on_references)
