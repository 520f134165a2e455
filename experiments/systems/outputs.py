"""The test of outputs that are text: its power and its false alarms, without a student.

Each attack puts a trigger into sources and changes their outputs; "none" leaves the set
clean. A line has, of ours and of three detectors that look at rows one by one, the
share of honest rows that are rejected and of poisoned rows that are found.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.study.parts import Parts
from experiments.systems.lines import Lines, keep_settings, settings_of
from experiments.world import output_baselines
from experiments.world.texts import TEXTS, load_texts
from protojax import evals, validate
from protojax.attacks import sentence
from protojax.attacks.outputs import PRAISE, output_attack, poison_texts
from protojax.attacks.text import Trigger, rare_words
from protojax.base import Examples, Texts
from protojax.detection.outputs import Vectors, cosines_of, detect_outputs
from protojax.detection.settings import OutputDetection
from protojax.models import hf
from protojax.pipelines import Watch
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


@dataclasses.dataclass(frozen=True)
class Tested:
    """A study of the test alone.

    Attributes:
        task: a name in `TASKS`.
        root: the folder of data sets; "" for those that come with the package.
        seeds: splits.
        rates: shares of poisoned rows; () tests the clean set alone.
        attacks: names of the task's attacks; () for all.
        methods: names in `METHODS`.
        rows: under test; 0 for the task's.
        references: trusted rows; 0 for the task's.
        false_rejection: share of honest rows that may be rejected.
        encoder: a folder or hub name of the encoder that reads meanings; "" tests words
            alone.
    """

    task: str = "briefs"
    root: str = ""
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (0.05,)
    attacks: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    rows: int = 0
    references: int = 0
    false_rejection: float = 0.05
    encoder: str = ""

    def __post_init__(self):
        validate.tuples(self, "seeds", "rates", "attacks", "methods")
        validate.one_of(TEXTS, task=self.task)
        for name in self.attacks:
            validate.one_of(TASKS[self.task].attacks, attacks=name)
        for name in self.methods:
            validate.one_of(METHODS, methods=name)
        for rate in self.rates:
            validate.require(0 < rate < 1, "rates", rate, "in (0, 1)")
        validate.non_negative(rows=self.rows, references=self.references)

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of rows and of references."""
        task = TASKS[self.task]
        return self.rows or task.rows, self.references or task.references


PARTS = Parts(("seed", "attack", "rate"), ("seeds", "rates", "attacks"), Tested())


class Line(NamedTuple):
    """The result of all detectors on one set.

    Attributes:
        found: the share of poisoned rows that each rejects, None without any.
        rejected: the share of the other rows that each does.
        alarm: whether ours called the set poisoned.
        first: the strongest suspect of ours, and what it claims.
    """

    found: Mapping[str, float | None]
    rejected: Mapping[str, float]
    alarm: bool
    first: str


def encoder(
    source: str, max_length: int = 64
) -> Callable[[Sequence[str]], np.ndarray] | None:
    """An encoder as `texts -> [rows, dim]`, each text once; None for none.

    Args:
        source: its folder or hub name, or "".
        max_length: tokens of a text that are read.
    """
    if not source:
        return None
    model = hf.load_hf(source, num_labels=2)
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
    task: Task, texts: Texts, name: str, rate: float, seed: int
) -> tuple[Texts, np.ndarray]:
    """The rows of an attack, and which are poisoned; "none" is no attack."""
    if name == "none":
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
    config: Tested,
    encode: Callable[[Sequence[str]], np.ndarray] | None,
) -> Line:
    """The results of the detectors on one set.

    Args:
        texts: the rows under test.
        references: trusted rows.
        rows: `[rows]`, bool, which are poisoned.
        config: the rate at which honest rows may be rejected, and the detectors.
        encode: texts to vectors, or None for the test of words alone.
    """
    vectors = (None, None)
    if encode is not None:
        vectors = [Vectors(*map(encode, part)) for part in (texts, references)]
    rate, methods = config.false_rejection, config.methods
    settings = OutputDetection(false_rejection=rate)
    ours = detect_outputs(
        texts, references, settings, vectors=vectors[0], vectors_refs=vectors[1]
    )
    rejected = {"ours": ours.rejected} if "ours" in methods else {}
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
        {n: q.recall if rows.any() else None for n, q in quality.items()},
        {n: q.false_rejection_rate for n, q in quality.items()},
        not ours.clean,
        first,
    )


def run(config: ConfigDict, workdir: pathlib.Path, watch: Watch) -> list[dict]:
    """The results of a study, one for each attack, rate and seed.

    Args:
        config: from `configs/outputs.py`, with overrides applied.
        workdir: the study's folder.
        watch: is told of the progress.
    """
    found = settings_of(config, PARTS.usual)
    keep_settings(workdir, config, PARTS)
    texts, encode = load_texts(found.task, found.root), encoder(found.encoder)
    task, lines = TASKS[found.task], Lines(workdir, PARTS.key)
    todo = [("none", 0.0)]
    todo += [(n, r) for r in found.rates for n in found.attacks or task.attacks]
    watch.total(len(todo) * len(found.seeds))
    for name, rate in todo:
        for seed in found.seeds:
            watch.describe(f"{name}, {rate:.1%}, split {seed}")
            if (seed, name, rate) not in lines.held:
                rows, references = split(texts, *found.sizes, seed)
                given, bad = poisoned(task, rows, name, rate, seed)
                line = line_of(given, references, bad, found, encode)
                about = {"seed": seed, "attack": name, "rate": rate}
                lines.add([about | line._asdict()])
            watch.advance(1)
    return list(lines.held.values())


def table_of(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a line for each attack and rate: means, least and most of splits.

    A cell is honest rows rejected / poisoned rows found, in percent.
    """
    groups: dict[tuple, list] = {}
    for row in results:
        groups.setdefault((row["rate"], row["attack"]), []).append(row)
    methods = [method for method in METHODS if method in results[0]["rejected"]]
    lines = [
        ["attack", "rate", "splits", *methods, "called poisoned", "strongest suspect"]
    ]
    for (rate, name), rows in groups.items():
        alarms = f"{sum(row['alarm'] for row in rows)} of {len(rows)}"
        cells = [_cell(rows, method) for method in methods]
        about = [name, f"{rate:.1%}", str(len(rows))]
        lines.append([*about, *cells, alarms, rows[0]["first"]])
    return lines


def _cell(rows: Sequence[Mapping[str, Any]], method: str) -> str:
    """Rejected and found of all sets, such as "4.1 (3.0 to 5.2) / 100"."""
    shown = []
    for field, digits in (("rejected", 1), ("found", 0)):
        values = [row[field][method] for row in rows]
        if None in values:
            shown.append("–")
            continue
        least, mean, most = (
            f"{100 * value:.{digits}f}"
            for value in (min(values), sum(values) / len(values), max(values))
        )
        shown.append(mean if least == most else f"{mean} ({least} to {most})")
    return " / ".join(shown)
