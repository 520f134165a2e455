"""The trusted model: class prototypes of its features, and how it reads rows.

An encoder that never saw the transfer set or the teacher, fine-tuned on references or
as it was pretrained, gives every row features. The class of the nearest prototype of
trusted rows is how it reads a row; it is weak, and it cannot have learned a trigger.
"""

from typing import NamedTuple

import numpy as np

from protojax import prototypes
from protojax.base import Array, Prototypes, TeacherOutputs
from protojax.detection.conformal import calibrate_temperature
from protojax.detection.evidence import Reading


class TrustedModel(NamedTuple):
    """How the outputs of a trusted encoder are read.

    Attributes:
        prototypes: of its features on trusted rows, by class.
        metric: "cosine" or "l2".
        temperature: of logits that are distances to the prototypes, None where the
            encoder has learned logits of its own.
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
    """The trusted model whose prototypes lie on some trusted rows.

    Args:
        key: of the first centres.
        outputs: of the encoder on the rows that teach it; those that calibrate a test
            must not be among them, for they have to be like rows under test.
        labels: `[rows]`, int.
        num_prototypes: over all classes.
        metric: "cosine" or "l2".
        num_iters: of k-means.
        frozen: whether the encoder's own logits mean nothing, so that distances to the
            prototypes are made logits of an honest temperature.
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
        outputs: of its encoder on the rows.

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
    """Logits `[rows, num_labels]`: minus a class's nearest distance, times 20.

    The factor is the reach of a temperature that is fitted afterwards. A class without
    a prototype is as far away as the farthest of all; a row of no finite distance is
    not asked, for it would take all others along.
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
