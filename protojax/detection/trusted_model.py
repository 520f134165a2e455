"""The trusted model: class prototypes of an encoder's features, and its readings.

An encoder that never saw the transfer set or the teacher, either fine-tuned on
references or as it was pretrained, computes features of every row. The model reads a
row as the class of the nearest prototype of trusted rows. It is weak, but it cannot
have learned a trigger.
"""

from typing import NamedTuple

import numpy as np

from protojax import prototypes
from protojax.base import Array, Prototypes, TeacherOutputs
from protojax.detection.conformal import calibrate_temperature
from protojax.detection.evidence import Reading


class TrustedModel(NamedTuple):
    """The class prototypes by which the outputs of a trusted encoder are read.

    Attributes:
        prototypes: class prototypes of its features on trusted rows.
        metric: "cosine" or "l2".
        temperature: the temperature of logits that are made of distances to the
            prototypes; None where the encoder has learned logits.
    """

    prototypes: Prototypes
    metric: str = "cosine"
    temperature: float | None = None


def fit_trusted_model(
    key: Array,
    outputs: TeacherOutputs,
    labels: np.ndarray,
    *,
    num_prototypes: int,
    metric: str = "cosine",
    num_iters: int = 25,
    frozen: bool = False,
) -> TrustedModel:
    """The trusted model with prototypes fitted to some trusted rows.

    Args:
        key: PRNG key of the initial centres.
        outputs: the encoder's outputs on the rows to fit. Rows that calibrate a test
            must not be among them, because they have to be exchangeable with the rows
            under test.
        labels: `[rows]`, int, the true classes.
        num_prototypes: number of prototypes over all classes.
        metric: "cosine" or "l2".
        num_iters: iterations of k-means.
        frozen: whether the encoder has no trained classifier, so that its logits are
            replaced by distances to the prototypes with a calibrated temperature.
    """
    centres = prototypes.class_prototypes(
        key,
        outputs.features[:, -1],
        labels,
        outputs.logits.shape[1],
        num_prototypes=num_prototypes,
        metric=metric,
        num_iters=num_iters,
    )
    trusted = TrustedModel(centres, metric)
    if not frozen:
        return trusted
    near = _nearness(trusted, outputs)
    return trusted._replace(temperature=calibrate_temperature(near, labels))


def read(trusted: TrustedModel, outputs: TeacherOutputs) -> Reading:
    """The reading of rows by a trusted model.

    Args:
        trusted: from `fit_trusted_model`.
        outputs: its encoder's outputs on the rows.

    >>> import jax
    >>> features = np.eye(2, dtype=np.float32)[[0, 0, 1, 1], None]
    >>> outputs = TeacherOutputs(np.zeros((4, 2), np.float32), features)
    >>> model = fit_trusted_model(
    ...     jax.random.key(0), outputs, np.array([0, 0, 1, 1]), num_prototypes=2)
    >>> read(model, outputs).classes.tolist()
    [0, 0, 1, 1]
    """
    classes = prototypes.class_of_nearest(
        outputs.features[:, -1], trusted.prototypes, metric=trusted.metric
    )
    logits = outputs.logits
    if trusted.temperature is not None:
        logits = _nearness(trusted, outputs) / trusted.temperature
    return Reading(np.asarray(classes), logits)


def _nearness(trusted: TrustedModel, outputs: TeacherOutputs) -> np.ndarray:
    """Logits `[rows, num_labels]`: −20 times the distance to a class's prototypes.

    The factor brings distances into the range of the temperature that is fitted later.
    A class without a prototype is as far away as the farthest finite distance: with a
    distance that is not finite, a single row would change the logits of all others.
    """
    distances = np.asarray(
        prototypes.distances(
            outputs.features[:, -1], trusted.prototypes.vectors, metric=trusted.metric
        )
    )
    labels = np.asarray(trusted.prototypes.labels)
    farthest = distances.max(initial=0.0, where=np.isfinite(distances))
    nearest = [
        distances[:, labels == label].min(1, initial=farthest)
        for label in range(outputs.logits.shape[1])
    ]
    return -20 * np.stack(nearest, axis=1).astype(np.float32)
