"""The arms of a study: how each student is distilled from what the cell offers.

An arm is a function from a cell to a `Recipe`; a newcomer adds one function and one
line in `ARMS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from experiments import inference, trainer
from experiments.arms import audit, filters, purify
from experiments.arms.quarantine import Verdict, judge, judge_rows
from experiments.runtime import Context
from experiments.world import artifacts, scenario
from experiments.world.scenario import Cell
from protojax import data
from protojax.base import Examples, Prototypes
from protojax.detection.quarantine import calibrate_bias, quarantine_targets
from protojax.distillation import noise_multiplier_of
from protojax.models import Model

# How sure the target of a reference is of its true class: odds of e^4, 98 %.
REFERENCE_LOG_ODDS = 4.0


class Recipe(NamedTuple):
    """What one student is trained on, and how.

    Attributes:
        examples: its rows; their labels are those the student may see.
        columns: the batch's other columns, `[rows, ...]`.
        objective: see `runtime.make_step`.
        prototypes: constrain the student, or None.
        verdict: what a defence says of the transfer rows, or None.
        section: fields of the student's section of the config that differ.
        student: one that is taken as it is, without any training, or None.
    """

    examples: Examples
    columns: dict[str, np.ndarray]
    objective: FrozenConfigDict
    prototypes: Prototypes | None = None
    verdict: Verdict | None = None
    section: FrozenConfigDict = FrozenConfigDict()
    student: Model | None = None


class Name(NamedTuple):
    """The parts of an arm's name, `kind+variant@federation`, "" where it has none.

    Attributes:
        kind: in `ARMS`.
        variant: in the config's `variants`.
        federation: in the config's `federations`.
    """

    kind: str
    variant: str
    federation: str


def parse(arm: str) -> Name:
    """Returns the parts of an arm's name.

    >>> parse("anchor+drop@four")
    Name(kind='anchor', variant='drop', federation='four')
    """
    name, _, federation = arm.partition("@")
    kind, _, variant = name.partition("+")
    return Name(kind, variant, federation)


class Arm(NamedTuple):
    """A named composition.

    Attributes:
        recipe: `(context, cell) -> Recipe`.
        needs: the arms whose students are trained before.
        goes_on: whether the student starts from that of the first of these, or anew.
        in_federations: whether it makes sense over many nodes.
        anchored: whether it asks the anchor, which then has to be trained before.
        audits: whether it audits the student of the first that it needs, as the study
            has it, and says with the help of the references what found words mean.
        learns_in: `(config, cell) -> Cell`, the cell that the student depends on; one
            that does not depend on the attack is trained once for all of them.
        recommended: whether it is the defence to use; tables highlight it.
    """

    recipe: Callable[[Context, Cell], Recipe]
    learns_in: Callable[[Any, Cell], Cell] = lambda config, cell: cell
    needs: tuple[str, ...] = ()
    goes_on: bool = False
    in_federations: bool = True
    anchored: bool = False
    audits: bool = False
    recommended: bool = False


def _distil(context: Context, assignment: str = "", weight: float | None = None):
    """Returns the objective of distillation, with a constraint where one is named."""
    config = context.config
    margin = config.margin.to_dict()
    if weight is not None:
        margin["weight"] = weight
    return FrozenConfigDict(
        {
            "kd": {
                **config.kd,
                "layers": config.features.layers,
                "pooling": config.features.pooling,
            },
            "assignment": assignment,
            "metric": config.prototypes.metric,
            "margin": margin,
            "adversarial": {},
            "gradient": {},
        }
    )


def _columns(transfer: artifacts.Transfer) -> dict[str, np.ndarray]:
    """Returns the columns that every distilled student sees."""
    return {
        "teacher_logits": transfer.logits,
        "teacher_features": transfer.features,
    }


def plain(context: Context, cell: Cell) -> Recipe:
    """Distils from whatever the teacher says."""
    transfer = artifacts.transfer(context, cell)
    return Recipe(transfer.examples, _columns(transfer), _distil(context))


def clean(context: Context, cell: Cell) -> Recipe:
    """Distils in a world without the attack: its ASR is the null ASR."""
    return plain(context, cell.clean)


def nearest(context: Context, cell: Cell) -> Recipe:
    """Adds the published constraint: near any prototype of the teacher's."""
    return plain(context, cell)._replace(
        objective=_distil(context, "nearest", context.config.nearest.weight),
        prototypes=artifacts.held_prototypes(context, cell),
    )


