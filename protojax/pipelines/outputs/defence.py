"""One function from a user's sources and outputs to a defended student that writes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.base import Texts
from protojax.data.sequences import Sequences, check_same_tokens
from protojax.detection.outputs import (
    Kept,
    OutputFindings,
    detect_outputs,
    quarantine_outputs,
)
from protojax.federated.replicas import Surroundings
from protojax.models import Model, hf
from protojax.models.language import LanguageModel, build_writer, prompts_of
from protojax.pipelines import _run_file
from protojax.pipelines.defence import Watch
from protojax.pipelines.outputs import _files, students
from protojax.pipelines.outputs.inputs import OutputJob, Written, prepare
from protojax.pipelines.outputs.settings import OutputDefence
from protojax.pipelines.outputs.students import fresh_student
from protojax.pipelines.outputs.writing import vectors_of, write
from protojax.reports.outputs import OutputFacts
from protojax.training import sequences, trainer
from protojax.training.trainer import Store


class DefendedOutputs(NamedTuple):
    """The result of a defence of outputs.

    Attributes:
        facts: what was found, the verdict on each row among it.
        student: the model that writes, with its tokenizer.
        out: the folder that everything was written to.
    """

    facts: OutputFacts
    student: LanguageModel
    out: Path


def defend_outputs(
    rows: str | Path,
    references: str | Path | None = None,
    teacher: str | Path | None = None,
    *,
    student: str,
    encoder: str | Path | None = None,
    test: str | Path | None = None,
    config: OutputDefence | None = None,
    out: str | Path,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> DefendedOutputs:
    """A student that writes, taught without the outputs that look poisoned.

    With a teacher its own outputs are tested and taught, on the sources of the rows
    and, for comparison, of the references; the outputs in the file are not read.
    Without one the outputs of the file are. Words, and with an encoder meanings, that
    rows with something in common have in excess of what their sources explain are
    denied: an output whose end was denied is cut, any other that was rejected dropped.
    The same call goes on where a killed one stopped.

    Args:
        rows: the file under test: CSV, TSV, JSONL or Parquet.
        references: a file of trusted rows; None where `columns.reference` marks them.
        teacher: the folder of a language model, or its name on the Hugging Face Hub.
        student: the folder of a language model, "FOLDER:0,2" for some layers of its
            decoder, "layers:0,2" of the teacher's, or "scratch".
        encoder: the folder of a pretrained encoder that says whether an output fits
            its source; None tests words alone.
        test: a file of trusted test rows, to measure ROUGE on.
        config: all other settings; None for the defaults.
        out: the folder to write to.
        watch: is told of the progress.
        command: the command line, for run.json.

    Raises:
        OSError, ValueError: in one line, before anything is written, where an input is
            missing or does not fit.
    """
    config, watch, out = config or OutputDefence(), watch or Watch(), Path(out)
    job = prepare(
        config,
        rows=rows,
        references=references,
        teacher=teacher,
        student=student,
        encoder=encoder,
        test=test,
    )
    models = _models(job)
    clock = _run_file.Clock(_run_file.open_run(out, job.identity))
    work = out / _run_file.WORK
    around = Surroundings(
        config.lengths,
        lambda name: Store(work / name, every=config.every),
        watch.describe,
        watch.advance,
    )
    about = {"prompt of the student": config.student.prompt}
    about |= _run_file.about(job.paths)
    recorded = _run_file.recorded(
        out, job.identity, paths=job.paths, seconds=clock.seconds, command=command
    )
    with recorded as finish:
        facts, model = _run(job, models, around, watch, clock)
        _files.write(out, facts, model, about)
        clock("reports")
        finish(_files.result_of(facts))
    return DefendedOutputs(facts, model, out)


class _Models(NamedTuple):
    """The models of a defence before anything is trained; None where there is none."""

    teacher: LanguageModel | None
    student: LanguageModel
    encoder: Model | None


def _models(job: OutputJob) -> _Models:
    """The models, after a check of what would fail after hours of work."""
    config, encoder, teacher = job.config, None, None
    if job.has_teacher:
        teacher = build_writer(config.teacher, seed=config.seed, tokenizer=lambda: None)
    student = fresh_student(
        config, job.rows.texts, job.references.texts, seed=config.seed
    )
    if job.has_encoder:
        computation = config.encoder.computation
        encoder = hf.load_hf(config.encoder.model, num_labels=2, **computation)
    source, output = config.lengths.buckets[-1]
    for name, model in {"teacher": teacher, "student": student}.items():
        if model is None:
            continue
        found, most = model.config, model.config.max_positions
        validate.require(model.tokenizer is not None, name, None, "with a tokenizer")
        ends = found.end_ids
        validate.require(bool(ends), f"{name}.end_ids", ends, "a token that ends")
        needed = max(source, output) if found.encoder_layers else source + output
        bound = f"at most {most} tokens in all, as the {name} reads"
        validate.require(most == 0 or needed <= most, "lengths.buckets", needed, bound)
        # Said before hours of work: a tokenizer may have no chat template.
        prompts_of(model.tokenizer, getattr(config, name).prompt, ["a"])
    if teacher is not None and config.kd.hard_weight < 1:
        check_same_tokens(teacher.tokenizer, student.tokenizer)
        same, form = config.teacher.prompt, config.student.prompt
        bound = f"{same!r} as of the teacher, whose probabilities of tokens teach"
        validate.require(form == same, "student.prompt", form, bound)
    return _Models(teacher, student, encoder)


def _run(
    job: OutputJob,
    models: _Models,
    around: Surroundings,
    watch: Watch,
    clock: Callable[[str], None],
) -> tuple[OutputFacts, LanguageModel]:
    """The facts that were found, and the student."""
    config, (teacher, student, encoder) = job.config, models
    taught = len(job.rows.lines) + len(job.references.lines)
    cost = taught * config.student.epochs * trainer.row_cost(student.config)
    watch.total(cost)
    tested, trusted = (
        _outputs_of(job, teacher, part, name, around)
        for part, name in ((job.rows, "rows"), (job.references, "references"))
    )
    clock("teacher")
    around.describe("the rows are tested")
    findings = _tested(job, encoder, tested, trusted)
    clock("test")
    kept = quarantine_outputs(tested, findings, action=config.action)
    student = _taught(config, kept, job.references.texts, teacher, student, around)
    clock("student")
    facts = _facts(job, tested, findings, kept, teacher, student, around)
    clock("outputs of the student")
    return facts, student


def _taught(
    config: OutputDefence,
    kept: Kept,
    references: Texts,
    teacher: LanguageModel | None,
    student: LanguageModel,
    around: Surroundings,
) -> LanguageModel:
    """The student after training on the rows that are left, and on the references."""
    texts, masked = kept.texts, list(kept.masked)
    if config.train_on_references:
        texts = texts.join(references)
        masked += [()] * len(references.sources)

    def columns(rows: Sequences) -> dict[str, np.ndarray]:
        found = {}
        if config.kd.hard_weight < 1:
            said = students.said_by(teacher, student, config.lengths, config.kd.top_k)
            found |= said(rows)
        if any(masked):
            weights = sequences.weights_without(student, rows, texts.outputs, masked)
            found["output_weights"] = weights
        return found

    return students.teach(
        student,
        config.student,
        students.Lesson(texts, students.objective_of(config.kd), columns),
        around,
        seed=config.seed,
    )


def _outputs_of(
    job: OutputJob,
    teacher: LanguageModel | None,
    part: Written,
    name: str,
    around: Surroundings,
) -> Texts:
    """The rows with the outputs that would teach: the teacher's, if there is one."""
    if teacher is None:
        return part.texts
    sources = part.texts.sources
    name = f"teacher_on_{name}"
    prompt = job.config.teacher.prompt
    return Texts(sources, _write(job, teacher, name, sources, around, prompt))


