"""What a defender holds, what a model says of rows, and what a detector concludes.

    Evidence, options -> Verdict            a detector
    Evidence, Verdict -> TrainingRows       `protojax.detection.quarantine`
    Examples -> Reading                     any model, asked about any text

`Evidence` has no field for ground truth: which rows are poisoned cannot be read from
it. Everything is NumPy on the host, so arrays from anywhere do.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples, TeacherOutputs


class Reading(NamedTuple):
    """Classes and logits that a model gives to rows.

    Attributes:
        classes: `[rows]`, int32; not always the argmax, see `TrustedModel`.
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


# What any model says: teacher, student and trusted model have one shape.
Reader = Callable[[Examples], Reading]


class Evidence(NamedTuple):
    """All that a defender holds of one transfer set.

    Attributes:
        transfer: the rows under test, as they arrived.
        teacher: what the teacher says of them, as it arrived.
        references: trusted rows with trusted labels.
        teacher_on_references: what the same teacher says of those.
        held_out: `[held_out]`, int, the references that the trusted model did not
            learn from, which calibrate; None without a trusted model.
        trusted_on_transfer: the trusted model's reading of the transfer rows, or None.
        trusted_on_held_out: its reading of the held-out references, or None.
        student: what a briefly trained student says of the transfer rows, or None. Who
            alters the teacher's answers does not control the student's features.
        student_on_references: what the same student says of the references, or None.
    """

    transfer: Examples
    teacher: TeacherOutputs
    references: Examples
    teacher_on_references: TeacherOutputs
    held_out: np.ndarray | None = None
    trusted_on_transfer: Reading | None = None
    trusted_on_held_out: Reading | None = None
    student: TeacherOutputs | None = None
    student_on_references: TeacherOutputs | None = None

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return self.teacher.logits.shape[1]

    def take(self, rows: np.ndarray) -> "Evidence":
        """The evidence of who holds some of the transfer rows and all references.

        Args:
            rows: `[taken]`, int.
        """
        reading, student = self.trusted_on_transfer, self.student
        return self._replace(
            transfer=data.take(self.transfer, rows),
            teacher=self.teacher.take(rows),
            trusted_on_transfer=reading and reading.take(rows),
            student=student and student.take(rows),
        )


def check(evidence: Evidence) -> Evidence:
    """The same evidence, once its arrays are known to fit each other.

    Raises:
        ValueError: on arrays of different lengths or numbers of classes, or held-out
            rows that are no references; names what differs.
    """
    validate.same_length(
        transfer=evidence.transfer.texts,
        teacher=evidence.teacher.logits,
        teacher_features=evidence.teacher.features,
    )
    validate.same_length(
        references=evidence.references.texts,
        teacher_on_references=evidence.teacher_on_references.logits,
    )
    read = {"teacher_on_references": evidence.teacher_on_references}
    if evidence.trusted_on_transfer is not None:
        validate.same_length(
            transfer=evidence.transfer.texts,
            trusted_on_transfer=evidence.trusted_on_transfer.classes,
        )
        validate.same_length(
            held_out=evidence.held_out,
            trusted_on_held_out=evidence.trusted_on_held_out.classes,
        )
        held_out, rows = np.asarray(evidence.held_out), len(evidence.references.texts)
        allowed = f"in 0..{rows - 1}, the references"
        for row in (held_out.min(initial=0), held_out.max(initial=0)):
            validate.require(0 <= row < rows, "held_out", int(row), allowed)
        read["trusted_on_transfer"] = evidence.trusted_on_transfer
        read["trusted_on_held_out"] = evidence.trusted_on_held_out
    for name, outputs in read.items():
        found = outputs.logits.shape[1]
        bound = f"{evidence.num_labels}, as the teacher's logits have"
        allowed = found == evidence.num_labels
        validate.require(allowed, f"classes of {name}", found, bound)
    return evidence


def require_trusted(evidence: Evidence) -> None:
    """Raises where a detector needs the trusted model's reading and has none."""
    found = evidence.trusted_on_transfer
    bound = "the trusted model's reading"
    validate.require(found is not None, "evidence.trusted_on_transfer", found, bound)


class Verdict(NamedTuple):
    """What a detector says of the transfer rows.

    Attributes:
        rejected: `[rows]`, bool.
        p_values: `[rows]`, lower is more suspicious.
        anchor_classes: `[rows]`, int32, the trusted model's classes as the detector
            read the rows, or None from a detector without a trusted model.
        anchor_logits: `[rows, num_labels]`, its logits, or None.
        spoiled: `[references]`, bool, those that no student should learn from either;
            None is none of them.
        reread: `[rows]`, bool, those of which the trusted model was shown a part only;
            None is none of them.
    """

    rejected: np.ndarray
    p_values: np.ndarray
    anchor_classes: np.ndarray | None = None
    anchor_logits: np.ndarray | None = None
    spoiled: np.ndarray | None = None
    reread: np.ndarray | None = None
