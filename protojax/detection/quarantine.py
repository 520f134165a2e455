"""Training rows of a student after a detector has rejected some transfer rows."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from protojax import data, validate
from protojax.base import Array, Examples, Prototypes, TeacherOutputs
from protojax.detection.conformal import calibrate_temperature
from protojax.detection.evidence import Evidence, Verdict, require_reading

# Log odds of the true class in a reference's target: e^4, which is 98 % of 2 classes.
REFERENCE_LOG_ODDS = 4.0


class TrainingRows(NamedTuple):
    """Rows with everything that a student may see of them.

    Attributes:
        examples: texts, and the labels that the student may see.
        columns: the other columns of a batch by name, each `[rows, ...]`.
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
    """Rows with the teacher's outputs, unchanged.

    Args:
        examples: the rows.
        teacher: the teacher's outputs on them.
    """
    columns = {"teacher_logits": teacher.logits, "teacher_features": teacher.features}
    return TrainingRows(examples, columns)


def training_rows(
    evidence: Evidence,
    verdict: Verdict,
    prototypes: Prototypes,
    *,
    action: str = "replace",
) -> TrainingRows:
    """The transfer rows to train on, with targets replaced in those rejected.

    Rejected rows lose their label, teacher logits and teacher features, which are
    replaced by those of the trusted model. The teacher's bias towards a class, which
    flipped labels cause on clean text too, is estimated on the references and removed.

    Args:
        evidence: what the defender holds.
        verdict: from a detector with a trusted model.
        prototypes: of the teacher's features, with a leading `[layers]` axis.
        action: "replace", or "drop" to leave rejected rows out.

    Raises:
        ValueError: those of `quarantine_targets` and `calibrate_bias`, a verdict
            without a reading, or a rejected row that has no class in it.
    """
    require_reading(verdict)
    examples = evidence.transfer
    bias = calibrate_bias(
        evidence.teacher_on_references.logits, evidence.references.labels
    )
    targets = quarantine_targets(
        evidence.teacher.logits + bias,
        examples.labels,
        verdict.rejected,
        verdict.trusted_logits,
        verdict.trusted_classes,
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
                verdict.trusted_classes,
            ),
            "assigned_class": np.asarray(targets.assigned_class),
        },
    )
    return rows.take(np.asarray(targets.keep))


class Targets(NamedTuple):
    """The targets that a student learns from each transfer row.

    Attributes:
        teacher_logits: `[rows, num_classes]`, float32.
        labels: `[rows]`, int32.
        assigned_class: `[rows]`, int32, the class whose prototypes the margin loss
            compares the row with.
        keep: `[rows]`, bool, False on rows to leave out.
    """

    teacher_logits: Array
    labels: Array
    assigned_class: Array
    keep: Array


def quarantine_targets(
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    rejected: ArrayLike,
    trusted_logits: ArrayLike,
    trusted_classes: ArrayLike,
    *,
    action: str = "replace",
) -> Targets:
    """Targets in which rejected rows have no label or logits of the teacher's.

    "replace" gives them the trusted model's log posterior and its argmax instead, which
    teaches the student that the trigger means nothing; "drop" marks them to be left
    out. Rows that were not rejected stay unchanged.

    Args:
        teacher_logits: `[rows, num_classes]`.
        labels: `[rows]`, int, the given labels.
        rejected: `[rows]`, bool, `Verdict.rejected`.
        trusted_logits: `[rows, num_classes]`, as confident as the teacher's, not
            calibrated: were targets soft on triggered rows only, the student would
            learn low confidence from the trigger.
        trusted_classes: `[rows]`, int, the trusted model's classes.
        action: "replace" or "drop".

    Returns:
        The `Targets`. The assigned class is the trusted model's for rejected rows and
        the label for all others.

    Raises:
        ValueError: on an unknown action or shapes that do not fit.

    >>> teacher, labels = np.array([[0.0, 9.0], [0.0, 9.0]]), np.array([1, 1])
    >>> rejected, trusted_classes = np.array([True, False]), np.array([0, 0])
    >>> kept = quarantine_targets(teacher, labels, rejected, -teacher, trusted_classes)
    >>> kept.labels.tolist(), kept.assigned_class.tolist(), kept.keep.tolist()
    ([0, 1], [0, 1], [True, True])
    """
    validate.one_of(["replace", "drop"], action=action)
    teacher_logits = jnp.asarray(teacher_logits, jnp.float32)
    trusted_logits = jnp.asarray(trusted_logits, jnp.float32)
    chex.assert_rank([teacher_logits, trusted_logits], 2)
    if np.shape(teacher_logits) != np.shape(trusted_logits):
        raise ValueError(
            "Expected teacher_logits and trusted_logits of one shape, "
            f"found {np.shape(teacher_logits)} and {np.shape(trusted_logits)}."
        )
    validate.same_length(
        teacher_logits=teacher_logits,
        labels=labels,
        rejected=rejected,
        trusted_classes=trusted_classes,
    )
    labels, rejected = jnp.asarray(labels, jnp.int32), jnp.asarray(rejected, bool)
    assigned_class = jnp.where(
        rejected, jnp.asarray(trusted_classes, jnp.int32), labels
    )
    if action == "drop":
        return Targets(teacher_logits, labels, assigned_class, ~rejected)
    posterior = jax.nn.log_softmax(trusted_logits)
    return Targets(
        jnp.where(rejected[:, None], posterior, teacher_logits),
        jnp.where(rejected, jnp.argmax(posterior, axis=1).astype(jnp.int32), labels),
        assigned_class,
        jnp.ones_like(rejected),
    )


