"""The command `protojax defend --output COLUMN`: rows whose output is text."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from protojax.cli import settings_of
from protojax.cli.terminal import command_line, progress, show_findings

# flag -> the field that it sets.
_FIELDS = {
    "text": "columns.text",
    "output": "columns.output",
    "reference_column": "columns.reference",
    "encoding": "columns.encoding",
    "epochs": "student.epochs",
    "false_rejection": "detection.false_rejection",
    "seed": "seed",
}
_OF_CLASSES = ("pair", "label", "source", "teacher_logits", "trusted_model")
_OF_CLASSES += ("suspect_references", "public", "writer", "overlap")


def config_of(found: argparse.Namespace) -> Any:
    """The settings that arguments ask for.

    Args:
        found: the parsed arguments.

    Raises:
        ValueError: on a flag that has no meaning for outputs that are text.
    """
    from protojax import validate
    from protojax.pipelines.outputs import OutputDefence

    for flag in _OF_CLASSES:
        if getattr(found, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')}: not with --output.")
    config = settings_of.with_flags(OutputDefence(), found, _FIELDS)
    given = {"max_length": found.max_length, "max_output": found.max_output}
    sizes = {}
    for field, text in given.items():
        if text is not None:
            flag = f"--{field.replace('_', '-')}"
            validate.require(text.isdigit() and int(text) > 1, flag, text, "> 1")
            sizes[field] = int(text)
    if sizes:
        lengths = config.lengths
        whole = tuple(sizes.get(field, getattr(lengths, field)) for field in given)
        buckets = (tuple(size // 2 for size in whole), whole)
        lengths = dataclasses.replace(
            lengths, max_length=whole[0], max_output=whole[1], buckets=buckets
        )
        config = dataclasses.replace(config, lengths=lengths)
    return settings_of.with_set(config, found)


def defend(found: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the pipeline, and prints what came of it.

    Args:
        found: the parsed arguments.
        arguments: those after the name of the command.
    """
    # The settings first: they are checked in a moment.
    config = config_of(found)
    from protojax import pipelines
    from protojax.pipelines import outputs

    with progress() as (total, describe, advance):
        result = outputs.defend_outputs(
            found.rows,
            found.references,
            found.teacher,
            student=found.student,
            encoder=found.encoder,
            test=found.test,
            config=config,
            out=found.out,
            watch=pipelines.Watch(total, describe, advance),
            command=command_line("defend", arguments),
        )
    show(result)
    return 0


def show(result: Any) -> None:
    """Prints what a defence of outputs found.

    Args:
        result: a `pipelines.outputs.DefendedOutputs`.
    """
    from protojax.reports import outputs as pages

    facts, findings = result.facts, result.facts.findings
    rows = {
        "rows": len(facts.lines),
        "rejected": int(findings.rejected.sum()),
        "of these cut": int(facts.cut.sum()),
    }
    scores = {name: f"{100 * value:.1f}" for name, value in facts.metrics.items()}
    show_findings([pages.headline(facts)], rows, findings, scores, result.out)
