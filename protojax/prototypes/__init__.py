"""Prototypes: fitting, updates, matching across nodes, and distances to them."""

from protojax.prototypes.assignment import inertia, nearest_prototype
from protojax.prototypes.files import (
    load_prototypes,
    num_bytes,
    save_prototypes,
    without_rare,
)
from protojax.prototypes.fitting import (
    class_prototypes,
    kmeans,
    learn_prototypes,
    update_prototypes,
)
from protojax.prototypes.geometry import METRICS, distances, paired_distance
from protojax.prototypes.matching import match_prototypes, merge_prototypes

__all__ = [
    "METRICS",
    "class_prototypes",
    "distances",
    "inertia",
    "kmeans",
    "learn_prototypes",
    "load_prototypes",
    "match_prototypes",
    "merge_prototypes",
    "nearest_prototype",
    "num_bytes",
    "paired_distance",
    "save_prototypes",
    "update_prototypes",
    "without_rare",
]
