"""The test on stand-in models: its power and its false alarms, in seconds a data set.

    python -m experiments.standin --root DATA
    python -m experiments.standin --root DATA --variant noise --seeds 3
    python -m experiments.standin --clean --seeds 10 --tasks snips
    python -m experiments.standin --root DATA --part 0.25 --share 0.77

Teacher and trusted models are logistic regressions on words and pairs of words, so that
many data sets can be tested; the attacks and the settings are those of the bench
(`configs/robustness.py`). Without `--clean` each attack on the data is a line. With it
nothing is poisoned, and the line tells how many sets were called poisoned all the same.
`--part` tests a random part of the rows, as a node would, and `--share` rows with
another balance of classes than the references; `--own-teacher` has learned from the
tested rows alone.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from experiments.configs import robustness
from experiments.reports import results
from experiments.settings import Settings
from experiments.study import check
from experiments.world import label_noise, scenarios
from experiments.world.scenarios import Scenario
from experiments.world.trusted_model import FOLDS
from protojax import data, evals, validate
from protojax.base import Examples, TeacherOutputs
from protojax.detection import Evidence, Findings, Reading, detect
from protojax.detection.masking import Reread
from protojax.pipelines.trusted_folds import fold_of


class Line(NamedTuple):
    """The result of the test on one data set.

    Attributes:
        found: the share of poisoned rows that were rejected, NaN without any.
        rejected: the share of the other rows that were.
        alarm: whether the set was called poisoned.
        names: of the suspected triggers.
    """

    found: float
    rejected: float
    alarm: bool
    names: tuple[str, ...]


def classifier(texts: Sequence[str], labels: np.ndarray, num_labels: int):
    """The logits `texts -> [rows, num_labels]` of a regression fitted to some rows.

    Args:
        texts: the rows.
        labels: `[rows]`, int.
        num_labels: the number of classes; some may have no row.
    """
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\S+", sublinear_tf=True
    )
    model = LogisticRegression(C=10.0, max_iter=200).fit(
        words.fit_transform(texts), labels
    )

    def logits(others: Sequence[str]) -> np.ndarray:
        known = model.predict_log_proba(words.transform(others))
        # A class without any row is as improbable as the least probable one.
        found = np.full((len(others), num_labels), known.min(), np.float32)
        found[:, model.classes_] = known
        return found

    return logits


def evidence_of(
    rows: Examples, references: Examples, num_labels: int
) -> tuple[Evidence, Reread]:
    """The evidence of a defender with stand-in models, and their second reading.

    Args:
        rows: the rows under test, from which the teacher learns.
        references: trusted rows, from which the trusted models learn by folds.
        num_labels: the number of classes.

    Returns:
        The evidence, and the function by which the trusted models read rows again.
    """
    texts, trusted = _joined(rows), _joined(references)
    teacher = classifier(texts, rows.labels, num_labels)
    fold = fold_of(references.labels, FOLDS, seed=0)
    models = [
        classifier(
            [text for text, own in zip(trusted, fold, strict=True) if own != number],
            references.labels[fold != number],
            num_labels,
        )
        for number in range(FOLDS)
    ]
    readers = np.concatenate([np.arange(len(texts)) % FOLDS, fold])

    def read(numbers: np.ndarray, examples: Examples) -> Reading:
        said = np.stack([model(_joined(examples)) for model in models])
        logits = said[readers[numbers], np.arange(len(numbers))]
        return Reading(logits.argmax(1), logits)

    whole = np.arange(len(readers))
    own, others = np.split(whole, [len(texts)])
    outputs = [
        TeacherOutputs(teacher(part), np.zeros((len(part), 0, 0), np.float32))
        for part in (texts, trusted)
    ]
    evidence = Evidence(
        rows,
        outputs[0],
        references,
        outputs[1],
        np.arange(len(trusted)),
        read(own, rows),
        read(others, references),
    )
    return evidence, read


class Part(NamedTuple):
    """The rows that are tested, as a node or another file would hold them.

    Attributes:
        size: the share of the rows.
        share: of these, labelled as class 1, poison included; 0 leaves the balance.
        own_teacher: whether the teacher learned from these rows alone.
    """

    size: float = 1.0
    share: float = 0.0
    own_teacher: bool = False

    def rows(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """The tested rows, in ascending order.

        Args:
            labels: `[rows]`, int.
            seed: of the choice.

        Raises:
            ValueError: none is left, or `share` without rows of class 1 and others.

        >>> Part(size=0.5).rows(np.zeros(6, int), 0).shape
        (3,)
        """
        rng, kept = np.random.default_rng(seed), np.arange(len(labels))
        if self.share:
            kept = label_noise.of_share(labels == 1, self.share, rng)
        count = round(self.size * len(kept))
        validate.require(count > 0, "rows of the part", count, "> 0")
        return np.sort(rng.choice(kept, count, replace=False))


def line_of(config: Settings, scenario: Scenario, part: Part | None = None) -> Line:
    """The result of the test on a scenario's rows.

    Args:
        config: the study's settings.
        scenario: the scenario; its attack is one on the data, or None.
        part: the rows that are tested; None for all.
    """
    part = part or Part()
    rows, poisoned = scenarios.poisoned(config, scenario)
    kept = part.rows(rows.labels, scenario.seed)
    poisoned = poisoned[kept]
    references = scenarios.references(config, scenario)
    task = scenarios.task_data(config, scenario.task, scenario.seed).task
    if part.own_teacher:
        rows, kept = data.take(rows, kept), np.arange(len(kept))
    evidence, read = evidence_of(rows, references, task.num_labels)
    evidence = evidence.take(kept)
    # Rows are numbered among those tested, then the references.
    numbers = np.append(kept, len(rows.texts) + np.arange(len(references.texts)))

    def reread(places: np.ndarray, examples: Examples) -> Reading:
        return read(numbers[places], examples)

    findings: Findings = detect(
        evidence,
        config.detection,
        reread=reread if config.detection.suspect_references else None,
    )
    rejected = findings.verdict.rejected
    quality = evals.quarantine_quality(rejected, poisoned)
    strong = [suspect.name for suspect in findings.suspects if suspect.strong]
    found = quality.recall if poisoned.any() else float("nan")
    return Line(found, quality.false_rejection_rate, not findings.clean, tuple(strong))


def _joined(examples: Examples) -> list[str]:
    """Both texts of each row as one."""
    pairs = examples.pairs or [""] * len(examples.texts)
    return [
        f"{text} {pair}".lower()
        for text, pair in zip(examples.texts, pairs, strict=True)
    ]


def study_of(found: argparse.Namespace) -> Settings:
    """The settings of the bench, as the command line changes them."""
    config = robustness.get_config(found.variant)
    config.data.root = found.root
    config.seeds = tuple(range(found.seeds))
    config.tasks = tuple(found.tasks or config.tasks)
    config.data.transfer_rows, config.data.reference_rows = found.rows, found.references
    config.detection.false_rejection = found.false_rejection
    config.detection.suspect_references = found.suspect_references
    return check.check(config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each task and attack."""
    found = parser().parse_args(arguments)
    validate.require(0 <= found.share < 1, "--share", found.share, "in [0, 1)")
    validate.require(0 < found.part <= 1, "--part", found.part, "in (0, 1]")
    part = Part(found.part, found.share, found.own_teacher)
    config, console = study_of(found), Console()
    attacks = (
        [None]
        if found.clean
        else [
            name
            for name, attack in config.attacks.items()
            if attack.channel == "data" and attack.trigger != "searched"
        ]
    )
    table = Table(title=f"false rejection {found.false_rejection:.0%}, in percent")
    for name in ("task", "attack", "sets", "found", "rejected", "called poisoned"):
        table.add_column(
            name, justify="left" if name in ("task", "attack") else "right"
        )
    table.add_column("suspected triggers", overflow="fold")
    todo = [
        (task, attack)
        for task in config.tasks
        for attack in attacks
        if attack is None or task in (config.attacks[attack].tasks or config.tasks)
    ]
    for task, attack in track(todo, console=Console(stderr=True), description="test"):
        lines = [
            line_of(config, Scenario(task, seed, attack), part) for seed in config.seeds
        ]
        table.add_row(task, attack or "none", str(len(lines)), *_cells(lines))
    results.show(console, table)