def adversarial(context: Context, cell: Cell) -> Recipe:
    """Distils from the worst perturbation of each row's embeddings."""
    recipe = plain(context, cell)
    objective = {**recipe.objective, "adversarial": context.config.adversarial}
    return recipe._replace(objective=FrozenConfigDict(objective))


def dp_sgd(context: Context, cell: Cell) -> Recipe:
    """Distils with clipped gradients and noise: no row may matter much.

    (ε, δ)-private in the rows of the transfer set, as if the teacher were public,
    towards those who see the saved student and nothing else of the study's folder:
    losses in its `metrics.jsonl`, cached outputs and, until the student is saved, its
    checkpoints tell of rows. `trainer.train` draws coins and noise from the operating
    system; under `dp.reproducible` they follow from the seed, and ε is nominal.
    """
    recipe, config = plain(context, cell), context.config.dp
    rows, epochs = len(recipe.examples.texts), config.epochs
    noise = noise_multiplier_of(
        epsilon=config.epsilon,
        delta=config.delta,
        sampling_rate=config.batch_size / rows,
        num_steps=trainer.poisson_steps(rows, epochs, config.batch_size),
    )
    rule = {
        "name": "dp_sgd",
        "clip_norm": config.clip_norm,
        "noise_multiplier": noise,
        "expected_rows": config.batch_size,
        "microbatch": config.microbatch,
        "frozen": tuple(config.frozen),
    }
    fields = ("epochs", "batch_size", "learning_rate")
    return recipe._replace(
        objective=FrozenConfigDict({**recipe.objective, "gradient": rule}),
        section=FrozenConfigDict({field: config[field] for field in fields}),
    )


def references(context: Context, cell: Cell) -> Recipe:
    """Learns from the trusted references alone: what the defender has anyway.

    As long as the anchor does, which learns from as few rows.
    """
    references = scenario.references(context, cell)
    return Recipe(
        data.take(references, scenario.own_references(context, cell)),
        {},
        FrozenConfigDict({"kd": None}),
        section=FrozenConfigDict({"epochs": context.config.anchor.epochs}),
    )


def fine_tuned(context: Context, cell: Cell) -> Recipe:
    """Goes on from the plainly distilled student, on the references alone.

    Sha et al., 2022 (arXiv:2212.09067), find it hard to beat with enough references.
    """
    config = context.config.fine_tuning
    section = {field: config[field] for field in ("epochs", "learning_rate")}
    return references(context, cell)._replace(section=FrozenConfigDict(section))


def nad(context: Context, cell: Cell) -> Recipe:
    """Goes on from the plain student, with the attention of the fine-tuned one."""
    recipe = fine_tuned(context, cell)
    copy = artifacts.student_model(context, cell, "fine_tuned")
    tokens = artifacts.tokenize(context, copy, recipe.examples)
    active = inference.predict_attention(context, copy, tokens)
    weight = context.config.fine_tuning.attention_weight
    return recipe._replace(
        columns={"teacher_attention": active},
        objective=FrozenConfigDict({"kd": None, "attention": weight}),
    )


def cube(context: Context, cell: Cell) -> Recipe:
    """Distils without what lies outside the largest cluster of each claim."""
    return _without(plain(context, cell), filters.small_clusters(context, cell))


def abl(context: Context, cell: Cell) -> Recipe:
    """Distils without the rows that a student learns first."""
    verdict = filters.quick_to_learn(context, cell, _distil(context))
    return _without(plain(context, cell), verdict)


def onion(context: Context, cell: Cell) -> Recipe:
    """Distils from texts without their outlier words, see `purify`.

    Qi et al., 2021 (ONION, arXiv:2011.10369). Departing from it, the transfer set is
    cleaned, and what a teacher says of it comes from the cleaned text; that teacher may
    have been trained on the text as it was, and labels stay as they are. A student has
    no time to clean what it reads.
    """
    transfer = artifacts.transfer(context, cell, purify.without_outlier_words)
    return Recipe(transfer.examples, _columns(transfer), _distil(context))


def _without(recipe: Recipe, verdict: Verdict) -> Recipe:
    """Returns a recipe without what a verdict rejects."""
    kept = _keep(recipe, np.flatnonzero(~verdict.rejected))
    return kept._replace(verdict=verdict)


def oracle(context: Context, cell: Cell) -> Recipe:
    """Distils with every poisoned row removed, which only the attacker could do."""
    keep = np.flatnonzero(~scenario.poisoned(context, cell).rows)
    return _keep(plain(context, cell), keep)


