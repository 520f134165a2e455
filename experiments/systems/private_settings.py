"""Settings of a study of what students of private rows give away."""

import dataclasses

from experiments.world.tasks import TASKS
from protojax import validate
from protojax.pipelines.privacy import RECIPES, Recipe
from protojax.training.predict import Lengths


@dataclasses.dataclass(frozen=True)
class PrivateRows:
    """The rows of a study of students of private rows.

    Attributes:
        root: the folder of data sets; "" for bundled data or the hub.
        private: rows that membership is asked of, even; half of them are members.
        public: transfer rows, before those that hold something of a private row are
            left out.
        lengths: how rows are padded, all to the maximum.
        vocab_size: of the tokenizer of models from scratch.
    """

    root: str = ""
    private: int = 2000
    public: int = 3000
    lengths: Lengths = Lengths(max_length=16, buckets=(16,))
    vocab_size: int = 2000

    def __post_init__(self):
        validate.positive(public=self.public, vocab_size=self.vocab_size)
        fits = self.private >= 40 and self.private % 2 == 0
        validate.require(fits, "private", self.private, "even and >= 40")


# Kinds of planted rows that need nothing but rows and the vectors of their words.
PLANTED = ("mislabelled", "adaptive", "twins", "outliers")


@dataclasses.dataclass(frozen=True)
class Private:
    """A study of what students of private rows give away.

    Attributes:
        task: a name in `world.tasks.TASKS`, of classification.
        data: its rows.
        seeds: of the split, the planted rows, the halves and the models.
        arms: names in `pipelines.privacy.RECIPES`.
        pipelines: of each arm, even.
        planted: kinds of worst-case rows.
        share: of the private rows that are of each planted kind.
        base: what arms have in common: models and their training.
        draws: of each bootstrap.
        at_once: pipelines that a device computes together; 1 is best for a CPU.
    """

    task: str = "snips"
    data: PrivateRows = PrivateRows()
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(RECIPES)
    pipelines: int = 32
    planted: tuple[str, ...] = PLANTED
    share: float = 0.05
    base: Recipe = Recipe()
    draws: int = 200
    at_once: int = 1

    def __post_init__(self):
        validate.tuples(self, "seeds", "arms", "planted")
        validate.one_of(TASKS, task=self.task)
        for arm in self.arms:
            validate.one_of(RECIPES, arms=arm)
        for kind in self.planted:
            validate.one_of(PLANTED, planted=kind)
        validate.positive(draws=self.draws, at_once=self.at_once)
        even = self.pipelines >= 6 and self.pipelines % 2 == 0
        validate.require(even, "pipelines", self.pipelines, "even and >= 6")
        most = len(self.planted) * self.share
        fits = self.share > 0 and most <= 0.5
        validate.require(fits, "share", self.share, "> 0, and half of all rows at most")
