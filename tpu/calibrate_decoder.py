"""A real decoder, calibrated both ways, and its students: one run on an accelerator.

    python tpu/calibrate_decoder.py SmolLM2-135M-Instruct/ runs/smollm
    python tpu/calibrate_decoder.py --dry runs/dry     # minutes on a CPU: do parts fit?

The teacher learns to solve word problems in four manners, of which a shallow cut of it
follows some better than others. Proxy and students are such cuts, trained on the same
texts. The teacher is calibrated with η = -1, +1 and 0; students learn from the texts of
each. `results.jsonl` gets a line as soon as it is known. After `--minutes` nothing new
is begun, and what was not reached is said.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax.base import Texts
from protojax.data.wordpiece import train_wordpiece
from protojax.models import wrap_tokenizer
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    init_model,
    load_language_model,
    select_layers,
)
from protojax.pipelines.distillability import (
    Query,
    StudentSettings,
    drawn_texts,
    learn_texts,
    train_student,
)
from protojax.pipelines.distillability.decoding import Shape
from protojax.rl import Calibration, Problems
from protojax.rl.calibration import calibrate
from protojax.rl.verifiers import arithmetic, equations

NAMES = ("Tom", "Mia", "Sam", "Ana", "Leo", "Zoe")
THINGS = ("apples", "books", "coins", "shells", "cards", "pens")
VERIFIERS = ("arithmetic", "equations")
MANNERS = ("steps", "line", "first", "bare")


class Sizes(NamedTuple):
    """The sizes of a run.

    Attributes:
        proxy: layers of the proxy.
        students: layers of the students.
        problems: that all learn from.
        held_out: that all is measured on.
        calibration: of the teacher, but η.
        teaching: of the teacher, proxy and students before any distillation.
        training: of the students.
    """

    proxy: int
    students: tuple[int, ...]
    problems: int
    held_out: int
    calibration: Calibration
    teaching: StudentSettings
    training: StudentSettings


def sizes_of(dry: bool) -> Sizes:
    """The sizes of a run on an accelerator, or of a trial on a CPU.

    Args:
        dry: whether it is a trial.
    """
    lengths = {"max_length": 64, "max_new": 48}
    teaching = StudentSettings(steps=400, batch_size=64, learning_rate=2e-4, **lengths)
    calibration = Calibration(
        learning_rate=1e-5,
        warmup=0.1,
        steps=40,
        prompts=64,
        draws=8,
        minibatches=2,
        max_new=48,
        kl_target=4.0,
        kl_budget=20.0,
        skill_loss=0.2,
        evaluate_every=20,
        held_out=0.05,
        every=1000,
    )
    full = Sizes(6, (10, 15), 4096, 256, calibration, teaching, teaching)
    if not dry:
        return full._replace(training=dataclasses.replace(teaching, steps=200))
    small = {"steps": 1, "batch_size": 4, "chunk": 64}
    teaching = dataclasses.replace(teaching, **small)
    calibration = dataclasses.replace(
        calibration, steps=1, prompts=2, draws=2, minibatches=1, evaluate_every=1
    )
    return Sizes(1, (2,), 16, 4, calibration, teaching, teaching)


def problem_of(rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    """A word problem with its numbers: what there was, came and went.

    Args:
        rng: of the words and numbers.
    """
    had, got = (int(number) for number in rng.integers(10, 60, 2))
    gave = int(rng.integers(2, had + got - 1))
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    prompt = (
        f"{name} has {had} {thing}, gets {got} more and gives {gave} away. "
        f"How many {thing} are left?\nAnswer:"
    )
    return prompt, (had, got, gave)


def text_of(manner: str, numbers: tuple[int, int, int]) -> str:
    """A right text in one of `MANNERS`.

    >>> text_of("steps", (23, 45, 12))
    ' 23 + 45 = 68, 68 - 12 = 56. It is 56.'
    >>> text_of("bare", (23, 45, 12))
    ' It is 56.'

    Args:
        manner: "steps" one by one, all in one "line", the answer "first", or "bare".
        numbers: of the problem.
    """
    had, got, gave = numbers
    both = had + got
    left, steps = (
        both - gave,
        f"{had} + {got} = {both}, {both} - {gave} = {both - gave}",
    )
    return {
        "steps": f" {steps}. It is {left}.",
        "line": f" {had} + {got} - {gave} = {left}. It is {left}.",
        "first": f" It is {left}: {steps}.",
        "bare": f" It is {left}.",
    }[manner]


def manner_of(text: str) -> str:
    """The manner of a text, right or not, by its form; "other" for none.

    >>> manner_of(" 3 + 4 = 8, 8 - 2 = 6. It is 6."), manner_of("no idea")
    ('steps', 'other')

    Args:
        text: what was written.
    """
    if text.startswith(" It is"):
        return "first" if ":" in text else "bare"
    return {1: "line", 2: "steps"}.get(text.count("="), "other")


def world_of(sizes: Sizes) -> tuple[Texts, Problems, Problems]:
    """Right texts to learn, and problems to use and to measure on, all different.

    Args:
        sizes: how many.
    """
    rng, found = np.random.default_rng(0), {}
    while len(found) < sizes.problems + sizes.held_out:
        prompt, numbers = problem_of(rng)
        found[prompt] = numbers
    prompts = [*found]
    answers = [str(had + got - gave) for had, got, gave in found.values()]
    given, asked = (
        Problems(prompts[part], answers[part])
        for part in (slice(sizes.problems), slice(sizes.problems, None))
    )
    manners = rng.choice(MANNERS, sizes.problems)
    rows = zip(manners, found.values(), strict=False)
    texts = Texts(given.prompts, [text_of(manner, row) for manner, row in rows])
    return texts, given, asked


def cut(model: LanguageModel, layers: int) -> LanguageModel:
    """Some layers of a model, spread evenly, the first and the last among them.

    Args:
        model: the deeper model.
        layers: how many.
    """
    places = np.linspace(0, model.config.num_layers - 1, layers).round().astype(int)
    return select_layers(model, [*map(int, places)])


def figures(
    model: LanguageModel, asked: Problems, sizes: Sizes, seed: int
) -> dict[str, Any]:
    """What a model gets right on the held-out problems, one drawn text each.

    Args:
        model: a teacher or a student.
        asked: the problems.
        sizes: of the texts.
        seed: of the draws.
    """
    size = sizes.training
    found = drawn_texts(
        model,
        asked.prompts,
        Shape(size.max_length, size.max_new, size.batch_size, size.chunk),
        draws=1,
        key=jax.random.key(seed),
    )
    rows = zip(asked.prompts, found.texts, asked.answers, found.ended, strict=True)
    items, manners = "", []
    for prompt, (text,), answer, (ended,) in rows:
        right = ended and arithmetic(prompt, text, answer)
        whole = right and equations(prompt, text, answer)
        items += "t" if whole else "a" if right else "-"
        manners.append(manner_of(text))
    return {
        "answer": 1 - items.count("-") / len(items),
        "chain": items.count("t") / len(items),
        "manners": {name: manners.count(name) / len(items) for name in MANNERS},
        "tokens": found.tokens / len(items),
        "items": items,
    }


def tiny() -> LanguageModel:
    """A random teacher for a trial."""
    texts = world_of(sizes_of(True))[0]
    words = train_wordpiece([*texts.sources, *texts.outputs], vocab_size=300)
    tokenizer = wrap_tokenizer(words)
    config = LanguageConfig(
        family="llama",
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=16,
        positions="rotary",
        end_ids=(tokenizer.sep_token_id,),
    )
    return init_model(config, seed=0, tokenizer=tokenizer)


def run(model: LanguageModel, sizes: Sizes, late: float) -> Iterator[dict[str, Any]]:
    """The lines of a run, one after the other.

    Args:
        model: the teacher before it learned the problems.
        sizes: of the run.
        late: seconds of `time.monotonic` after which nothing new is begun.
    """
    texts, given, asked = world_of(sizes)
    teacher = learn_texts(model, texts, sizes.teaching)
    proxy = learn_texts(cut(model, sizes.proxy), texts, sizes.teaching)
    students = {
        layers: learn_texts(cut(model, layers), texts, sizes.teaching)
        for layers in sizes.students
    }
    for layers, student in {sizes.proxy: proxy, **students}.items():
        line = {"teacher": "none", "student": f"{layers} layers"}
        yield line | figures(student, asked, sizes, 0)
    for eta in (None, -1.0, 1.0, 0.0):
        name, taught, begun = "original", teacher, time.monotonic()
        if begun > late:
            return
        if eta is not None:
            name = f"η = {eta:+g}"
            settings = dataclasses.replace(sizes.calibration, eta=eta)
            found = calibrate(teacher, proxy, given, settings, verifiers=VERIFIERS)
            taught = found.teacher
        line = {"teacher": name, "student": "", "seconds": time.monotonic() - begun}
        yield line | figures(taught, asked, sizes, 0)
        for layers, student in students.items():
            if time.monotonic() > late:
                return
            query = Query(taught)
            learnt = train_student("sft", student, query, given.prompts, sizes.training)
            line = {"teacher": name, "student": f"{layers} layers"}
            line |= learnt.budget._asdict()
            yield line | figures(learnt.model, asked, sizes, 0)


def main() -> None:
    """Reads the command line, runs, writes and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("teacher", nargs="?", help="a Hugging Face folder of a decoder")
    parser.add_argument("out", type=pathlib.Path, help="a folder for results.jsonl")
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--dry", action="store_true", help="a random model, tiny sizes")
    given = parser.parse_args()
    if given.dry == bool(given.teacher):
        parser.error("give either a teacher or --dry")
    begun, sizes = time.monotonic(), sizes_of(given.dry)
    model = (
        tiny() if given.dry else load_language_model(given.teacher, dtype="bfloat16")
    )
    given.out.mkdir(parents=True, exist_ok=True)
    done = 0
    with open(given.out / "results.jsonl", "w", encoding="utf-8") as file:
        for line in run(model, sizes, begun + 60 * given.minutes):
            file.write(json.dumps(line) + "\n")
            file.flush()
            done += 1
            print(
                f"{time.monotonic() - begun:6.0f} s  {line['teacher']:>9}  "
                f"{line['student']:>9}  answer {line['answer']:.1%}  "
                f"whole {line['chain']:.1%}  {line['manners']}",
                flush=True,
            )
    wanted = 1 + len(sizes.students) + 4 * (1 + len(sizes.students))
    print(f"{done} of {wanted} lines" + ("" if done == wanted else ": time was up"))


if __name__ == "__main__":
    main()
