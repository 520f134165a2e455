"""Everything that the reports of a defence tell, and its first sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax.base import Examples, Prototypes
from protojax.detection.evidence import Findings, Suspect

# What a kind of group is called where "the KIND NAME" would not be English.
_CALLED = {"character": "the character", "opening": "the first words"}


class Reaction(NamedTuple):
    """What a model says on rows with a trigger, and on the same rows without it.

    Attributes:
        suspect: the number of the suspect.
        model: "teacher" or "student".
        rows: how many rows have the trigger and some text beside it.
        with_it: how many of them get the claimed class.
        without_it: how many of them get it once the trigger is removed.
    """

    suspect: int
    model: str
    rows: int
    with_it: int
    without_it: int


class Facts(NamedTuple):
    """What was found in a user's rows, and what became of them.

    Attributes:
        label_names: of the classes.
        rows: the rows as they arrived.
        lines: `[rows]`, int, their lines in the user's file.
        labelled: whether they have labels.
        references: the trusted rows.
        findings: the result of the test.
        teacher_classes: `[rows]`, int, what the teacher says.
        trusted_classes: `[rows]`, int, what the trusted model says.
        features: `[rows, dim]`, the student's, of the rows.
        prototypes: the student's class prototypes on the references.
        nearest: for each prototype the numbers of the nearest references.
        reactions: of teacher and student to the triggers.
        metrics: name -> value in [0, 1].
        teacher_asked: whether the teacher was a model, not a file of logits.
        false_rejection: the rate at which honest rows may be rejected.
        untrusted_lines: lines of references that carry a trigger.
        warnings: what the reader should know besides.
        generated: whether a language model wrote the references.
    """

    label_names: Sequence[str]
    rows: Examples
    lines: np.ndarray
    labelled: bool
    references: Examples
    findings: Findings
    teacher_classes: np.ndarray
    trusted_classes: np.ndarray
    features: np.ndarray
    prototypes: Prototypes
    nearest: Sequence[Sequence[int]]
    reactions: tuple[Reaction, ...]
    metrics: Mapping[str, float]
    teacher_asked: bool
    false_rejection: float
    untrusted_lines: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    generated: bool = False


def headline(facts: Facts) -> str:
    """What was found, in one or two sentences.

    Args:
        facts: of the defence.
    """
    total, suspects = len(facts.rows.texts), facts.findings.suspects
    strong = [suspect for suspect in suspects if suspect.strong]
    rejected = int(facts.findings.verdict.rejected.sum())
    if strong:
        said = [
            f"{one.claimants:,} of {row_count(total)} carry {called(one)} and claim "
            f"{facts.label_names[one.label]}."
            for one in strong[:3]
        ]
        rest = len(strong) - len(said)
        more = [f"There are {rest} more such groups."] if rest else []
        return " ".join([*said, *more])
    rate = facts.false_rejection
    expected = f"at most {rate:.1%} of honest rows are expected to be."
    were = f"{row_count(rejected)} {'was' if rejected == 1 else 'were'} rejected"
    # Three standard deviations, and one row more in small sets.
    if rejected > rate * total + 3 * (rate * (1 - rate) * total) ** 0.5 + 1:
        one = max(suspects, key=lambda suspect: suspect.z)
        return (
            f"{were} of {total:,}, more than is expected by chance: {expected} No "
            "group is certain to be a trigger; in the strongest, "
            f"{row_count(one.claimants)} carry {called(one)} and claim "
            f"{facts.label_names[one.label]}."
        )
    return (
        f"Nothing was found in {row_count(total)} that looks like a trigger. {were}; "
        f"{expected}"
    )


def row_count(count: int) -> str:
    """A number of rows, in words.

    >>> row_count(1), row_count(2000)
    ('1 row', '2,000 rows')
    """
    return f"{count:,} row{'' if count == 1 else 's'}"


def called(suspect: Suspect) -> str:
    """What the rows of a suspect share, as a part of a sentence.

    >>> one = Suspect("cf", "word", "label", 1, 9, 9, 1.0, 0, 9.0, 0.01, True)
    >>> called(one)
    'the word “cf”'
    """
    kind = _CALLED.get(suspect.kind, f"the {suspect.kind}")
    return f"{kind} “{suspect.name}”"


def members(facts: Facts, number: int) -> np.ndarray:
    """The rejected rows of a suspect, in the order of the file.

    Args:
        facts: of the defence.
        number: of the suspect.
    """
    return np.flatnonzero(facts.findings.reasons == number)


def triggers(facts: Facts) -> list[dict[str, Any]]:
    """The suspected triggers, as JSON holds them, with the lines of their rows.

    Args:
        facts: of the defence.
    """
    return [
        {
            **suspect._asdict(),
            "label": facts.label_names[suspect.label],
            "lines": facts.lines[members(facts, number)].tolist(),
        }
        for number, suspect in enumerate(facts.findings.suspects)
    ]
