"""What the arms of a cell share: data, attack, teacher and its outputs, anchor.

A cell is one attack on one task with one seed. Each function here builds one
ingredient, keeps what was costly in the workdir, and is cheap to call again.
Ground truth (`Poisoned.rows`) leaves `poisoned` only towards the corruption of the
teacher's channel, the `oracle` arm and the metrics.
"""

import dataclasses
import functools
import json
import pathlib
import zlib
from typing import NamedTuple

import jax
import numpy as np

from experiments import runtime, tasks
from experiments.runtime import Context
from experiments.tokenizer import train_wordpiece
from protojax import (
    _validate,
    attacks,
    batches,
    communication,
    data,
    models,
    partition,
    prototypes,
    teacher,
)
from protojax.base import Examples, Prototypes
from protojax.models import Model, hf

NO_ATTACK = "no_attack"  # the folder of the clean world


class Cell(NamedTuple):
    """One attack on one task with one seed; attack None is the clean world.

    Attributes:
        task: a name in `tasks.TASKS`, or "files".
        seed: of everything that is drawn.
        attack: a name in the config's `attacks`.
        federation: a name in the config's `federations`, where the cell is what one
            node of it sees; "" where it is everything.
        node: which node.
    """

    task: str
    seed: int
    attack: str | None
    federation: str = ""
    node: int = 0

    @property
    def folder(self) -> str:
        """Where the cell's results lie below the workdir."""
        folder = f"{self.task}/seed{self.seed}/{self.attack or NO_ATTACK}"
        if self.federation:
            folder += f"/{self.federation}_node{self.node:03d}"
        return folder

    @property
    def clean(self) -> "Cell":
        """The same cell without its attack."""
        return self._replace(attack=None)

    @property
    def whole(self) -> "Cell":
        """The cell of all nodes together."""
        return self._replace(federation="", node=0)


class TaskData(NamedTuple):
    """A task's splits, made before any attack."""

    task: tasks.Task
    splits: data.Splits


class Transfer(NamedTuple):
    """What the student is distilled on, as the defender sees it."""

    examples: Examples
    logits: np.ndarray  # [rows, num_labels]
    features: np.ndarray  # [rows, layers, dim]


class Anchor(NamedTuple):
    """The encoder that saw the references only, and what it says of them.

    Attributes:
        model: the fine-tuned model.
        prototypes: of its features, by class.
        calibration: `[rows]`, the references it was not trained on.
    """

    model: Model
    prototypes: Prototypes
    calibration: np.ndarray


@functools.lru_cache(maxsize=2)
def _load_task(name: str, root: str, files) -> tuple[Examples, Examples, tasks.Task]:
    """Reads a task once for all its seeds."""
    if name != "files":
        return tasks.load_task(name, root=root)
    return tasks.load_files(
        files.train,
        files.test,
        text=files.text,
        label=files.label,
        pair=files.pair or None,
        source=files.source or None,
        problem=files.problem,
        metric=files.metric,
    )


@functools.lru_cache(maxsize=2)
def task_data(context: Context, task: str, seed: int) -> TaskData:
    """Returns the splits of a task, a function of the seed only."""
    section = context.config.data
    train, test, resolved = _load_task(task, section.root, section.files)
    splits = data.split(
        train,
        test,
        transfer_rows=section.transfer_rows,
        reference_rows=section.reference_rows,
        test_rows=section.test_rows,
        seed=seed,
    )
    _check_same(context.workdir / task / f"seed{seed}" / "data.json", splits)
    return TaskData(resolved, splits)


def _check_same(path: pathlib.Path, splits: data.Splits) -> None:
    """Raises where a study's data are not those it began with."""
    now = {
        name: data.fingerprint(*part.texts, *(part.pairs or ()), part.labels)
        for name, part in splits._asdict().items()
        if isinstance(part, Examples)
    }
    if not path.exists():
        runtime.write_json(path, now)
    elif json.loads(path.read_text()) != now:
        raise ValueError(
            f"Expected the data that {path.parent} was begun with, found others. "
            "Give another --workdir."
        )


