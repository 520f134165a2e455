"""Runs the group test on a cell: which transfer rows deny what they claim.

Reads what the defender has, never which rows are poisoned: the transfer set as it
arrived, the teacher's outputs, the references and the anchor.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from experiments import cells, inference, ingredients, runtime, token_groups, trainer
from experiments.cells import Cell
from experiments.runtime import Context
from protojax import consistency, data, prototypes, teacher
from protojax.calibration import (
    Scores,
    combine_scores,
    conformal_p_values,
    expected_disagreement,
    reject,
)
from protojax.consistency import Claims
from protojax.models import Model


class Verdict(NamedTuple):
    """What the defence says of the transfer rows.

    Attributes:
        rejected: `[rows]`, bool.
        p_values: `[rows]`, lower is more suspicious.
        anchor_classes: `[rows]`, int32, or None from a defence without an anchor.
        anchor_logits: `[rows, num_labels]`, or None.
        spoiled: `[references]`, bool, those that no student should learn from either;
            None is none of them.
    """

    rejected: np.ndarray
    p_values: np.ndarray
    anchor_classes: np.ndarray | None = None
    anchor_logits: np.ndarray | None = None
    spoiled: np.ndarray | None = None


class Found(NamedTuple):
    """What one kind of groups says under one claim.

    Attributes:
        scores: of the transfer rows and of the calibrating references.
        excess: the same of each token, where the anchor reread rows without some.
    """

    scores: Scores
    excess: token_groups.Excess | None = None


def judge(
    context: Context, cell: Cell, objective: FrozenConfigDict, *, wary: bool = False
) -> Verdict:
    """Tests the transfer rows of a cell.

    Args:
        context: the study.
        cell: the cell.
        objective: how a student is warmed up, where its features are a space.
        wary: whether triggers may change the anchor's mind, see `token_groups`.
    """
    config = context.config.quarantine
    transfer = ingredients.transfer(context, cell)
    references = cells.references(context, cell)
    anchor = ingredients.anchor(context, cell)
    rows = anchor.calibration
    calibration = data.take(references, rows)
    outputs = ingredients.reference_outputs(context, cell)
    view = ingredients.anchor_view(context, cell)
    found, claimed = {groups: [] for groups in config.groups}, None
    for space in config.spaces:
        if space == "teacher":
            features, held = transfer.features[:, -1], outputs.features[:, -1]
        else:
            features, held = _student_features(context, cell, objective)
        for claim in config.claims:
            rows_claim = _claims(
                claim, features, transfer.logits, transfer.examples, view.classes
            )
            refs_claim = _claims(
                claim,
                held[rows],
                outputs.logits[rows],
                calibration,
                anchor.held_out.classes,
            )
            claimed = claimed or (rows_claim.classes, refs_claim.classes)
            expected = expected_disagreement(refs_claim.confidence, refs_claim.disagree)
            for groups in config.groups:
                # Tokens are the same in every feature space.
                if groups != "tokens" or space == config.spaces[0]:
                    score = WARY[groups] if wary else GROUPS[groups]
                    found[groups].append(
                        score(context, cell, rows_claim, refs_claim, expected)
                    )
    return _verdict(context, cell, found, claimed)


def _verdict(
    context: Context, cell: Cell, found: dict[str, list[Found]], claimed
) -> Verdict:
    """Returns what all kinds of groups say together, at the stated rate.

    Args:
        context: the study.
        cell: the cell.
        found: of each kind, what it says under each claim and in each space.
        claimed: what transfer rows and calibrating references claim.
    """
    false_rejection = context.config.quarantine.false_rejection
    view = ingredients.anchor_view(context, cell)
    alpha = false_rejection / len(found)
    p_values, tested = [], None
    for kind in found.values():
        scores = combine_scores([one.scores for one in kind])
        excess = [one.excess for one in kind if one.excess is not None]
        if excess:
            tested = token_groups.test(
                context, cell, excess, scores, *claimed, alpha=alpha
            )
            p_values.append(tested.p_values)
        else:
            p_values.append(conformal_p_values(*scores, *claimed, alpha=alpha))
    verdict = reject(p_values, alpha=false_rejection)
    if tested is None:
        return Verdict(*verdict, *view)
    hidden = tested.guilty & verdict.rejected[:, None]
    view = token_groups.view_without(context, cell, hidden)
    return Verdict(*verdict, *view, tested.spoiled)


def judge_rows(context: Context, cell: Cell) -> Verdict:
    """Tests each transfer row by itself: does the anchor find its claim improbable?"""
    transfer = ingredients.transfer(context, cell)
    anchor = ingredients.anchor(context, cell)
    view = ingredients.anchor_view(context, cell)
    outputs = ingredients.reference_outputs(context, cell)
    verdict = consistency.sample_gate(
        inference.posterior(view.logits),
        transfer.logits.argmax(-1),
        inference.posterior(anchor.held_out.logits),
        outputs.logits[anchor.calibration].argmax(-1),
        alpha=context.config.quarantine.false_rejection,
    )
    return Verdict(verdict.rejected, verdict.p_values, *view)


def _claims(claim, features, logits, examples, anchor_classes) -> Claims:
    """Returns what rows claim by the teacher's argmax or by their given label.

    The confidence is the teacher's largest probability for both claims: that of a
    flipped label would be low, and would excuse the row.
    """
    classes = examples.labels if claim == "label" else logits.argmax(-1)
    return Claims(
        features,
        classes,
        inference.posterior(logits).max(-1),
        consistency.disagreement(anchor_classes, classes),
    )


def _neighbours(context: Context, cell: Cell, transfer, refs, expected) -> Found:
    """Scores rows by their nearest neighbours of the same claim."""
    config = context.config
    return Found(
        consistency.neighbourhood_scores(
            transfer,
            refs,
            expected,
            num_neighbours=config.quarantine.num_neighbours,
            metric=config.prototypes.metric,
        )
    )


def _tokens(context: Context, cell: Cell, transfer, refs, expected) -> Found:
    """Scores rows by the rows that share a token and the claim."""
    return Found(token_groups.score(context, cell, transfer, refs, expected))


def _tokens_warily(context: Context, cell: Cell, transfer, refs, expected) -> Found:
    """Scores them by what the anchor says without the token."""
    return Found(*token_groups.score_warily(context, cell, transfer, refs, expected))


def _clusters(context: Context, cell: Cell, transfer, refs, expected) -> Found:
    """Scores rows by k-means clusters within each claim, at several resolutions.

    Transfer rows and references are clustered together.
    """
    config = context.config
    features = np.concatenate([transfer.features, refs.features])
    classes = np.concatenate([transfer.classes, refs.classes])
    found = np.zeros((len(classes), len(config.quarantine.resolutions)), np.int32)
    for column, resolution in enumerate(config.quarantine.resolutions):
        for claim in np.unique(classes):
            members = classes == claim
            centres = prototypes.kmeans(
                cells.key(cell, f"clusters{resolution}/{claim}"),
                features,
                min(resolution, int(members.sum())),
                where=members,
                metric=config.prototypes.metric,
                num_iters=config.prototypes.num_iters,
            )
            index, _ = prototypes.nearest_prototype(
                features[members], centres, metric=config.prototypes.metric
            )
            found[members, column] = np.asarray(index)
    clusters = np.split(found, [len(transfer.classes)])
    return Found(consistency.cluster_scores(transfer, refs, expected, *clusters))


GROUPS = {"neighbours": _neighbours, "tokens": _tokens, "clusters": _clusters}
WARY = {**GROUPS, "tokens": _tokens_warily}


def _student_features(context: Context, cell: Cell, objective: FrozenConfigDict):
    """Returns a briefly trained student's features of transfer rows and references.

    An attacker of the teacher's channel controls the teacher's hidden states; he does
    not control the student's.
    """
    outputs = warmed_up(context, cell, objective)
    rows = len(ingredients.transfer(context, cell).examples.texts)
    return np.split(outputs.features[:, -1], [rows])


def warmed_up(
    context: Context, cell: Cell, objective: FrozenConfigDict
) -> teacher.TeacherOutputs:
    """Returns what a briefly trained student says of transfer rows, then references.

    Args:
        context: the study.
        cell: the cell.
        objective: what it minimises, see `runtime.make_step`.
    """
    transfer = ingredients.transfer(context, cell)
    references = cells.references(context, cell)
    everything = data.concatenate(transfer.examples, references)
    model = ingredients.build_model(context, context.config.student, cell)
    section = runtime.changed(
        context.config.student, epochs=context.config.quarantine.warmup_epochs
    )
    config = context.config
    key = teacher.cache_key(
        model.params,
        data.fingerprint(transfer.logits, transfer.features, *everything.texts),
        repr((objective, section, config.features, config.data.buckets)),
    )
    # Variants of an arm may differ in any of it.
    name = f"{cell.folder}/warmup_{key[:12]}"
    return teacher.cached_outputs(
        context.workdir / f"{name}.safetensors",
        key,
        lambda: teacher.TeacherOutputs(
            *_warm_up(context, cell, name, objective, section, model, everything)
        ),
    )


def _warm_up(
    context: Context,
    cell: Cell,
    name: str,
    objective,
    section,
    model: Model,
    everything,
):
    """Distils a student for a short while and returns its outputs over all rows."""
    context.describe(name)
    transfer = ingredients.transfer(context, cell)
    run = trainer.Run(
        name,
        model,
        ingredients.tokenize(context, model, transfer.examples),
        transfer.examples.labels,
        section,
        seed=cell.seed,
        objective=objective,
        columns={
            "teacher_logits": transfer.logits,
            "teacher_features": transfer.features,
        },
    )
    trained = trainer.train(context, run)
    outputs = inference.predict(
        context, model, trained.params, ingredients.tokenize(context, model, everything)
    )
    trainer.forget_checkpoints(context, name)
    return outputs
