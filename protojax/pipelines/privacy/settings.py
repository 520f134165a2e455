"""Settings of distillation for privacy: recipes of pipelines, and those of a run."""

import dataclasses

from protojax import validate
from protojax.pipelines.settings import Encoder
from protojax.training.step import TrainConfig

ANSWERS = ("soft", "hard", "votes")
TRANSFERS = ("public", "members", "written")
SHIPPED = ("student", "teacher")


@dataclasses.dataclass(frozen=True)
class Noise:
    """Training by clipped gradients with noise (DP-SGD), see `distillation.dp_sgd`.

    With `epsilon` the noise is what (ε, δ)-privacy needs; with `noise_multiplier` it is
    given, and ε follows. With neither, the default, there is no noise and no clipping.

    Attributes:
        epsilon: ε in the rows that the model learns from; 0 for none.
        noise_multiplier: the deviation of the noise in units of `clip_norm`; 0 for
            none.
        delta: δ of (ε, δ)-privacy.
        clip_norm: the largest norm of each row's gradient.
        batch_size: expected number of rows of a Poisson batch.
        epochs: expected number of passes over the rows.
        learning_rate: the peak learning rate.
        microbatch: rows whose gradients are in memory at once; 1 is best for a CPU.
        frozen: parameters without a gradient.
        reproducible: whether batches and noise are drawn from the seed, which is
            recorded. ε is then only nominal: it would hold if nobody knew the seed.
    """

    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    delta: float = 1e-4
    clip_norm: float = 1.0
    batch_size: int = 64
    epochs: int = 10
    learning_rate: float = 2e-3
    microbatch: int = 1
    frozen: tuple[str, ...] = ()
    reproducible: bool = False

    def __post_init__(self):
        validate.tuples(self, "frozen")
        validate.non_negative(
            epsilon=self.epsilon, noise_multiplier=self.noise_multiplier
        )
        one = not (self.epsilon and self.noise_multiplier)
        bound = f"0 with noise_multiplier={self.noise_multiplier}"
        validate.require(one, "epsilon", self.epsilon, bound)
        validate.require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        validate.positive(
            clip_norm=self.clip_norm,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
        )
        # A smaller batch may be empty, and a step without rows adds no noise.
        validate.require(self.batch_size >= 32, "batch_size", self.batch_size, ">= 32")
        # Poisson batches are padded to a multiple of 8 rows.
        divides = self.microbatch > 0 and 8 % self.microbatch == 0
        validate.require(divides, "microbatch", self.microbatch, "1, 2, 4 or 8")

    @property
    def used(self) -> bool:
        """Whether there is any noise."""
        return bool(self.epsilon or self.noise_multiplier)

    def over(self, train: TrainConfig) -> TrainConfig:
        """The training settings with epochs, batch size and rate of noisy training.

        Args:
            train: of the same model without noise.
        """
        names = ("epochs", "batch_size", "learning_rate")
        changed = {name: getattr(self, name) for name in names}
        return dataclasses.replace(train, **changed) if self.used else train


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way from private rows to a model that is shipped.

    A teacher learns the private rows, answers on transfer rows, and a student learns
    the answers. The student never sees a private row, unless `transfer` is "members".

    Attributes:
        teacher: its source, its computation and its training.
        student: the same of the student; not read where the teacher is shipped.
        shipped: "student" or "teacher".
        smoothing: share of the teacher's targets that is spread over all classes.
        shards: disjoint parts of the private rows, each with a teacher of its own.
        answers: "soft" probabilities, of several teachers their mean; "hard", their
            most probable class; "votes", the class that most teachers say.
        temperature: of soft answers.
        vote_noise: the deviation of the Gaussian noise on the count of votes.
        transfer: "public" rows; texts that a public language model has "written" after
            the public ones; or the "members" themselves, which protects nothing.
        teacher_noise: of the teacher's training.
        student_noise: of the student's training, which protects transfer rows only.
    """

    teacher: Encoder = Encoder(learning_rate=1e-4, epochs=15)
    student: Encoder = Encoder(learning_rate=1e-4, epochs=4)
    shipped: str = "student"
    smoothing: float = 0.0
    shards: int = 1
    answers: str = "soft"
    temperature: float = 1.0
    vote_noise: float = 0.0
    transfer: str = "public"
    teacher_noise: Noise = Noise()
    student_noise: Noise = Noise()

    def __post_init__(self):
        validate.one_of(SHIPPED, shipped=self.shipped)
        validate.one_of(ANSWERS, answers=self.answers)
        validate.one_of(TRANSFERS, transfer=self.transfer)
        validate.positive(shards=self.shards, temperature=self.temperature)
        validate.non_negative(vote_noise=self.vote_noise)
        bound = "in [0, 1)"
        validate.require(0 <= self.smoothing < 1, "smoothing", self.smoothing, bound)
        votes, plain = self.answers == "votes", self.answers == "soft"
        several = self.shards > 1
        validate.require(several or not votes, "shards", self.shards, "> 1 for votes")
        bound = "1 where the teacher is shipped"
        one = not several or self.shipped == "student"
        validate.require(one, "shards", self.shards, bound)
        bound = "0 without votes"
        fits = votes or not self.vote_noise
        validate.require(fits, "vote_noise", self.vote_noise, bound)
        bound = "1 unless answers are soft"
        fits = plain or self.temperature == 1
        validate.require(fits, "temperature", self.temperature, bound)
        fits = not (self.smoothing and self.teacher_noise.used)
        bound = "0 with noise in the teacher's training"
        validate.require(fits, "smoothing", self.smoothing, bound)

    @property
    def family(self) -> "Recipe":
        """The recipe of the teacher alone, which recipes that share it have in common.

        >>> Recipe(answers="hard").family == Recipe(temperature=4.0).family
        True
        """
        parts = ("teacher", "smoothing", "shards", "teacher_noise")
        return Recipe(**{name: getattr(self, name) for name in parts})
