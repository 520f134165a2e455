"""Groups of rows that make one claim and share a token, which reveal lexical triggers.

All rows poisoned with a lexical trigger contain it, whatever a model has learned of it,
so the trusted model disagrees with these rows as a group even where their hidden states
do not yet lie together. An attacker who knows the trusted model chooses words that
change its reading, or teaches it the trigger through its own training rows. Then the
trusted model has to read the rows with the word hidden: `class_associated_tokens` finds
the words that are worth this, `co_occurring_tokens` the words to hide together with
them, and `masked_disagreement` is whether the trusted model disagrees without them. A
lexical trigger of which each poisoned row has only one word of many forms one group for
each word.

    asked = class_associated_tokens(claims, claims_refs, tokens, tokens_refs)
    masked_disagreement = ...  # NaN where not asked, else 1 where it disagrees
    rate = expected.whatever_confidence  # a channel's attacker cannot raise this one
    scores = token_scores(transfer, refs, rate, tokens, tokens_refs,
                          masked_disagreement=masked_disagreement)
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from experiments.former.consistency import Claims, moments, pool, split
from protojax import validate
from protojax.detection.conformal import IsotonicFit, Scores, conformal_p_values

Places = tuple[np.ndarray, np.ndarray]  # of the transfer rows, of the references


def token_scores(
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
    tokens: ArrayLike,
    tokens_refs: ArrayLike,
    *,
    overdispersion: float = 0.05,
    masked_disagreement: Places | None = None,
) -> Scores:
    """The excess of rows that share a token over the expected disagreement.

    The score of a row is the largest excess of its tokens, see `token_excess`. A
    trigger without words of its own (a syntax, a style) has to be found by
    `neighbourhood_scores`.

    Guarantee: as for `neighbourhood_scores`; transfer rows and references are pooled.

    Args:
        transfer: the rows under test, `[rows, ...]`; features are not read.
        refs: clean rows that trained neither the trusted model nor the teacher,
            `[references, ...]`.
        expected: the rate that clean rows show, see `expected_disagreement`.
        tokens: `[rows, length]`, int, the tokens of each row, negative where none.
        tokens_refs: `[references, any length]`, likewise.
        overdispersion: τ >= 0, a rate.
        masked_disagreement: see `token_excess`.

    Returns:
        The scores of the transfer rows `[rows]` and of the references `[references]`;
        a row without tokens scores 0.

    Raises:
        ValueError: those of `token_excess`.

    >>> one = Claims(np.ones((1, 2)), np.zeros(1), np.ones(1), np.ones(1))
    >>> four = Claims(*(np.repeat(array, 4, axis=0) for array in one))
    >>> half, words = IsotonicFit(np.array([1.0]), np.array([0.5])), np.full((4, 1), 7)
    >>> token_scores(four, one, half, words, np.array([[8]]), overdispersion=0.0)
    (array([2., 2., 2., 2.]), array([1.]))
    """
    found = token_excess(
        transfer,
        refs,
        expected,
        tokens,
        tokens_refs,
        overdispersion=overdispersion,
        masked_disagreement=masked_disagreement,
    )
    return row_scores(found)


def row_scores(excess: Places) -> Scores:
    """The largest excess of each row's tokens, 0 for a row without tokens.

    Args:
        excess: the result of `token_excess`.

    >>> rows, refs = np.array([[1.0, 3.0], [-np.inf, -np.inf]]), np.array([[-2.0]])
    >>> row_scores((rows, refs))
    (array([3., 0.]), array([-2.]))
    """
    best = [places.max(axis=1, initial=-np.inf) for places in excess]
    return tuple(np.where(np.isfinite(scores), scores, 0.0) for scores in best)


def token_excess(
    transfer: Claims,
    refs: Claims,
    expected: IsotonicFit,
    tokens: ArrayLike,
    tokens_refs: ArrayLike,
    *,
    overdispersion: float = 0.05,
    masked_disagreement: Places | None = None,
) -> Places:
    """The excess of each token's rows over the expected disagreement.

        z_t = Σ_{j ∈ G(t)} (d_jt - e_j) / √(Σ_{j ∈ G(t)} v_j + (τ |G|)²)

    with the variances v_j of `consistency.moments`. G(t) are all rows of one claim that
    hold token t; d_jt is 1 where the trusted model disagrees with the claim of row j,
    read with t hidden where `masked_disagreement` is not NaN. Clean words are
    associated with a class too ("not" is): the overdispersion τ is the amount by which
    a clean group's rate may differ from the expected one, so a common word needs an
    excess of several τ, not of several 1/√|G|.

    Args:
        transfer: the rows under test, `[rows, ...]`; features are not read.
        refs: clean rows that trained neither the trusted model nor the teacher,
            `[references, ...]`.
        expected: the rate that clean rows show, see `expected_disagreement`.
        tokens: `[rows, length]`, int, the tokens of each row, negative where none.
        tokens_refs: `[references, any length]`, likewise.
        overdispersion: τ >= 0, a rate.
        masked_disagreement: `[rows, length]` and `[references, any length]`, 1 where
            the trusted model disagrees with the row's claim when the token at this
            place is hidden, 0 where it agrees, NaN where it was not asked, so that its
            reading of the whole row counts. A token that a row holds twice is read at
            its first place.

    Returns:
        z of the transfer rows `[rows, length]` and of the references, -inf at places
        without a token.

    Raises:
        ValueError: on arrays of different lengths, values that are not finite, or a
            negative overdispersion.

    >>> one = Claims(np.ones((1, 2)), np.zeros(1), np.ones(1), np.ones(1))
    >>> half, word = IsotonicFit(np.array([1.0]), np.array([0.5])), np.array([[7, -1]])
    >>> found, _ = token_excess(one, one, half, word, word, overdispersion=0.0)
    >>> found.round(2).tolist()
    [[1.41, -inf]]
    """
    validate.non_negative(overdispersion=overdispersion)
    rows = pool(transfer, refs)
    tokens, tokens_refs = np.asarray(tokens), np.asarray(tokens_refs)
    validate.same_length(transfer=transfer.classes, tokens=tokens)
    validate.same_length(refs=refs.classes, tokens_refs=tokens_refs)
    row, place, pair, first, _, group = _pairs(rows.classes, tokens, tokens_refs)
    # Per (row, token) pair, so that a token repeated in a row counts once.
    disagree = np.asarray(rows.disagree, np.float64)[row[first]]
    if masked_disagreement is not None:
        asked = _side_by_side(masked_disagreement, tokens, tokens_refs)[row, place][
            first
        ]
        disagree = np.where(np.isnan(asked), disagree, asked)
    excess, variance = moments(rows, expected)
    owner = row[first]
    # `excess` is d - e of the whole row; only its d depends on the hidden token.
    over = disagree - rows.disagree[owner] + excess[owner]
    total, spread = np.bincount(group, over), np.bincount(group, variance[owner])
    # The term grows with |G|², so a large group needs an excess in its rate.
    spread = spread + (overdispersion * np.bincount(group)) ** 2
    width = max(tokens.shape[1], tokens_refs.shape[1])
    found = np.full((len(rows.classes), width), -np.inf)
    found[row, place] = (total / np.sqrt(spread))[group][pair]
    of_rows, of_refs = split(found, transfer)
    return of_rows[:, : tokens.shape[1]], of_refs[:, : tokens_refs.shape[1]]


def class_associated_tokens(
    classes: ArrayLike,
    classes_refs: ArrayLike,
    tokens: ArrayLike,
    tokens_refs: ArrayLike,
    *,
    least_rows: int = 5,
    level: float = 0.01,
) -> Places:
    """The places whose token is associated with the row's claim more than by chance.

    P(Binomial(n_t, p_c) ≥ n_tc) ≤ level, where n_t rows hold token t, n_tc of them
    claim c, and p_c is the share of rows that claim c

    The rows of a trigger all make one claim, but so do those of many ordinary words.
    Only the trusted model, with the word hidden, tells them apart. That costs one
    reading per row and token, so it is worth asking for associated tokens only.

    Args:
        classes: `[rows]`, int, the claims of the rows under test.
        classes_refs: `[references]`, the claims of clean rows; both are pooled.
        tokens: `[rows, length]`, int, the tokens of each row, negative where none.
        tokens_refs: `[references, any length]`, likewise.
        least_rows: the fewest rows of a group to be selected.
        level: in (0, 1).

    Returns:
        Bool `[rows, length]` and `[references, any length]`; only the first place of a
        token that a row holds twice.

    Raises:
        ValueError: on arrays of different lengths, `least_rows` below 1, or a level
            outside (0, 1).

    >>> tokens = np.array([[1, 7], [2, 7], [3, 7], [1, 4], [2, 4], [3, 5]])
    >>> ask, _ = class_associated_tokens(
    ...     np.array([1, 1, 1, 0, 0, 0]), np.zeros(0), tokens, np.zeros((0, 2)),
    ...     least_rows=3, level=0.2,
    ... )
    >>> ask.tolist()[2:4]
    [[False, True], [False, False]]
    """
    validate.positive(least_rows=least_rows)
    validate.require(0 < level < 1, "level", level, "in (0, 1)")
    tokens, tokens_refs = np.asarray(tokens), np.asarray(tokens_refs)
    validate.same_length(classes=classes, tokens=tokens)
    validate.same_length(classes_refs=classes_refs, tokens_refs=tokens_refs)
    claims = np.concatenate([np.asarray(classes), np.asarray(classes_refs)])
    row, place, _, first, token, group = _pairs(claims, tokens, tokens_refs)
    holders = np.unique(token, return_inverse=True, return_counts=True)
    of_token = holders[2][holders[1].reshape(-1)]
    of_group = np.bincount(group)[group]
    values, counts = np.unique(claims, return_counts=True)
    # Every claim in a pair occurs among the values, so that the search is exact.
    base = (counts / len(claims))[np.searchsorted(values, claims[row[first]])]
    # P(X >= k) = P(X > k - 1)
    chance = stats.binom.sf(of_group - 1, of_token, base)
    asked = (chance <= level) & (of_group >= least_rows)
    found = np.zeros((len(claims), max(tokens.shape[1], tokens_refs.shape[1])), bool)
    found[row[first], place[first]] = asked
    cut = len(tokens)
    return found[:cut, : tokens.shape[1]], found[cut:, : tokens_refs.shape[1]]


def token_p_values(
    scores: ArrayLike,
    tokens: ArrayLike,
    scores_refs: ArrayLike,
    tokens_refs: ArrayLike,
    classes: ArrayLike,
    classes_refs: ArrayLike,
    *,
    alpha: float,
) -> np.ndarray:
    """Conformal p-values in which the references of one group count once.

    Like `conformal_p_values`, with groups instead of rows. A reference belongs to the
    group of its highest-scoring token, and a row is compared with the groups of its
    class other than its own. If an attacker has put the trigger into references too,
    they all belong to one group, which raises the p-values of poisoned rows no more
    than one clean reference would.

    Guarantee: if the groups of clean rows and of references are exchangeable, a clean
    group is rejected with a probability of at most alpha; the share of clean rows
    rejected may differ from that of their groups. Where a class has too few groups to
    reject at alpha, the groups of all classes are used, and where these are too few,
    all references.

    Args:
        scores: `[rows]`, the largest excess of each row's tokens.
        tokens: `[rows]`, int, the token with that excess; negative for a row without
            tokens.
        scores_refs: `[references]`, computed like `scores`.
        tokens_refs: `[references]`, int, likewise.
        classes: `[rows]`, the class within which each row is judged.
        classes_refs: `[references]`.
        alpha: the rate at which clean groups may be rejected, in (0, 1).

    Returns:
        `[rows]`, float64; reject where p <= alpha.

    Raises:
        ValueError: those of `conformal_p_values`.

    >>> refs, held = np.array([9.0, 9.0, *range(9)]), np.array([7, 7, *range(10, 19)])
    >>> given = np.array([9.0]), np.array([7]), refs, held, np.zeros(1), np.zeros(11)
    >>> token_p_values(*given, alpha=0.1).tolist()  # not 3 / 12
    [0.1]
    """
    scores, tokens, classes = map(np.asarray, (scores, tokens, classes))
    scores_refs, classes_refs = np.asarray(scores_refs), np.asarray(classes_refs)
    tokens_refs = np.asarray(tokens_refs)
    validate.same_length(scores=scores, tokens=tokens, classes=classes)
    validate.same_length(scores_refs=scores_refs, tokens_refs=tokens_refs)
    keys = np.stack([classes_refs, tokens_refs], axis=1)
    # Sorted with the largest score first, so that `unique` keeps that of each group.
    order = np.argsort(-scores_refs, kind="stable")
    _, first = np.unique(keys[order], axis=0, return_index=True)
    groups = order[first]
    p_values = np.empty(len(scores))
    for token in np.unique(tokens):
        rows = tokens == token
        kept = groups[(tokens_refs[groups] != token) | (token < 0)]
        # Too few groups to reject anything at alpha: fall back on single references.
        if alpha * (1 + len(kept)) < 1:
            kept = np.arange(len(scores_refs))
        p_values[rows] = conformal_p_values(
            scores[rows],
            scores_refs[kept],
            classes[rows],
            classes_refs[kept],
            alpha=alpha,
        )
    return p_values


def co_occurring_tokens(
    classes: ArrayLike, tokens: ArrayLike, asked: ArrayLike, *, share: float = 0.5
) -> np.ndarray:
    """The tokens of a row to hide together with a given one, as a mask.

    Among the rows of a claim, token s co-occurs with token t if at least a given share
    of the rows that hold t hold s as well. The words of one trigger, the pieces of a
    word and the words of a phrase do: if they were hidden one at a time, the others
    would still change the trusted model's reading.

    Args:
        classes: `[rows]`, int, the claims.
        tokens: `[rows, length]`, int, negative where none.
        asked: `[rows, length]`, bool, the tokens to hide, one at a time.
        share: in (0, 1].

    Returns:
        Bool `[asked, length]`, in the order of `np.nonzero(asked)`: the places to hide,
        which are all places of the token itself and of those that co-occur with it.

    Raises:
        ValueError: arrays of different shapes, or a share outside (0, 1].

    >>> tokens = np.array([[7, 8, 1], [8, 7, 2], [1, 3, -1]])
    >>> asked = tokens == 7
    >>> co_occurring_tokens(np.array([0, 0, 0]), tokens, asked, share=0.9).tolist()
    [[True, True, False], [True, True, False]]
    """
    validate.require(0 < share <= 1, "share", share, "in (0, 1]")
    classes, tokens, asked = map(np.asarray, (classes, tokens, asked))
    validate.same_length(classes=classes, tokens=tokens)
    shape = asked.shape
    validate.require(shape == tokens.shape, "asked.shape", shape, f"{tokens.shape}")
    row, place = np.nonzero(asked)
    hidden = np.zeros((len(row), tokens.shape[1]), bool)
    keys = np.stack([classes[row], tokens[row, place]], axis=1)
    groups, group = np.unique(keys, axis=0, return_inverse=True)
    for index, (claim, token) in enumerate(groups):
        holders = tokens[(classes == claim) & (tokens == token).any(1)]
        # Unique within each row, so that repetition does not count as co-occurrence.
        held = np.concatenate([np.unique(one[one >= 0]) for one in holders])
        values, counts = np.unique(held, return_counts=True)
        together = values[counts >= share * len(holders)]
        members = group.reshape(-1) == index
        hidden[members] = np.isin(tokens[row[members]], together)
    return hidden


def _side_by_side(parts: Places, tokens, tokens_refs) -> np.ndarray:
    """The places of transfer rows and references in one array, padded with -1."""
    width = max(tokens.shape[1], tokens_refs.shape[1])
    for part, like in zip(parts, (tokens, tokens_refs), strict=True):
        shape = np.shape(part)
        validate.require(shape == like.shape, "shape", shape, f"{like.shape}")
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, width - np.shape(part)[1])), constant_values=-1)
            for part in parts
        ]
    )


def _pairs(classes: np.ndarray, tokens: np.ndarray, tokens_refs: np.ndarray):
    """The pairs of a row and a token that it holds, and their groups.

    Returns:
        For every place with a token: its row, its place, and the index of its (row,
        token) pair. For every pair: the index of its first place, its token, and its
        group, which is the token together with the row's claim.
    """
    everything = _side_by_side((tokens, tokens_refs), tokens, tokens_refs)
    row, place = np.nonzero(everything >= 0)
    keys = np.stack([row, everything[row, place]], axis=1)
    _, first, pair = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    token = keys[first, 1]
    owners = np.stack([classes[row[first]], token], axis=1)
    group = np.unique(owners, axis=0, return_inverse=True)[1]
    return row, place, pair.reshape(-1), first, token, group.reshape(-1)
