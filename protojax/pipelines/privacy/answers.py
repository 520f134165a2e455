"""The answers of teachers on transfer rows, from which students learn."""

from collections.abc import Sequence

import numpy as np
from scipy import special


def soft_answers(logits: np.ndarray) -> np.ndarray:
    """The logits of the mean of several teachers' probabilities.

    Args:
        logits: `[K, teachers, rows, classes]`.

    Returns:
        `[K, rows, classes]`, float32; of one teacher its own logits.

    >>> np.exp(soft_answers(np.log([[[[0.2, 0.8]], [[0.6, 0.4]]]]))).round(3)
    array([[[0.4, 0.6]]], dtype=float32)
    """
    if logits.shape[1] == 1:
        return logits[:, 0].astype(np.float32)
    each = special.log_softmax(logits.astype(np.float64), -1)
    mean = special.logsumexp(each, axis=1) - np.log(logits.shape[1])
    return mean.astype(np.float32)


def votes(
    logits: np.ndarray, noise: float, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """The class that most teachers say, of equally many the first, `[K, rows]`.

    Args:
        logits: `[K, teachers, rows, classes]`.
        noise: the deviation of Gaussian noise on each count.
        rngs: `[K]`, of the noise.

    References:
        Papernot et al., 2018, arXiv:1802.08908 (GNMax).

    >>> said = np.eye(3)[[[[0], [2], [2]]]]
    >>> votes(said, 0.0, [np.random.default_rng(0)]).tolist()
    [[2]]
    """
    classes = logits.shape[-1]
    counts = np.eye(classes)[logits.argmax(-1)].sum(1)
    for own, rng in zip(counts, rngs, strict=True):
        own += noise * rng.standard_normal(own.shape)
    return counts.argmax(-1)
