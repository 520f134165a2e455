"""Detection of poisoned rows: pure functions of what a defender holds.

A detector maps `Evidence` to a `Verdict`; `DETECTORS` names those that need nothing
else.
"""

from protojax.detection.abl import abl
from protojax.detection.cube import cube
from protojax.detection.detect import Findings, Suspect, detect
from protojax.detection.evidence import Evidence, Reader, Reading, Verdict
from protojax.detection.quarantine import (
    quarantine_targets,
    training_rows,
    with_references,
)
from protojax.detection.sample_test import sample_test
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read

DETECTORS = {"abl": abl, "cube": cube, "sample_test": sample_test}

__all__ = [
    "DETECTORS",
    "Evidence",
    "Findings",
    "Reader",
    "Reading",
    "Suspect",
    "TrustedModel",
    "Verdict",
    "abl",
    "cube",
    "detect",
    "fit_trusted_model",
    "quarantine_targets",
    "read",
    "sample_test",
    "training_rows",
    "with_references",
]
