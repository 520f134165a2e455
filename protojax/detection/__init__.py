"""Detection of poisoned rows: pure functions of what a defender holds."""

from protojax.detection.abl import abl
from protojax.detection.cube import cube
from protojax.detection.evidence import Evidence, Reader, Reading, Verdict
from protojax.detection.sample_test import sample_test

# Name -> `(evidence, *, seed, **options) -> Verdict`.
DETECTORS = {"abl": abl, "cube": cube, "sample_test": sample_test}

__all__ = [
    "DETECTORS",
    "Evidence",
    "Reader",
    "Reading",
    "Verdict",
    "abl",
    "cube",
    "sample_test",
]