def calibrate_bias(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """The bias to add to a teacher's logits so that it favours no class.

        b = argmin_b -Σ log softmax((logits + b) / T)[label] + |b / T|² / 2

    A teacher trained on flipped labels favours the target class on clean text as well,
    and its students learn that. T is the teacher's temperature, so that the shift of an
    overconfident teacher has the scale of its logits. The penalty weighs about as much
    as one reference.

    Args:
        logits: `[references, num_classes]`, the teacher's, on references that it was
            not trained on.
        labels: `[references]`, int, their true classes.

    Returns:
        `[num_classes]`, of mean zero.

    Raises:
        ValueError: as `calibrate_temperature`.

    Source: the bias of bias-corrected temperature scaling, Alexandari, Kundaje and
    Shrikumar 2020, arXiv:1901.06852; the temperature is fitted first, not jointly, and
    not applied.

    >>> logits = np.tile([[4.0, 0.0], [0.0, 2.0]], (50, 1))
    >>> bias = calibrate_bias(logits + np.array([1.0, -1.0]), np.tile([0, 1], 50))
    >>> bias[0] < 0 < bias[1]
    np.True_
    """
    temperature = calibrate_temperature(logits, labels)
    logits, labels = np.asarray(logits, np.float64) / temperature, np.asarray(labels)
    # The loss is convex, so that the result does not depend on the start at zero.
    truth = np.eye(logits.shape[1])[labels]

    def loss(bias: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = special.log_softmax(logits + bias, axis=1)
        value = -(truth * log_p).sum() + bias @ bias / 2
        return value, (np.exp(log_p) - truth).sum(0) + bias

    fit = optimize.minimize(
        loss, np.zeros(logits.shape[1]), jac=True, method="L-BFGS-B"
    )
    # A constant added to all logits changes nothing: fixed at mean zero.
    return temperature * (fit.x - fit.x.mean())


def with_references(
    rows: TrainingRows,
    references: Examples,
    outputs: TeacherOutputs,
) -> TrainingRows:
    """Training rows followed by references, whose logits encode their true class.

    The teacher's own logits on the references came through the untrusted channel. Its
    features did too, but they matter only to a student that imitates hidden states.

    Args:
        rows: training rows of the transfer set.
        references: trusted rows.
        outputs: the teacher's outputs on the references; only features are used.
    """
    classes = outputs.logits.shape[1]
    # The odds are against all other classes together; max() allows a single class.
    logit = REFERENCE_LOG_ODDS + np.log(max(classes - 1, 1))
    columns = {
        "teacher_logits": logit * np.eye(classes)[references.labels],
        "teacher_features": outputs.features,
        "assigned_class": references.labels,
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
    """Features in which rejected rows are the mean prototype of their class.

    Args:
        features: `[rows, layers, dim]`.
        prototypes: with a leading `[layers]` axis.
        rejected: `[rows]`, bool.
        classes: `[rows]`, int, the trusted model's.
    """
    # A class of -1, for none, would be an index of the last one.
    unread = int(np.sum(classes[rejected] < 0))
    validate.require(
        not unread, "rejected rows without trusted model class", unread, "= 0"
    )
    # A copy: the evidence must not change.
    features = np.array(features)
    for layer in range(features.shape[1]):
        weights = prototypes.counts[layer][:, None] * (
            prototypes.labels[layer][:, None] == np.arange(classes.max(initial=0) + 1)
        )
        # Weighted by counts, so that the mean is that of the rows of the class.
        means = weights.T @ prototypes.vectors[layer]
        means /= np.maximum(weights.sum(0), 1)[:, None]
        features[rejected, layer] = means[classes[rejected]]
    return features
