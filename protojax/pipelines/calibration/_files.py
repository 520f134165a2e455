"""The files of a calibration: the teacher with its card, items, the history."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protojax import storage
from protojax.pipelines._outputs import write_student
from protojax.reports.card import plain
from protojax.rl import Drawn, Problems
from protojax.rl.calibration import Calibrated

ITEMS, HISTORY, TEACHER = "items.jsonl", "history.jsonl", "calibrated"
_DIRECTIONS = {1: "easier to distil", 0: "the control, η = 0", -1: "harder to distil"}
_STOPS = {
    "steps": "after all rollouts",
    "kl_budget": "because the divergence from the original exceeded its budget",
    "skill": "because skill on held-out problems had fallen too far",
}
_COLUMNS = ("task", "calibration", "log_prob", "reference_log_prob", "proxy_log_prob")
_COLUMNS += ("kl", "tokens", "ended")
_CARD = """\
# Teacher whose distillability was calibrated

Calibrated by protojax with η = {eta}: {direction}, as far as the proxy stands for
students. It ended {stopped}; these weights are those after {rollouts} rollouts.

| | |
|---|---|
{lines}

| held-out problems | before | after |
|---|---|---|
{figures}

One text a problem was drawn at temperature 1. Divergences are in nats a text.

## What is not known

- **Nothing was measured of any student, at any budget.** The reward is a proxy's
  opinion of the texts. Whether a student of some size, loss and number of texts learns
  more or less from this teacher than from the original is not known before such
  students are trained, each with the original teacher and with one calibrated at
  η = 0, the control, beside it.
- Students who know of the calibration, who keep answers alone, begin the texts
  themselves or choose among several, may learn as much as before. Do not call this
  teacher undistillable.
- {verified}
- A teacher of η < 0 writes texts that harm those who learn from them, honest users
  among them. That is no safety measure.
"""
_CHAIN = """\
The task reward looked at written equations as well as at the answer, if the texts
  write any; other wrong steps are not seen."""
_ANSWER = """\
The task reward did not look at written steps: right answers may stand behind wrong
  chains. Read the items before you trust the skill above."""


def write(
    out: Path,
    found: Calibrated,
    problems: Problems,
    lines: np.ndarray,
    settings: Any,
    about: Mapping[str, Any],
) -> None:
    """Writes everything but run.json; each file appears when it is complete.

    Args:
        out: the folder of the outputs.
        found: the result.
        problems: the user's.
        lines: `[problems]`, their lines in the user's file.
        settings: a `TeacherCalibration`.
        about: further lines of the model card.
    """
    card = card_of(found, settings, about)
    write_student(out / TEACHER, found.teacher, card)
    _write_lines(out / ITEMS, _items(found, problems, lines))
    _write_lines(out / HISTORY, found.history)


def card_of(found: Calibrated, settings: Any, about: Mapping[str, Any]) -> str:
    """The text of the model card.

    Args:
        found: the result.
        settings: a `TeacherCalibration`.
        about: further lines of its table, such as versions and models.
    """
    eta, before, after = settings.calibration.eta, found.before, found.after
    figures = {
        "solved": [f"{x.solved.mean():.1%}" for x in (before, after)],
        "ended in time": [f"{x.ended.mean():.1%}" for x in (before, after)],
        "tokens a text": [f"{x.tokens.mean():.1f}" for x in (before, after)],
        "calibration reward": [f"{x.calibration.mean():.2f}" for x in (before, after)],
        "divergence from the original": [f"{x.kl.mean():.2f}" for x in (before, after)],
    }
    table = {
        "η": eta,
        "task reward": " · ".join(settings.verifiers) or "a function of the caller's",
        "held-out problems": len(before.rows),
        **about,
    }
    chain = {"equations", "shown_equations"} & {*settings.verifiers}
    return _CARD.format(
        eta=f"{eta:g}",
        direction=_DIRECTIONS[int(np.sign(eta))],
        stopped=_STOPS[found.stopped],
        rollouts=found.rollouts,
        lines="\n".join(
            f"| {name} | {plain(value)} |" for name, value in table.items()
        ),
        figures="\n".join(
            f"| {name} | {a} | {b} |" for name, (a, b) in figures.items()
        ),
        verified=_CHAIN if chain else _ANSWER,
    )


def result_of(found: Calibrated) -> dict[str, Any]:
    """The figures of a finished run for run.json.

    Args:
        found: the result.
    """
    return {
        "stopped": found.stopped,
        "rollouts": found.rollouts,
        "evaluations": found.evaluations,
        "before": found.before.means(),
        "after": found.after.means(),
        "students_measured": 0,
    }


def _items(
    found: Calibrated, problems: Problems, lines: np.ndarray
) -> Iterable[dict[str, Any]]:
    """The held-out problems, with what each teacher wrote for them."""
    for place, row in enumerate(found.before.rows):
        yield {
            "line": int(lines[row]),
            "prompt": problems.prompts[row],
            "answer": problems.answers[row],
            "before": _item(found.before, place),
            "after": _item(found.after, place),
        }


def _item(drawn: Drawn, place: int) -> dict[str, Any]:
    """One text and what is known of it."""
    values = {name: getattr(drawn, name)[place].item() for name in _COLUMNS}
    return {"text": drawn.texts[place], **values}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON object a line."""
    with storage.atomic(path) as file:
        for row in rows:
            # A text may hold half of a surrogate pair, which UTF-8 has not.
            file.write((json.dumps(row) + "\n").encode())
