"""Pipelines of distillability: a pair of decoders diagnosed, students trained."""

from protojax.pipelines.distillability.diagnose import Diagnosis, diagnose, measure
from protojax.pipelines.distillability.experts import Experts
from protojax.pipelines.distillability.holding import Query
from protojax.pipelines.distillability.settings import (
    DiagnosisSettings,
    StudentSettings,
)
from protojax.pipelines.distillability.spans import token_texts
from protojax.pipelines.distillability.students import (
    Trained,
    learn_texts,
    train_student,
)
from protojax.pipelines.distillability.texts import DrawnTexts, drawn_texts

__all__ = ["Diagnosis", "DiagnosisSettings", "DrawnTexts", "Experts", "Query"]
__all__ += ["StudentSettings", "Trained", "diagnose", "drawn_texts"]
__all__ += ["learn_texts", "measure", "token_texts", "train_student"]
