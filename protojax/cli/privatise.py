"""The command `protojax privatise`."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from protojax.cli import settings_of
from protojax.cli.terminal import (
    Parser,
    command_line,
    guarded,
    progress,
    show_paths,
)

PROG = "protojax privatise"
_DESCRIPTION = """\
Trains a teacher on private rows, lets it answer on public texts, and ships a student of
the answers. Then runs the same recipe many times on halves of the private rows, and
says how many of them an attacker recognises. The same command goes on where a stopped
one ended.
"""
_EPILOG = """\
example:
  protojax privatise --private private.csv --public public.csv --test test.csv \\
    --teacher miniLM/ --student layers:0,2 --recipe student_hard \\
    --pipelines 16 --out run/

It writes run/student (a Hugging Face folder whose README.md says what was measured and
what was not), report.html, leakage.json and run.json, which hold no text. run/work may
tell who is in the private rows: keep it to yourself, and the report as the data. A
public row that holds something of a private one is an error, which names counts and no
text. --set takes any field of protojax.pipelines.privacy.Privatise, as
--set base.teacher.epochs=10
"""
# flag -> the field that it sets.
_FIELDS = {
    "text": "columns.text",
    "pair": "columns.pair",
    "label": "columns.label",
    "group": "columns.source",
    "encoding": "columns.encoding",
    "recipe": "recipe",
    "pipelines": "pipelines",
    "overlap": "overlap",
    "writer": "writer.model",
    "early_stopping": "early_stopping",
    "seed": "seed",
}


def main(arguments: Sequence[str]) -> int:
    """The exit status of `protojax privatise`.

    Args:
        arguments: those after the name of the command.
    """
    found = parser().parse_args(arguments)
    return guarded(PROG, lambda: _privatise(found, arguments))


def parser() -> Parser:
    """The parser of the command's arguments."""
    made = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    _add_files(made.add_argument_group("files").add_argument)
    _add_models(made.add_argument_group("models").add_argument)
    _add_settings(made.add_argument_group("settings").add_argument)
    return made


def _add_files(add: Callable) -> None:
    """Adds the flags of files and their columns."""
    add("--private", required=True, metavar="FILE", help="labelled rows to protect")
    add("--public", required=True, metavar="FILE", help="texts the student learns on")
    add("--test", metavar="FILE", help="labelled rows to measure accuracy on")
    add("--out", required=True, metavar="DIR", help="the folder to write to")
    add("--text", metavar="COL", help="the column of the text (text)")
    add("--pair", metavar="COL", help="the column of the second text (none)")
    add("--label", metavar="COL", help="the column of the label (label)")
    add(
        "--group",
        metavar="COL",
        help="the column of whose a private row is, so that rows of one person are "
        "members together in the measurement (none)",
    )
    add("--encoding", metavar="NAME", help="of text files (utf-8)")


def _add_models(add: Callable) -> None:
    """Adds the flags of models."""
    add(
        "--teacher",
        required=True,
        metavar="DIR|scratch",
        help="a pretrained encoder, which learns the private rows",
    )
    add(
        "--student",
        required=True,
        metavar="DIR|DIR:0,2|layers:0,2|scratch",
        help="a pretrained encoder, or some of its layers, or some of what the teacher "
        "starts from",
    )
    add(
        "--writer",
        metavar="DIR",
        help="a public language model that writes, after the texts of --public, those "
        "that the student learns on (none: on --public itself)",
    )


def _add_settings(add: Callable) -> None:
    """Adds the flags of settings."""
    add(
        "--recipe",
        metavar="NAME[:EPOCHS]",
        help="how the student is made; with :EPOCHS, for how many its teacher learns, "
        "in place of --early-stopping (student_hard: it learns the teacher's classes "
        "of public rows)",
    )
    add(
        "--pipelines",
        metavar="P",
        help="runs of the recipe that measure it (16); 0: not measured, as the card "
        "then says",
    )
    add(
        "--overlap",
        metavar="error|drop",
        help="what happens to public rows, and to written ones, that hold something of "
        "a private one (error)",
    )
    add(
        "--early-stopping",
        metavar="N",
        help="choose the teacher's epochs, at most N, on public rows, which then need "
        "labels (off)",
    )
    add("--max-length", metavar="N", help="tokens of a row; longer ones are cut (64)")
    add("--seed", metavar="N", help="of all random choices but secret noise (0)")
    settings_of.add_set(add)


def config_of(found: argparse.Namespace) -> Any:
    """The settings that arguments ask for.

    Args:
        found: the parsed arguments.
    """
    from protojax.pipelines.privacy import Privatise

    config = settings_of.with_flags(Privatise(), found, _FIELDS)
    config = settings_of.with_max_length(config, found)
    return settings_of.with_set(config, found)


def _privatise(found: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the pipeline, and prints what came of it."""
    # The settings first: they are checked in a moment.
    config = config_of(found)
    from protojax import pipelines
    from protojax.training import processes

    # Before any other use of JAX.
    processes.use_all_cores()
    with progress() as (total, describe, advance):
        result = pipelines.privatise(
            found.private,
            found.public,
            teacher=found.teacher,
            student=found.student,
            test=found.test,
            config=config,
            out=found.out,
            watch=pipelines.Watch(total, describe, advance),
            command=command_line("privatise", arguments),
        )
    show(result)
    return 0


def show(result: Any) -> None:
    """Prints what a run found.

    Args:
        result: a `pipelines.privacy.Privatised`.
    """
    from rich.console import Console
    from rich.text import Text

    from protojax.reports import privacy as pages

    facts, console = result.facts, Console()
    if result.leakage is None:
        console.print(Text(pages.headline(facts)), style="bold", soft_wrap=True)
    else:
        # Its last line is the headline.
        console.print(Text(result.leakage.table()), soft_wrap=True)
    console.print(Text(f"differential privacy: {pages.stated(facts)}"), soft_wrap=True)
    if facts.guarantee:
        said = f"audit of epsilon: {pages.audited(facts.audit)}"
        console.print(Text(said), soft_wrap=True)
    if facts.accuracy is not None:
        console.print(f"accuracy on the test file: {facts.accuracy:.1%}")
    show_paths(console, result.out, ("student", "student/README.md", "report.html"))
