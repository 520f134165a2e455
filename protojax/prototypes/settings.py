"""Settings of prototypes."""

import dataclasses

from protojax import validate
from protojax.prototypes.geometry import METRICS


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Prototypes of features: their number over all classes, metric and iterations."""

    num: int = 50
    metric: str = "cosine"
    num_iters: int = 25

    def __post_init__(self):
        validate.positive(num=self.num, num_iters=self.num_iters)
        validate.one_of(METRICS, metric=self.metric)
