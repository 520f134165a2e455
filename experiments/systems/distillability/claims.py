"""Claims that the lines of the study allow, and its table.

Arms are compared problem by problem, seed by seed. A student is compared with the same
student of the original teacher, and with that of the control: the teacher that was
calibrated at η = 0 with the same reward and seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax.distillability import ATTACKERS, Budget, claim_of
from protojax.distillability.students import is_undistillable
from protojax.evals import Difference, mcnemar, mean_interval, paired_interval
from protojax.privacy import clopper_pearson

Row = Mapping[str, Any]
# Teacher, student and attacker of some lines -> the lines by their seeds.
Groups = Mapping[tuple[str, str, str], Mapping[int, Row]]
ORIGINAL, WITHHELD = "original", "no chain"


class Claim(NamedTuple):
    """A student beside the same student of the original teacher.

    Attributes:
        teacher: as lines name it.
        student: likewise.
        attacker: likewise.
        seeds: that both have.
        gain: of the share of right answers, over the same student of the original; of a
            student of the original itself, over "sft".
        control: the same, over the student of the control, or None where there is none.
        p_value: of McNemar's test against the original, for one seed; else None.
        budget: that the student took, in the mean over seeds.
    """

    teacher: str
    student: str
    attacker: str
    seeds: int
    gain: Difference
    control: Difference | None
    p_value: float | None
    budget: Budget

    @property
    def sentence(self) -> str:
        """The sentence that may be said."""
        points, *ends = (-100 * value for value in self.gain)
        said = claim_of(
            self.attacker, self.budget, points, interval=(min(ends), max(ends))
        )
        against = f" over {_counterpart(self)}" if self.teacher == ORIGINAL else ""
        seeds = f"{self.seeds} seeds"
        if self.seeds == 1:
            seeds = f"1 seed, McNemar's p = {self.p_value:.2g}"
        return f"{self.teacher}, {self.student}{against} ({seeds}): {said}"


def grouped(results: Sequence[Row]) -> Groups:
    """The lines of each teacher, student and attacker, by their seeds.

    Args:
        results: lines of results.jsonl.
    """
    found: dict[tuple, dict[int, Row]] = {}
    for row in results:
        key = row["teacher"], row["student"], row["attacker"]
        found.setdefault(key, {})[row["seed"]] = row
    return found


def right(row: Row) -> np.ndarray:
    """`[problems]`, bool, whether an answer is right.

    >>> right({"items": "ta-"}).tolist()
    [True, True, False]

    Args:
        row: a line.
    """
    return np.array([*row["items"]]) != "-"


def compared(first: Mapping[int, Row], second: Mapping[int, Row]) -> Difference | None:
    """The difference of two arms' answers, or None where they share no seed.

    Args:
        first: lines of an arm by their seeds.
        second: of another.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    sides = [
        np.stack([right(side[seed]) for seed in seeds]) for side in (first, second)
    ]
    return paired_interval(*sides)


def claims_of(results: Sequence[Row]) -> list[Claim]:
    """A claim for each student of a teacher that has a counterpart.

    Args:
        results: lines of results.jsonl.
    """
    groups, found = grouped(results), []
    for (teacher, student, attacker), rows in groups.items():
        if attacker not in ATTACKERS:
            continue
        other = groups.get((ORIGINAL, student, _counterpart_of(teacher, attacker)), {})
        gain = compared(rows, other)
        if gain is None or rows is other:
            continue
        reward = teacher.partition(", η")[0]
        control = groups.get((f"{reward}, η = +0", student, attacker), {})
        seeds = sorted(rows.keys() & other.keys())
        p_value = None
        if len(seeds) == 1:
            p_value = mcnemar(*(right(side[seeds[0]]) for side in (rows, other)))
        taken = [
            round(np.mean([rows[seed][name] for seed in seeds]))
            for name in ("queries", "teacher_tokens")
        ]
        found.append(
            Claim(
                teacher,
                student,
                attacker,
                len(seeds),
                gain,
                None if control is rows else compared(rows, control),
                p_value,
                Budget(*taken),
            )
        )
    return found


def _counterpart_of(teacher: str, attacker: str) -> str:
    """The student of the original that a student is compared with."""
    return "sft" if teacher == ORIGINAL else attacker


def _counterpart(claim: Claim) -> str:
    """The same, of a claim."""
    return _counterpart_of(claim.teacher, claim.attacker)


