"""Detection of poisoned rows whose output is text: the same test, with words as claims.

`detect_outputs` maps texts and references to `OutputFindings`; `quarantine_outputs`
maps these to the texts that are left.
"""

from protojax.detection.outputs.action import (
    Kept,
    quarantine_outputs,
    token_weights,
    without_end,
)
from protojax.detection.outputs.detect import (
    OutputFindings,
    Vectors,
    cosines_of,
    detect_outputs,
)

__all__ = ["Kept", "OutputFindings", "Vectors", "cosines_of", "detect_outputs"]
__all__ += ["quarantine_outputs", "token_weights", "without_end"]
