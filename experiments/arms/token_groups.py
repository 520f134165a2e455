"""Rows of a scenario that share a token: their scores, with and without that token.

An attacker who knows the trusted model, or who influenced it through its references,
chooses tokens that change its predictions. The robust test therefore has the trusted
model reread rows without each token that is associated with their claim more than by
chance.
"""

from typing import NamedTuple

import numpy as np

from experiments import runtime
from experiments.former import consistency
from experiments.former import token_groups as group_scores
from experiments.former.consistency import Claims
from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax.data import tokens as tokens_lib
from protojax.detection.conformal import IsotonicFit, Scores
from protojax.detection.evidence import Reading
from protojax.detection.trusted_model import read
from protojax.training import predict


class Words(NamedTuple):
    """The tokens of some rows, as the trusted model reads them.

    Attributes:
        tokens: all of them.
        ids: `[rows, max_length]`, -1 where there is no token, or one that every row
            has.
        classes: (row, hidden tokens) -> the class that the trusted model predicts for
            the row without them; a cache.
    """

    tokens: tokens_lib.Tokens
    ids: np.ndarray
    classes: dict[tuple[int, bytes], int]


class Excess(NamedTuple):
    """The excess of disagreement of each token over the expected one, under a claim.

    Attributes:
        rows: of the transfer rows, `[rows, max_length]`, -inf where there is no token.
        refs: of the calibrating references, likewise.
        asked: `[rows, max_length]`, bool, where the trusted model reread a row without
            it.
        classes: `[rows]`, the claim.
    """

    rows: np.ndarray
    refs: np.ndarray
    asked: np.ndarray
    classes: np.ndarray


class Tested(NamedTuple):
    """The result of the test of the transfer rows by their tokens.

    Attributes:
        p_values: `[rows]`.
        rejecting: `[rows, max_length]`, bool, the tokens that were hidden from the
            trusted model and that would each reject the row, at all their places.
        untrusted: `[references]`, bool, those of a rejecting token's claim that hold
            this token and those that co-occur with it.
    """

    p_values: np.ndarray
    rejecting: np.ndarray
    untrusted: np.ndarray


@runtime.cached
def words(context: Context, scenario: Scenario) -> tuple[Words, Words, Words]:
    """The tokens of transfer rows, calibrating references and all references."""
    judge = trusted_model.trusted(context, scenario)
    # Every row has [CLS] and [SEP], so they carry no information; [UNK] may be a
    # trigger.
    tokenizer = judge.model.tokenizer
    frame = (tokenizer.cls_token_id, tokenizer.sep_token_id)

    def read(tokens: tokens_lib.Tokens) -> Words:
        held = np.arange(tokens.input_ids.shape[1]) < tokens.lengths[:, None]
        held &= ~np.isin(tokens.input_ids, frame)
        ids = np.where(held, tokens.input_ids, -1)
        return Words(tokens, ids, {})

    rows, references = (
        predict.tokenize(judge.model, examples, context.config.lengths)
        for examples in (
            artifacts.transfer(context, scenario).examples,
            scenarios.references(context.config, scenario),
        )
    )
    held_out = tokens_lib.take(references, judge.calibration)
    return read(rows), read(held_out), read(references)


def score(
    context: Context,
    scenario: Scenario,
    kept: np.ndarray,
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
) -> Scores:
    """The scores of some transfer rows by those that share a token and the claim.

    Returns:
        The scores of these rows and of the calibrating references.
    """
    rows, held_out, _ = words(context, scenario)
    ids = rows.ids[kept], held_out.ids
    return group_scores.token_scores(transfer, refs, expected, *ids)


def score_robustly(
    context: Context,
    scenario: Scenario,
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
) -> tuple[Scores, Excess]:
    """The scores of the rows by the trusted model's predictions without the token.

    Returns:
        The scores of the transfer rows and of the calibrating references, and the
        excess of each of their tokens.
    """
    parts = words(context, scenario)[:2]
    ids = [part.ids for part in parts]
    asked = group_scores.class_associated_tokens(transfer.classes, refs.classes, *ids)
    masked_disagreement = tuple(
        _denied_without(context, scenario, part, places, claims.classes)
        for part, places, claims in zip(parts, asked, (transfer, refs), strict=True)
    )
    excess = group_scores.token_excess(
        transfer, refs, expected, *ids, masked_disagreement=masked_disagreement
    )
    found = Excess(*excess, asked[0], np.asarray(transfer.classes))
    return group_scores.row_scores(excess), found


