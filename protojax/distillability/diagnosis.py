"""Which trap holds a teacher and a student back, read off their figures."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from protojax import validate


class Figures(NamedTuple):
    """The measurements of a teacher and a student; None where there could be none.

    Texts are drawn at temperature 1. Figures of the teacher's tokens that compare
    probabilities need the same tokens; others are of bytes, or of texts.

    Attributes:
        same_tokens: whether both have the same tokenizer.
        prompts: how many prompts there were.
        texts: texts of each model.
        k: the tokens of the teacher that are no tail.
        gap: KL(teacher ‖ student), nats a text, on the teacher's texts.
        gap_error: its standard error.
        gap_per_byte: the same divided by the bytes of the texts.
        own_gap: KL(student ‖ teacher), nats a text, on the student's texts.
        own_gap_error: its standard error.
        teacher_overlap: the probability that both share at the teacher's tokens; with
            different tokenizers an estimate between common cuts, see `sampled_overlap`.
        student_overlap: the same at the student's tokens.
        tail_mass: the teacher's probability outside its top k at its own tokens.
        own_tail_mass: the same at the student's tokens.
        tail_share: share of the squared slope of the forward divergence that comes from
            there, on the teacher's texts.
        positions: KL(teacher ‖ student) at each token (or common cut) of its texts.
        own_positions: KL(student ‖ teacher) likewise on the student's.
        teacher_ended: share of the teacher's texts that ended by themselves.
        student_ended: share of the student's.
        teacher_accuracy: share of the teacher's texts with the right answer.
        student_accuracy: share of the student's.
        starts: tokens of the student's texts that the teacher continued, 0 first.
        continuations: the teacher's accuracy behind each, see `continuation_success`.
        reached: how many texts have that many tokens.
        executability: see `executability`.
        faithfulness: see `chain_faithfulness`, of right texts that have equations.
        with_steps: how many these are.
    """

    same_tokens: bool
    prompts: int
    texts: int
    k: int
    gap: float
    gap_error: float
    gap_per_byte: float
    own_gap: float
    own_gap_error: float
    teacher_overlap: float
    student_overlap: float
    tail_mass: float
    own_tail_mass: float | None
    tail_share: float | None
    positions: Sequence[float]
    own_positions: Sequence[float]
    teacher_ended: float
    student_ended: float
    teacher_accuracy: float | None = None
    student_accuracy: float | None = None
    starts: Sequence[int] = ()
    continuations: Sequence[float] = ()
    reached: Sequence[int] = ()
    executability: float | None = None
    faithfulness: float | None = None
    with_steps: int = 0


class Trap(NamedTuple):
    """One trap, as a pair's figures show it.

    Attributes:
        name: of the trap.
        severity: in [0, 1], or None where it was not measured.
        at_least: the severity that the number of texts supports: the lower end of a
            95 % interval where answers are counted, else the severity.
        measure: what the severity is a share of.
        finding: a sentence for readers who know no statistics.
        advice: what to do about it.
    """

    name: str
    severity: float | None
    at_least: float | None
    measure: str
    finding: str
    advice: str


def traps_of(figures: Figures) -> list[Trap]:
    """The traps of a pair, in a fixed order.

    Severities are shares of different things: each says how much of something is lost,
    so that the largest is worth the first look, no more.

    - gap: the probability of the teacher's next token that the student does not share.
    - off-policy drift: the share of the teacher's right answers that are lost behind
      the longest beginnings of the student that half of its texts have; without
      answers, how much less both share at the student's tokens than at the teacher's.
    - tail noise: the share of the squared slope that comes from the teacher's tail.
    - wrong steps: the share of the teacher's right answers whose equations are false.

    Args:
        figures: of the pair.
    """
    return [_gap(figures), _drift(figures), _tail(figures), _steps(figures)]


def worst(traps: Sequence[Trap], *, least: float = 0.2) -> Trap | None:
    """The trap of the highest severity, None where none is known to reach a bound.

    Args:
        traps: of a pair.
        least: in [0, 1], a rule of thumb.

    Raises:
        ValueError: the bound is not in [0, 1].
    """
    validate.fraction(least=least)
    found = [trap for trap in traps if trap.at_least is not None]
    found = [trap for trap in found if trap.at_least >= least]
    return max(found, key=lambda trap: trap.severity, default=None)


def headline(figures: Figures, *, least: float = 0.2) -> str:
    """The finding in one or two sentences.

    Args:
        figures: of the pair.
        least: see `worst`.
    """
    found = worst(traps_of(figures), least=least)
    teacher, student = figures.teacher_accuracy, figures.student_accuracy
    first = ""
    if teacher is not None and student is not None:
        first = f"The teacher answers {teacher:.0%} right, the student {student:.0%}. "
        if student >= teacher:
            first += "There is nothing to gain here from this teacher's answers. "
    if found is None:
        return f"{first}No trap stands out for this pair."
    return f"{first}What holds this pair back most is the {found.name}. {found.finding}"


def lower_drop(first: float, second: float, count: float, other: float) -> float:
    """The lower end of a 95 % interval of the difference of two shares.

    Each share gets one success and one failure more, so that a few texts that are all
    right or all wrong prove little.

    Args:
        first: in [0, 1].
        second: in [0, 1], of other texts.
        count: texts of the first share.
        other: of the second, infinity where it is known.

    References:
        Agresti and Caffo, 2000, The American Statistician 54(4).

    >>> round(lower_drop(0.25, 0.0, 8, 8), 2), round(lower_drop(0.8, 0.5, 128, 128), 2)
    (-0.14, 0.18)
    """

    def smoothed(share: float, count: float) -> tuple[float, float]:
        if math.isinf(count):
            return share, 0.0
        share = (share * count + 1) / (count + 2)
        return share, share * (1 - share) / (count + 2)

    (a, error_a), (b, error_b) = smoothed(first, count), smoothed(second, other)
    return a - b - 1.96 * math.sqrt(error_a + error_b)


def _gap(figures: Figures) -> Trap:
    lost = 1 - figures.teacher_overlap
    finding = (
        f"At the teacher's next word, {lost:.0%} of the probability goes to "
        "other words than the student would give it to."
    )
    if figures.executability is not None and figures.student_accuracy is not None:
        finding += (
            f" A student that is made to begin as the teacher does is right in "
            f"{figures.executability:.0%} of cases, by itself in "
            f"{figures.student_accuracy:.0%}."
        )
    return Trap(
        "gap between teacher and student",
        lost,
        lost,
        "of the probability of the teacher's next token is not shared",
        finding,
        "Let the student learn some of the teacher's texts first (cold start), of "
        "several texts of the teacher take the one that the student finds likeliest, "
        "or take a larger student, or a teacher that was calibrated towards this one.",
    )


def _drift(figures: Figures) -> Trap:
    advice = (
        "Let the student learn on texts that it writes itself (on-policy "
        "distillation), with some of the teacher's among them; keep texts short at "
        "first. Where the teacher cannot continue the student's beginnings, whole "
        "texts of the teacher teach more than its probabilities there."
    )
    counts = figures.reached
    # One place that is fixed by lengths: the lowest of several would be low by chance.
    places = [i for i, count in enumerate(counts) if i and 2 * count >= counts[0]]
    if places and figures.continuations[0] > 0:
        start = places[-1]
        first, behind = figures.continuations[0], figures.continuations[start]
        severity = max(0.0, 1 - behind / first)
        lower = lower_drop(first, behind, counts[0], counts[start])
        at_least = max(0.0, lower / first)
        finding = (
            f"The teacher is right in {first:.0%} of cases from the beginning, and in "
            f"{behind:.0%} where it has to continue {figures.starts[start]} tokens of "
            "the student."
        )
        if severity > 0 and at_least == 0:
            finding += f" {counts[0]} texts are too few to tell these apart."
        measure = "of the teacher's right answers are lost behind the student's words"
    else:
        severity = max(0.0, figures.teacher_overlap - figures.student_overlap)
        at_least = severity
        finding = (
            f"Both models share {figures.teacher_overlap:.0%} of the next word's "
            f"probability where the teacher writes, and {figures.student_overlap:.0%} "
            "where the student does."
        )
        measure = "less of the probability is shared where the student writes"
    return Trap("off-policy drift", severity, at_least, measure, finding, advice)


def _tail(figures: Figures) -> Trap:
    finding = (
        f"The teacher gives {figures.tail_mass:.1%} of its probability to words that "
        f"are not among its {figures.k} likeliest."
    )
    if figures.tail_share is None:
        finding += " What they do to the student was not measured: it has other tokens."
    else:
        finding += f" They make {figures.tail_share:.0%} of what the student is taught."
    return Trap(
        "tail noise",
        figures.tail_share,
        figures.tail_share,
        "of the squared slope comes from tokens that the teacher hardly writes",
        finding,
        f"Learn the {figures.k} likeliest tokens and all others as one outcome, not "
        "the others one by one, and do not renormalise the first; or learn texts.",
    )


def _steps(figures: Figures) -> Trap:
    severity = at_least = None
    finding = "Not measured: it needs right answers with equations."
    if figures.faithfulness is not None and not math.isnan(figures.faithfulness):
        severity, count = 1 - figures.faithfulness, figures.with_steps
        at_least = max(0.0, lower_drop(severity, 0.0, count, math.inf))
        finding = (
            f"Of {figures.with_steps} right answers with equations, {severity:.0%} "
            "have a false one."
        )
    return Trap(
        "wrong steps of the teacher",
        severity,
        at_least,
        "of the teacher's right answers with equations have a false one",
        finding,
        "Do not teach these steps: learn the answers alone, or only texts whose steps "
        "are right, and ask how this teacher was trained.",
    )
