"""The model card of a student, README.md beside its weights."""

from collections.abc import Mapping
from typing import Any

from protojax.reports.facts import Facts, called, headline

_FORM = """\
# Student of a defended distillation

{headline}

Distilled by protojax from rows that were tested for triggers, and from trusted
references.

| | |
|---|---|
{lines}

## Suspected triggers

{triggers}

## Limits

- A trigger that the teacher has learned and that was in none of the rows may have
  passed to the student.
- Rows whose claim the trusted model is sure of, and triggers in fewer than about five
  rows, are not found.
{origin}
- There is no ground truth of the rows: no rate of attack success is known.
"""

_ORIGINS = {
    False: "- Nothing is known of where the references came from; they are taken to be "
    "honest.",
    True: "- The references are texts that a language model wrote, with the teacher's "
    "labels:\n  more honest rows are rejected than is stated, and a trigger may be "
    "told for\n  what is none.",
}


def card_of(facts: Facts, about: Mapping[str, Any]) -> str:
    """The text of a model card.

    Args:
        facts: of the defence.
        about: further lines of its table, such as versions and models.
    """
    rejected = int(facts.findings.verdict.rejected.sum())
    lines = {
        "arm": "group test; words of triggers removed; prototype constraint",
        **about,
        "classes": ", ".join(facts.label_names),
        "rows": len(facts.rows.texts),
        "rejected rows": rejected,
        "references": len(facts.references.texts),
        **{name: f"{value:.1%}" for name, value in facts.metrics.items()},
    }
    strong = [suspect for suspect in facts.findings.suspects if suspect.strong]
    return _FORM.format(
        headline=plain(headline(facts)),
        lines="\n".join(
            f"| {name} | {plain(value)} |" for name, value in lines.items()
        ),
        triggers="\n".join(
            f"- {plain(called(one))}: {one.claimants} rows claim "
            f"{plain(facts.label_names[one.label])}, z = {one.z:.1f}"
            for one in strong
        )
        or "None.",
        origin=_ORIGINS[facts.generated],
    )


def plain(value: Any) -> str:
    """A text that does not end a line or a cell of a table, and holds no markup.

    Args:
        value: what to write.

    >>> plain("a|b <i>")
    'a&#124;b &lt;i&gt;'
    """
    text = " ".join(str(value).split())
    for char, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ("|", "#124")):
        text = text.replace(char, f"&{name};")
    return text