def _cells(lines: Sequence[Line]) -> tuple[str, ...]:
    """The cells of some sets: means with the least and the most, and the names."""
    shown = []
    for field in ("found", "rejected"):
        values = 100 * np.array([getattr(line, field) for line in lines])
        least, most = values.min(), values.max()
        if np.isnan(least):
            shown.append("–")
            continue
        shown.append(f"{values.mean():.1f} ({least:.1f} to {most:.1f})")
    names = sorted({name for line in lines for name in line.names})
    alarms = sum(line.alarm for line in lines)
    return (*shown, f"{alarms} of {len(lines)}", ", ".join(names[:8]))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    defaults = Settings()
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--root", default="", help="the folder of data sets; '' is the hub")
    add("--variant", default="standard", help="of the bench, such as noise")
    add("--tasks", nargs="*", help="names of tasks; those of the variant by default")
    add("--seeds", type=int, default=1, help="how many data sets of each task")
    add("--rows", type=int, default=3000, help="under test")
    add("--references", type=int, default=1000, help="trusted rows")
    add("--part", type=float, default=1.0, help="of the rows that is tested")
    add("--share", type=float, default=0.0, help="of class 1 among the tested rows")
    add("--own-teacher", action="store_true", help="learned from the tested rows alone")
    add(
        "--false-rejection",
        type=float,
        default=defaults.detection.false_rejection,
        help="the share of honest rows that may be rejected",
    )
    add("--suspect-references", action="store_true", help="may hold triggers too")
    add("--clean", action="store_true", help="without any attack")
    return made


if __name__ == "__main__":
    main()
