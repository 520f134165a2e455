"""Settings of the defence of one's own data."""

import ast
import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protojax import validate
from protojax.detection.settings import Detection
from protojax.distillation.settings import Distillation, Margin
from protojax.models.settings import ModelSettings
from protojax.privacy.overlap import OVERLAPS
from protojax.prototypes.settings import Prototypes
from protojax.training.predict import Features, Lengths
from protojax.training.step import TrainConfig


@dataclasses.dataclass(frozen=True)
class Encoder(ModelSettings, TrainConfig):
    """One model: its source, its computation and its training."""

    def __post_init__(self):
        ModelSettings.__post_init__(self)
        TrainConfig.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of the user's files.

    Attributes:
        text: the column of the text.
        pair: the column of the second text, "" for one-text tasks.
        label: the column of the label.
        reference: the column that marks trusted rows by true or false, "" where the
            references are a file of their own.
        source: the column of a row's origin, "" for none.
        encoding: of text files.
    """

    text: str = "text"
    pair: str = ""
    label: str = "label"
    reference: str = ""
    source: str = ""
    encoding: str = "utf-8"

    def __post_init__(self):
        for field in ("text", "label"):
            value = getattr(self, field)
            validate.require(value != "", field, value, "the name of a column")


@dataclasses.dataclass(frozen=True)
class PublicWriter:
    """Texts that a public language model writes, see `generation.write_alike`.

    Attributes:
        model: the folder of a language model that never saw a private row, or its name
            on the Hugging Face Hub; "" for no such texts.
        texts: how many; 0 for as many as there are public ones.
        shown: public texts that the model is shown before it writes one.
        max_new: the most tokens of a text.
        temperature: of the sampling.
        batch_size: rows that are written together.
    """

    model: str = ""
    texts: int = 0
    shown: int = 4
    max_new: int = 48
    temperature: float = 1.0
    batch_size: int = 32

    def __post_init__(self):
        validate.non_negative(texts=self.texts, shown=self.shown)
        names = ("max_new", "temperature", "batch_size")
        validate.positive(**{name: getattr(self, name) for name in names})

    def write(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        describe: Callable[[str], None] = lambda text: None,
        model: Any = None,
    ) -> list[str]:
        """New texts after public ones.

        Args:
            texts: the public ones.
            seed: of the sampling.
            describe: called with a description of the current work.
            model: the `LanguageModel` that writes; None for that of the settings.

        Raises:
            OSError, ValueError: a model that does not load, or see `write_alike`.
        """
        # Loading these takes a while, and few runs need them.
        from protojax.generation import write_alike
        from protojax.models.language import load_language_model

        return write_alike(
            load_language_model(self.model) if model is None else model,
            texts,
            self.texts or len(texts),
            shown=self.shown,
            max_new=self.max_new,
            temperature=self.temperature,
            batch_size=self.batch_size,
            seed=seed,
            progress=lambda done, total: describe(
                f"{done:,} of {total:,} texts written"
            ),
        )


@dataclasses.dataclass(frozen=True)
class Defence:
    """Everything that `pipelines.defend` can be told.

    Attributes:
        columns: of the user's files.
        detection: the test of the rows.
        teacher: how the teacher computes; it is never trained.
        trusted_model: the model that reads rows for the test.
        student: the model that is distilled.
        kd: the objective of distillation.
        margin: the prototype constraint.
        prototypes: of the teacher's and of the student's features.
        features: the hidden states that are used as a row's features.
        lengths: how rows are padded and batched.
        folds: the parts of the references; each is read by a trusted model that
            learned from the others.
        writer: of references that are generated, in place of trusted ones.
        overlap: what happens to those that hold something of a row under test: "error"
            stops the run, "drop" leaves them out.
        least_count: references of which a prototype is made, at least; others are not
            written. 10 where references are private: their texts are then not shown
            beside the prototypes either.
        seed: of the order of rows, of fresh weights and of initial prototypes.
        every: dispatches between two checkpoints.
        vocab_size: of the tokenizer of a model from scratch.
    """

    columns: Columns = Columns()
    detection: Detection = Detection()
    teacher: ModelSettings = ModelSettings()
    trusted_model: Encoder = Encoder(learning_rate=1e-4, epochs=5, dropout=0.0)
    student: Encoder = Encoder(learning_rate=2e-4, epochs=3, dropout=0.0)
    kd: Distillation = Distillation()
    margin: Margin = Margin()
    prototypes: Prototypes = Prototypes()
    features: Features = Features()
    lengths: Lengths = Lengths()
    folds: int = 3
    writer: PublicWriter = PublicWriter()
    overlap: str = "error"
    least_count: int = 1
    seed: int = 0
    every: int = 10
    vocab_size: int = 4000

    def __post_init__(self):
        validate.require(self.folds >= 2, "folds", self.folds, ">= 2")
        validate.one_of(OVERLAPS, overlap=self.overlap)
        validate.non_negative(seed=self.seed)
        validate.positive(least_count=self.least_count)
        validate.positive(every=self.every, vocab_size=self.vocab_size)
        weights, layers = self.margin.layer_weights, self.features.layers
        bound = f"one weight for each of features.layers={layers}"
        same = len(weights) == len(layers)
        validate.require(same, "margin.layer_weights", weights, bound)

    @property
    def shows_texts(self) -> bool:
        """Whether references are shown beside the prototypes that they are near to."""
        return self.least_count == 1


def with_field(settings: Any, path: str, value: str) -> Any:
    """Settings with another value of one field.

    Args:
        settings: a dataclass, such as `Defence`.
        path: the field, such as "student.epochs".
        value: the value as text; tuples as "a,b" or "(1, 2)".

    Raises:
        ValueError: as `with_fields` does.

    >>> with_field(Defence(), "student.epochs", "5").student.epochs
    5
    >>> with_field(Defence(), "detection.claims", "teacher").detection.claims
    ('teacher',)
    """
    return with_fields(settings, _fields(settings, path, value))


def _fields(settings: Any, path: str, value: str) -> dict[str, Any]:
    """The fields of settings, or of a mapping, in which one of them has its value."""
    name, _, rest = path.partition(".")
    is_mapping = isinstance(settings, Mapping)
    old = settings.get(name) if is_mapping else getattr(settings, name, None)
    new = _fields(old, rest, value) if rest else _converted(value, old)
    return {**settings, name: new} if is_mapping else {name: new}


def with_fields(settings: Any, fields: Mapping[str, Any]) -> Any:
    """Settings with some of their (nested) fields changed.

    Args:
        settings: a dataclass, such as `Defence`.
        fields: the fields that differ.

    Raises:
        ValueError: naming the path of the field, the value and what is allowed.

    >>> with_fields(Defence(), {"kd": {"temperature": 4.0}, "folds": 5}).kd.temperature
    4.0
    """
    known = [field.name for field in dataclasses.fields(settings)]
    made = {}
    for name, value in fields.items():
        validate.one_of(known, field=name)
        held = getattr(settings, name)
        _check_kind(name, held, value)
        inner = dataclasses.is_dataclass(held)
        with validate.prefixed(name):
            made[name] = with_fields(held, value) if inner else value
    return dataclasses.replace(settings, **made)


# (kind of the present value, kinds that may replace it, their name in an error)
_KINDS = (
    (bool, bool, "True or False"),
    (int, numbers.Integral, "a whole number"),
    (float, numbers.Real, "a number"),
    (str, str, "a text"),
    (tuple, (tuple, list), "a tuple"),
    (Mapping, Mapping, "fields and their values"),
)


def _check_kind(name: str, held: Any, value: Any) -> None:
    """Checks that a value is of the kind of the one that it replaces."""
    if dataclasses.is_dataclass(held):
        held = {}
    allowed, said = next(
        (allowed, said) for kind, allowed, said in _KINDS if isinstance(held, kind)
    )
    # True and False are ints in Python.
    fits = isinstance(held, bool) or not isinstance(value, bool)
    validate.require(fits and isinstance(value, allowed), name, value, said)
    if isinstance(held, tuple) and held:
        # All parts are of one kind; that of an empty tuple is not known.
        for place, part in enumerate(value):
            _check_kind(f"{name}[{place}]", held[0], part)


def with_max_length(lengths: Lengths, most: int) -> Lengths:
    """Lengths with another maximum, and buckets up to it.

    Args:
        lengths: the lengths to change.
        most: tokens of a row.

    >>> with_max_length(Lengths(), 40).buckets
    (16, 32, 40)
    """
    validate.positive(max_length=most)
    buckets = (*(size for size in lengths.buckets if size < most), most)
    return dataclasses.replace(lengths, max_length=most, buckets=buckets)


def flat(settings: Any) -> dict[str, Any]:
    """The fields of settings by their paths, as JSON holds them.

    >>> flat(Columns())["text"], flat(Defence())["kd.temperature"]
    ('text', 2.0)
    """
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            inner = flat(value)
            found |= {f"{field.name}.{path}": held for path, held in inner.items()}
        elif isinstance(value, Mapping):
            found[field.name] = dict(value)
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _converted(value: str, old: Any) -> Any:
    """A text as a value that replaces an older one: a literal, names, or itself."""
    if isinstance(old, str):
        return value
    try:
        new = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        new = value
    if not isinstance(old, tuple):
        return new
    if isinstance(new, str):
        return tuple(part.strip() for part in new.split(",") if part.strip())
    return tuple(new) if isinstance(new, tuple | list) else (new,)