def verdicts_of(results: Sequence[Row]) -> list[str]:
    """For each harder teacher and size of student, whether it may be called so.

    The best attacker counts, by the upper end of its interval: the exact one of the
    mean over seeds, as if there were one seed, or Student's over seeds where that is
    wider. Nothing is said unless all adaptive students were tried.

    Args:
        results: lines of results.jsonl.
    """
    groups, found = grouped(results), []
    for teacher, student in dict.fromkeys(key[:2] for key in groups):
        if "η = -" not in teacher or not student:
            continue
        pair = teacher, student
        of_kind = {key[2]: rows for key, rows in groups.items() if key[:2] == pair}
        uppers = {kind: _upper(rows) for kind, rows in of_kind.items()}
        best = max(uppers, key=uppers.get)
        none = groups.get((ORIGINAL, student, "none"))
        nulls = [
            groups[key]
            for key in ((ORIGINAL, student, "answers_only"), (WITHHELD, student, "sft"))
            if key in groups
        ]
        said = (
            f"{teacher}, {student}: the best of {len(uppers)} kinds of students is "
            f"{best}, {100 * _mean(of_kind[best]):.1f} % right, at most "
            f"{100 * uppers[best]:.1f} %; "
        )
        if none is None or not nulls:
            found.append(said + "the nulls were not run, so nothing follows.")
            continue
        # Without them the best attacker is not known.
        lacking = [
            kind
            for kind, one in ATTACKERS.items()
            if one.adaptive and kind not in uppers
        ]
        if lacking:
            names = ", ".join(lacking)
            found.append(f"{said}{names} were not run, so nothing follows.")
            continue
        floor = _mean(none)
        withheld = max(map(_mean, nulls))
        may = is_undistillable(uppers[best], no_teacher=floor, withheld=withheld)
        found.append(
            f"{said}without a teacher {100 * floor:.1f} %, with steps withheld "
            f"{100 * withheld:.1f} %: it may {'' if may else 'not '}be called "
            '"undistillable".'
        )
    return found


def _mean(rows: Mapping[int, Row]) -> float:
    """The mean share of right answers over seeds."""
    return float(np.mean([row["answer"] for row in rows.values()]))


def _upper(rows: Mapping[int, Row]) -> float:
    """The upper end of the interval of the share of right answers."""
    mean, half = mean_interval([row["answer"] for row in rows.values()])
    items = len(next(iter(rows.values()))["items"])
    _, high = clopper_pearson(round(mean * items), items)
    return min(1.0, max(high, mean + (half or 0)))


def notes_of(results: Sequence[Row]) -> list[str]:
    """The sentences that may be said, one of each claim and verdict.

    Args:
        results: lines of results.jsonl.
    """
    return [claim.sentence for claim in claims_of(results)] + verdicts_of(results)


def table_of(results: Sequence[Row]) -> list[list[str]]:
    """The header and a line for each teacher and kind of student.

    A cell is the share of answers that are right / of whole texts, in percent: the mean
    over seeds, and the least and most of answers. Then points of answers over the same
    student of the original (over "sft" for another student of the original itself) and
    of the control, with 95 % intervals over the same problems and seeds.

    Args:
        results: lines of results.jsonl.
    """
    claims = {claim[:3]: claim for claim in claims_of(results)}
    header = ["teacher", "student", "learns by", "seeds", "answer", "whole text"]
    lines = [[*header, "over the original's", "over the control's"]]
    for key, by_seed in grouped(results).items():
        teacher, student, attacker = key
        rows = by_seed.values()
        answers = [100 * row["answer"] for row in rows]
        cell = f"{np.mean(answers):.1f} ({min(answers):.1f} to {max(answers):.1f})"
        chain = f"{np.mean([100 * row['chain'] for row in rows]):.1f}"
        line = [teacher, student or "–", attacker, str(len(rows)), cell, chain]
        claim = claims.get(key)
        gaps = (None, None) if claim is None else (claim.gain, claim.control)
        lines.append([*line, *map(_points, gaps)])
    return lines


def overview_of(results: Sequence[Row]) -> list[list[str]]:
    """The header and a line for each student and way to learn, a column for a teacher.

    A cell is the share of right answers in percent, the mean over seeds. It is bold
    where, for another teacher than the original, the 95 % interval of the difference
    over the seeds that both have is without 0.

    Args:
        results: lines of results.jsonl.
    """
    groups = grouped(results)
    moved = {
        claim[:3]
        for claim in claims_of(results)
        if claim.teacher != ORIGINAL and not claim.gain.low <= 0 <= claim.gain.high
    }
    teachers = dict.fromkeys(teacher for teacher, *_ in groups)
    lines = [["student", "learns by", *teachers]]
    # In the order of students, each with its ways to learn.
    ways = dict.fromkeys(key[1:] for key in groups)
    for student in dict.fromkeys(student for student, _ in ways):
        for attacker in (way for name, way in ways if name == student):
            keys = [(teacher, student, attacker) for teacher in teachers]
            cells = [
                "" if key not in groups else f"{100 * _mean(groups[key]):.1f}"
                for key in keys
            ]
            cells = [
                f"**{cell}**" if key in moved else cell
                for key, cell in zip(keys, cells, strict=True)
            ]
            lines.append([student or "–", attacker, *cells])
    return lines


def _points(gap: Difference | None) -> str:
    """A difference in percentage points."""
    if gap is None:
        return ""
    mean, low, high = (100 * value for value in gap)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
