"""Pipelines that learn from halves of the private rows, of which only logits are kept.

Each pipeline has a file for each recipe, named by a hash of all that its content
depends on, so a study that was killed, or that gets another recipe, computes what is
missing. Models are not written anywhere.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protojax import storage, validate
from protojax.federated import nodes
from protojax.pipelines.defence import Watch
from protojax.pipelines.privacy import shared as shared_lib
from protojax.pipelines.privacy import training as training_lib
from protojax.pipelines.privacy._replicas import Machine
from protojax.pipelines.privacy.recipes import families
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.privacy.shared import Rows, Shared
from protojax.training.predict import Lengths

_logger = logging.getLogger("protojax")


class Shadowed(NamedTuple):
    """The outputs of the shipped models of P pipelines of one recipe.

    Attributes:
        logits: `[P, rows, classes]`, float32, on the private rows.
        accuracy: `[P]`, on the test rows; NaN where there are none.
    """

    logits: np.ndarray
    accuracy: np.ndarray


def shadow_logits(
    recipes: Mapping[str, Recipe],
    rows: Rows,
    members: np.ndarray,
    folder: Path,
    *,
    lengths: Lengths,
    vocab_size: int = 2000,
    seed: int = 0,
    at_once: int = 1,
    most_apart: int = 0,
    watch: Watch | None = None,
) -> dict[str, Shadowed]:
    """The logits of all private rows by the models that recipes ship, in P pipelines.

    The pipelines are replicas of one program for each kind of model. A pipeline whose
    file is in the folder is not run again. The draws of a recipe with secret noise
    come from the system's entropy and are kept nowhere; its files stay what they are.

    Args:
        recipes: name -> recipe.
        rows: private, public and test rows.
        members: `[P, private rows]`, bool, the rows that each pipeline learns from, as
            of `privacy.complementary_halves`.
        folder: of the files.
        lengths: how rows are padded, all to the maximum.
        vocab_size: of the tokenizer of models from scratch, made of public rows.
        seed: of all draws that need not be secret.
        at_once: pipelines that a device computes together.
        most_apart: rows that a pipeline may have more than another; 0 where epsilon is
            stated, since noise is of one size.
        watch: is told of the progress.

    Raises:
        ValueError: members of another shape, or pipelines of other sizes.
        FloatingPointError: a model whose loss is not finite.
    """
    watch, members = watch or Watch(), np.asarray(members, bool)
    count = len(rows.private.texts)
    validate.require(
        members.ndim == 2 and members.shape[1] == count,
        "members.shape",
        members.shape,
        f"[pipelines, {count}]",
    )
    sizes = members.sum(1)
    alike = int(np.ptp(sizes)) <= most_apart
    bound = "equally many in all pipelines"
    bound += f", up to {most_apart}" if most_apart else ""
    validate.require(alike, "members", sizes.tolist(), bound)
    size = group_size(len(members), at_once)
    machine = Machine(nodes.make_mesh(size), at_once)
    watch.describe("the rows are read")
    shared = shared_lib.shared_of(
        rows,
        list(recipes.values()),
        machine,
        lengths=lengths,
        vocab_size=vocab_size,
        seed=seed,
        on_progress=watch.advance,
    )
    paths = _paths(shared, recipes, members, folder, f"{lengths} {vocab_size}")
    _run_missing(shared, recipes, members, paths, size, watch)
    private, _, test = rows.places
    found = {}
    for name, own in paths.items():
        logits = np.stack([_read(path) for path in own])
        said = logits[:, len(private) :].argmax(-1) == np.asarray(rows.test.labels)
        accuracy = said.mean(1) if len(test) else np.full(len(said), np.nan)
        found[name] = Shadowed(logits[:, : len(private)], accuracy)
    return found


def group_size(pipelines: int, at_once: int) -> int:
    """The pipelines that train together: a divisor of all, so that shapes are equal.

    Args:
        pipelines: P.
        at_once: pipelines that a device computes together.
    """
    most = min(pipelines, at_once * jax.device_count())
    return next(size for size in range(most, 0, -1) if pipelines % size == 0)


def _paths(
    shared: Shared,
    recipes: Mapping[str, Recipe],
    members: np.ndarray,
    folder: Path,
    *more: str,
) -> dict[str, list[Path]]:
    """The file of each pipeline of each recipe."""
    rows, learners = shared.rows, shared.learners
    labels = [np.asarray(part.labels) for part in (rows.private, rows.test)]
    digests = {
        encoder: storage.fingerprint(
            repr(one.model.config),
            # Earlier pipelines shared a head that the checkpoint lacks.
            *(f"own {name}" for name in one.head),
            *map(np.asarray, one.tokens[:3]),
            *map(np.asarray, jax.tree.leaves(one.model.params)),
        )
        for encoder, one in learners.items()
    }
    common = storage.fingerprint(
        *more, *labels, np.array([shared.seed, *map(len, rows.places)])
    )
    found = {}
    for name, recipe in recipes.items():
        models = [digests[one] for one in shared_lib.encoders_of(recipe)]
        own = repr(recipe), common, *models
        keys = [
            storage.fingerprint(*own, np.array([number]), row)
            for number, row in enumerate(members)
        ]
        found[name] = [
            # A colon is no part of a file's name everywhere.
            folder / name.replace(":", "_") / f"{number:03}_{key[:32]}.safetensors"
            for number, key in enumerate(keys)
        ]
    return found


def _run_missing(
    shared: Shared,
    recipes: Mapping[str, Recipe],
    members: np.ndarray,
    paths: Mapping[str, Sequence[Path]],
    size: int,
    watch: Watch,
) -> None:
    """Runs the pipelines that have no file, `size` at a time."""
    rows, todo = int(members[0].sum()), []
    for family in families(recipes):
        for start in range(0, len(members), size):
            numbers = range(start, start + size)
            missing = {
                name: recipe
                for name, recipe in family.items()
                if not all(_intact(paths[name][number]) for number in numbers)
            }
            if missing:
                todo.append((missing, numbers))
    watch.total(
        sum(
            len(numbers) * training_lib.work_of(shared, missing, rows)
            for missing, numbers in todo
        )
    )
    private, _, test = shared.rows.places
    kept = np.concatenate([private, test])
    for missing, numbers in todo:
        last = numbers[-1] + 1
        watch.describe(f"{', '.join(missing)}: pipeline {last} of {len(members)}")
        done = training_lib.run_family(shared, missing, members[numbers], numbers)
        for name, outcome in done.items():
            for number, logits in zip(numbers, outcome.logits, strict=True):
                _write(paths[name][number], logits[kept])


def _intact(path: Path) -> bool:
    """Whether a file is there and as it was written."""
    if not path.exists():
        return False
    try:
        _read(path)
    except (SafetensorError, ValueError) as reason:
        _logger.warning("%s is computed again: %s", path, reason)
        return False
    return True


def _write(path: Path, logits: np.ndarray) -> None:
    """Writes a file that appears under its name only when it is complete."""
    logits = np.ascontiguousarray(logits, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_path(path) as temporary:
        digest = storage.fingerprint(logits)
        save_file({"logits": logits}, temporary, {"sha256": digest})


def _read(path: Path) -> np.ndarray:
    """The logits of a file."""
    with safe_open(path, framework="numpy") as file:
        metadata, logits = file.metadata() or {}, file.get_tensor("logits")
    # A file whose bytes were altered may still parse.
    if metadata.get("sha256") != storage.fingerprint(logits):
        raise ValueError("its content has another SHA-256")
    return logits