def _keep(recipe: Recipe, rows: np.ndarray) -> Recipe:
    """Returns a recipe over some of its rows."""
    return recipe._replace(
        examples=data.take(recipe.examples, rows),
        columns={name: column[rows] for name, column in recipe.columns.items()},
    )


def anchor(context: Context, cell: Cell) -> Recipe:
    """Quarantines what the group test rejects, and holds meaning to the anchor's.

    The references are trusted text with trusted labels, so the student learns from
    them too (`quarantine.train_on_references`).
    """
    return _defended(context, cell, judge(context, cell, _distil(context)))


def audited(context: Context, cell: Cell) -> Recipe:
    """Does what `anchor` does, and takes the meaning from words that decide alone.

    These are words that go with rejection, first words that too many rows have, and
    what an audit of the teacher and of the student of `anchor` finds, who alone may
    have learned what was done to a teacher's answers. Where there are none that student
    is this arm's too. Else a new one is distilled from transfer rows without these
    words, and from references that hold them by coins: were they to stay in rows that
    were rejected, whose meaning is all of other classes, they would come to mean these;
    were they nowhere, they would mean what a teacher who learned them says of rows with
    a part of them.
    """
    return _audited(context, cell, judge(context, cell, _distil(context)), "anchor")


def wary(context: Context, cell: Cell) -> Recipe:
    """Does what `anchor` does, against one who knows the anchor or taught it lies.

    Words that go with a claim are hidden from the anchor where it judges their rows,
    and references with a word that was found guilty do not train the student.
    """
    return _defended(context, cell, judge(context, cell, _distil(context), wary=True))


def wary_audited(context: Context, cell: Cell) -> Recipe:
    """Audits after the wary judge, and the student of `wary`."""
    verdict = judge(context, cell, _distil(context), wary=True)
    return _audited(context, cell, verdict, "wary")


def _audited(context: Context, cell: Cell, verdict: Verdict, before: str) -> Recipe:
    """Returns the recipe of an audit.

    Args:
        context: the study.
        cell: the cell.
        verdict: what the group test says of the transfer rows.
        before: the arm whose student follows that verdict alone; it is asked too.
    """
    student = artifacts.student_model(context, cell, before)
    found = audit.found(context, cell, verdict, student)
    if not found:
        return _defended(context, cell, verdict)._replace(student=student)
    transfer = artifacts.transfer(context, cell)
    pure = audit.without(found, transfer.examples)
    recipe = _defended(
        context,
        cell,
        audit.amended(context, cell, verdict, found, pure),
        transfer=transfer._replace(examples=pure),
        references=audit.by_coins(
            context, cell, found, scenario.references(context, cell)
        ),
    )
    return _keep(recipe, np.flatnonzero(audit.has_words(recipe.examples)))


def unattacked(context: Context, cell: Cell) -> Recipe:
    """Does what `anchor` does in a world without the attack: what it does by itself.

    The null ASR is that of a student without a defence, who may lean to one class.
    """
    return anchor(context, cell.clean)


def unattacked_audited(context: Context, cell: Cell) -> Recipe:
    """Does what `audited` does where there was no attack: what false alarms cost."""
    verdict = judge(context, cell.clean, _distil(context))
    return _audited(context, cell.clean, verdict, "unattacked")


def gate(context: Context, cell: Cell) -> Recipe:
    """Does what `anchor` does, by a per-sample conformal gate, not the group test."""
    return _defended(context, cell, judge_rows(context, cell))


def plain_references(context: Context, cell: Cell) -> Recipe:
    """Plain distillation that learns from the references too, as `anchor` does."""
    return _with_references(context, cell, plain(context, cell))


def _defended(
    context: Context,
    cell: Cell,
    verdict: Verdict,
    *,
    transfer: artifacts.Transfer | None = None,
    references: Examples | None = None,
) -> Recipe:
    """Returns the recipe in which a verdict's rejected rows are quarantined.

    The teacher's bias towards a class, which flipped labels leave behind on clean text
    too, is taken out with the help of the references.

    Args:
        context: the study.
        cell: the cell.
        verdict: what to quarantine.
        transfer: the transfer rows in another form, None for the cell's.
        references: the references in another form, None for the cell's.
    """
    config = context.config
    if transfer is None:
        transfer = artifacts.transfer(context, cell)
    bias = calibrate_bias(
        artifacts.reference_outputs(context, cell).logits,
        scenario.references(context, cell).labels,
    )
    targets = quarantine_targets(
        transfer.logits + bias,
        transfer.examples.labels,
        verdict.rejected,
        verdict.anchor_logits,
        verdict.anchor_classes,
        action=config.quarantine.action,
    )
    held = artifacts.held_prototypes(context, cell)
    recipe = Recipe(
        examples=transfer.examples._replace(labels=np.asarray(targets.labels)),
        columns={
            "teacher_logits": np.asarray(targets.teacher_logits),
            "teacher_features": _trusted_features(
                transfer.features, held, verdict.rejected, verdict.anchor_classes
            ),
            "anchors": np.asarray(targets.anchors),
        },
        objective=_distil(context, context.config.margin.assignment),
        prototypes=held,
    )
    recipe = _keep(recipe, np.flatnonzero(targets.keep))
    if config.quarantine.train_on_references:
        recipe = _with_references(
            context, cell, recipe, references=references, spoiled=verdict.spoiled
        )
    return recipe._replace(verdict=verdict)


