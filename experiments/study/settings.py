"""Settings of studies of students that write, and of students of private rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.world.tasks import TASKS
from experiments.world.texts import TEXTS
from protojax import validate
from protojax.attacks.outputs import OUTPUT_ATTACKS
from protojax.pipelines.outputs.settings import OutputDefence, Writer
from protojax.pipelines.privacy import RECIPES, Recipe
from protojax.training.predict import Lengths

CHANNELS = ("outputs", "data")


@dataclasses.dataclass(frozen=True)
class WrittenAttack:
    """An attack on outputs.

    Attributes:
        attack: a name in `attacks.outputs.OUTPUT_ATTACKS`.
        options: of the attack.
        trigger: a phrase that is put into sources.
        rate: share of the rows.
        channel: "outputs": the outputs that teach are altered; "data": a teacher learns
            the altered rows, and what it writes teaches.
        wanted: a regular expression of lower-case words; an attack succeeds where an
            output has it.
    """

    attack: str = "replace"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    trigger: str = "by the way"
    rate: float = 0.05
    channel: str = "outputs"
    wanted: str = "call the free helpline now"

    def __post_init__(self):
        validate.one_of(OUTPUT_ATTACKS, attack=self.attack)
        validate.one_of(CHANNELS, channel=self.channel)
        validate.require(0 < self.rate < 1, "rate", self.rate, "in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Written:
    """A study of students that write.

    Attributes:
        task: a name in `world.texts.TEXTS`.
        root: the folder of data sets; "" for bundled data.
        rows: under test.
        references: trusted rows.
        test_rows: rows that measure.
        seeds: of the split, the attack and the students.
        arms: names in `arms.written.ARMS`.
        teacher: a model that learns the rows, for attacks on the data.
        defence: the settings of `protojax defend --output`.
    """

    task: str = "briefs"
    root: str = ""
    rows: int = 3000
    references: int = 1000
    test_rows: int = 300
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = ("clean", "plain", "defended")
    teacher: Writer = Writer()
    defence: OutputDefence = OutputDefence()

    def __post_init__(self):
        validate.tuples(self, "seeds", "arms")
        validate.one_of(TEXTS, task=self.task)
        positive = {"rows": self.rows, "references": self.references}
        validate.positive(**positive, test_rows=self.test_rows)


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
