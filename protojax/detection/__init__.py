"""Detection of poisoned rows: pure functions of what a defender holds.

A detector maps `Evidence` to a `Verdict`; `DETECTORS` names those that need nothing
else.
"""

from protojax.detection.abl import abl
from protojax.detection.conformal import conformal_p_values
from protojax.detection.cube import cube
from protojax.detection.evidence import Evidence, Reader, Reading, Verdict
from protojax.detection.quarantine import (
    TrainingRows,
    quarantine_targets,
    training_rows,
    with_references,
)
from protojax.detection.sample_test import sample_gate, sample_test
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read

DETECTORS = {"abl": abl, "cube": cube, "sample_test": sample_test}

__all__ = [
    "DETECTORS",
    "Evidence",
    "Reader",
    "Reading",
    "TrainingRows",
    "TrustedModel",
    "Verdict",
    "abl",
    "conformal_p_values",
    "cube",
    "fit_trusted_model",
    "quarantine_targets",
    "read",
    "sample_gate",
    "sample_test",
    "training_rows",
    "with_references",
]
