"""Detectors of other authors, and the per-sample test: what ours is compared with.

A detector maps `Evidence` to a `Verdict`; `DETECTORS` names those that need nothing
else.
"""

from protojax.detection.baselines.abl import abl
from protojax.detection.baselines.cube import cube
from protojax.detection.baselines.sample_test import sample_test

DETECTORS = {"abl": abl, "cube": cube, "sample_test": sample_test}

__all__ = ["DETECTORS", "abl", "cube", "sample_test"]
