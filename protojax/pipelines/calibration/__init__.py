"""The calibration of a user's own teacher: from files to a teacher and its items."""

from protojax.pipelines.calibration.pipeline import CalibratedTeacher, calibrate_teacher
from protojax.pipelines.calibration.settings import ProblemColumns, TeacherCalibration

__all__ = ["CalibratedTeacher", "ProblemColumns", "TeacherCalibration"]
__all__ += ["calibrate_teacher"]
