"""What a student learns from once a detector has rejected some rows."""

from typing import NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.detection.conformal import calibrate_bias
from protojax.detection.consistency import quarantine_targets
from protojax.detection.evidence import Evidence, Verdict, require_reading

# How sure the target of a reference is of its true class: odds of e^4, 98 %.
REFERENCE_LOG_ODDS = 4.0


class TrainingRows(NamedTuple):
    """Rows with all that a student may see of them.

    Attributes:
        examples: texts, and the labels that the student may see.
        columns: the batch's other columns by their names, each `[rows, ...]`.
    """

    examples: Examples
    columns: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> "TrainingRows":
        """Some of the rows.

        Args:
            rows: `[taken]`, indices or a mask.
        """
        columns = {name: column[rows] for name, column in self.columns.items()}
        return TrainingRows(data.take(self.examples, rows), columns)


def as_they_arrived(examples: Examples, teacher: TeacherOutputs) -> TrainingRows:
    """Rows with the teacher's outputs, believed as they are.

    Args:
        examples: the rows.
        teacher: what the teacher says of them.
    """
    columns = {"teacher_logits": teacher.logits, "teacher_features": teacher.features}
    return TrainingRows(examples, columns)


def training_rows(
    evidence: Evidence,
    verdict: Verdict,
    prototypes: Prototypes,
    *,
    action: str = "replace",
    examples: Examples | None = None,
) -> TrainingRows:
    """The transfer rows, those that were rejected in quarantine.

    Rejected rows lose label, teacher logits and teacher features; the trusted model's
    take their place. The teacher's bias towards a class, which flipped labels leave
    behind on clean text too, is taken out with the help of the references.

    Args:
        evidence: what the defender holds.
        verdict: from a detector with a trusted model.
        prototypes: of the teacher's features, with a leading `[layers]` axis.
        action: "replace", or "drop" to leave rejected rows out.
        examples: the transfer rows in another form, None for the evidence's.

    Raises:
        ValueError: those of `quarantine_targets` and `calibrate_bias`, a verdict
            without a reading, or a rejected row to which it gives no class.
    """
    require_reading(verdict)
    examples = evidence.transfer if examples is None else examples
    bias = calibrate_bias(
        evidence.teacher_on_references.logits, evidence.references.labels
    )
    targets = quarantine_targets(
        evidence.teacher.logits + bias,
        examples.labels,
        verdict.rejected,
        verdict.anchor_logits,
        verdict.anchor_classes,
        action=action,
    )
    rows = TrainingRows(
        examples._replace(labels=np.asarray(targets.labels)),
        {
            "teacher_logits": np.asarray(targets.teacher_logits),
            "teacher_features": _trusted_features(
                evidence.teacher.features,
                prototypes,
                verdict.rejected,
                verdict.anchor_classes,
            ),
            "anchors": np.asarray(targets.anchors),
        },
    )
    return rows.take(np.asarray(targets.keep))


def with_references(
    rows: TrainingRows,
    references: Examples,
    outputs: TeacherOutputs,
) -> TrainingRows:
    """Training rows and references, whose logits say their true class.

    The teacher's own logits on them came through the channel that is not trusted. Its
    features did too: they matter only to a student that imitates hidden states.

    Args:
        rows: of the transfer set.
        references: trusted rows.
        outputs: the teacher's on these; its features are taken.
    """
    classes = outputs.logits.shape[1]
    # Of a single class every logit says the same.
    logit = REFERENCE_LOG_ODDS + np.log(max(classes - 1, 1))
    columns = {
        "teacher_logits": logit * np.eye(classes)[references.labels],
        "teacher_features": outputs.features,
        "anchors": references.labels,
    }
    return TrainingRows(
        data.concatenate(rows.examples, references),
        {
            name: np.concatenate([column, columns[name]]).astype(column.dtype)
            for name, column in rows.columns.items()
        },
    )


def _trusted_features(
    features: np.ndarray,
    prototypes: Prototypes,
    rejected: np.ndarray,
    classes: np.ndarray,
) -> np.ndarray:
    """Features whose rejected rows are the mean prototype of their class.

    Args:
        features: `[rows, layers, dim]`.
        prototypes: with a leading `[layers]` axis.
        rejected: `[rows]`, bool.
        classes: `[rows]`, int, the trusted model's.
    """
    # A row whose features are not finite has class -1, which would index the last.
    unread = int(np.sum(classes[rejected] < 0))
    validate.require(not unread, "rejected rows without anchor class", unread, "= 0")
    features = np.array(features)
    for layer in range(features.shape[1]):
        weights = prototypes.counts[layer][:, None] * (
            prototypes.labels[layer][:, None] == np.arange(classes.max(initial=0) + 1)
        )
        means = weights.T @ prototypes.vectors[layer]
        means /= np.maximum(weights.sum(0), 1)[:, None]
        features[rejected, layer] = means[classes[rejected]]
    return features
