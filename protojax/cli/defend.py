"""The command `protojax defend`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protojax.cli import outputs, settings_of
from protojax.cli.terminal import (
    Parser,
    command_line,
    guarded,
    progress,
    show_findings,
)

PROG = "protojax defend"
_DESCRIPTION = """\
Tests the rows of a file for triggers with the help of trusted references, and distils
a student from a teacher on the rows that pass. The teacher is used as it is. The same
command goes on where a stopped one ended.
"""
_EPILOG = """\
example:
  protojax defend --rows mine.csv --references trusted.csv \\
    --teacher teacher/ --student miniLM/ --out run/
  protojax defend --rows news.jsonl --references trusted.jsonl --text document \\
    --output summary --teacher t5-base/ --student t5-small/ --encoder miniLM/ --out run/

It writes run/report.html (read this first), run/verdict.csv (each row), run/student
(a Hugging Face folder), triggers.json and run.json, and for classes
calibration.json and student_prototypes.safetensors. Files are CSV, TSV, JSONL or
Parquet, told by their suffix. --set takes any field of protojax.pipelines.Defence, as
  --set student.learning_rate=1e-4 --set detection.min_rows=5
and with --output any field of protojax.pipelines.outputs.OutputDefence.
"""
# flag -> the field that it sets.
_FIELDS = {
    "text": "columns.text",
    "pair": "columns.pair",
    "label": "columns.label",
    "reference_column": "columns.reference",
    "source": "columns.source",
    "encoding": "columns.encoding",
    "epochs": "student.epochs",
    "false_rejection": "detection.false_rejection",
    "suspect_references": "detection.suspect_references",
    "seed": "seed",
    "writer": "writer.model",
    "overlap": "overlap",
}


def main(arguments: Sequence[str]) -> int:
    """The exit status of `protojax defend`.

    Args:
        arguments: those after the name of the command.
    """
    found = parser().parse_args(arguments)
    run = _defend if found.output is None else outputs.defend
    return guarded(PROG, lambda: run(found, arguments))


def parser() -> Parser:
    """The parser of the command's arguments."""
    made = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    _add_files(made.add_argument_group("files").add_argument)
    _add_columns(made.add_argument_group("columns").add_argument)
    _add_models(made.add_argument_group("models").add_argument)
    _add_settings(made.add_argument_group("settings").add_argument)
    return made


def _add_files(add: Callable) -> None:
    """Adds the flags of files."""
    add("--rows", required=True, metavar="FILE", help="the rows under test")
    add(
        "--references",
        metavar="FILE|generated",
        help="trusted rows with trusted labels; the word generated where there are "
        "none: --writer writes them after texts of --public, and the teacher labels "
        "them, which rejects more honest rows",
    )
    add(
        "--public",
        metavar="FILE",
        help="for generated references: texts like the rows, that nobody under "
        "suspicion has written",
    )
    add(
        "--test",
        metavar="FILE",
        help="trusted test rows, to measure accuracy or ROUGE on",
    )
    add("--out", required=True, metavar="DIR", help="the folder to write to")


def _add_columns(add: Callable) -> None:
    """Adds the flags of columns."""
    add("--text", metavar="COL", help="of the text (text)")
    add("--pair", metavar="COL", help="of the second text (none)")
    add("--label", metavar="COL", help="of the label (label); rows may have none")
    add(
        "--output",
        metavar="COL",
        help="of an output that is text, such as a summary, in place of a label; "
        "teacher and student are then models that write",
    )
    add("--source", metavar="COL", help="of the origin of a row (none)")
    add(
        "--reference-column",
        metavar="COL",
        help="marks trusted rows of --rows by true or false, instead of --references",
    )
    add("--encoding", metavar="NAME", help="of text files (utf-8)")


def _add_models(add: Callable) -> None:
    """Adds the flags of models."""
    add(
        "--teacher",
        metavar="DIR",
        help="a classifier, or with --output a language model, used as it is",
    )
    add(
        "--teacher-logits",
        metavar="FILE",
        help="instead of --teacher: an npz file with its logits as arrays rows and "
        "references, or the word columns for columns logit:NAME of the files",
    )
    add(
        "--student",
        required=True,
        metavar="DIR|DIR:0,2,5|layers:0,2,5|scratch",
        help="a pretrained encoder, or some of its layers, or some of the teacher",
    )
    add(
        "--trusted-model",
        metavar="DIR|scratch",
        help="a pretrained encoder that reads the rows for the test (the student's, "
        "unless that is the teacher)",
    )
    add(
        "--writer",
        metavar="DIR",
        help="for generated references: a public language model",
    )
    add(
        "--encoder",
        metavar="DIR",
        help="with --output: a pretrained encoder that says whether an output fits its "
        "source (without it words alone are tested)",
    )


def _add_settings(add: Callable) -> None:
    """Adds the flags of settings."""
    add("--epochs", metavar="N", help="of the student (3)")
    add(
        "--false-rejection",
        metavar="RATE",
        help="the share of honest rows that may be rejected (0.01, with --output 0.02)",
    )
    add(
        "--suspect-references",
        action="store_const",
        const="True",
        help="also find triggers that references hold; slower",
    )
    add(
        "--max-length",
        metavar="N",
        help="tokens of a row; longer ones are cut (128, with --output 512)",
    )
    add(
        "--overlap",
        metavar="error|drop",
        help="what happens to generated references that hold something of a row "
        "(error)",
    )
    add("--max-output", metavar="N", help="with --output: tokens of an output (64)")
    add("--seed", metavar="N", help="of all random choices (0)")
    settings_of.add_set(add)


def config_of(found: argparse.Namespace) -> Any:
    """The settings that arguments ask for.

    Args:
        found: the parsed arguments.
    """
    from protojax.pipelines import settings

    for flag in ("encoder", "max_output"):
        if getattr(found, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')}: only with --output.")
    config = settings_of.with_flags(settings.Defence(), found, _FIELDS)
    config = settings_of.with_max_length(config, found)
    return settings_of.with_set(config, found)


def _defend(found: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the pipeline, and prints what came of it."""
    # The settings first: they are checked in a moment.
    config = config_of(found)
    from protojax import pipelines

    with progress() as (total, describe, advance):
        result = pipelines.defend(
            found.rows,
            found.references,
            found.teacher,
            student=found.student,
            trusted_model=found.trusted_model,
            teacher_logits=found.teacher_logits,
            test=found.test,
            public=found.public,
            config=config,
            out=found.out,
            watch=pipelines.Watch(total, describe, advance),
            command=command_line("defend", arguments),
        )
    show(result)
    return 0


def show(result: Any, more: Mapping[str, float] | None = None) -> None:
    """Prints what a defence found.

    Args:
        result: a `pipelines.Defended`.
        more: further figures, in [0, 1].
    """
    from protojax import reports

    facts, findings = result.facts, result.facts.findings
    rows = {
        "rows": len(facts.rows.texts),
        "rejected": int(findings.verdict.rejected.sum()),
    }
    metrics = {**facts.metrics, **(more or {})}
    shares = {name: f"{value:.1%}" for name, value in metrics.items()}
    lines = [
        reports.headline(facts),
        *(f"warning: {warning}" for warning in facts.warnings),
    ]
    show_findings(lines, rows, findings, shares, result.out)
