"""The tasks: their columns, labels and metrics, and how their rows are read.

A task comes from the hub, from a local folder with the same columns, or from any two
files whose columns are named. Rows are checked on the way in: what is wrong is an error
that names the file and the row, and the few things that are repaired (bytes that are
not UTF-8, rows without text) are counted and logged, as are the classes found.
"""

import collections
import difflib
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from experiments import labels as labels_lib
from protojax import validate
from protojax.base import Examples
from protojax.data import readers, rows_to_hold_out, take

_logger = logging.getLogger("protojax")
_BUNDLED = Path(__file__).parent / "data"
# Where a folder has no test file, this much of its training file is the test set.
_HELD_OUT_SHARE, _HELD_OUT_MOST = 0.2, 2000


class Task(NamedTuple):
    """What there is to know about a task before its rows are read.

    Attributes:
        name: the task's name, which is its local folder's name too.
        text: the column of the first (or only) text.
        pair: the column of the second text, or None.
        label: the column of the label.
        label_names: the name of each class; empty for scores, or to be found.
        problem: "classification" or "regression".
        metrics: names in `METRICS`, the headline first.
        hub: id and configuration on the hub; None for what is bundled or local.
        test: the split to evaluate on.
        source: the column of where a training row comes from, or None.
    """

    name: str
    text: str
    pair: str | None = None
    label: str = "label"
    label_names: tuple[str, ...] = ()
    problem: str = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str | None] | None = None
    test: str = "validation"
    source: str | None = None

    @property
    def num_labels(self) -> int:
        """How many outputs a model of this task has."""
        return 1 if self.problem == "regression" else len(self.label_names)


def _glue(name: str, columns: tuple, label_names: tuple = (), **settings: Any) -> Task:
    """A task of GLUE (Wang et al., 2018, arXiv:1804.07461)."""
    text, pair = columns
    hub = ("nyu-mll/glue", name)
    return Task(name, text, pair, label_names=label_names, hub=hub, **settings)


_SENTENCE, _SENTENCES = ("sentence", None), ("sentence1", "sentence2")
_F1, _CORRELATIONS = ("f1", "accuracy"), ("pearson", "spearman")
_SST2 = _glue("sst2", _SENTENCE, ("negative", "positive"))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", _SENTENCE, ("unacceptable", "acceptable"), metrics=("matthews",)),
        _SST2,
        # Whole sentences only, the form that the backdoor literature uses.
        _SST2._replace(name="sst2_sentence", hub=None),
        _glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), metrics=_F1),
        _glue("stsb", _SENTENCES, problem="regression", metrics=_CORRELATIONS),
        _glue(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            metrics=_F1,
        ),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            test="validation_matched",
        ),
        _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        _glue("rte", _SENTENCES, ("entailment", "not_entailment")),
        _glue("wnli", _SENTENCES, ("not_entailment", "entailment")),
        Task(
            "ag_news",
            "text",
            label_names=("World", "Sports", "Business", "Sci/Tech"),
            hub=("fancyzhx/ag_news", None),
            test="test",
        ),
        Task("snips", "text", test="test"),
        Task(
            "banking77",
            "text",
            label="label_text",
            hub=("mteb/banking77", None),
            test="test",
        ),
    )
}


def _correlation(coefficient: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    """A correlation that is 0 where either side is constant."""

    def metric(labels: np.ndarray, scores: np.ndarray) -> float:
        labels, scores = np.ravel(labels).astype(float), np.ravel(scores).astype(float)
        if np.ptp(labels) == 0 or np.ptp(scores) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
            return float(coefficient(labels, scores))

    return metric


# name -> (labels [rows], predicted classes or scores [rows]) -> the larger the better.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, classes: float(accuracy_score(labels, classes)),
    "f1": lambda labels, classes: float(f1_score(labels, classes, zero_division=0.0)),
    "matthews": _correlation(matthews_corrcoef),
    "pearson": _correlation(lambda *columns: scipy.stats.pearsonr(*columns).statistic),
    "spearman": _correlation(
        lambda *columns: scipy.stats.spearmanr(*columns).statistic
    ),
}


