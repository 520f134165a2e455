"""Settings of studies of what students of private rows, and decoders, give away."""

import dataclasses
from typing import NamedTuple

from experiments.world.tasks import TASKS
from protojax import validate
from protojax.models.settings import SCRATCH
from protojax.pipelines.outputs.settings import TokenDistillation, Writer
from protojax.pipelines.privacy import RECIPES, Recipe
from protojax.pipelines.privacy.recipes import parsed
from protojax.pipelines.settings import PublicWriter
from protojax.training.predict import Lengths, SequenceLengths


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


def _compared() -> tuple[str, ...]:
    """The names of recipes that are compared unless others are named.

    Texts that are written need a language model, and a student of a teacher with an
    epsilon leaks what its teacher leaks at most.
    """
    recipes = {name: make(Recipe()) for name, make in RECIPES.items()}
    return tuple(
        name
        for name, one in recipes.items()
        if one.transfer != "written"
        and (one.shipped == "teacher" or not one.teacher_noise.epsilon)
    )


COMPARED = _compared()


def _decoder(width: int, layers: int, **train) -> Writer:
    """A fresh decoder with heads of 32."""
    sizes = {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": width // 32,
        "intermediate_size": 2 * width,
    }
    return Writer(scratch=sizes, dropout=0.0, **train)


# Of a beginning and nothing else as a source, and texts of 80 characters.
_LETTERS = SequenceLengths(
    max_length=2, max_output=81, buckets=((2, 41), (2, 81)), evaluation_rows=64
)


@dataclasses.dataclass(frozen=True)
class Private:
    """A study of what students of private rows give away.

    Attributes:
        task: a name in `world.tasks.TASKS`, of classification.
        data: its rows.
        seeds: of the split, the planted rows, the halves and the models.
        arms: recipes, see `pipelines.privacy.named`.
        pipelines: of each arm, even.
        planted: kinds of worst-case rows.
        share: of the private rows that are of each planted kind.
        base: what arms have in common: models and their training.
        early_stopping: the most epochs that those of teachers that are stopped early
            are chosen from, on public rows with labels; 0 for a fifth of all.
        writer: of the texts of arms whose transfer rows are written; without a model a
            decoder of characters that learns the public texts.
        letters: the sizes and the training of that decoder.
        letter_lengths: of its texts; longer ones are left out.
        draws: of each bootstrap.
        at_once: pipelines that a device computes together; 1 is best for a CPU.
    """

    task: str = "snips"
    data: PrivateRows = PrivateRows()
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = COMPARED
    pipelines: int = 32
    planted: tuple[str, ...] = PLANTED
    share: float = 0.05
    base: Recipe = Recipe()
    early_stopping: int = 0
    writer: PublicWriter = PublicWriter()
    letters: Writer = _decoder(64, 2, learning_rate=5e-3, epochs=10, batch_size=16)
    letter_lengths: SequenceLengths = _LETTERS
    draws: int = 200
    at_once: int = 1

    def __post_init__(self):
        validate.tuples(self, "seeds", "arms", "planted")
        validate.one_of(TASKS, task=self.task)
        for arm in self.arms:
            parsed(arms=arm)
        for kind in self.planted:
            validate.one_of(PLANTED, planted=kind)
        validate.positive(draws=self.draws, at_once=self.at_once)
        validate.non_negative(early_stopping=self.early_stopping)
        even = self.pipelines >= 6 and self.pipelines % 2 == 0
        validate.require(even, "pipelines", self.pipelines, "even and >= 6")
        most = len(self.planted) * self.share
        fits = self.share > 0 and most <= 0.5
        validate.require(fits, "share", self.share, "> 0, and half of all rows at most")


class Arm(NamedTuple):
    """The texts that a model learns from, and how.

    Attributes:
        texts: "private"; "public"; "alike", public texts and sentences of the secrets'
            form with other names and codes; "sampled" from the teacher; or "scanned",
            those samples in which a scan finds no secret's template and no secret.
        soft: whether the teacher's probabilities of characters teach, or the texts.
    """

    texts: str
    soft: bool = True


ARMS = {
    "teacher": Arm("private", soft=False),
    "control": Arm("private", soft=False),
    "public": Arm("public"),
    "alike": Arm("alike"),
    "sampled": Arm("sampled"),
    "sampled_texts": Arm("sampled", soft=False),
    "scanned": Arm("scanned"),
}


@dataclasses.dataclass(frozen=True)
class Secrets:
    """A study of what small decoders memorise and hand on.

    Attributes:
        task: a name in `world.tasks.TASKS`; its texts alone are read.
        root: the folder of data sets; "" for bundled data or the hub.
        private: texts among which secrets are planted.
        public: texts without labels, before those that hold something of a private one
            are left out.
        held_out: texts that no model learns from.
        secrets: for each number of repetitions, and as many that are never planted.
        repetitions: how often secrets are planted.
        innocent: sentences of the secrets' form with other names and codes.
        samples: texts that each model writes freely; those of the teacher teach.
        seeds: of the split, the secrets, the models and the samples.
        arms: names in `ARMS`.
        teacher: a decoder from scratch, its sizes and its training.
        student: of all other models.
        top_k: the teacher's characters that are kept at each place.
        lengths: how texts are padded; longer texts are left out.
        batch_size: rows that are written together.
        every: dispatches between two checkpoints.
    """

    task: str = "snips"
    root: str = ""
    private: int = 1000
    public: int = 1000
    held_out: int = 300
    secrets: int = 10
    repetitions: tuple[int, ...] = (1, 4, 16)
    innocent: int = 200
    samples: int = 1000
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(ARMS)
    teacher: Writer = _decoder(128, 2, learning_rate=4e-3, epochs=10, batch_size=16)
    student: Writer = _decoder(64, 2, learning_rate=5e-3, epochs=10, batch_size=16)
    top_k: int = 16
    lengths: SequenceLengths = SequenceLengths(
        max_length=2, max_output=56, buckets=((2, 40), (2, 56)), evaluation_rows=64
    )
    batch_size: int = 250
    every: int = 50

    def __post_init__(self):
        validate.tuples(self, "seeds", "arms", "repetitions")
        validate.one_of(TASKS, task=self.task)
        for arm in self.arms:
            validate.one_of(ARMS, arms=arm)
        names = ("private", "public", "held_out", "secrets", "samples", "top_k")
        names += ("batch_size", "every")
        validate.positive(**{name: getattr(self, name) for name in names})
        validate.non_negative(innocent=self.innocent)
        different = len({*self.repetitions}) == len(self.repetitions) > 0
        bound = "different and at least one"
        validate.require(different, "repetitions", self.repetitions, bound)
        validate.positive(repetitions=min(self.repetitions))
        for name in ("teacher", "student"):
            source = getattr(self, name).model
            validate.require(source == SCRATCH, f"{name}.model", source, SCRATCH)
        # A beginning and nothing else is a source.
        fits = self.lengths.max_length == 2
        validate.require(fits, "lengths.max_length", self.lengths.max_length, "2")

    @property
    def kd(self) -> TokenDistillation:
        """The loss of students that a teacher's probabilities teach."""
        return TokenDistillation(hard_weight=0.0, top_k=self.top_k)
