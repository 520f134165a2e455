"""One function from a user's teacher, proxy and prompts to a calibrated teacher."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax import validate
from protojax.data import files
from protojax.models import language
from protojax.models.language import LanguageModel
from protojax.pipelines import _run_file
from protojax.pipelines.calibration import _files
from protojax.pipelines.calibration.settings import ProblemColumns, TeacherCalibration
from protojax.pipelines.defence import Watch
from protojax.pipelines.inputs import open_rows
from protojax.pipelines.settings import flat
from protojax.rl import Problems, VerifierFn
from protojax.rl.calibration import Calibrated, calibrate
from protojax.rl.problems import build_world
from protojax.training.trainer import Store


class CalibratedTeacher(NamedTuple):
    """The result of a calibration of a user's teacher.

    Attributes:
        found: the teacher, the history, texts before and after.
        out: the folder that everything was written to.
    """

    found: Calibrated
    out: Path


def calibrate_teacher(
    prompts: str | Path,
    teacher: str | Path,
    proxy: str | Path,
    *,
    config: TeacherCalibration | None = None,
    verifier: VerifierFn | None = None,
    out: str | Path,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> CalibratedTeacher:
    """A teacher that is easier or harder to distil, with what it writes beside before.

    It writes the teacher as a Hugging Face folder, one line for each held-out problem,
    one for each rollout, and run.json. The same call goes on where a killed one
    stopped. No student is trained, so none is claimed to gain or lose.

    Args:
        prompts: a file with a prompt and an answer a row: CSV, TSV, JSONL or Parquet.
        teacher: the folder of a language model, or its name on the Hugging Face Hub.
        proxy: another language model, small as the students to come; it may have
            another tokenizer.
        config: all settings; None for the defaults.
        verifier: `(prompt, text, answer) -> reward in [0, 1]`, besides those that the
            settings name. A run is told from another by its name alone.
        out: the folder to write to.
        watch: is told of the progress.
        command: the command line, for run.json.

    Raises:
        OSError, ValueError: in one line, before anything is written, where an input is
            missing or does not fit.
    """
    config, watch, out = config or TeacherCalibration(), watch or Watch(), Path(out)
    verifiers = (*config.verifiers, *([verifier] if verifier else ()))
    bound = "at least one, or a function"
    validate.require(bool(verifiers), "verifiers", config.verifiers, bound)
    problems, lines = _read(Path(prompts), config.columns)
    models = {"teacher": str(teacher), "proxy": str(proxy)}
    loaded = {name: _loaded(name, source, config) for name, source in models.items()}
    settings = config.calibration
    # Checked before anything is written.
    build_world(loaded["teacher"], loaded["proxy"], problems, settings, verifiers)
    named = {**flat(config), "verifier": getattr(verifier, "__qualname__", "")}
    identity = _run_file.identity_of(named, {"prompts": Path(prompts)}, models)
    clock = _run_file.Clock(_run_file.open_run(out, identity))
    paths = {"prompts": str(prompts), **models}
    about = _run_file.about(paths)
    recorded = _run_file.recorded(
        out, identity, paths=paths, seconds=clock.seconds, command=command
    )
    with recorded as finish:
        watch.total(settings.steps)
        found = calibrate(
            loaded["teacher"],
            loaded["proxy"],
            problems,
            settings,
            verifiers=verifiers,
            store=Store(out / _run_file.WORK, every=settings.every, keep=True),
            on_rollout=lambda record: _tell(watch, record),
        )
        clock("calibration")
        _files.write(out, found, problems, lines, config, about)
        clock("reports")
        finish(_files.result_of(found))
    return CalibratedTeacher(found, out)


def _tell(watch: Watch, record: dict[str, Any]) -> None:
    """Says how a rollout went."""
    solved, kl = record["solved"], record["kl"]
    watch.describe(f"solved {solved:.0%}, divergence {kl:.2f} nats/text")
    watch.advance(1)


def _loaded(name: str, source: str, config: TeacherCalibration) -> LanguageModel:
    """A model without dropout."""
    validate.require(source != "", name, source, "a folder or the name of a model")
    model = language.load_language_model(source, dtype=config.dtype)
    settings = dataclasses.replace(model.config, dropout=0.0)
    return model._replace(config=settings)


def _read(path: Path, columns: ProblemColumns) -> tuple[Problems, np.ndarray]:
    """The problems of a file, and their lines in it."""
    task = files.Task("files", columns.prompt, label=columns.answer)
    table = files.read_table(open_rows(path, columns.encoding), task)
    # Instructions may be objects in a JSONL file.
    answers = [
        json.dumps(answer) if isinstance(answer, dict | list) else str(answer)
        for answer in table.labels
    ]
    return Problems(table.texts, answers), np.array(table.numbers)
