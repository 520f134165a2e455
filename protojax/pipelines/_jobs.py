"""The inputs of a defence, read and checked before anything is computed."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import data, validate
from protojax.base import Examples, TeacherOutputs
from protojax.data.readers import Source
from protojax.federated.replicas import Surroundings
from protojax.models import Model, hf
from protojax.models import settings as model_settings
from protojax.models.settings import SCRATCH, ModelSettings
from protojax.pipelines import _generated, _run_file, inputs, teachers
from protojax.pipelines.inputs import Labelled, Sheet
from protojax.pipelines.rewriting import Ask
from protojax.pipelines.settings import Columns, Defence, Encoder, flat
from protojax.pipelines.students import scratch_tokenizer
from protojax.pipelines.teachers import Given

_logger = logging.getLogger("protojax")


class Job(NamedTuple):
    """Everything that a defence works on.

    Attributes:
        config: all settings, the sources of the models among them.
        label_names: of the classes, in the teacher's order.
        rows: the rows under test.
        references: the trusted rows.
        test: trusted test rows, or None.
        teacher: the model, or None where its outputs were given.
        given: its outputs, or None where it is asked.
        identity: every setting and the hash of every input.
        paths: of inputs and models, as they were given.
    """

    config: Defence
    label_names: tuple[str, ...]
    rows: Labelled
    references: Labelled
    test: Labelled | None
    teacher: Model | None
    given: Given | None
    identity: dict[str, Any]
    paths: dict[str, str]

    @property
    def student_is_of_teacher(self) -> bool:
        """Whether the student starts from weights of the teacher, or layers of it."""
        source = self.config.student.model
        return self.teacher is not None and _same(source, self.config.teacher.model)


def prepare(
    config: Defence,
    *,
    rows: str | Path,
    references: str | Path | None,
    teacher: str | Path | None,
    student: str,
    trusted_model: str | None,
    teacher_logits: str | Path | None,
    test: str | Path | None,
    public: str | Path | None = None,
    describe: Callable[[str], None] = lambda text: None,
) -> Job:
    """The inputs of a defence; the arguments are those of `pipelines.defend`.

    Raises:
        OSError, ValueError: in one line, where an input is missing or does not fit.
    """
    if (teacher is None) == (teacher_logits is None):
        raise ValueError("Expected either a teacher or its logits, not both or none.")
    config = with_models(config, student, trusted_model, teacher and str(teacher))
    _generated.require_inputs(config, references, public)
    generated = config.writer.model != ""
    paths = {"rows": rows, "references": None if generated else references}
    paths = {**paths, "test": test, "public": public}
    found = {name: path and Path(path) for name, path in paths.items()}
    parts = _sheets(config, found, describe)
    given = _given(teacher_logits, parts) if teacher_logits else None
    names = _class_names(teacher, given, parts["references"], config.columns)
    held = {name: inputs.labelled(sheet, names) for name, sheet in parts.items()}
    if not held["rows"].labelled:
        detection = dataclasses.replace(config.detection, claims=("teacher",))
        config = dataclasses.replace(config, detection=detection)
    if held["references"].examples.sources is None and config.columns.source:
        # As one source of their own: sources are groups only where all rows have one.
        trusted = held["references"].examples
        own = trusted._replace(sources=["references"] * len(trusted.texts))
        held["references"] = held["references"]._replace(examples=own)
    _check_targets(config, held["rows"].labelled, given)
    inputs.check_references(
        held["rows"].examples,
        held["references"].examples,
        names,
        config.detection.false_rejection,
    )
    model = None if teacher is None else _teacher(config, names)
    hashed = {name: found[name] for name in ("rows", "references", "test")}
    if teacher_logits and teacher_logits != "columns":
        hashed["teacher_logits"] = Path(teacher_logits)
    sources = {
        "teacher": teacher and str(teacher),
        "student": config.student.model,
        "trusted_model": config.trusted_model.model,
    }
    if generated:
        hashed["public"], sources["writer"] = found["public"], config.writer.model
    return Job(
        config,
        names,
        held["rows"],
        held["references"],
        held.get("test"),
        model,
        given,
        _run_file.identity_of(flat(config), hashed, sources),
        {name: str(path) for name, path in {**hashed, **sources}.items() if path},
    )


def with_models(
    config: Defence, student: str, trusted_model: str | None, teacher: str | None
) -> Defence:
    """The settings with the sources of the models filled in.

    Args:
        config: the settings.
        student: a folder, "FOLDER:0,2" for some of its layers, "layers:0,2" of the
            teacher, or "scratch".
        trusted_model: a folder or "scratch"; None for what the student starts from.
        teacher: the teacher's folder, None where there is none.

    Raises:
        ValueError: where the teacher's weights would be trusted, or there are none to
            take layers of.
    """
    source, layers = inputs.student_source(student, teacher)
    layers = layers or config.student.layers
    trusted = source if trusted_model is None else trusted_model
    if teacher is not None and _same(trusted, teacher):
        raise ValueError(
            "Expected a trusted model that is not the teacher, whose weights are "
            "untrusted. Give --trusted-model the folder of a pretrained encoder, or "
            "scratch."
        )
    return dataclasses.replace(
        config,
        student=dataclasses.replace(config.student, model=source, layers=layers),
        trusted_model=dataclasses.replace(config.trusted_model, model=trusted),
        teacher=dataclasses.replace(config.teacher, model=teacher or SCRATCH),
    )


def _same(first: str, second: str) -> bool:
    """Whether two sources are one model."""
    paths = [Path(source).expanduser() for source in (first, second)]
    exist = all(path.exists() for path in paths)
    return first == second or (exist and paths[0].samefile(paths[1]))


def _sheets(
    config: Defence,
    found: Mapping[str, Path | None],
    describe: Callable[[str], None],
) -> dict[str, Sheet]:
    """The rows of each file, of references that are generated as of a file."""
    columns, parts = config.columns, {}
    if config.writer.model:
        own = inputs.open_rows(found["rows"], columns.encoding)
        both = (
            own,
            _generated.generated_references(config, own, found["public"], describe),
        )
    else:
        both = inputs.open_both(
            found["rows"], found["references"], columns.reference, columns.encoding
        )
    parts["rows"], parts["references"] = _read_both(both, columns)
    if found["test"]:
        source = inputs.open_rows(found["test"], columns.encoding)
        parts["test"] = inputs.sheet_of(source, dataclasses.replace(columns, source=""))
    return parts


def _read_both(parts: Sequence[Source], columns: Columns) -> tuple[Sheet, Sheet]:
    """The rows and the references."""
    # Sources are groups of the rows; the references need not have any.
    trusted = (
        columns
        if columns.source in parts[1].rows[0][1]
        else dataclasses.replace(columns, source="")
    )
    return (
        inputs.sheet_of(parts[0], columns, must_be_labelled=False),
        inputs.sheet_of(parts[1], trusted),
    )


def _given(source: str | Path, parts: dict[str, Sheet]) -> Given:
    """The teacher's outputs in a file, or in columns of the user's files."""
    if source == "columns":
        return teachers.read_columns(parts["rows"], parts["references"])
    return teachers.read_arrays(Path(source), parts["rows"], parts["references"])


def _class_names(
    teacher: str | Path | None, given: Given | None, references: Sheet, columns: Columns
) -> tuple[str, ...]:
    """The names of the classes, in the teacher's order."""
    if given is not None:
        names, count = given.names, given.rows.logits.shape[1]
    else:
        names = hf.class_names(teacher)
        count = len(names)
        if names == tuple(f"LABEL_{number}" for number in range(count)):
            names = ()
    found = inputs.names_of(references, columns.label)
    source = references.table.source
    return inputs.class_names(names, found, count=count, source=source)