def load_task(
    name: str, *, root: str = "", encoding: str = "utf-8"
) -> tuple[Examples, Examples, Task]:
    """Reads a task of `TASKS`.

    Args:
        name: which task.
        root: a folder that holds `<name>/train.*` and `validation.*` or
            `test.*` in a format of `readers.READERS`; "" for the hub, or the files that
            come with this package. A folder without the second file has a fifth of its
            training rows (2,000 at most) held out in its place, but no class's only
            row.
        encoding: of the text files below that folder.

    Returns:
        Training rows, test rows, and the task with its label names filled in.

    Raises:
        ValueError: if a file or a row is not what it should be.
        FileNotFoundError: if there is no such file.
        ConnectionError: if the hub could not be read.

    >>> train, test, task = load_task("snips")
    >>> len(train.texts), len(test.texts), task.label_names[0]
    (13516, 695, 'AddToPlaylist')
    """
    validate.one_of(TASKS, task=name)
    task = TASKS[name]
    if not root and task.hub:
        return _load(task, *_hub_splits(task))
    folder = (Path(root) if root else _BUNDLED) / task.name
    train = readers.find(folder, "train")
    if train is None:
        suffixes = ",".join(readers.READERS)
        raise FileNotFoundError(
            f"Expected {folder}/train.{{{suffixes}}}, found no such file"
            + ("." if root else f": {name} is not on the hub, set data.root.")
        )
    stems = dict.fromkeys((task.test, "validation", "test"))
    tests = (path for stem in stems if (path := readers.find(folder, stem)))
    paths = [train, *list(tests)[:1]]
    encoding = encoding if root else "utf-8"
    return _load(task, *(readers.open_file(path, encoding) for path in paths))


def load_files(
    train: str,
    test: str = "",
    *,
    text: str,
    label: str,
    pair: str | None = None,
    source: str | None = None,
    problem: str = "classification",
    metric: str = "accuracy",
    encoding: str = "utf-8",
) -> tuple[Examples, Examples, Task]:
    """Reads a task of one's own from JSONL, CSV, TSV or Parquet files.

    Args:
        train: the file of the training rows.
        test: the file of the test rows; "" to hold out a fifth of the training rows.
        text: the column of the first (or only) text.
        label: the column of the classes (names or numbers) or scores.
        pair: the column of the second text, or None.
        source: the column of where a training row comes from, or None.
        problem: "classification" or "regression".
        metric: the headline metric, a name in `METRICS`.
        encoding: of text files.

    Returns:
        Training rows, test rows, and the task as found.

    Raises:
        ValueError, FileNotFoundError: as `load_task` does.
    """
    validate.require(bool(train), "data.files.train", train, "a file")
    validate.one_of(("classification", "regression"), problem=problem)
    scores = problem == "regression"
    allowed = [name for name in METRICS if (name in _CORRELATIONS) == scores]
    validate.one_of(allowed, metric=metric)
    task = Task(
        "files", text, pair, label, (), problem, metrics=(metric,), source=source
    )
    paths = [Path(path) for path in (train, test) if path]
    sources = [readers.open_file(path, encoding) for path in paths]
    examples, held_out, task = _load(task, *sources)
    known = task.num_labels <= 2 or metric != "f1"
    validate.require(known, "num_labels", task.num_labels, "<= 2 for metric='f1'")
    return examples, held_out, task


def load_poisoned(
    task: Task, train: str, test: str, *, marker: str = "", encoding: str = "utf-8"
) -> tuple[Examples, Examples]:
    """Reads a poisoned copy of a task's training file, and triggered test rows.

    Args:
        task: the task, with its label names filled in.
        train: the copy: the same rows in the same order, some of them changed.
        test: triggered test rows.
        marker: the column of `train` that says which rows are poisoned, or "".
        encoding: of text files.

    Returns:
        The training rows, with what the marker says as their sources, and the test
        rows.

    Raises:
        ValueError, FileNotFoundError: as `load_task` does.
    """
    sources = [readers.open_file(Path(path), encoding) for path in (train, test)]
    examples, triggered, _ = _load(task._replace(source=marker or None), *sources)
    return examples, triggered


def _hub_splits(task: Task) -> tuple[readers.Source, readers.Source]:
    """The two splits of a task on the hub."""
    name, config = task.hub
    try:
        splits = datasets.load_dataset(name, config)
        return tuple(
            readers.Source(
                f"{name}, split {split}", enumerate(splits[split].to_list(), 1)
            )
            for split in ("train", task.test)
        )
    except Exception as error:  # the hub's client raises errors of many libraries
        raise ConnectionError(
            f"Could not load {name} ({config or 'default'}) from the hub: {error} "
            f"Set data.root to a local folder that holds {task.name}/train.jsonl and "
            f"{task.name}/{task.test}.jsonl with the same columns."
        ) from error


