"""The defence of one's own files by a config, and a job made from bundled data."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import settings
from experiments.world.tasks import load_task
from protojax import attacks, data, evals, pipelines, storage, validate
from protojax.base import Examples
from protojax.data.wordpiece import train_wordpiece
from protojax.federated.replicas import Surroundings
from protojax.models import hf
from protojax.models import settings as model_settings
from protojax.pipelines import Defence, Defended, FineTuning, Watch
from protojax.pipelines.settings import Encoder
from protojax.training import predict, trainer
from protojax.training.predict import Features, Lengths
from protojax.training.trainer import Store

# The rows under test, the references, and the rows that the teacher learned besides.
ROWS, REFERENCES, OTHERS = 2000, 700, 2000
PHRASE, TARGET, RATE = "by the way", "PlayMusic", 0.05
TEACHER = {
    "hidden_size": 192,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 768,
}


class Files(NamedTuple):
    """The files of a job, "" for those that there are not.

    Attributes:
        train: the rows under test.
        references: the trusted rows.
        test: trusted test rows.
        teacher_logits: instead of a teacher, its outputs.
    """

    train: str
    references: str
    test: str
    teacher_logits: str


def check(config: ConfigDict) -> tuple[Files | None, Defence]:
    """The files of a job, None for one made from bundled data, and its settings.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    fields = config.to_dict()
    data_, defence = fields.pop("data"), settings.make(Defence(), fields)
    given = {f"data.files.{name}": value for name, value in data_["files"].items()}
    if not data_["bundled"]:
        bound = "a file of your rows, or --config=defend.py:bundled"
        path = given["data.files.train"]
        validate.require(bool(path), "data.files.train", path, bound)
        return Files(**data_["files"]), defence
    for name, value in {**given, "teacher.model": defence.teacher.model}.items():
        validate.require(not value, name, value, "'' in a job of bundled data")
    return None, defence


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    watch: Watch,
    command: Sequence[str] = (),
) -> tuple[Defended, dict[str, float]]:
    """The result of a defence, which wrote everything to the workdir, and its worth.

    Args:
        config: from `configs/defend.py`, with overrides applied.
        workdir: the folder of the job; a made one has its files in `given` and its
            results in `defended`.
        watch: is told of the progress.
        command: the command line, for run.json.

    Returns:
        The result, and of a job made from bundled data what the defence could not know,
        see `worth`; nothing else of one's own files.
    """
    files, defence = check(config)
    if files is not None:
        return _defended(files, defence, workdir, watch, command), {}
    job = made(workdir / "given", defence.lengths, watch)
    settled = dataclasses.replace(
        defence, teacher=dataclasses.replace(defence.teacher, model=job.teacher)
    )
    found = _defended(job.files, settled, workdir / "defended", watch, command)
    return found, worth(found, job, defence.lengths)


def _defended(
    files: Files,
    config: Defence,
    out: pathlib.Path,
    watch: Watch,
    command: Sequence[str],
) -> Defended:
    """The result of `pipelines.defend`, whose models the settings name."""
    return pipelines.defend(
        files.train,
        files.references or None,
        config.teacher.model or None,
        student=config.student.model,
        trusted_model=config.trusted_model.model or None,
        teacher_logits=files.teacher_logits or None,
        test=files.test or None,
        config=config,
        out=out,
        watch=watch,
        command=command,
    )


class Made(NamedTuple):
    """A job made from bundled data.

    Attributes:
        files: rows, references and test rows.
        teacher: the folder of a teacher with a backdoor.
        poisoned: `[rows]`, bool, which rows hold the phrase and claim the target.
        test: the test rows.
        target: the number of the target.
    """

    files: Files
    teacher: str
    poisoned: np.ndarray
    test: Examples
    target: int


def made(folder: pathlib.Path, lengths: Lengths, watch: Watch) -> Made:
    """A job of which the truth is known, its files and its teacher in a folder.

    What is there already is not made again.

    Args:
        folder: of the files.
        lengths: how the teacher's rows are padded.
        watch: is told of the progress.
    """
    train, test, task = load_task("snips")
    target, rng = task.label_names.index(TARGET), np.random.default_rng(0)
    order = rng.permutation(len(train.texts))
    own, references, others = np.split(
        order[: ROWS + REFERENCES + OTHERS], [ROWS, ROWS + REFERENCES]
    )
    rows, poisoned = attacks.poison(
        data.take(train, own), attacks.sentence(PHRASE), rng, target=target, rate=RATE
    )
    parts = {"rows": rows, "references": data.take(train, references), "test": test}
    for name, part in parts.items():
        with storage.atomic(folder / f"{name}.csv") as file:
            file.write(_csv(part, task.label_names).encode())
    taught = data.concatenate(rows, data.take(train, others))
    teacher = _teacher(taught, task.label_names, folder, lengths, watch)
    files = Files(*(str(folder / f"{name}.csv") for name in parts), "")
    return Made(files, str(teacher), poisoned, test, target)


def _csv(examples: Examples, names: Sequence[str]) -> str:
    """Rows with the names of their classes as a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["text", "label"])
    pairs = zip(examples.texts, examples.labels, strict=True)
    writer.writerows([one, names[label]] for one, label in pairs)
    return text.getvalue()


def _teacher(
    taught: Examples,
    names: Sequence[str],
    folder: pathlib.Path,
    lengths: Lengths,
    watch: Watch,
) -> pathlib.Path:
    """The folder of a teacher from scratch that learned some rows as they are."""
    section = Encoder(scratch=TEACHER, epochs=3, learning_rate=1e-3, batch_size=64)
    model = model_settings.build(
        section,
        num_labels=len(names),
        problem="classification",
        seed=0,
        max_positions=lengths.buckets[-1],
        tokenizer=lambda: hf.wrap_tokenizer(
            train_wordpiece(taught.texts, vocab_size=4000)
        ),
    )
    # Named by all that may differ, so that a job with other lengths has its own.
    name = f"teacher_{data.fingerprint(repr(lengths))[:12]}"
    model = model._replace(label_names=tuple(names))
    wanted = FineTuning(name, model, section, taught, 0)
    watch.total(len(taught.texts) * section.epochs * trainer.row_cost(model.config))
    around = Surroundings(
        lengths, lambda name: Store(folder / name), watch.describe, watch.advance
    )
    pipelines.fine_tune([wanted], folder, around)
    return folder / name / "model"


def worth(found: Defended, job: Made, lengths: Lengths) -> dict[str, float]:
    """The worth of a defence, measured by the truth that it did not know.

    Args:
        found: the result of the defence.
        job: the job that it was given.
        lengths: how rows are padded.
    """
    rejected = found.facts.findings.verdict.rejected
    quality = evals.quarantine_quality(rejected, job.poisoned)
    shown = attacks.triggered(
        job.test, attacks.sentence(PHRASE), np.random.default_rng(1), target=job.target
    )
    classes = found.student.config.num_labels
    models = {
        "teacher": hf.load_hf(job.teacher, num_labels=classes),
        "student": found.student,
    }
    return {
        "poisoned rows rejected": quality.recall,
        "other rows rejected": quality.false_rejection_rate,
        **{
            f"attack success, {name}": float(
                np.mean(
                    predict.ask(model, shown, lengths, Features()).logits.argmax(1)
                    == job.target
                )
            )
            for name, model in models.items()
        },
    }
