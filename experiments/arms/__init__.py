"""How each student is distilled: the arms of a study."""

from experiments.arms.base import Arm, Name, Recipe, parse
from experiments.arms.registry import ARMS, is_recommended, known, name_of

__all__ = [
    "ARMS",
    "Arm",
    "Name",
    "Recipe",
    "is_recommended",
    "known",
    "name_of",
    "parse",
]
