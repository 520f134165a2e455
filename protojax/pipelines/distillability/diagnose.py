"""One function from two decoders and a file of prompts to what holds the pair back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import storage, validate
from protojax.data import files
from protojax.distillability import traps
from protojax.distillability.answers import equations_hold, is_right
from protojax.distillability.diagnosis import Figures, Trap, headline, traps_of
from protojax.models.language import LanguageModel, load_language_model, prompts_of
from protojax.pipelines._run_file import versions
from protojax.pipelines.distillability import comparing, decoding
from protojax.pipelines.distillability.comparing import Compared, Side
from protojax.pipelines.distillability.decoding import Shape
from protojax.pipelines.distillability.settings import DiagnosisSettings
from protojax.pipelines.inputs import open_rows
from protojax.reports import diagnosis as pages


class Diagnosis(NamedTuple):
    """The result of a diagnosis.

    Attributes:
        figures: what was measured.
        traps: what it means, see `traps_of`.
        headline: the same in one or two sentences.
        out: the folder that everything was written to.
    """

    figures: Figures
    traps: list[Trap]
    headline: str
    out: Path


class _Prompts(NamedTuple):
    """The user's prompts, with right answers if there are any, and their lines."""

    texts: list[str]
    answers: list[str] | None
    lines: list[int]


def diagnose(
    teacher: str | Path,
    student: str | Path,
    prompts: str | Path,
    *,
    out: str | Path,
    config: DiagnosisSettings | None = None,
    describe: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """The diagnosis of a teacher and a student: which traps hold the student back.

    Both write a text for each prompt, and both read what either wrote. With the same
    tokenizer (and form of the prompt) all traps are measured, exactly over the
    vocabulary; with others those that need no common tokens, from log probabilities
    between common cuts. With right answers, the teacher also continues beginnings of
    the student, and the student begins as the teacher would.

    Args:
        teacher: the folder of a decoder, or its name on the Hugging Face Hub.
        student: likewise.
        prompts: CSV, TSV, JSONL or Parquet.
        out: the folder to write diagnosis.json, texts.json and report.html to.
        config: all other settings; None for the defaults.
        describe: called with a description of the current work.

    Raises:
        OSError, ValueError: in one line, before anything is written, where an input is
            missing or does not fit.
    """
    config, out = config or DiagnosisSettings(), Path(out)
    rows = _read(Path(prompts), config)
    models = {
        name: _decoder(name, source, config)
        for name, source in {"teacher": teacher, "student": student}.items()
    }
    figures, items = measure(*models.values(), *rows, config=config, describe=describe)
    found = Diagnosis(
        figures, traps_of(figures), headline(figures, least=config.least), out
    )
    about = {
        "teacher": str(teacher),
        "student": str(student),
        "prompts": str(prompts),
        "settings": {**config.__dict__},
        "versions": versions(),
    }
    _write(found, items, about, config)
    return found


def measure(
    teacher: LanguageModel,
    student: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str] | None,
    lines: Sequence[int],
    *,
    config: DiagnosisSettings,
    describe: Callable[[str], None] = lambda text: None,
) -> tuple[Figures, list[dict[str, Any]]]:
    """The figures of a pair, and what was written for each prompt.

    Args:
        teacher: a decoder with its tokenizer.
        student: likewise.
        prompts: `[prompts]`.
        answers: `[prompts]`, right answers, or None.
        lines: `[prompts]`, their lines in the user's file.
        config: the settings.
        describe: called with a description of the current work.
    """
    rows = np.repeat(np.arange(len(prompts)), config.draws)
    forms = config.prompt, config.student_prompt or config.prompt
    keys = jax.random.split(jax.random.key(config.seed), 4)
    sides, room = [], 0 if answers is None else config.max_new
    for name, model, form, key in zip(
        ("teacher", "student"), (teacher, student), forms, keys[:2], strict=True
    ):
        describe(f"the {name} writes")
        texts = prompts_of(model.tokenizer, form, [prompts[row] for row in rows])
        shape = _shape(model, config)
        sides.append(comparing.side_of(model, texts, shape, key, room=room))
    same = comparing.share_tokens(*sides)
    compared = []
    for whose in ("teacher", "student"):
        describe(f"both read what the {whose} wrote")
        on_teacher = whose == "teacher"
        compared.append(
            comparing.compare(*sides, on_teacher=on_teacher, same=same, k=config.top_k)
        )
    more, right = {}, None
    if answers is not None:
        wanted = [answers[row] for row in rows]
        more, right = _with_answers(sides, wanted, same, config, keys[2:], describe)
    figures = _figures(sides, compared, len(prompts), same, config, more)
    items = [
        {
            "line": int(lines[row]),
            "prompt": prompts[row],
            **({} if answers is None else {"answer": answers[row]}),
            **{
                name: {
                    "text": side.texts[place],
                    "ended": bool(side.written.ended[place]),
                    **({} if right is None else {"right": bool(right[name][place])}),
                    "nats_to_the_other": round(float(part.gaps[place]), 4),
                }
                for name, side, part in zip(
                    ("teacher", "student"), sides, compared, strict=True
                )
            },
        }
        for place, row in enumerate(rows.tolist())
    ]
    return figures, items


