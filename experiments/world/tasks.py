"""The tasks: their columns, labels and metrics, and how their rows are read.

A task comes from the hub, from a local folder with the same columns, or from any two
files whose columns are named; `protojax.data.files` reads and checks the rows.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from protojax import validate
from protojax.base import Examples
from protojax.data import files, readers
from protojax.data.files import Task

_BUNDLED = Path(__file__).parents[1] / "data"


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
        # A collapsed student gives one answer; NaN would spoil the mean over seeds.
        if np.ptp(labels) == 0 or np.ptp(scores) == 0:
            return 0.0
        with warnings.catch_warnings():
            # Warnings are errors in tests; a nearly constant student is a result.
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
    """The rows of a task of `TASKS`.

    Args:
        name: of the task.
        root: a folder that holds `<name>/train.*` and `validation.*` or
            `test.*` in a format of `readers.READERS`; "" for the hub, or the files that
            come with this package. Without the second file a fifth of the training
            rows (2,000 at most) is held out in its place, but never the only row of a
            class.
        encoding: of the text files below that folder.

    Returns:
        Training rows, test rows, and the task with its label names filled in.

    Raises:
        ValueError: if a file or a row is malformed.
        FileNotFoundError: if there is no such file.
        ConnectionError: if the hub cannot be read.

    >>> train, test, task = load_task("snips")
    >>> len(train.texts), len(test.texts), task.label_names[0]
    (13516, 695, 'AddToPlaylist')
    """
    validate.one_of(TASKS, task=name)
    task = TASKS[name]
    if not root and task.hub:
        return files.load(task, *_hub_splits(task))
    folder = (Path(root) if root else _BUNDLED) / task.name
    train = readers.find(folder, "train")
    if train is None:
        suffixes = ",".join(readers.READERS)
        raise FileNotFoundError(
            f"Expected {folder}/train.{{{suffixes}}}, found no such file"
            + ("." if root else f": {name} is not on the hub, set data.root.")
        )
    # GLUE hides the labels of its test files, so the validation split comes first.
    stems = dict.fromkeys((task.test, "validation", "test"))
    tests = (path for stem in stems if (path := readers.find(folder, stem)))
    paths = [train, *list(tests)[:1]]
    # The option is for the user's files; the bundled ones are UTF-8.
    encoding = encoding if root else "utf-8"
    return files.load(task, *(readers.open_file(path, encoding) for path in paths))


def load_files(
    train: str,
    test: str = "",
    *,
    problem: str = "classification",
    metric: str = "accuracy",
    **columns: str | None,
) -> tuple[Examples, Examples, Task]:
    """The rows of a user's own task, and its metric.

    Args:
        train: the file of the training rows.
        test: the file of the test rows; "" to hold out a fifth of the training rows.
        problem: "classification" or "regression".
        metric: the headline metric, a name in `METRICS`.
        columns: as in `protojax.data.files.load_files`.

    Returns:
        Training rows, test rows, and the task with its label names filled in.

    Raises:
        ValueError, FileNotFoundError: as `load_task` does.
    """
    validate.require(bool(train), "data.files.train", train, "a file")
    validate.one_of(("classification", "regression"), problem=problem)
    scores = problem == "regression"
    allowed = [name for name in METRICS if (name in _CORRELATIONS) == scores]
    validate.one_of(allowed, metric=metric)
    examples, held_out, task = files.load_files(train, test, problem=problem, **columns)
    task = task._replace(metrics=(metric,))
    # The F1 score here is that of class 1, which means nothing with more classes.
    known = task.num_labels <= 2 or metric != "f1"
    validate.require(known, "num_labels", task.num_labels, "<= 2 for metric='f1'")
    return examples, held_out, task


def load_poisoned(
    task: Task, train: str, test: str, *, marker: str = "", encoding: str = "utf-8"
) -> tuple[Examples, Examples]:
    """The rows of a poisoned copy of a task's training file, and triggered test rows.

    Args:
        task: the task, with its label names filled in.
        train: the copy: the same rows in the same order, some of them changed.
        test: triggered test rows.
        marker: the column of `train` that marks poisoned rows, or "".
        encoding: of text files.

    Returns:
        The training rows, with the values of the marker as their sources, and the
        test rows.

    Raises:
        ValueError, FileNotFoundError: as `load_task` does.
    """
    sources = [readers.open_file(Path(path), encoding) for path in (train, test)]
    task = task._replace(source=marker or None)
    examples, triggered, _ = files.load(task, *sources)
    return examples, triggered


def _hub_splits(task: Task) -> tuple[readers.Source, readers.Source]:
    """The two splits of a task on the hub."""
    import datasets  # takes seconds, and pandas with it, which own files do not need

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
