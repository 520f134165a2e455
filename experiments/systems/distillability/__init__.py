"""The knob on a teacher's distillability, in small worlds.

A teacher that knows several styles is calibrated against a small proxy, with η below,
at and above 0, and with a task reward that looks at the answer alone or at the whole
text. Students of several sizes and kinds learn from each teacher, and from rivals of
calibration. Every line holds what was right of the same held-out problems, so that arms
are compared problem by problem.
"""

from experiments.systems.distillability.claims import (
    notes_of,
    overview_of,
    table_of,
)
from experiments.systems.distillability.rivals import RIVALS
from experiments.systems.distillability.settings import STUDENTS, Knob
from experiments.systems.distillability.study import PARTS, run

__all__ = [
    "PARTS",
    "RIVALS",
    "STUDENTS",
    "Knob",
    "notes_of",
    "overview_of",
    "run",
    "table_of",
]
