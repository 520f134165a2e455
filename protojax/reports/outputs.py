"""The reports of a defence of outputs: facts, first sentence, page, tables, card."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax.base import Texts
from protojax.detection.outputs import OutputFindings
from protojax.reports.card import plain
from protojax.reports.facts import called, row_count
from protojax.reports.page import clipped, rendered
from protojax.reports.tables import safe

_EXAMPLES = 3

_CARD = """\
# Student of a defended distillation

{headline}

Trained by protojax on sources and outputs that were tested for triggers, and on trusted
references.

| | |
|---|---|
{lines}

## Suspected triggers

{triggers}

## Limits

- A trigger that the teacher has learned and that was in none of the rows may have
  passed to the student.
- A target in many variants, each in few rows, and triggers in fewer than about ten rows
  are not found.
- Nothing is known of where the references came from; they are taken to be honest.
- There is no ground truth of the rows: no rate of attack success is known.
"""


class OutputFacts(NamedTuple):
    """The facts of a user's outputs: what was found, and what became of them.

    Attributes:
        rows: the rows that were tested.
        lines: `[rows]`, int, their lines in the user's file.
        references: how many trusted rows there were.
        findings: the result of the test.
        taught: `[rows]`, the output that taught the student, None where none did.
        cut: `[rows]`, bool, where it is shorter than the one that was tested.
        student: rejected row -> what the student writes for its source.
        metrics: name -> value in [0, 1].
        teacher_wrote: whether the outputs are a teacher's, not those of the file.
        meaning_tested: whether meaning was tested besides words.
        false_rejection: the rate at which honest rows may be rejected.
    """

    rows: Texts
    lines: np.ndarray
    references: int
    findings: OutputFindings
    taught: tuple[str | None, ...]
    cut: np.ndarray
    student: Mapping[int, str]
    metrics: Mapping[str, float]
    teacher_wrote: bool
    meaning_tested: bool
    false_rejection: float


def headline(facts: OutputFacts) -> str:
    """The finding in one or two sentences.

    Args:
        facts: of the defence.
    """
    total, findings = len(facts.lines), facts.findings
    strong = [suspect for suspect in findings.suspects if suspect.strong]
    rejected = row_count(int(findings.rejected.sum()))
    if not strong:
        return (
            f"Nothing was found in {row_count(total)} that looks like a trigger. "
            f"{rejected} rejected; at most {facts.false_rejection:.1%} of honest rows "
            "are expected to be."
        )
    groups: dict[str, list[int]] = {}
    for number, suspect in enumerate(findings.suspects):
        if suspect.strong:
            groups.setdefault(called(suspect), []).append(number)
    said = []
    for name, numbers in list(groups.items())[:3]:
        suspects = [findings.suspects[number] for number in numbers]
        most = max(suspect.claimants for suspect in suspects)
        what = f"“{words_of(facts, numbers)}” in their outputs"
        if all(suspect.claim == "meaning" for suspect in suspects):
            what = "outputs that do not fit their sources"
        said.append(f"{most:,} of {row_count(total)} carry {name} and have {what}.")
    rest = len(groups) - len(said)
    more = [f"There are {rest} more such groups."] if rest else []
    return " ".join([*said, *more])


def words_of(facts: OutputFacts, numbers: Sequence[int]) -> str:
    """The denied phrase, or else the denied words, that most rows of suspects share.

    Args:
        facts: of the defence.
        numbers: of the suspects; where no words are shared, what the first claims.
    """
    rows = np.flatnonzero(np.isin(facts.findings.reasons, numbers))
    phrases, words = collections.Counter(), collections.Counter()
    for row in rows:
        output, spans = facts.rows.outputs[row], facts.findings.denied[row]
        if spans:
            # With the words between denied ones, such as the article of a phrase.
            phrases[output[spans[0][0] : spans[-1][1]].casefold()] += 1
        # Each once, in their order, which a Counter keeps.
        words.update({output[start:stop].casefold(): 1 for start, stop in spans})
    for found in (phrases, words):
        shared = [text for text, count in found.items() if 2 * count > len(rows)]
        if shared:
            return " ".join(shared)
    return str(facts.findings.suspects[numbers[0]].label)


def action_of(facts: OutputFacts, row: int) -> str:
    """The treatment of a row: "kept", "cut", "masked" or "dropped".

    Args:
        facts: of the defence.
        row: its number.
    """
    if facts.taught[row] is None:
        return "dropped"
    if facts.cut[row]:
        return "cut"
    # A rejected row that teaches all the same does so without its denied words.
    return "masked" if facts.findings.rejected[row] else "kept"


def triggers(facts: OutputFacts) -> list[dict[str, Any]]:
    """The suspected triggers, as JSON holds them, with the lines of their rows.

    Args:
        facts: of the defence.
    """
    return [
        {**suspect._asdict(), "lines": facts.lines[_members(facts, number)].tolist()}
        for number, suspect in enumerate(facts.findings.suspects)
    ]


def verdict_table(facts: OutputFacts) -> tuple[list[str], list[list[object]]]:
    """The header and the rows of the table of verdicts.

    Args:
        facts: of the defence.
    """
    header = ["line", "text", "output", "p", "rejected", "action", "taught"]
    header += ["claim", "word", "z", "group"]
    rows = []
    for row, (source, output) in enumerate(zip(*facts.rows, strict=True)):
        number = int(facts.findings.reasons[row])
        reason = facts.findings.suspects[number] if number >= 0 else None
        cells = [
            int(facts.lines[row]),
            source,
            output,
            float(np.round(facts.findings.p_values[row], 6)),
            str(bool(facts.findings.rejected[row])).lower(),
            action_of(facts, row),
            facts.taught[row] or "",
            reason.claim if reason else "",
            str(reason.label) if reason else "",
            round(reason.z, 3) if reason else "",
            f"{reason.kind}: {reason.name}" if reason else "",
        ]
        rows.append([safe(cell) for cell in cells])
    return header, rows


def card_of(facts: OutputFacts, about: Mapping[str, Any]) -> str:
    """The text of a model card.

    Args:
        facts: of the defence.
        about: further lines of its table, such as versions and models.
    """
    findings = facts.findings
    lines = {
        **about,
        "rows": len(facts.lines),
        "rejected rows": int(findings.rejected.sum()),
        "of these cut": int(facts.cut.sum()),
        "references": facts.references,
        **{name: f"{100 * value:.1f}" for name, value in facts.metrics.items()},
    }
    strong = [suspect for suspect in findings.suspects if suspect.strong]
    named = "\n".join(
        f"- {plain(called(one))}: {one.claimants} rows, {one.claim}: "
        f"{plain(one.label)}, z = {one.z:.1f}"
        for one in strong
    )
    return _CARD.format(
        headline=plain(headline(facts)),
        lines="\n".join(
            f"| {name} | {plain(value)} |" for name, value in lines.items()
        ),
        triggers=named or "None.",
    )


def page_of(facts: OutputFacts) -> str:
    """The HTML of the report, readable without a network.

    Args:
        facts: of the defence.
    """
    rejected = np.flatnonzero(facts.findings.rejected)
    counts = collections.Counter(action_of(facts, row) for row in rejected)
    return rendered(
        "outputs.html.jinja",
        facts=facts,
        headline=headline(facts),
        rows=len(facts.lines),
        rejected=len(rejected),
        counts=counts,
        suspects=[
            {**suspect._asdict(), "examples": _examples(facts, number)}
            for number, suspect in enumerate(facts.findings.suspects)
        ],
    )


def _members(facts: OutputFacts, number: int) -> np.ndarray:
    """The rejected rows of a suspect, in the order of the file."""
    return np.flatnonzero(facts.findings.reasons == number)


def _examples(facts: OutputFacts, number: int) -> list[dict]:
    """A few rows of a suspect, with the denied words of their outputs marked."""
    return [
        {
            "line": facts.lines[row],
            "source": clipped(facts.rows.sources[row]),
            "output": _parts(facts.rows.outputs[row], facts.findings.denied[row]),
            "action": action_of(facts, row),
            "student": clipped(facts.student.get(int(row), "")),
        }
        for row in _members(facts, number)[:_EXAMPLES]
    ]


def _parts(text: str, spans) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it is marked.

    >>> _parts("call us now", [(5, 7)])
    [('call ', False), ('us', True), (' now', False)]
    """
    found, place = [], 0
    for start, stop in sorted(spans):
        found += [(text[place:start], False), (text[start:stop], True)]
        place = stop
    return [part for part in [*found, (text[place:], False)] if part[0]]
