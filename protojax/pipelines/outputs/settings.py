"""Settings of the defence of rows whose output is text."""

import dataclasses

from protojax import validate
from protojax.detection.settings import OutputDetection
from protojax.distillation.token_losses import SPARSE_DIVERGENCES
from protojax.models.language import WriterSettings
from protojax.models.settings import ModelSettings
from protojax.training.predict import Lengths, SequenceLengths
from protojax.training.step import TrainConfig

ACTIONS = ("cut", "drop", "mask")


@dataclasses.dataclass(frozen=True)
class Writer(WriterSettings, TrainConfig):
    """One model that writes: its source, its computation and its training."""

    def __post_init__(self):
        WriterSettings.__post_init__(self)
        TrainConfig.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class OutputColumns:
    """The columns of the user's files.

    Attributes:
        text: the column of the source.
        output: the column of the output.
        reference: the column that marks trusted rows by true or false, "" where the
            references are a file of their own.
        encoding: of text files.
    """

    text: str = "text"
    output: str = "output"
    reference: str = ""
    encoding: str = "utf-8"

    def __post_init__(self):
        for field in ("text", "output"):
            value = getattr(self, field)
            validate.require(value != "", field, value, "the name of a column")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How models write.

    Attributes:
        beams: 1 for the most probable token at each place.
        length_penalty: see `generation.beam_search`.
        batch_size: rows that are written together.
    """

    beams: int = 1
    length_penalty: float = 1.0
    batch_size: int = 64

    def __post_init__(self):
        validate.positive(beams=self.beams, batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True)
class TokenDistillation:
    """The loss of a student on outputs, see `distillation.sequence_loss`.

    Attributes:
        hard_weight: share of the output itself; 1 is distillation of sequences, which
            needs no probabilities of the teacher's.
        divergence: from the teacher's probabilities of tokens.
        temperature: softens both distributions.
        top_k: the teacher's tokens that are kept at each place.
    """

    hard_weight: float = 1.0
    divergence: str = "forward_kl"
    temperature: float = 1.0
    top_k: int = 16

    def __post_init__(self):
        validate.fraction(hard_weight=self.hard_weight)
        validate.one_of(SPARSE_DIVERGENCES, divergence=self.divergence)
        validate.positive(temperature=self.temperature, top_k=self.top_k)


@dataclasses.dataclass(frozen=True)
class OutputDefence:
    """Everything that `pipelines.outputs.defend_outputs` can be told.

    Attributes:
        columns: of the user's files.
        detection: the test of the rows.
        action: "cut" denied ends of outputs and drop other rejected rows, "drop" all of
            them, or "mask" denied words, which then do not teach, and drop those where
            no word was denied.
        encoder: the model whose vectors say whether an output fits its source.
        teacher: how the teacher computes; it is never trained.
        student: the model that is distilled.
        kd: what it learns of outputs.
        decoding: how teacher and student write.
        lengths: how sources and outputs are padded and batched.
        encoder_lengths: how texts are padded for the encoder.
        train_on_references: whether the references join the rows that teach.
        seed: of the order of rows and of fresh weights.
        every: dispatches between two checkpoints.
        vocab_size: of the tokenizer of a model from scratch.
    """

    columns: OutputColumns = OutputColumns()
    detection: OutputDetection = OutputDetection()
    action: str = "cut"
    encoder: ModelSettings = ModelSettings()
    teacher: WriterSettings = WriterSettings(dropout=0.0)
    student: Writer = Writer(learning_rate=1e-3, epochs=3)
    kd: TokenDistillation = TokenDistillation()
    decoding: Decoding = Decoding()
    lengths: SequenceLengths = SequenceLengths()
    encoder_lengths: Lengths = Lengths(max_length=64, buckets=(16, 32, 64))
    train_on_references: bool = True
    seed: int = 0
    every: int = 20
    vocab_size: int = 4000

    def __post_init__(self):
        validate.one_of(ACTIONS, action=self.action)
        validate.non_negative(seed=self.seed)
        validate.positive(every=self.every, vocab_size=self.vocab_size)