def _read(path: Path, config: DiagnosisSettings) -> _Prompts:
    """The prompts of a file."""
    task = files.Task("files", config.text, None, config.answers)
    table = files.read_table(open_rows(path, config.encoding), task)
    most = config.most
    answers = [str(label).strip() for label in table.labels[:most]]
    return _Prompts(
        table.texts[:most], answers if config.answers else None, table.numbers[:most]
    )


def _decoder(name: str, source: str | Path, config: DiagnosisSettings) -> LanguageModel:
    """A model, after a check that it can be diagnosed."""
    model = load_language_model(source, dtype=config.dtype)
    found = model.config
    bound = "a decoder: it has an encoder, which no trap is measured of"
    validate.require(found.encoder_layers == 0, name, str(source), bound)
    validate.require(model.tokenizer is not None, name, str(source), "with a tokenizer")
    validate.require(bool(found.end_ids), f"{name}.end_ids", (), "a token that ends")
    _shape(model, config)
    return model


def _shape(model: LanguageModel, config: DiagnosisSettings) -> Shape:
    """The sizes of a model's programs; prompts leave room for beginnings."""
    width, most = config.max_length + config.max_new, model.config.max_positions
    if most:
        width = min(width, most - config.max_new + 1)
    bound = f"small enough for {most} tokens in all"
    validate.require(width > config.max_new, "max_new", config.max_new, bound)
    return Shape(width, config.max_new, config.batch_size, config.chunk)