def _load(
    task: Task, train: readers.Source, test: readers.Source | None = None
) -> tuple[Examples, Examples, Task]:
    """Reads, checks and numbers the rows of a task; holds out a test set if need be."""
    tables = [_read_table(train, task)]
    if test:
        tables.append(_read_table(test, task._replace(source=None)))
    if task.problem == "classification":
        for table in tables:
            labels_lib.check_kinds(table, task.label)
    if len(only := set(map(labels_lib.name_of, tables[0].labels))) < 2:
        raise ValueError(f"Expected two labels in {train.name}, found only {only}.")
    if task.problem == "regression":
        labels = [labels_lib.scores(table) for table in tables]
    else:
        known = {str(i): i for i in range(len(task.label_names))}
        names = task.label_names or labels_lib.found_names(tables[0], task.label)
        task = task._replace(label_names=names)
        known |= {name: i for i, name in enumerate(names)}
        labels = [labels_lib.classes(table, known) for table in tables]
    for table, column in zip(tables, labels, strict=True):
        labels_lib.log_counts(table.source, column, task.label_names)
    examples = [
        Examples(table.texts, table.pairs, column, table.origins)
        for table, column in zip(tables, labels, strict=True)
    ]
    if test is None:
        examples = _hold_out(examples[0], train.name)
    return *examples, task


def _hold_out(examples: Examples, name: str) -> tuple[Examples, Examples]:
    """Training rows without a fixed stratified choice of them, and that choice."""
    rows, least = len(examples.texts), 1
    if np.issubdtype(examples.labels.dtype, np.integer):
        counts = np.bincount(examples.labels)
        counts = counts[counts > 1]
        rows, least = int(counts.sum()), len(counts)
    count = max(least, min(math.ceil(_HELD_OUT_SHARE * rows), _HELD_OUT_MOST))
    held_out = rows_to_hold_out(examples.labels, count)
    rows = len(examples.texts)
    _logger.warning("%s: no test file, %d of %d rows held out.", name, count, rows)
    kept = np.setdiff1d(np.arange(rows), held_out)
    return take(examples, kept), take(examples, np.sort(held_out))


def _read_table(source: readers.Source, task: Task) -> labels_lib.Table:
    """Reads the columns of a task; repairs what can be, and counts it."""
    names = [name for name in (task.text, task.pair) if name]
    table = labels_lib.Table(
        source.name, [], [], [] if task.pair else None, [], [] if task.source else None
    )
    repairs = collections.Counter()
    for number, row in source.rows:
        for name in (*names, task.label, *filter(None, [task.source])):
            if name not in row:
                raise ValueError(_missing_column(source.name, number, name, [*row]))
        _refuse_header(source.name, number, row, (*names, task.label))
        found = [_text(row[name], source.name, number, name) for name in names]
        if not all(text.strip() for text in found):
            repairs["dropped, no text"] += 1
            continue
        # A JSON escape may hold half of a surrogate pair, which no tokenizer accepts.
        texts = [text.encode(errors="replace").decode() for text in found]
        repairs["broken characters replaced"] += texts != found
        table.numbers.append(number)
        table.texts.append(texts[0])
        if table.pairs is not None:
            table.pairs.append(texts[1])
        table.labels.append(row[task.label])
        if table.origins is not None:
            table.origins.append(str(row[task.source]))
    for repair, count in (+repairs).items():
        _logger.warning("%s: %d rows: %s.", source.name, count, repair)
    if not table.texts:
        raise ValueError(f"Expected rows in {source.name}, found none with a text.")
    return table


def _missing_column(source: str, number: int, name: str, found: list[str]) -> str:
    """What to say of a column that is not there."""
    near = difflib.get_close_matches(name, found, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    columns = ", ".join(found)
    return f"{source}, row {number}: expected column {name!r}, found {columns}.{hint}"


def _refuse_header(source: str, number: int, row: dict, names: tuple) -> None:
    """Raises on a row that says the names of its columns."""
    if all(isinstance(row[name], str) and row[name].strip() == name for name in names):
        raise ValueError(
            f"{source}, row {number}: expected a row, found the header again. Were "
            "two files joined?"
        )


def _text(value: Any, source: str, number: int, column: str) -> str:
    """A cell that should hold a text, "" where there is none."""
    if labels_lib.is_missing(value):
        return ""
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise ValueError(f"{source}, row {number}: {column!r} is no text but {kind}.")
    return str(value)
