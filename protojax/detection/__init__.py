"""Detection of poisoned rows: pure functions of what a defender holds.

`detect` maps `Evidence` to `Findings`: the rejected rows and the suspected triggers.
`DETECTORS` are what it is compared with.
"""

from protojax.detection.baselines import DETECTORS, abl, cube, sample_test
from protojax.detection.detect import detect
from protojax.detection.evidence import (
    Evidence,
    Findings,
    Reader,
    Reading,
    Suspect,
    Verdict,
)
from protojax.detection.quarantine import (
    quarantine_targets,
    training_rows,
    with_references,
)
from protojax.detection.trusted_model import TrustedModel, fit_trusted_model, read

__all__ = ["DETECTORS", "Evidence", "Findings", "Reader", "Reading", "Suspect"]
__all__ += ["TrustedModel", "Verdict", "abl", "cube", "detect", "fit_trusted_model"]
__all__ += ["quarantine_targets", "read", "sample_test", "training_rows"]
__all__ += ["with_references"]
