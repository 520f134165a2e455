"""Settings of the pipelines of distillability."""

import dataclasses

from protojax import validate
from protojax.models.config import DTYPES
from protojax.models.language import WriterSettings
from protojax.rl.policy import NORMALIZERS
from protojax.training.step import AdamW


@dataclasses.dataclass(frozen=True)
class DiagnosisSettings:
    """Settings of the comparison of a teacher and a student.

    Attributes:
        text: the column of the prompt.
        answers: the column of the right answer, "" for none.
        encoding: of a text file.
        most: the most prompts that are read, the first ones of the file.
        draws: texts of each model for a prompt.
        prompt: the form in which the teacher reads a prompt, see `WriterSettings`.
        student_prompt: that of the student; "" for the teacher's.
        max_length: tokens of a prompt; of longer ones the last are read.
        max_new: tokens of a text.
        top_k: tokens of the teacher that are no tail.
        starts: how many tokens of the student's texts the teacher continues.
        first_tokens: how many first tokens of the teacher the student has to take.
        batch_size: texts that are written together.
        chunk: tokens whose logits are in memory at once.
        least: the severity from which a trap is said to hold a pair back.
        dtype: of the computation.
        seed: of all draws.
    """

    text: str = "prompt"
    answers: str = ""
    encoding: str = "utf-8"
    most: int = 128
    draws: int = 1
    prompt: str = "{source}"
    student_prompt: str = ""
    max_length: int = 256
    max_new: int = 64
    top_k: int = 16
    starts: tuple[int, ...] = (1, 2, 4, 8, 16)
    first_tokens: int = 4
    batch_size: int = 16
    chunk: int = 64
    least: float = 0.2
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        validate.tuples(self, "starts")
        validate.require(self.text != "", "text", self.text, "the name of a column")
        for name in ("most", "draws", "max_length", "max_new", "top_k", "batch_size"):
            validate.positive(**{name: getattr(self, name)})
        validate.positive(first_tokens=self.first_tokens, chunk=self.chunk)
        validate.fraction(least=self.least)
        validate.non_negative(seed=self.seed)
        validate.one_of(DTYPES, dtype=self.dtype)
        ascending = list(self.starts) == sorted({*self.starts})
        fits = ascending and all(0 < start < self.max_new for start in self.starts)
        bound = f"ascending, above 0 and below max_new={self.max_new}"
        validate.require(fits, "starts", self.starts, bound)
        # Checks the forms.
        for name in ("prompt", "student_prompt"):
            WriterSettings(model="any", prompt=getattr(self, name) or self.prompt)


@dataclasses.dataclass(frozen=True)
class StudentSettings(AdamW):
    """Settings of the training of a student of `ATTACKERS`.

    Attributes:
        steps: of each phase.
        batch_size: texts of a step.
        max_length: tokens of a prompt; of longer ones the last are read.
        max_new: tokens of a text.
        draws: texts of the teacher for a prompt, where more than one help.
        own_draws: texts of the student for a prompt, where it learns from some.
        own_share: share of the student's own texts in a phase of mixed ones.
        top_k: the teacher's tokens that are kept at each place.
        gate: share of tokens that a token gate keeps.
        normalizer: "constant" divides a text's loss by `max_new`, so that all tokens
            count the same; "text" by its own tokens, so that all texts do and short
            ones are learned as more probable than they are.
        chunk: tokens whose logits are in memory at once.
        seed: of the order of texts, of draws and of dropout.
    """

    steps: int = 200
    batch_size: int = 64
    max_length: int = 64
    max_new: int = 32
    draws: int = 4
    own_draws: int = 4
    own_share: float = 0.5
    top_k: int = 16
    gate: float = 0.9
    normalizer: str = "constant"
    chunk: int = 256
    seed: int = 0

    @property
    def length(self) -> int | None:
        """The divisor of a text's loss, see `distillation.sequence_loss`."""
        return self.max_new if self.normalizer == "constant" else None

    def __post_init__(self):
        super().__post_init__()
        for name in ("steps", "batch_size", "max_length", "max_new", "draws"):
            validate.positive(**{name: getattr(self, name)})
        validate.positive(own_draws=self.own_draws, top_k=self.top_k, chunk=self.chunk)
        validate.fraction(own_share=self.own_share)
        validate.one_of(NORMALIZERS, normalizer=self.normalizer)
        validate.require(0 < self.gate <= 1, "gate", self.gate, "in (0, 1]")
        validate.non_negative(seed=self.seed)
