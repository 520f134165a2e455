"""Rows of a cell that share a token: their scores, and what the anchor says without it.

An attacker who knows the anchor, or who taught it through its references, chooses
tokens that change its mind. A wary judge therefore lets the anchor reread rows without
each token that goes with their claim more than by chance.
"""

import functools
from typing import NamedTuple

import numpy as np

from experiments import cells, inference, ingredients
from experiments.cells import Cell
from experiments.ingredients import View
from experiments.runtime import Context
from protojax import batches, consistency, shared_tokens
from protojax.calibration import IsotonicFit, Scores
from protojax.consistency import Claims


class Words(NamedTuple):
    """The tokens of some rows, as the anchor reads them.

    Attributes:
        tokens: all of them.
        ids: `[rows, max_length]`, -1 where no token is or one that is in every row.
        classes: `[rows, max_length]`, the class that the anchor gives a row without the
            token at a place, -1 where it has not been asked; filled as it is.
    """

    tokens: batches.Tokens
    ids: np.ndarray
    classes: np.ndarray


class Excess(NamedTuple):
    """How far the tokens of the transfer rows exceed what is expected of a claim.

    Attributes:
        rows: `[rows, max_length]`, -inf where no token is.
        asked: `[rows, max_length]`, bool, where the anchor reread the row without it.
    """

    rows: np.ndarray
    asked: np.ndarray


class Tested(NamedTuple):
    """What the tokens say of the transfer rows.

    Attributes:
        p_values: `[rows]`.
        guilty: `[rows, max_length]`, bool, tokens that the anchor reread a row without
            and that would each reject it.
    """

    p_values: np.ndarray
    guilty: np.ndarray


@functools.lru_cache(maxsize=2)
def words(context: Context, cell: Cell) -> tuple[Words, Words, Words]:
    """Returns a cell's transfer rows, its calibrating references and all references."""
    judge = ingredients.anchor(context, cell)
    # [CLS] and [SEP] tell nothing; [UNK] may be a trigger.
    tokenizer = judge.model.tokenizer
    frame = (tokenizer.cls_token_id, tokenizer.sep_token_id)

    def read(tokens: batches.Tokens) -> Words:
        held = np.arange(tokens.input_ids.shape[1]) < tokens.lengths[:, None]
        held &= ~np.isin(tokens.input_ids, frame)
        ids = np.where(held, tokens.input_ids, -1)
        return Words(tokens, ids, np.full_like(ids, -1))

    rows, references = (
        ingredients.tokenize(context, judge.model, examples)
        for examples in (
            ingredients.transfer(context, cell).examples,
            cells.references(context, cell),
        )
    )
    held_out = batches.take(references, judge.calibration)
    return read(rows), read(held_out), read(references)


def score(
    context: Context, cell: Cell, transfer: Claims, refs: Claims, expected: IsotonicFit
) -> Scores:
    """Scores rows by the rows that share a token and the claim.

    Returns:
        The scores of the transfer rows and of the calibrating references.
    """
    ids = [part.ids for part in words(context, cell)[:2]]
    return shared_tokens.token_scores(transfer, refs, expected, *ids)


def score_warily(
    context: Context, cell: Cell, transfer: Claims, refs: Claims, expected: IsotonicFit
) -> tuple[Scores, Excess]:
    """Scores them by what the anchor says without the token.

    Returns:
        The scores of the transfer rows and of the calibrating references, and those of
        each token of the former.
    """
    parts = words(context, cell)[:2]
    ids = [part.ids for part in parts]
    asked = shared_tokens.lopsided_tokens(transfer.classes, refs.classes, *ids)
    blind = tuple(
        _denied_without(context, cell, part, places, claims.classes)
        for part, places, claims in zip(parts, asked, (transfer, refs), strict=True)
    )
    excess = shared_tokens.token_excess(transfer, refs, expected, *ids, blind=blind)
    return shared_tokens.row_scores(excess), Excess(excess[0], asked[0])


def _denied_without(
    context: Context, cell: Cell, part: Words, asked: np.ndarray, claims: np.ndarray
) -> np.ndarray:
    """Returns 1 where the anchor denies a claim once a token is hidden, NaN unasked."""
    row, place = np.nonzero(asked & (part.classes < 0))
    if len(row):
        hidden = part.ids[row] == part.ids[row, place][:, None]
        view = _reread(context, cell, batches.take(part.tokens, row), hidden)
        part.classes[row, place] = view.classes
    denied = consistency.disagreement(part.classes, np.asarray(claims)[:, None])
    return np.where(asked, denied, np.nan)


def _reread(context: Context, cell: Cell, tokens, hidden: np.ndarray) -> View:
    """Returns what the anchor says of rows some of whose tokens it does not see."""
    judge = ingredients.anchor(context, cell)
    left = batches.without(tokens, hidden)
    outputs = inference.predict(context, judge.model, judge.model.params, left)
    return ingredients.view_of(context, judge.prototypes, *outputs)


def test(
    context: Context,
    cell: Cell,
    excess: list[Excess],
    scores: Scores,
    classes: np.ndarray,
    classes_refs: np.ndarray,
    *,
    alpha: float,
) -> Tested:
    """Tests the rows by their worst token, against references without that token.

    Args:
        context: the study.
        cell: the cell.
        excess: of each claim, what `score` returns.
        scores: of rows and references, over all claims.
        classes: `[rows]`, the class within which a row is judged.
        classes_refs: `[references]`.
        alpha: the level of the test.
    """
    rows, held_out, _ = words(context, cell)

    def p_values(values, tokens, classes):
        return shared_tokens.token_p_values(
            values, tokens, scores[1], held_out.ids, classes, classes_refs, alpha=alpha
        )

    worst = np.max([one.rows for one in excess], axis=0)
    token = np.take_along_axis(rows.ids, worst.argmax(1)[:, None], axis=1)[:, 0]
    guilty = np.zeros(rows.ids.shape, bool)
    for one in excess:
        row, place = np.nonzero(one.asked)
        values, tokens = one.rows[row, place], rows.ids[row, place]
        guilty[row, place] |= p_values(values, tokens, classes[row]) <= alpha
    return Tested(p_values(scores[0], token, classes), guilty)


def view_without(context: Context, cell: Cell, hidden: np.ndarray) -> View:
    """Returns what the anchor says of the transfer rows without some of their tokens.

    Args:
        context: the study.
        cell: the cell.
        hidden: `[rows, max_length]`, bool.
    """
    view = ingredients.anchor_view(context, cell)
    rows = np.flatnonzero(hidden.any(1))
    if not len(rows):
        return view
    tokens = batches.take(words(context, cell)[0].tokens, rows)
    again = _reread(context, cell, tokens, hidden[rows])
    classes, logits = view.classes.copy(), view.logits.copy()
    classes[rows], logits[rows] = again.classes, again.logits
    return View(classes, logits)


def spoiled(
    context: Context, cell: Cell, found: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Returns the references that hold a guilty token and are of its claim.

    Args:
        context: the study.
        cell: the cell.
        found: `[rows, max_length]`, bool, guilty tokens of transfer rows.
        classes: `[rows]`, what the rows claim.

    Returns:
        `[references]`, bool.
    """
    rows, _, references = words(context, cell)
    row, place = np.nonzero(found)
    labels = cells.references(context, cell).labels
    result = np.zeros(len(labels), bool)
    for claim in np.unique(classes[row]):
        ids = np.unique(rows.ids[row, place][classes[row] == claim])
        result |= (labels == claim) & np.isin(references.ids, ids).any(1)
    return result