def _with_references(
    context: Context,
    cell: Cell,
    recipe: Recipe,
    *,
    references: Examples | None = None,
    spoiled: np.ndarray | None = None,
) -> Recipe:
    """Adds the references as rows, with logits that say their true class.

    The teacher's own logits on them came through the channel that is not trusted.

    Args:
        context: the study.
        cell: the cell.
        recipe: what to add them to.
        references: in another form, None for the cell's.
        spoiled: `[references]`, bool, those to leave out.
    """
    if references is None:
        references = scenario.references(context, cell)
    rows = scenario.own_references(context, cell)
    if spoiled is not None:
        rows = rows[~spoiled[rows]]
    references = data.take(references, rows)
    task = scenario.task_data(context, cell.task, cell.seed).task
    logit = REFERENCE_LOG_ODDS + np.log(task.num_labels - 1)
    columns = {
        "teacher_logits": logit * np.eye(task.num_labels)[references.labels],
        "teacher_features": artifacts.reference_outputs(context, cell).features[rows],
        "anchors": references.labels,
    }
    return recipe._replace(
        examples=data.concatenate(recipe.examples, references),
        columns={
            name: np.concatenate([column, columns[name]]).astype(column.dtype)
            for name, column in recipe.columns.items()
        },
    )


def _trusted_features(features, held: Prototypes, rejected, classes) -> np.ndarray:
    """Gives rejected rows the mean prototype of their anchor's class as features."""
    features = features.copy()
    for layer in range(features.shape[1]):
        weights = held.counts[layer][:, None] * (
            held.labels[layer][:, None] == np.arange(classes.max() + 1)
        )
        means = weights.T @ held.vectors[layer]
        means /= np.maximum(weights.sum(0), 1)[:, None]
        features[rejected, layer] = means[classes[rejected]]
    return features


def is_recommended(arm: str) -> bool:
    """Returns whether an arm is the defence to use, whatever its variant.

    >>> is_recommended("audited"), is_recommended("anchor"), is_recommended("former")
    (True, False, False)
    """
    # A table may be made of a study whose arms have other names by now.
    known = ARMS.get(parse(arm).kind)
    return known is not None and known.recommended


def _clean_cell(config: Any, cell: Cell) -> Cell:
    """Returns the cell without its attack."""
    return cell.clean


_AUDITS = {"in_federations": False, "anchored": True, "audits": True}
ARMS: dict[str, Arm] = {
    "clean": Arm(clean, _clean_cell),
    "plain": Arm(plain),
    "nearest": Arm(nearest),
    "adversarial": Arm(adversarial),
    # Nodes step together through full batches; the accounting needs coins.
    "dp_sgd": Arm(dp_sgd, in_federations=False),
    "anchor": Arm(anchor, anchored=True),
    "audited": Arm(audited, needs=("anchor",), recommended=True, **_AUDITS),
    "unattacked": Arm(unattacked, _clean_cell, anchored=True),
    "unattacked_audited": Arm(
        unattacked_audited, _clean_cell, needs=("unattacked",), **_AUDITS
    ),
    "wary": Arm(wary, anchored=True),
    "wary_audited": Arm(wary_audited, needs=("wary",), **_AUDITS),
    "gate": Arm(gate, anchored=True),
    "plain_references": Arm(plain_references),
    "fine_tuned": Arm(fine_tuned, needs=("plain",), goes_on=True, in_federations=False),
    "nad": Arm(nad, needs=("plain", "fine_tuned"), goes_on=True, in_federations=False),
    "cube": Arm(cube),
    "abl": Arm(abl),
    "onion": Arm(onion, anchored=True),
    "references": Arm(references, scenario.reference_cell),
    "oracle": Arm(oracle),
}
