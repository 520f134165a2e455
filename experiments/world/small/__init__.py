"""Small worlds: problems with right texts in several styles, and their learners.

They are small enough that a teacher, a proxy and students learn them from scratch on a
CPU, and a rule of each world tells of any text whether it is right.
"""

from collections.abc import Callable

from experiments.world.small.addition import sums
from experiments.world.small.base import REWARDS, Tokens, World
from experiments.world.small.briefs import briefs
from experiments.world.small.lessons import Lesson, pretrained

# The size of a problem -> the world.
WORLDS: dict[str, Callable[[int], World]] = {"sums": sums, "briefs": briefs}

__all__ = ["REWARDS", "WORLDS", "Lesson", "Tokens", "World", "pretrained"]