@functools.lru_cache(maxsize=2)
def _scratch_tokenizer(context: Context, task: str, seed: int):
    """Trains a tokenizer on clean text, as a public one would have been."""
    splits = task_data(context, task, seed).splits
    texts = [*splits.transfer.texts, *splits.references.texts]
    for part in (splits.transfer.pairs, splits.references.pairs):
        texts.extend(part or ())
    wordpiece = train_wordpiece(texts, vocab_size=context.config.data.vocab_size)
    return hf.wrap_tokenizer(
        wordpiece,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def build_model(context: Context, section, cell: Cell) -> Model:
    """Returns an untrained (or pretrained) model from its section of the config."""
    task = task_data(context, cell.task, cell.seed).task
    common = {
        "num_labels": task.num_labels,
        "problem": task.problem,
        "dtype": section.dtype,
        "attention": section.attention,
        "remat": section.remat,
    }
    dropout = {
        "dropout": section.dropout,
        "attention_dropout": section.attention_dropout,
        "classifier_dropout": section.dropout,
    }
    if section.model != "scratch":
        model = hf.load_hf(
            section.model, layers=tuple(section.layers), seed=cell.seed, **common
        )
        return model._replace(config=dataclasses.replace(model.config, **dropout))
    tokenizer = _scratch_tokenizer(context, cell.task, cell.seed)
    config = models.EncoderConfig(
        family="bert",
        vocab_size=len(tokenizer),
        max_positions=context.config.data.buckets[-1],
        type_vocab_size=2,
        pad_id=tokenizer.pad_token_id,
        **section.scratch,
        **dropout,
        **common,
    )
    return models.init_model(config, seed=cell.seed, tokenizer=tokenizer)


def tokenize(context: Context, model: Model, examples: Examples) -> batches.Tokens:
    """Tokenises rows with a model's own tokenizer."""
    limit = models.MODELS[model.config.family].max_length(model.config)
    max_length = min(context.config.data.max_length, limit)
    return batches.tokenize(model.tokenizer, examples, max_length=max_length)


def trigger_of(attack):
    """Returns the trigger that an attack's section names."""
    return attacks.TRIGGERS[attack.trigger](
        position=attack.position, **attack.trigger_args
    )


def _rng(cell: Cell, purpose: str) -> np.random.Generator:
    """Draws of one purpose, independent of the other cells and purposes."""
    name = f"{cell.task}/{cell.attack}/{purpose}"
    if cell.federation:
        name += f"/{cell.federation}/{cell.node}"
    return np.random.default_rng([cell.seed, zlib.crc32(name.encode())])


@functools.lru_cache(maxsize=2)
def node_rows(context: Context, cell: Cell) -> list[np.ndarray]:
    """Returns the transfer rows of each node of a cell's federation.

    Hostile nodes, the last ones, hold all of the poison: each poisoned row of an honest
    node changes places with a clean row of theirs, so that sizes stay as they were
    dealt.

    Raises:
        ValueError: more poison than the hostile nodes have rows.
    """
    section = context.config.federations[cell.federation]
    examples = task_data(context, cell.task, cell.seed).splits.transfer
    keys = examples.sources if section.partition == "source" else examples.labels
    if keys is None:
        raise ValueError(
            f"Expected rows with a source to partition {cell.task} by, found none: "
            "name their column in data.files.source, and files as the task."
        )
    parts = partition.PARTITIONS[section.partition](
        keys,
        section.nodes,
        rng=_rng(Cell(cell.task, cell.seed, None), f"{section.partition} partition"),
        **section.partition_args,
    )
    if section.hostile and cell.attack:
        truth = poisoned(context, cell.whole).rows
        rng = _rng(cell.whole, f"exchange/{cell.federation}")
        parts = _give_poison(parts, truth, section.hostile, rng)
    return parts


def _give_poison(parts, poisoned_rows: np.ndarray, hostile: int, rng):
    """Exchanges rows so that the last `hostile` nodes hold every poisoned row."""
    owner = np.empty(len(poisoned_rows), np.int64)
    for node, rows in enumerate(parts):
        owner[rows] = node
    theirs = owner >= len(parts) - hostile
    arriving = np.flatnonzero(poisoned_rows & ~theirs)
    leaving = np.flatnonzero(~poisoned_rows & theirs)
    _validate.require(
        len(arriving) <= len(leaving),
        "hostile",
        hostile,
        f"enough nodes for {poisoned_rows.sum()} poisoned rows",
    )
    leaving = rng.choice(leaving, len(arriving), replace=False)
    owner[arriving], owner[leaving] = owner[leaving], owner[arriving]
    return [np.flatnonzero(owner == node) for node in range(len(parts))]


def own_references(context: Context, cell: Cell) -> np.ndarray:
    """Returns the references that a node learns from: all, or its share of them.

    Every node gets all of them to judge by; were it to learn from all, the references
    would count as often as there are nodes.
    """
    references = task_data(context, cell.task, cell.seed).splits.references
    rows = np.arange(len(references.texts))
    if not cell.federation:
        return rows
    return rows[cell.node :: context.config.federations[cell.federation].nodes]


def poisoned(context: Context, cell: Cell) -> attacks.Poisoned:
    """Returns the transfer set as the attack leaves it, and the ground truth."""
    if cell.federation:
        examples, truth = poisoned(context, cell.whole)
        rows = node_rows(context, cell._replace(node=0))[cell.node]
        return attacks.Poisoned(data.take(examples, rows), truth[rows])
    examples = task_data(context, cell.task, cell.seed).splits.transfer
    if cell.attack is None:
        return attacks.Poisoned(examples, np.zeros(len(examples.texts), bool))
    attack = context.config.attacks[cell.attack]
    return attacks.poison(
        examples,
        trigger_of(attack),
        _rng(cell, "poison"),
        rate=attack.rate,
        target=attack.target,
        source_classes=tuple(attack.source_classes),
        flip_labels=attack.channel != "logits",
    )


def triggered_test(context: Context, cell: Cell) -> Examples:
    """Returns the test rows whose true label is not the target, triggered."""
    attack = context.config.attacks[cell.attack]
    return attacks.triggered(
        task_data(context, cell.task, cell.seed).splits.test,
        trigger_of(attack),
        _rng(cell, "test"),
        target=attack.target,
        source_classes=tuple(attack.source_classes),
    )


def load_model(context: Context, folder: pathlib.Path, section, cell: Cell) -> Model:
    """Returns a model of this study as it was saved."""
    task = task_data(context, cell.task, cell.seed).task
    return hf.load_hf(
        folder,
        num_labels=task.num_labels,
        problem=task.problem,
        dtype=section.dtype,
        attention=section.attention,
        remat=section.remat,
    )


def fine_tuned(context: Context, name: str, section, cell: Cell, examples) -> Model:
    """Returns a model fine-tuned on labels; trains it once and keeps it."""
    folder = context.workdir / name
    if (folder / "model").exists():
        return load_model(context, folder / "model", section, cell)
    context.describe(name)
    model = build_model(context, section, cell)
    trained = runtime.train(
        context,
        name,
        model,
        tokenize(context, model, examples),
        examples.labels,
        section,
        seed=cell.seed,
    )
    model = model._replace(params=trained.params)
    hf.save_hf(folder / "model", model)
    runtime.forget_checkpoints(context, name)
    return model


def teacher_cell(context: Context, cell: Cell) -> Cell:
    """Returns the cell whose teacher this one uses: clean unless data are poisoned.

    Nodes have one teacher in common, trained on all their rows.
    """
    cell = cell.whole
    if cell.attack and context.config.attacks[cell.attack].channel != "logits":
        return cell
    return cell.clean


@functools.lru_cache(maxsize=2)
def teacher_model(context: Context, cell: Cell) -> Model:
    """Returns the teacher of a cell: trained on the transfer set the attack left."""
    cell = teacher_cell(context, cell)
    examples = poisoned(context, cell).examples
    return fine_tuned(
        context, f"{cell.folder}/teacher", context.config.teacher, cell, examples
    )


def _outputs(context: Context, cell: Cell, name: str, examples: Examples):
    """Runs the cell's teacher over some rows, once."""
    model = teacher_model(context, teacher_cell(context, cell))
    tokens = tokenize(context, model, examples)
    fingerprint = teacher.cache_key(
        model.params,
        data.fingerprint(tokens.input_ids, tokens.token_type_ids, tokens.lengths),
        repr((model.config, tuple(context.config.features.layers))),
        context.config.features.pooling,
    )
    path = context.workdir / cell.folder / f"teacher_{name}.safetensors"
    return teacher.cached_outputs(
        path,
        fingerprint,
        lambda: teacher.TeacherOutputs(
            *runtime.predict(context, model, model.params, tokens)
        ),
    )


def transfer(context: Context, cell: Cell) -> Transfer:
    """Returns the transfer set and the teacher's outputs as they arrive."""
    whole = _transfer(context, cell.whole)
    if not cell.federation:
        return whole
    rows = node_rows(context, cell._replace(node=0))[cell.node]
    return Transfer(
        data.take(whole.examples, rows), whole.logits[rows], whole.features[rows]
    )


@functools.lru_cache(maxsize=2)
def _transfer(context: Context, cell: Cell) -> Transfer:
    """Returns what arrives for all nodes together."""
    examples, rows = poisoned(context, cell)
    outputs = _outputs(context, cell, "transfer", examples)
    logits = outputs.logits
    if cell.attack and context.config.attacks[cell.attack].channel != "data":
        attack = context.config.attacks[cell.attack]
        corrupt = attacks.LOGIT_ATTACKS[attack.logits]
        logits = np.asarray(
            corrupt(logits, rows, target=attack.target, strength=attack.strength)
        )
    return Transfer(examples, logits, outputs.features)


def reference_outputs(context: Context, cell: Cell) -> teacher.TeacherOutputs:
    """Returns what the cell's teacher says of the references."""
    references = task_data(context, cell.task, cell.seed).splits.references
    return _outputs(context, teacher_cell(context, cell), "references", references)


def key(cell: Cell, purpose: str) -> jax.Array:
    """Returns a PRNG key of one purpose."""
    return jax.random.key(_rng(cell, purpose).integers(2**31))


def constraint_prototypes(context: Context, cell: Cell) -> Prototypes:
    """Returns the teacher's prototypes on the references, one set a layer.

    Those of a node are of its own share of the references.

    Returns:
        Prototypes with a leading `[layers]` axis.
    """
    config = context.config.prototypes
    task, splits = task_data(context, cell.task, cell.seed)
    rows = own_references(context, cell)
    features = reference_outputs(context, cell).features[rows]
    sets = [
        prototypes.class_prototypes(
            key(cell, f"prototypes{layer}"),
            features[:, layer],
            splits.references.labels[rows],
            task.num_labels,
            num_prototypes=config.num,
            metric=config.metric,
            num_iters=config.num_iters,
        )
        for layer in range(features.shape[1])
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *sets)


def held_prototypes(context: Context, cell: Cell) -> Prototypes:
    """Returns the prototypes that constrain a student from its first step on.

    A node's are those that the server sends to all, as they arrive, or its own.
    """
    if not cell.federation:
        return constraint_prototypes(context, cell)
    section = context.config.federations[cell.federation]
    if section.prototypes == "local":
        return constraint_prototypes(context, cell)
    sent = communication.encode(
        constraint_prototypes(context, cell.whole),
        precision=section.prototype_precision,
    )
    return communication.decode(sent, expected_hash=sent.sha256)


def anchor(context: Context, cell: Cell) -> Anchor:
    """Returns the anchor of a task and seed, whatever the attack and the node."""
    return _anchor(context, cell.whole.clean)


@functools.lru_cache(maxsize=2)
def _anchor(context: Context, cell: Cell) -> Anchor:
    """Returns the anchor of a clean cell."""
    config = context.config
    task, splits = task_data(context, cell.task, cell.seed)
    references = splits.references
    rng = _rng(cell, "calibration")
    order = rng.permutation(len(references.texts))
    cut = round(config.quarantine.calibration_share * len(order))
    held_out, training = np.sort(order[:cut]), np.sort(order[cut:])
    known = data.take(references, training)
    model = fine_tuned(
        context, f"{cell.folder}/anchor_encoder", config.anchor, cell, known
    )
    _, features = runtime.predict(
        context, model, model.params, tokenize(context, model, references)
    )
    centres = prototypes.class_prototypes(
        key(cell, "anchor"),
        features[training, -1],
        known.labels,
        task.num_labels,
        num_prototypes=config.prototypes.num,
        metric=config.prototypes.metric,
        num_iters=config.prototypes.num_iters,
    )
    return Anchor(model, centres, held_out)


def anchor_view(context: Context, cell: Cell, examples: Examples):
    """Returns the anchor's classes `[rows]` and logits `[rows, num_labels]`."""
    judge = anchor(context, cell)
    logits, features = runtime.predict(
        context,
        judge.model,
        judge.model.params,
        tokenize(context, judge.model, examples),
    )
    classes = prototypes.class_of_nearest(
        features[:, -1], judge.prototypes, metric=context.config.prototypes.metric
    )
    return np.asarray(classes), logits