def _write(
    job: OutputJob,
    model: LanguageModel,
    name: str,
    sources: Sequence[str],
    around: Surroundings,
    prompt: str,
) -> list[str]:
    """The texts that a model writes, kept below the folder of the runs."""
    folder = around.store("").folder
    return write(
        folder,
        name,
        model,
        sources,
        job.config.lengths,
        job.config.decoding,
        around.describe,
        prompt=prompt,
    )


def _tested(
    job: OutputJob, encoder: Model | None, tested: Texts, trusted: Texts
) -> OutputFindings:
    """The result of the test."""
    config = job.config
    if encoder is None:
        return detect_outputs(tested, trusted, config.detection)
    vectors, vectors_refs = (
        vectors_of(encoder, part, config.encoder_lengths) for part in (tested, trusted)
    )
    return detect_outputs(
        tested, trusted, config.detection, vectors=vectors, vectors_refs=vectors_refs
    )


def _facts(
    job: OutputJob,
    tested: Texts,
    findings: OutputFindings,
    kept: Kept,
    teacher: LanguageModel | None,
    student: LanguageModel,
    around: Surroundings,
) -> OutputFacts:
    """Everything that the reports tell."""
    outputs: list[str | None] = [None] * len(tested.sources)
    for row, output in zip(kept.rows, kept.texts.outputs, strict=True):
        outputs[row] = output
    cut = np.zeros(len(outputs), bool)
    cut[kept.rows] = kept.cut
    rejected = np.flatnonzero(findings.rejected)
    sources = [tested.sources[row] for row in rejected]
    prompt = job.config.student.prompt
    said = _write(job, student, "student_on_rejected", sources, around, prompt)
    models = {
        "teacher": (teacher, job.config.teacher.prompt),
        "student": (student, prompt),
    }
    metrics = {}
    for name, (model, form) in models.items():
        if job.test is not None and model is not None:
            texts, run = job.test.texts, f"{name}_on_test"
            found = _write(job, model, run, texts.sources, around, form)
            metrics |= _files.rouge(name, texts.outputs, found)
    return OutputFacts(
        rows=tested,
        lines=job.rows.lines,
        references=len(job.references.lines),
        findings=findings,
        taught=tuple(outputs),
        cut=cut,
        student=dict(zip(rejected.tolist(), said, strict=True)),
        metrics=metrics,
        teacher_wrote=teacher is not None,
        meaning_tested=job.has_encoder,
        false_rejection=job.config.detection.false_rejection,
    )
