"""A classifier that sees no model: whether words alone tell members from non-members.

Where they do, the two sets differ in distribution, and what an attack finds may be that
difference instead of a memory (Das, Zhang and Tramèr 2024, arXiv:2406.16201). Halves
drawn at random pass; a split by date or by source rarely does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protojax import validate
from protojax.evals import detection_auc


class Blind(NamedTuple):
    """The power of words alone to tell members from non-members.

    Attributes:
        auc: of predictions for rows held out; 0.5 is chance.
        interval: at the confidence asked for, by rows drawn again.
    """

    auc: float
    interval: tuple[float, float]

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval lies above 0.5."""
        return self.interval[0] > 0.5


def blind_auc(
    texts: Sequence[str],
    members: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    confidence: float = 0.99,
    num_draws: int = 300,
    seed: int = 0,
) -> Blind:
    """The AUC of logistic regression on word counts, members against non-members.

    Cross-validated: each row is judged by a classifier that has not seen it. Log counts
    of words that occur twice or more, of unit length.

    Args:
        texts: `[rows]`.
        members: `[rows]`, bool, such as one row of `complementary_halves`.
        groups: `[rows]`, whose rows are in one fold, or None.
        folds: at least 2.
        confidence: of the interval, in (0, 1).
        num_draws: of rows, for the interval.
        seed: of folds and draws.

    Raises:
        ValueError: on numbers out of range, fewer members or non-members than folds,
            or no word that occurs twice.
    """
    # Loading it takes a second, which importing this package must not.
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.model_selection

    members = np.asarray(members, bool)
    validate.same_length(texts=texts, members=members)
    validate.require(folds >= 2, "folds", folds, ">= 2")
    validate.positive(num_draws=num_draws)
    validate.require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    fewest = int(min(members.sum(), (~members).sum()))
    validate.require(fewest >= folds, "rows of the smaller side", fewest, f">= {folds}")
    counts = sklearn.feature_extraction.text.TfidfVectorizer(
        min_df=2, use_idf=False, sublinear_tf=True, token_pattern=r"\w+"
    ).fit_transform(texts)
    model = sklearn.linear_model.LogisticRegression(C=1.0)
    splits = (
        sklearn.model_selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
        if groups is None
        else sklearn.model_selection.StratifiedGroupKFold(
            folds, shuffle=True, random_state=seed
        )
    )
    scores = sklearn.model_selection.cross_val_predict(
        model, counts, members, cv=splits, groups=groups, method="decision_function"
    )
    rng = np.random.default_rng(seed)
    sides = np.flatnonzero(members), np.flatnonzero(~members)
    drawn = []
    for _ in range(num_draws):
        rows = np.concatenate([rng.choice(side, len(side)) for side in sides])
        drawn.append(detection_auc(scores[rows], members[rows]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Blind(detection_auc(scores, members), (float(low), float(high)))


def require_blind(found: Blind) -> None:
    """Raises where words alone tell members from non-members: no comparison is valid.

    Args:
        found: such as from `blind_auc`.

    Raises:
        ValueError: where the AUC is above chance.

    >>> require_blind(Blind(0.51, (0.47, 0.55)))
    """
    if found.above_chance:
        low, high = found.interval
        raise ValueError(
            "Expected members and non-members of one distribution, found that words "
            f"alone tell them apart with an AUC of {found.auc:.3f} [{low:.3f}, "
            f"{high:.3f}]. An attack on these would measure how the two sets differ, "
            "not what a model keeps: draw memberships at random (complementary_halves)."
        )
