"""The number of epochs of a teacher, chosen on public rows alone."""

import json
from pathlib import Path

import numpy as np

from protojax import data, storage, validate
from protojax.base import Examples
from protojax.federated import nodes
from protojax.pipelines.privacy import training as training_lib
from protojax.pipelines.privacy._replicas import Machine
from protojax.pipelines.privacy.recipes import with_epochs
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.privacy.shared import Rows, shared_of
from protojax.training.predict import Lengths


def epochs_of(
    public: Examples,
    recipe: Recipe,
    *,
    num_labels: int,
    rows: int,
    most: int,
    lengths: Lengths,
    vocab_size: int,
    seed: int,
) -> int:
    """The fewest epochs after which a teacher is about as good as it gets.

    A teacher of the recipe learns one half of the public rows for 1, 2, 4, ... epochs;
    the other half measures. The first whose accuracy is within one standard error of
    the best is taken. No private row is read, so that the number tells nothing of one;
    halves of fewer rows than there are private ones stand for them.

    Args:
        public: rows with labels.
        recipe: of the teacher.
        num_labels: classes.
        rows: private rows of a teacher; no more of the public ones are learned.
        most: epochs.
        lengths: how rows are padded.
        vocab_size: of the tokenizer of a model from scratch.
        seed: of the halves and of all else.

    Raises:
        ValueError: on fewer than 20 public rows.
    """
    count = len(public.texts)
    validate.require(count >= 20, "number of public rows", count, ">= 20")
    order = np.random.default_rng(seed).permutation(count)
    learned, judged = order[: min(count // 2, rows)], order[count // 2 :]
    parts = Rows(
        data.take(public, learned), public, data.take(public, judged), num_labels
    )
    tried = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    alone = training_lib.teacher_alone(recipe)
    recipes = {str(n): with_epochs(alone, n) for n in tried}
    machine = Machine(nodes.make_mesh(1))
    shared = shared_of(
        parts,
        list(recipes.values()),
        machine,
        lengths=lengths,
        vocab_size=vocab_size,
        seed=seed,
    )
    members = np.ones((1, len(learned)), bool)
    place, accuracies = parts.places[2], []
    for name, one in recipes.items():
        found = training_lib.run_family(shared, {name: one}, members, [0])[name]
        said = found.logits[0, place].argmax(-1)
        accuracies.append(float(np.mean(said == np.asarray(parts.test.labels))))
    best = max(accuracies)
    error = (best * (1 - best) / len(judged)) ** 0.5
    return next(
        n for n, found in zip(tried, accuracies, strict=True) if found >= best - error
    )


def kept_epochs(path: Path, rows: Rows, recipe: Recipe, private: int, **given) -> int:
    """The number of `epochs_of`, chosen once and kept in a file.

    Args:
        path: of the file.
        rows: of a study or a run.
        recipe: of the teacher.
        private: rows that a pipeline's teachers learn.
        **given: further arguments of `epochs_of`.
    """
    if path.exists():
        return int(json.loads(path.read_text())["epochs"])
    found = epochs_of(
        rows.public,
        recipe,
        num_labels=rows.num_labels,
        rows=private // recipe.shards,
        **given,
    )
    storage.write_json(path, {"epochs": found})
    return found
