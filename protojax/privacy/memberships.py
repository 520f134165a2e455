"""Which candidate rows each pipeline trains on, and which pipelines are opposites.

Membership is drawn by ourselves, so that members and non-members are rows of one
distribution; who merely finds two sets that differ measures that difference instead.
"""

import numpy as np

from protojax import validate


def complementary_halves(
    num_rows: int,
    num_pipelines: int,
    *,
    seed: int,
    groups: np.ndarray | None = None,
    always: np.ndarray | None = None,
) -> np.ndarray:
    """The rows of each pipeline: pipelines 2i and 2i + 1 share all candidates out.

    Each candidate is in exactly half of the pipelines, and without groups all pipelines
    have equally many rows.

    Args:
        num_rows: all rows; without groups, those that are candidates are even in
            number.
        num_pipelines: P, even, at least 4.
        seed: of the draw.
        groups: `[rows]`, whose rows go together (a person's, a document's), or None;
            then the sizes of two halves differ by at most the largest group.
        always: `[rows]`, bool, rows that are in every pipeline and so no candidates, or
            None for none.

    Returns:
        `[pipelines, rows]`, bool.

    Raises:
        ValueError: an odd or too small number of pipelines, an odd number of candidates
            without groups, fewer than two groups, or arrays of another length.

    >>> complementary_halves(4, 4, seed=0).sum(0).tolist()
    [2, 2, 2, 2]
    """
    even = num_pipelines >= 4 and num_pipelines % 2 == 0
    validate.require(even, "num_pipelines", num_pipelines, "even and >= 4")
    fixed = np.zeros(num_rows, bool) if always is None else np.asarray(always, bool)
    validate.shape((num_rows,), always=fixed)
    rng, pairs = np.random.default_rng(seed), num_pipelines // 2
    num_candidates = int((~fixed).sum())
    if groups is None:
        even = num_candidates >= 2 and num_candidates % 2 == 0
        validate.require(even, "num_rows", num_candidates, "of candidates even, >= 2")
        half = np.arange(num_candidates) < num_candidates // 2
        first = rng.permuted(np.tile(half, (pairs, 1)), axis=1)
    else:
        validate.shape((num_rows,), groups=groups)
        _, group_of = np.unique(np.asarray(groups)[~fixed], return_inverse=True)
        first = _whole_groups(rng, group_of, pairs)[:, group_of]
    members = np.ones((pairs, 2, num_rows), bool)
    members[:, 0, ~fixed], members[:, 1, ~fixed] = first, ~first
    return members.reshape(num_pipelines, num_rows)


def _whole_groups(
    rng: np.random.Generator, group_of: np.ndarray, pairs: int
) -> np.ndarray:
    """Which groups are in the first half of each pair, `[pairs, groups]`, bool."""
    sizes = np.bincount(group_of)
    validate.require(len(sizes) >= 2, "groups", len(sizes), "to be at least 2")
    order = rng.permuted(np.tile(np.arange(len(sizes)), (pairs, 1)), axis=1)
    coins = rng.random((pairs, len(sizes))) < 0.5
    chosen, lead, every = np.zeros((pairs, len(sizes)), bool), 0, np.arange(pairs)
    # Each group goes to the smaller half, so the lead never exceeds the largest one.
    for place in range(len(sizes)):
        group = order[:, place]
        first = np.where(lead == 0, coins[:, place], lead < 0)
        chosen[every, group] = first
        lead = lead + np.where(first, sizes[group], -sizes[group])
    return chosen


def coin_flips(
    num_rows: int, num_pipelines: int = 1, *, seed: int, rate: float = 0.5
) -> np.ndarray:
    """The rows of each pipeline by independent coins, as audits of one run need them.

    Halves of an exact size do not qualify there: a row's membership would depend on
    those of the others (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846).

    Args:
        num_rows: the candidates.
        num_pipelines: how many pipelines.
        seed: of the coins.
        rate: the probability that a pipeline has a row, in (0, 1).

    Returns:
        `[pipelines, rows]`, bool.

    Raises:
        ValueError: no row, no pipeline, or a rate outside (0, 1).

    >>> coin_flips(6, seed=0).astype(int).tolist()
    [[0, 1, 1, 1, 0, 0]]
    """
    validate.positive(num_rows=num_rows, num_pipelines=num_pipelines)
    validate.require(0 < rate < 1, "rate", rate, "in (0, 1)")
    return np.random.default_rng(seed).random((num_pipelines, num_rows)) < rate


def candidates(members: np.ndarray) -> np.ndarray:
    """The rows that some pipelines have and others lack, `[rows]`, bool.

    Args:
        members: `[pipelines, rows]`, bool.

    >>> candidates(np.array([[True, False, True], [False, True, True]])).tolist()
    [True, True, False]
    """
    members = np.asarray(members, bool)
    return members.any(0) & ~members.all(0)


def complement_of(members: np.ndarray) -> np.ndarray:
    """The index of each pipeline's opposite, `[pipelines]`; its own if it has none.

    Found by content, so that saved arrays may be in any order: an opposite has exactly
    the candidates that the pipeline lacks.

    Args:
        members: `[pipelines, rows]`, bool, such as from `complementary_halves`.

    >>> halves = complementary_halves(8, 4, seed=0)
    >>> complement_of(halves).tolist(), complement_of(halves[[0, 2, 3, 1]]).tolist()
    ([1, 0, 3, 2], [3, 2, 1, 0])
    """
    members = np.asarray(members, bool)
    varied = members[:, candidates(members)]
    waiting: dict[bytes, list[int]] = {}
    found = np.arange(len(members))
    for index, row in enumerate(varied):
        # Neighbours first, where several pipelines drew the same half.
        others = waiting.get((~row).tobytes())
        if others:
            other = others.pop()
            found[index], found[other] = other, index
        else:
            waiting.setdefault(row.tobytes(), []).append(index)
    return found


def require_design(members: np.ndarray) -> None:
    """Raises unless the memberships are complementary pairs or independent coins.

    Rows that are in exactly half of the pipelines, without pairs that can be left out
    together, are refused: then the others' memberships tell the target's, and a score
    that knows nothing has an AUC of 0.44 to 0.49.

    Args:
        members: `[pipelines, rows]`, bool.

    Raises:
        ValueError: for a design that is refused.
    """
    varied = np.asarray(members, bool)[:, candidates(members)]
    paired = complement_of(members) != np.arange(len(members))
    counts = varied.sum(0)
    balanced = varied.shape[1] > 1 and (counts == counts[0]).all()
    validate.require(
        bool(paired.all()) or not balanced,
        "members",
        f"{int(paired.sum())} of {len(members)} pipelines with an opposite",
        "complementary pairs (complementary_halves) or independent coins (coin_flips)",
    )


def drawn_anew(members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Memberships of the same design that no pipeline was trained with, for the null.

    Pairs stay pairs, of exact halves where the number of rows is even; unpaired
    pipelines flip a coin for each row. Groups are not kept.

    Args:
        members: `[pipelines, rows]`, bool, all rows candidates.
        rng: draws them.

    Returns:
        `[pipelines, rows]`, bool.
    """
    num_pipelines, num_rows = np.shape(members)
    other = complement_of(members)
    own = np.arange(num_pipelines)
    # Ranks of random keys: each pipeline gets an exact half.
    half = rng.random((num_pipelines, num_rows)).argsort(1) < num_rows // 2
    coins = rng.random((num_pipelines, num_rows)) < np.mean(members)
    drawn = np.where((other == own)[:, None], coins, half)
    later = other < own
    drawn[later] = ~drawn[other[later]]
    return drawn