def _denied_without(
    context: Context,
    scenario: Scenario,
    part: Words,
    asked: np.ndarray,
    claims: np.ndarray,
) -> np.ndarray:
    """The disagreement with a claim without a token, 0 or 1, NaN where unasked."""
    row, place = np.nonzero(asked)
    hidden = group_scores.co_occurring_tokens(claims, part.ids, asked)
    keys = [(int(at), one.tobytes()) for at, one in zip(row, hidden, strict=True)]
    # Claims share most of these rereadings, each of which is a forward pass.
    new = {key: index for index, key in enumerate(keys) if key not in part.classes}
    if new:
        rows = np.array(list(new.values()))
        tokens = tokens_lib.take(part.tokens, row[rows])
        view = _reread(context, scenario, tokens, hidden[rows])
        part.classes.update(zip(new, view.classes.tolist(), strict=True))
    denied = np.full(asked.shape, np.nan)
    classes = np.array([part.classes[key] for key in keys], int)
    denied[row, place] = consistency.disagreement(classes, np.asarray(claims)[row])
    return denied


def _reread(
    context: Context, scenario: Scenario, tokens, hidden: np.ndarray
) -> Reading:
    """The trusted model's reading of rows some of whose tokens are hidden."""
    judge = trusted_model.trusted(context, scenario)
    left = tokens_lib.without(tokens, hidden)
    config = context.config
    outputs = predict.predict(judge.model, left, config.lengths, config.features)
    return read(judge.reading, outputs)


def test(
    context: Context,
    scenario: Scenario,
    excess: list[Excess],
    scores: Scores,
    classes: np.ndarray,
    classes_refs: np.ndarray,
    *,
    alpha: float,
) -> Tested:
    """The test of rows by their worst token; each group of references counts once.

    Args:
        context: the study.
        scenario: the scenario.
        excess: of each claim, from `score_robustly`.
        scores: of rows and references, over all claims.
        classes: `[rows]`, the class within which a row is tested.
        classes_refs: `[references]`.
        alpha: the level of the test.
    """
    rows, held_out, references = words(context, scenario)

    def worst(part: Words, places: list[np.ndarray]) -> np.ndarray:
        index = np.max(places, axis=0).argmax(1)[:, None]
        return np.take_along_axis(part.ids, index, axis=1)[:, 0]

    tokens_refs = worst(held_out, [one.refs for one in excess])

    def p_values(values, tokens, classes):
        return group_scores.token_p_values(
            values, tokens, scores[1], tokens_refs, classes, classes_refs, alpha=alpha
        )

    rejecting = np.zeros(rows.ids.shape, bool)
    labels = scenarios.references(context.config, scenario).labels
    untrusted = np.zeros(len(labels), bool)
    for one in excess:
        row, place = np.nonzero(one.asked)
        tokens = rows.ids[row, place]
        rejects = p_values(one.rows[row, place], tokens, classes[row]) <= alpha
        asked = np.zeros_like(rejecting)
        asked[row[rejects], place[rejects]] = True
        together = group_scores.co_occurring_tokens(one.classes, rows.ids, asked)
        patterns = {
            (int(one.classes[at]), *np.unique(rows.ids[at][hidden]).tolist())
            for at, hidden in zip(np.nonzero(asked)[0], together, strict=True)
        }
        rejecting |= asked
        # A reference that holds all of a pattern would teach the trusted model and the
        # student that it means the claim.
        for claim, *ids in patterns:
            holds = [(references.ids == token).any(1) for token in ids]
            untrusted |= (labels == claim) & np.all(holds, axis=0)
    # A token that a row holds twice was tested at its first place only.
    touched = np.flatnonzero(rejecting.any(1))
    ids = rows.ids[touched]
    same = ids[:, :, None] == ids[:, None, :]
    rejecting[touched] = (same & rejecting[touched][:, None, :]).any(2)
    tokens = worst(rows, [one.rows for one in excess])
    return Tested(p_values(scores[0], tokens, classes), rejecting, untrusted)


def view_without(context: Context, scenario: Scenario, hidden: np.ndarray) -> Reading:
    """The trusted model's reading of the transfer rows without some of their tokens.

    Args:
        context: the study.
        scenario: the scenario.
        hidden: `[rows, max_length]`, bool.
    """
    view = trusted_model.trusted_reading(context, scenario)
    rows = np.flatnonzero(hidden.any(1))
    if not len(rows):
        return view
    tokens = tokens_lib.take(words(context, scenario)[0].tokens, rows)
    again = _reread(context, scenario, tokens, hidden[rows])
    classes, logits = view.classes.copy(), view.logits.copy()
    classes[rows], logits[rows] = again.classes, again.logits
    return Reading(classes, logits)
