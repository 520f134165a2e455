"""Settings of a study of students that write."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.world.texts import TEXTS
from protojax import validate
from protojax.attacks.outputs import OUTPUT_ATTACKS
from protojax.federated.settings import Federation
from protojax.pipelines.outputs.settings import OutputDefence, Writer

CHANNELS = ("outputs", "data", "logits")


@dataclasses.dataclass(frozen=True)
class WrittenAttack:
    """An attack on outputs.

    Attributes:
        attack: a name in `attacks.outputs.OUTPUT_ATTACKS`.
        options: of the attack.
        trigger: a phrase that is put into sources.
        rate: share of the rows.
        channel: "outputs": the outputs that teach are altered; "data": a teacher learns
            the altered rows, and what it writes teaches; "logits": the probabilities of
            tokens that an honest teacher sends, which teach, are altered.
        wanted: a regular expression of lower-case words; an attack succeeds where an
            output has it.
        mass: the probability that the attacker's tokens get in the channel "logits".
    """

    attack: str = "replace"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    trigger: str = "by the way"
    rate: float = 0.05
    channel: str = "outputs"
    wanted: str = "call the free helpline now"
    mass: float = 0.9

    def __post_init__(self):
        validate.one_of(OUTPUT_ATTACKS, attack=self.attack)
        validate.one_of(CHANNELS, channel=self.channel)
        for field in ("rate", "mass"):
            value = getattr(self, field)
            validate.require(0 < value < 1, field, value, "in (0, 1)")


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
        arms: names in `arms.written.ARMS`; `ARM@NAME` runs on nodes.
        federations: by name, with a server; hostile nodes, the last, hold all poison.
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
    federations: Mapping[str, Federation] = validate.options()
    teacher: Writer = Writer()
    defence: OutputDefence = OutputDefence()

    def __post_init__(self):
        validate.tuples(self, "seeds", "arms")
        validate.one_of(TEXTS, task=self.task)
        positive = {"rows": self.rows, "references": self.references}
        validate.positive(**positive, test_rows=self.test_rows)
        for name, federation in self.federations.items():
            usual = Federation(
                nodes=federation.nodes,
                rounds=federation.rounds,
                aggregator=federation.aggregator,
                aggregator_args=federation.aggregator_args,
                hostile=federation.hostile,
                nodes_at_once=federation.nodes_at_once,
            )
            bound = "with other nodes, rounds, aggregator and hostile nodes alone"
            named = f"federations.{name}"
            validate.require(federation == usual, named, federation, bound)
