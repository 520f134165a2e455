"""Data types of detection: a defender's evidence, a model's reading, a verdict.

    Evidence, options -> Verdict            a detector
    Evidence, settings -> Findings          the test of a set, `detect`
    Evidence, Verdict -> TrainingRows       `protojax.detection.quarantine`

`Evidence` has no field for ground truth, so that no detector can read which rows are
poisoned. Everything is NumPy on the host, so arrays of any library can be passed.
"""

from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples, TeacherOutputs


class Reading(NamedTuple):
    """Classes and logits that a model gives to rows.

    Attributes:
        classes: `[rows]`, int32.
        logits: `[rows, num_labels]`, float32.
    """

    classes: np.ndarray
    logits: np.ndarray

    def take(self, rows: np.ndarray) -> "Reading":
        """The reading of some of the rows.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        return Reading(self.classes[rows], self.logits[rows])


class Evidence(NamedTuple):
    """Everything that a defender knows about one transfer set.

    Attributes:
        transfer: the rows under test, as they arrived.
        teacher: the teacher's outputs on them, as they arrived.
        references: trusted rows with trusted labels.
        teacher_on_references: the same teacher's outputs on the references.
        held_out: `[held_out]`, int, the references that the trusted model did not
            learn from, which calibrate; None without a trusted model.
        trusted_on_transfer: the trusted model's reading of the transfer rows, or None.
        trusted_on_held_out: its reading of the held-out references, or None.
        student: the outputs of a briefly trained student on the transfer rows, or None.
            An attacker who alters the teacher's outputs does not control the student's
            features.
    """

    transfer: Examples
    teacher: TeacherOutputs
    references: Examples
    teacher_on_references: TeacherOutputs
    held_out: np.ndarray | None = None
    trusted_on_transfer: Reading | None = None
    trusted_on_held_out: Reading | None = None
    student: TeacherOutputs | None = None

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return self.teacher.logits.shape[1]

    def take(self, rows: np.ndarray) -> "Evidence":
        """The evidence on some of the transfer rows, with all references.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        reading, student = self.trusted_on_transfer, self.student
        return self._replace(
            transfer=data.take(self.transfer, rows),
            teacher=self.teacher.take(rows),
            trusted_on_transfer=reading and reading.take(rows),
            student=student and student.take(rows),
        )


# The rows that each field of `Evidence` describes.
_SPEAK_OF = {
    "teacher": "transfer",
    "teacher_on_references": "references",
    "trusted_on_transfer": "transfer",
    "trusted_on_held_out": "held_out",
    "student": "transfer",
}
_TRUSTED = ("held_out", "trusted_on_transfer", "trusted_on_held_out")


def check(evidence: Evidence) -> Evidence:
    """The same evidence, after a check that its arrays fit each other.

    Raises:
        ValueError: on arrays of different lengths or numbers of classes, only a part of
            the trusted model's reading, or held-out indices outside the references; the
            message names the field.
    """
    given = [name for name in _TRUSTED if getattr(evidence, name) is not None]
    bound = f"all of {', '.join(_TRUSTED)}, or none"
    # A reading without its calibration, or the reverse, cannot be tested.
    validate.require(len(given) in (0, len(_TRUSTED)), "evidence", given, bound)
    sizes = {
        "transfer": evidence.transfer.texts,
        "references": evidence.references.texts,
        "held_out": evidence.held_out,
    }
    for examples in ("transfer", "references"):
        labels = {f"{examples}.labels": getattr(evidence, examples).labels}
        validate.same_length(**{examples: sizes[examples]}, **labels)
    for name, rows in _SPEAK_OF.items():
        outputs = getattr(evidence, name)
        if outputs is None:
            continue
        arrays = {f"{name}.{part}": array for part, array in outputs._asdict().items()}
        validate.same_length(**{rows: sizes[rows]}, **arrays)
        found = outputs.logits.shape[1]
        bound = f"{evidence.num_labels}, as the teacher's logits have"
        same = found == evidence.num_labels
        validate.require(same, f"classes of {name}", found, bound)
    rows = len(evidence.references.texts)
    # A negative index would silently select a reference from the end.
    for row in () if evidence.held_out is None else evidence.held_out:
        bound = f"rows in [0, {rows}), the references"
        validate.require(0 <= row < rows, "held_out", int(row), bound)
    return evidence


def require_trusted(evidence: Evidence) -> None:
    """Raises where a detector needs the trusted model's reading and has none."""
    found = evidence.trusted_on_transfer
    bound = "the trusted model's reading"
    validate.require(found is not None, "evidence.trusted_on_transfer", found, bound)


def require_student(evidence: Evidence) -> None:
    """Raises where a detector needs a briefly trained student and has none."""
    bound = "outputs of a briefly trained student"
    found = evidence.student
    validate.require(found is not None, "evidence.student", found, bound)


class Verdict(NamedTuple):
    """A detector's decision on the transfer rows.

    Attributes:
        rejected: `[rows]`, bool.
        p_values: `[rows]`, lower is more suspicious.
        trusted_classes: `[rows]`, int32, the trusted model's classes of the rows, or
            None from a detector without one.
        trusted_logits: `[rows, num_labels]`, its logits, or None.
        untrusted: `[references]`, bool, references that no student should learn from
            either; None if there are none.
    """

    rejected: np.ndarray
    p_values: np.ndarray
    trusted_classes: np.ndarray | None = None
    trusted_logits: np.ndarray | None = None
    untrusted: np.ndarray | None = None


def require_reading(verdict: Verdict) -> None:
    """Raises where a verdict lacks the trusted model's reading of the rows."""
    bound = "the trusted model's, as a detector with a trusted model gives them"
    for field in ("trusted_classes", "trusted_logits"):
        found = getattr(verdict, field)
        validate.require(found is not None, f"verdict.{field}", found, bound)


class Suspect(NamedTuple):
    """A suspected trigger: what rejected rows share.

    Attributes:
        name: the words, symbols or other property that they share.
        kind: the kind of the group, such as "phrase" or "opening".
        claim: the claim in excess, "label" or "teacher".
        label: the claimed class.
        rows: how many transfer rows have it.
        claimants: how many of these make the claim.
        expected: how many honest claims are expected of them.
        references: how many references have it.
        z: the excess in standard deviations.
        p_value: the chance that the strongest honest group is as strong, see
            `excess.tail_p_values`.
        strong: whether it is called a trigger: it stands apart from honest groups, and
            enough rows make its claim.
    """

    name: str
    kind: str
    claim: str
    label: int
    rows: int
    claimants: int
    expected: float
    references: int
    z: float
    p_value: float
    strong: bool


class Findings(NamedTuple):
    """The result of the test.

    Attributes:
        verdict: the rejected transfer rows and their p-values.
        suspects: the suspected triggers, the strongest first: every group with a
            rejected row.
        reasons: `[rows]`, the number of a row's suspect, -1 for none.
        clean: whether the set as a whole looks clean: no group is strong.
    """

    verdict: Verdict
    suspects: tuple[Suspect, ...]
    reasons: np.ndarray
    clean: bool
