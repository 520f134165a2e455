"""How each student is distilled: the arms of a study."""

from experiments.arms.recipes import ARMS, Arm, Name, Recipe, is_recommended, parse

__all__ = ["ARMS", "Arm", "Name", "Recipe", "is_recommended", "parse"]