def _check_targets(config: Defence, labelled: bool, given: Given | None) -> None:
    """Raises where the student would learn from what is not there."""
    if not labelled:
        bound = "0 for rows without labels"
        weight = config.kd.hard_weight
        validate.require(weight == 0, "kd.hard_weight", weight, bound)
    if given is not None:
        layers = given.rows.features.shape[1]
        if layers == 0:
            bound = "0 without the teacher's features"
            weight = config.kd.hidden_weight
            validate.require(weight == 0, "kd.hidden_weight", weight, bound)
        else:
            wanted = config.features.layers
            bound = f"{layers} layers, as the given features have"
            same = len(wanted) == layers
            validate.require(same, "features.layers", wanted, bound)


def _teacher(config: Defence, names: Sequence[str]) -> Model:
    """The teacher as it is."""
    model = hf.load_hf(
        config.teacher.model, num_labels=len(names), **config.teacher.computation
    )
    return _checked(model._replace(label_names=tuple(names)), config.teacher, config)


def _checked(model: Model, settings: ModelSettings, config: Defence) -> Model:
    """The same model, after a check of what would fail after hours of training."""
    if model.tokenizer is None:
        raise ValueError(
            f"{settings.model} holds no tokenizer: tokenizer.json or vocab.txt, as "
            "tokenizer.save_pretrained(FOLDER) of transformers writes them."
        )
    states = model.config.num_layers + 1
    for layer in config.features.layers:
        bound = f"in [{-states}, {states}), the hidden states of {settings.model}"
        validate.require(-states <= layer < states, "features.layers", layer, bound)
    return model


def model_of(
    settings: Encoder, job: Job, texts: Sequence[str], *, max_positions: int
) -> Model:
    """The trusted model or the student before training.

    Args:
        settings: of the model.
        job: the inputs.
        texts: that the tokenizer of a model from scratch is trained on.
        max_positions: the most tokens of a row, of a model from scratch.
    """
    model = model_settings.build(
        settings,
        num_labels=len(job.label_names),
        problem="classification",
        seed=job.config.seed,
        max_positions=max_positions,
        tokenizer=lambda: scratch_tokenizer(texts, job.config.vocab_size),
    )
    return _checked(model._replace(label_names=job.label_names), settings, job.config)


def ask(
    job: Job, model: Model, name: str, examples: Examples, around: Surroundings
) -> TeacherOutputs:
    """The outputs of teacher or student, kept below the folder of the runs.

    Args:
        job: the inputs.
        model: the teacher or the student.
        name: of the file, and of the work in the progress bar.
        examples: the rows.
        around: the surroundings of the runs.
    """
    around.describe(f"{name.replace('_', ' ')}: {len(examples.texts)} rows")
    lengths, features = job.config.lengths, job.config.features
    folder = around.store("").folder
    return teachers.ask(folder, name, model, examples, lengths, features)


def asking(job: Job, around: Surroundings) -> Ask | None:
    """The teacher, asked again about rows that changed; None where it cannot be asked.

    Args:
        job: the inputs.
        around: the surroundings of the runs.
    """
    if job.teacher is None:
        return None

    def again(pure: Examples, changed: np.ndarray) -> TeacherOutputs:
        rows = data.take(pure, changed)
        return ask(job, job.teacher, "teacher_on_rewritten", rows, around)

    return again


def teacher_agreement(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of references whose label the teacher says; warns where it is low.

    Args:
        logits: `[references, classes]`, the teacher's.
        labels: `[references]`, int.
    """
    share = float(np.mean(logits.argmax(-1) == labels))
    if share < 0.5:
        _logger.warning(
            "The teacher says the label of %.0f %% of the references only: are its "
            "classes in the order of its names?",
            100 * share,
        )
    return share
