"""The command `protojax calibrate`."""

import argparse
from collections.abc import Sequence
from typing import Any

from protojax.cli import settings_of
from protojax.cli.terminal import (
    Parser,
    command_line,
    guarded,
    progress,
    show_paths,
)

PROG = "protojax calibrate"
_DESCRIPTION = """\
Makes a language model easier (eta above 0) or harder (eta below 0) to distil, by
reinforcement against a small frozen proxy, while the tasks in a file stay solved and
the divergence from the original stays below a budget. No student is trained: what
students gain or lose is to be measured. The same command goes on where a stopped one
ended.
"""
_EPILOG = """\
example:
  protojax calibrate --teacher teacher/ --proxy small/ --prompts problems.jsonl \\
    --eta 1 --verifier arithmetic --verifier equations --out run/

It writes run/calibrated (a Hugging Face folder with a card), run/items.jsonl (each
held-out problem, before and after), run/history.jsonl (each rollout) and run/run.json.
Verifiers: arithmetic (the last number), equations (every written one is true),
shown_equations (and there is one), multiple_choice, instructions (answers are rules as
JSON, such as {"max_words": 20}); of several, all must be content. --set takes any field
of protojax.pipelines.calibration.TeacherCalibration, as
  --set calibration.kl_budget=4 --set calibration.correct_only=True
"""
# flag -> the field that it sets.
_FIELDS = {
    "prompt": "columns.prompt",
    "answer": "columns.answer",
    "encoding": "columns.encoding",
    "eta": "calibration.eta",
    "steps": "calibration.steps",
    "max_new": "calibration.max_new",
    "seed": "calibration.seed",
    "verifier": "verifiers",
}


def main(arguments: Sequence[str]) -> int:
    """The exit status of `protojax calibrate`.

    Args:
        arguments: those after the name of the command.
    """
    found = parser().parse_args(arguments)
    return guarded(PROG, lambda: _calibrate(found, arguments))


def parser() -> Parser:
    """The parser of the command's arguments."""
    made = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    add = made.add_argument
    add("--teacher", required=True, metavar="DIR", help="the model to calibrate")
    add(
        "--proxy",
        required=True,
        metavar="DIR",
        help="a small language model that stands for students",
    )
    add("--prompts", required=True, metavar="FILE", help="prompts and their answers")
    add("--out", required=True, metavar="DIR", help="the folder to write to")
    add("--eta", metavar="NUMBER", help="weight and sign of the calibration (1)")
    add(
        "--verifier",
        action="append",
        metavar="NAME",
        help="what solves a task; may be repeated (arithmetic and equations)",
    )
    add("--prompt", metavar="COL", help="the column of the prompt (prompt)")
    add("--answer", metavar="COL", help="the column of the answer (answer)")
    add("--encoding", metavar="NAME", help="of a text file (utf-8)")
    add("--steps", metavar="N", help="rollouts (150)")
    add("--max-new", metavar="N", help="tokens of a text (128)")
    add("--seed", metavar="N", help="of all random choices (0)")
    settings_of.add_set(add)
    return made


def config_of(found: argparse.Namespace) -> Any:
    """The settings that arguments ask for.

    Args:
        found: the parsed arguments.
    """
    from protojax.pipelines.calibration import TeacherCalibration

    if found.verifier is not None:
        found.verifier = ",".join(found.verifier)
    config = settings_of.with_flags(TeacherCalibration(), found, _FIELDS)
    return settings_of.with_set(config, found)


def _calibrate(found: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the pipeline, and prints what came of it."""
    # The settings first: they are checked in a moment.
    config = config_of(found)
    from protojax import pipelines
    from protojax.pipelines import calibration

    with progress() as (total, describe, advance):
        result = calibration.calibrate_teacher(
            found.prompts,
            found.teacher,
            found.proxy,
            config=config,
            out=found.out,
            watch=pipelines.Watch(total, describe, advance),
            command=command_line("calibrate", arguments),
        )
    show(result)
    return 0


def show(result: Any) -> None:
    """Prints what a calibration did.

    Args:
        result: a `pipelines.calibration.CalibratedTeacher`.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, found = Console(), result.found
    said = f"Ended by {found.stopped}; the teacher is that after {found.rollouts} "
    console.print(Text(said + "rollouts."), style="bold", soft_wrap=True)
    table = Table("held-out problems", "before", "after", box=None)
    before, after = found.before.means(), found.after.means()
    for name in ("solved", "calibration", "kl", "tokens"):
        table.add_row(name, f"{before[name]:.3g}", f"{after[name]:.3g}")
    console.print(table)
    console.print(Text("No student was trained: nothing is known of any."))
    show_paths(console, result.out, ("calibrated", "items.jsonl"))
