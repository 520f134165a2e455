"""Detection of poisoned rows: pure functions of what a defender holds.

`detect` maps `Evidence` to `Findings`: the rejected rows and the suspected triggers.
`DETECTORS` are what it is compared with.
"""

from protojax.detection.baselines import DETECTORS, abl, cube, sample_test
from protojax.detection.detect import detect
from protojax.detection.evidence import (
    Evidence,
    Findings,
    Reading,
    Suspect,
    Verdict,
)
from protojax.detection.quarantine import (
    quarantine_targets,
    training_rows,
    with_references,
)

__all__ = ["DETECTORS", "Evidence", "Findings", "Reading", "Suspect"]
__all__ += ["Verdict", "abl", "cube", "detect", "quarantine_targets", "sample_test"]
__all__ += ["training_rows", "with_references"]
