"""The sections of a study's config: frozen dataclasses that check themselves.

The fields and defaults of a section are stated here, or beside the concept in the
library that it belongs to, and nowhere else. Code below a study reads these, never the
config of the command line.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from protojax import attacks, validate
from protojax.detection.settings import Detection, Filters, Quarantine
from protojax.distillation.settings import (
    Adversarial,
    Distillation,
    Margin,
    Nearest,
    Private,
)
from protojax.federated.settings import Federation
from protojax.pipelines.settings import Encoder, with_fields
from protojax.prototypes.settings import Prototypes
from protojax.training.predict import Features, Lengths
from protojax.validate import distinct, options, tuples

CHANNELS = ("data", "logits", "both", "labels")


@dataclasses.dataclass(frozen=True)
class Files:
    """The user's own files, of the task `files`: CSV, TSV, JSONL or Parquet.

    Attributes:
        train: the training rows.
        test: the test rows; "" holds out a part of the training rows.
        text: the column of the text.
        pair: the column of the second text, "" for one-text tasks.
        source: the column of a row's origin, or "".
        label: the column of the label.
        problem: "classification" or "regression".
        metric: the metric on clean test rows.
        encoding: of these files, and of those below data.root.
    """

    train: str = ""
    test: str = ""
    text: str = "text"
    pair: str = ""
    source: str = ""
    label: str = "label"
    problem: str = "classification"
    metric: str = "accuracy"
    encoding: str = "utf-8"


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """Wrong labels where common words are, see `experiments.world.label_noise`.

    Attributes:
        words: the number of common words; 0 is no noise.
        majority: the class that more rows are of.
        share: of the training rows that are of the majority, 0 to leave them as they
            are.
    """

    words: int = 0
    majority: int = 1
    share: float = 0.0

    def __post_init__(self):
        validate.non_negative(words=self.words, majority=self.majority)
        validate.require(0 <= self.share < 1, "share", self.share, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Data:
    """The source of rows, their number and their length.

    Attributes:
        root: a local folder of data sets; "" is the hub.
        transfer_rows: 0 is all.
        reference_rows: trusted rows, taken from the training rows.
        test_rows: 0 is all.
        validation_rows: if > 0, so many training rows are used in place of the test
            rows, and not for training; hyperparameters are chosen on them.
        max_length: the largest number of tokens of a row.
        buckets: lengths to which rows are padded.
        vocab_size: of a tokenizer trained on the spot.
        label_noise: wrong labels of transfer rows and references, not of test rows.
        files: the user's own.
    """

    root: str = ""
    transfer_rows: int = 0
    reference_rows: int = 1000
    test_rows: int = 0
    validation_rows: int = 0
    max_length: int = 128
    buckets: tuple[int, ...] = Lengths().buckets
    vocab_size: int = 4000
    label_noise: LabelNoise = LabelNoise()
    files: Files = Files()

    def __post_init__(self):
        tuples(self, "buckets")
        for field in ("reference_rows", "max_length", "vocab_size"):
            validate.positive(**{field: getattr(self, field)})
        for field in ("transfer_rows", "test_rows", "validation_rows"):
            validate.non_negative(**{field: getattr(self, field)})
        # Only for its check of the two against each other.
        Lengths(self.max_length, self.buckets)


@dataclasses.dataclass(frozen=True)
class AttackFiles:
    """A poisoned copy of a task, for the trigger "file".

    Attributes:
        train: the poisoned copy of the training file, row by row; below data.root where
            the path is relative.
        test: triggered test rows.
        marker: the column that marks poisoned rows; "" if they are those that differ.
    """

    train: str = ""
    test: str = ""
    marker: str = ""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        trigger: a name in `attacks.TRIGGERS`, "file" for ready rows, or "searched" for
            words for which the trusted model predicts the target.
        trigger_args: of its builder, such as {"phrase": "..."}.
        position: of the trigger in a text.
        found: the words of a searched trigger by the scenario's folder; the study fills
            it in.
        files: of the trigger "file".
        decoy_rate: fraction of the rows, clean ones, that get a part of the trigger.
        channel: "data" flips labels and poisons the teacher, "logits" corrupts the
            outputs of a clean teacher, "both" does both, "labels" flips the labels that
            a student of `kd.hard_weight` sees, and leaves the teacher clean.
        rate: fraction of the transfer rows.
        reference_rate: fraction of the references that are poisoned too.
        target: the class that the attacker wants for triggered rows.
        source_classes: the classes of the rows that are poisoned; () is every class but
            the target.
        logits: a name in `attacks.LOGIT_ATTACKS`.
        strength: in units of logits.
        features: the attack on hidden states, a name in `attacks.FEATURE_ATTACKS`, or
            "".
        arms: the arms to run; () is config.arms.
        tasks: the tasks of config.tasks that it is meant for; () is all.
    """

    trigger: str = "rare_words"
    trigger_args: Mapping[str, Any] = options()
    position: str = "random"
    found: Mapping[str, str] = options()
    files: AttackFiles = AttackFiles()
    decoy_rate: float = 0.0
    channel: str = "data"
    rate: float = 0.05
    reference_rate: float = 0.0
    target: int = 1
    source_classes: tuple[int, ...] = ()
    logits: str = "replace"
    strength: float = 8.0
    features: str = ""
    arms: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        tuples(self, "source_classes", "arms", "tasks")
        known = (*attacks.TRIGGERS, "file", "searched")
        validate.one_of(known, trigger=self.trigger)
        validate.one_of(CHANNELS, channel=self.channel)
        validate.one_of(attacks.LOGIT_ATTACKS, logits=self.logits)
        validate.require(0 < self.rate < 1, "rate", self.rate, "in (0, 1)")
        validate.one_of(("", *attacks.FEATURE_ATTACKS), features=self.features)
        for field, allowed in (
            ("decoy_rate", self.trigger in attacks.DECOYS),
            ("reference_rate", self.trigger != "file"),
        ):
            value = getattr(self, field)
            bound = "in [0, 1)" if allowed else "0 for this trigger"
            valid = 0 <= value < 1 and (allowed or not value)
            validate.require(valid, field, value, bound)
        # Hidden states pass through the channel between teacher and student only.
        by_channel = self.channel in ("logits", "both") or not self.features
        bound = "'' in this channel"
        validate.require(by_channel, "features", self.features, bound)
        validate.non_negative(strength=self.strength, target=self.target)


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Fine-tuning on references; `attention_weight` is that of NAD."""

    epochs: int = 3
    learning_rate: float = 2e-4
    attention_weight: float = 10.0

    def __post_init__(self):
        validate.positive(**vars(self))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation: rows of a batch."""

    batch_size: int = 64

    def __post_init__(self):
        validate.positive(batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole study.

    Attributes:
        tasks: names in `tasks.TASKS`, or "files".
        seeds: of all random draws.
        replicas: the number of seeds trained side by side, which fills an accelerator.
        arms: `kind+variant@federation`, the kind in `arms.ARMS`.
        attacks: by name; none for a study without an attack.
        federations: by name.
        variants: by name, `{section: {field: value}}`, the settings that `arm+NAME`
            changes.
        steps_per_dispatch: steps of one compiled call.
        checkpoint_every: dispatches between two checkpoints.
        keep_checkpoints: whether the last one of a finished run is kept.
        export_students: whether students are kept.
    """

    tasks: tuple[str, ...] = ("sst2",)
    seeds: tuple[int, ...] = (0, 1, 2)
    replicas: int = 1
    arms: tuple[str, ...] = ("clean", "plain", "defended")
    attacks: Mapping[str, Attack] = options()
    federations: Mapping[str, Federation] = options()
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]] = options()
    data: Data = Data()
    teacher: Encoder = Encoder(model="FacebookAI/roberta-large")
    student: Encoder = Encoder(model="distilbert/distilroberta-base")
    trusted_model: Encoder = Encoder(model="distilbert/distilroberta-base", epochs=6)
    kd: Distillation = Distillation()
    dp: Private = Private()
    features: Features = Features()
    prototypes: Prototypes = Prototypes()
    margin: Margin = Margin()
    quarantine: Quarantine = Quarantine()
    detection: Detection = Detection()
    nearest: Nearest = Nearest()
    fine_tuning: FineTuning = FineTuning()
    filters: Filters = Filters()
    adversarial: Adversarial = Adversarial()
    evaluation: Evaluation = Evaluation()
    steps_per_dispatch: int = 8
    checkpoint_every: int = 10
    keep_checkpoints: bool = True
    export_students: bool = True

    def __post_init__(self):
        tuples(self, "tasks", "seeds", "arms")
        distinct(tasks=self.tasks, seeds=self.seeds, arms=self.arms)
        validate.positive(
            steps_per_dispatch=self.steps_per_dispatch,
            checkpoint_every=self.checkpoint_every,
            replicas=self.replicas,
        )

    @property
    def lengths(self) -> Lengths:
        """The limits by which rows are cut, padded and batched."""
        rows, steps = self.evaluation.batch_size, self.steps_per_dispatch
        return Lengths(self.data.max_length, self.data.buckets, steps, rows)


# Sections of which a study has several, each with a name of its own.
NAMED = {"attacks": Attack, "federations": Federation}


def make(section: Any, fields: Mapping[str, Any]) -> Any:
    """A section with some of its (nested) fields changed, named sections included.

    Args:
        section: a dataclass of settings.
        fields: the fields that differ.

    Raises:
        ValueError: naming the path of the field, the value and what is allowed.

    >>> make(Settings(), {"data": {"max_length": 64}, "seeds": [1]}).data.max_length
    64
    >>> make(Settings(), {"teacher": {"epochs": 0}})
    Traceback (most recent call last):
    ValueError: Expected teacher.epochs > 0, found teacher.epochs=0.
    """
    found = dict(fields)
    for name, kind in NAMED.items():
        if isinstance(fields.get(name), Mapping):
            with validate.prefixed(name):
                found[name] = _named(kind(), fields[name])
    return with_fields(section, found)


def _named(usual: Any, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections by their names, each with some fields that differ from the usual."""
    found = {}
    for name, fields in sections.items():
        is_section = isinstance(fields, Mapping)
        validate.require(is_section, name, fields, "fields and their values")
        with validate.prefixed(name):
            found[name] = with_fields(usual, fields)
    return found


def completed(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the usual values of those that they lack, at every depth.

    Args:
        fields: the settings, as JSON has them.
        usual: the defaults.

    >>> completed({"a": {"b": 2}}, {"a": {"b": 1, "c": 1}, "d": 1})
    {'a': {'b': 2, 'c': 1}, 'd': 1}
    """
    found = {**usual, **fields}
    for name, value in fields.items():
        if isinstance(value, Mapping) and isinstance(usual.get(name), Mapping):
            found[name] = completed(value, usual[name])
    return found


def as_json(section: Any) -> dict[str, Any]:
    """A section in the types of JSON."""
    return json.loads(json.dumps(dataclasses.asdict(section)))