def _with_answers(
    sides: Sequence[Side],
    answers: Sequence[str],
    same: bool,
    config: DiagnosisSettings,
    keys: jax.Array,
    describe: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures that need right answers, and which texts are right."""
    teacher, student = sides
    right = {
        name: np.array([is_right(*pair) for pair in zip(side.texts, answers)])  # noqa: B905
        for name, side in (("teacher", teacher), ("student", student))
    }
    describe("the teacher continues the student")
    begun, reached = _beginnings(student, config.starts)
    continued = _continued(teacher, student, begun, same, answers, keys[0])
    success = traps.continuation_success(continued, reached)
    describe("the student begins as the teacher")
    weights, forced = _forced(teacher, student, same, answers, config, keys[1])
    steps = [equations_hold(text) for text in teacher.texts]
    written = np.array([step is not None for step in steps])
    holds = np.array([bool(step) for step in steps])
    more = {
        "teacher_accuracy": float(right["teacher"].mean()),
        "student_accuracy": float(right["student"].mean()),
        "starts": (0, *config.starts),
        "continuations": (float(right["teacher"].mean()), *success.tolist()),
        "reached": (len(answers), *reached.sum(0).tolist()),
        "executability": traps.executability(forced, weights),
        "faithfulness": traps.chain_faithfulness(right["teacher"] & written, holds),
        "with_steps": int((right["teacher"] & written).sum()),
    }
    return more, right


def _beginnings(
    student: Side, starts: Sequence[int]
) -> tuple[list[list[list[int]]], np.ndarray]:
    """The first tokens of the student's texts, and which texts have that many."""
    texts = [student.written.tokens(row) for row in range(len(student.texts))]
    reached = np.array([[len(ids) >= start for start in starts] for ids in texts])
    begun = [[ids[:start] for start in starts] for ids in texts]
    return begun, reached.reshape(len(texts), len(starts))


def _continued(
    model: Side,
    other: Side,
    begun: Sequence[Sequence[Sequence[int]]],
    same: bool,
    answers: Sequence[str],
    key: jax.Array,
) -> np.ndarray:
    """Whether the model is right when it continues beginnings of the other.

    Args:
        model: that writes.
        other: whose tokens begin.
        begun: `[rows][beginnings]`, tokens of the other.
        same: whether both have the same tokens.
        answers: `[rows]`.
        key: of the draws.

    Returns:
        `[rows, beginnings]`, bool.
    """
    prompts, beginnings, wanted = [], [], []
    for row, several in enumerate(begun):
        for ids in several:
            text = decoding.text_of(other.model, ids)
            if not same:
                found = model.model.tokenizer(text, add_special_tokens=False)
                # A beginning takes no more room than a whole text.
                ids = found["input_ids"][: model.shape.max_new]
            prompts.append([*model.prompts[row], *ids])
            beginnings.append(text)
            wanted.append(answers[row])
    if not prompts:
        return np.zeros((len(begun), 0), bool)
    written = decoding.draw(model.model, prompts, model.shape, key=key)
    right = [
        is_right(text + decoding.text_of(model.model, written.tokens(place)), answer)
        for place, (text, answer) in enumerate(zip(beginnings, wanted, strict=True))
    ]
    return np.array(right).reshape(len(begun), -1)


def _forced(
    teacher: Side,
    student: Side,
    same: bool,
    answers: Sequence[str],
    config: DiagnosisSettings,
    key: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's first tokens' probabilities, and whether the student is right."""
    number = min(config.first_tokens, decoding.vocabulary_of(teacher.model))
    ids, weights = decoding.first_tokens(
        teacher.model, teacher.prompts, teacher.shape, number=number
    )
    # An output that ends at once is nothing to begin with.
    weights = np.where(np.isin(ids, teacher.model.config.end_ids), 0, weights)
    begun = [[[token] for token in row] for row in ids.tolist()]
    right = _continued(student, teacher, begun, same, answers, key)
    return weights, right


def _figures(
    sides: Sequence[Side],
    compared: Sequence[Compared],
    prompts: int,
    same: bool,
    config: DiagnosisSettings,
    more: dict[str, Any],
) -> Figures:
    """All figures of a pair."""
    teacher, student = sides
    ours, theirs = compared
    gap, gap_error = traps.mean_and_error(ours.gaps)
    own_gap, own_error = traps.mean_and_error(theirs.gaps)
    sizes = sum(len(text.encode("utf-8", "replace")) for text in teacher.texts)
    return Figures(
        same_tokens=same,
        prompts=prompts,
        texts=len(teacher.texts),
        k=min(config.top_k, decoding.vocabulary_of(teacher.model)),
        gap=gap,
        gap_error=gap_error,
        gap_per_byte=float(ours.gaps.sum() / max(sizes, 1)),
        own_gap=own_gap,
        own_gap_error=own_error,
        teacher_overlap=ours.overlap,
        student_overlap=theirs.overlap,
        tail_mass=ours.tail_mass,
        own_tail_mass=theirs.tail_mass,
        tail_share=ours.tail_share,
        positions=traps.by_position(ours.positions, ours.where)[0].tolist(),
        own_positions=traps.by_position(theirs.positions, theirs.where)[0].tolist(),
        teacher_ended=float(teacher.written.ended.mean()),
        student_ended=float(student.written.ended.mean()),
        **more,
    )


def _write(
    found: Diagnosis,
    items: list[dict[str, Any]],
    about: dict[str, Any],
    config: DiagnosisSettings,
) -> None:
    """Writes all files, each of which appears when it is complete."""
    storage.write_json(found.out / "texts.json", items)
    page = pages.page_of(found.figures, about, items, least=config.least)
    with storage.atomic(found.out / "report.html") as file:
        file.write(page.encode())
    # Last, as the sign that the others are there.
    record = {
        "headline": found.headline,
        "figures": pages.plain_figures(found.figures),
        "traps": [pages.plain_figures(trap) for trap in found.traps],
        **about,
    }
    storage.write_json(found.out / "diagnosis.json", record)
