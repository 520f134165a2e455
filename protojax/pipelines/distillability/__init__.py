"""Pipelines of distillability: a pair of decoders diagnosed, students trained."""

from protojax.pipelines.distillability.diagnose import Diagnosis, diagnose, measure
from protojax.pipelines.distillability.holding import Query
from protojax.pipelines.distillability.settings import (
    DiagnosisSettings,
    StudentSettings,
)
from protojax.pipelines.distillability.students import Trained, train_student

__all__ = ["Diagnosis", "DiagnosisSettings", "Query", "StudentSettings", "Trained"]
__all__ += ["diagnose", "measure", "train_student"]
