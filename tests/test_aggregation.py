"""Aggregation rules against loops, golden vectors, each other's contracts and liars."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from protojax.federated import aggregation
from protojax.federated.aggregation import AGGREGATORS

NODES, BYZANTINE = 9, 2
ARGS = {
    "trimmed_mean": {"num_byzantine": BYZANTINE},
    "krum": {"num_byzantine": BYZANTINE},
    "multi_krum": {"num_byzantine": BYZANTINE},
    **{name: {"num_byzantine": BYZANTINE} for name in AGGREGATORS if "mixed" in name},
}
RULES = {
    name: functools.partial(rule, **ARGS.get(name, {}))
    for name, rule in AGGREGATORS.items()
}
ROBUST = sorted(set(RULES) - {"mean"})
WEIGHTED = ("mean", *(name for name in RULES if "geometric" in name or "clip" in name))


def with_defaults(rule):
    """A rule that is told what it would assume: one program for all ways to call it."""

    def called(updates, *, weights=None, where=None, **options):
        nodes = len(jax.tree.leaves(updates)[0])
        weights = np.ones(nodes) if weights is None else weights
        where = np.ones(nodes, bool) if where is None else where
        weights, where = np.asarray(weights, np.float32), np.asarray(where)
        return rule(updates, weights=weights, where=where, **options)

    return called


TOLD = {name: with_defaults(rule) for name, rule in RULES.items()}


def rule_of(name, **args):
    """A rule with other arguments."""
    return functools.partial(AGGREGATORS[name], **args)


def make_updates(seed=0, num_nodes=NODES):
    """A tree of three leaves, a scalar a node among them."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": np.float32(rng.normal(size=(num_nodes, 3, 2))),
        "bias": np.float32(rng.normal(size=(num_nodes, 4)) + 1),
        "scale": np.float32(rng.normal(size=num_nodes)),
    }


def with_rows(tree, rows, lie):
    """The tree whose leaves have other rows in some places: a lie of what was there."""

    def changed(leaf):
        leaf = leaf.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            leaf[rows] = lie(leaf[rows])
        return leaf

    return jax.tree.map(changed, tree)


def alone(name, updates, byzantine=BYZANTINE):
    """What a rule makes of some nodes without others beside them, `[parameters]`.

    By loops where they are exact, which no program need be compiled for.
    """
    if "geometric" in name:
        args = {"num_byzantine": byzantine} if name in ARGS else {}
        return flat(with_defaults(rule_of(name, **args))(updates), 0)
    rows = flat(updates)
    return reference(name, rows, np.ones(len(rows)), byzantine)


def padded(rows, num_nodes, dim=50):
    """The rows among nodes that are absent, with zeros beside: the same distances.

    One program then serves all numbers of nodes and of parameters.
    """
    wide = np.zeros((num_nodes, dim), np.float32)
    wide[: len(rows), : rows.shape[1]] = rows
    return wide, np.arange(num_nodes) < len(rows)


def flat(tree, axes=1):
    """All leaves side by side, `[nodes, parameters]` or `[parameters]`, float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], -1)


def krum_scores(rows, byzantine):
    scores = []
    for i, row in enumerate(rows):
        others = [np.sum((row - x) ** 2) for j, x in enumerate(rows) if j != i]
        scores.append(sum(sorted(others)[: len(rows) - byzantine - 2]))
    return np.array(scores)


def clipped_mean(rows, weights, bound):
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += weight * row * min(1, bound / max(np.linalg.norm(row), 1e-24))
    return total / weights.sum()


def summed_distance(rows, weights, point):
    return weights @ np.linalg.norm(rows - point, axis=1)


def least_summed_distance(rows, weights):
    """By a general minimiser of the slightly rounded cost, from the best update."""

    def cost(point):
        gaps = rows - point
        sizes = np.sqrt((gaps**2).sum(1) + 1e-18)
        return weights @ sizes, -(weights / sizes) @ gaps

    starts = [np.average(rows, axis=0, weights=weights)]
    starts.append(min(rows, key=lambda row: summed_distance(rows, weights, row)))
    found = [scipy.optimize.minimize(cost, x, jac=True, tol=1e-10) for x in starts]
    return min(found, key=lambda result: result.fun).x


def reference(name, rows, weights, byzantine=BYZANTINE):
    """Each rule as its paper has it, one node after the other, in float64."""
    if name.startswith("mixed_"):
        mixed = []
        for row in rows:
            order = np.argsort(((rows - row) ** 2).sum(1))
            mixed.append(rows[order[: len(rows) - byzantine]].mean(0))
        name = name.removeprefix("mixed_")
        return reference(name, np.stack(mixed), weights, byzantine)
    match name:
        case "mean":
            return (rows * weights[:, None]).sum(0) / weights.sum()
        case "median":
            return np.median(rows, axis=0)
        case "trimmed_mean":
            return np.sort(rows, axis=0)[byzantine:-byzantine].mean(0)
        case "krum":
            return rows[krum_scores(rows, byzantine).argmin()]
        case "multi_krum":
            best = np.argsort(krum_scores(rows, byzantine))
            return rows[best[: len(rows) - byzantine - 2]].mean(0)
        case "geometric_median":
            return least_summed_distance(rows, weights)
        case "centred_clipping":
            centre = np.zeros(rows.shape[1])
            for _ in range(3):
                radius = np.median(np.linalg.norm(rows - centre, axis=1))
                centre = centre + clipped_mean(rows - centre, weights, radius)
            return centre
        case "norm_clipping":
            bound = np.median(np.linalg.norm(rows, axis=1))
            return clipped_mean(rows, weights, bound)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_rules_equal_their_loops(name, seed):
    updates = make_updates(seed)
    weights = np.random.default_rng(seed).uniform(1, 5, NODES)
    found = TOLD[name](updates, weights=np.float32(weights))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(
        lambda x: x.shape[1:], updates
    )
    expected = reference(name, flat(updates), weights)
    # A truncated iteration against the true minimum.
    atol = 3e-3 if "geometric" in name else 1e-6
    np.testing.assert_allclose(flat(found, 0), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("num_nodes", "dim"), [(3, 2), (9, 2), (9, 11), (10, 50)])
def test_few_iterations_nearly_reach_the_least_summed_distance(num_nodes, dim):
    rule = TOLD["geometric_median"]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = np.float32(rng.normal(size=(num_nodes, dim)))
        weights = np.float32(
            rng.uniform(1, 5, num_nodes) if seed % 2 else [1] * num_nodes
        )
        wide, where = padded(rows, 10)
        found = rule(wide, weights=np.resize(weights, 10), where=where)[:dim]
        rows, weights = np.float64(rows), np.float64(weights)
        least = summed_distance(rows, weights, least_summed_distance(rows, weights))
        excess = summed_distance(rows, weights, np.float64(found)) / least - 1
        # Slow where the minimum is almost an update, which a plane often has.
        assert -1e-6 < excess < (3e-3 if dim == 2 else 1e-6)
        for row in rows:
            best = summed_distance(rows, weights, row)
            assert best >= least * (1 + excess) * (1 - 1e-5)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mean", {}),
        ("median", {}),
        ("trimmed_mean", {"num_byzantine": 2}),
        ("krum", {"num_byzantine": 2}),
        ("multi_krum", {"num_byzantine": 2, "num_selected": 6}),
        ("mixed_median", {"num_byzantine": 2}),
        ("geometric_median", {"num_iters": 200}),
        ("centred_clipping", {"radius": 2.0}),
    ],
)
def test_rules_equal_byzfl(name, args):
    path = pathlib.Path(__file__).parent / "data/aggregation_golden.json"
    golden = json.loads(path.read_text())
    found = rule_of(name, **args)(np.float32(golden["updates"]))
    np.testing.assert_allclose(found, golden["results"][name], rtol=2e-5, atol=1e-5)


def test_the_default_geometric_median_is_near_that_of_byzfl():
    path = pathlib.Path(__file__).parent / "data/aggregation_golden.json"
    golden = json.loads(path.read_text())
    found = TOLD["geometric_median"](np.float32(golden["updates"]))
    expected = golden["results"]["geometric_median"]
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_nodes_has_no_influence(name):
    updates = make_updates()
    order = np.random.default_rng(1).permutation(NODES)
    shuffled = jax.tree.map(lambda leaf: leaf[order], updates)
    np.testing.assert_allclose(
        flat(TOLD[name](shuffled), 0),
        flat(TOLD[name](updates), 0),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", RULES)
def test_absent_nodes_have_no_influence(name):
    updates = make_updates()
    where = np.arange(NODES) != 3
    present = jax.tree.map(lambda leaf: leaf[where], updates)
    corrupted = with_rows(updates, 3, lambda row: np.nan)
    found = TOLD[name](corrupted, where=where)
    np.testing.assert_allclose(
        flat(found, 0), alone(name, present), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("present", range(1, NODES + 1))
@pytest.mark.parametrize("name", sorted(ARGS))
def test_bounds_are_those_of_the_nodes_that_take_part(name, present):
    # Two liars together, among as many honest nodes as take part.
    updates = with_rows(make_updates(present), slice(BYZANTINE), lambda rows: 1e3)
    where = np.arange(NODES) < present
    found = flat(TOLD[name](updates, where=where), 0)
    least = 2 * BYZANTINE + (2 if "krum" in name else 1)
    if present < least:
        np.testing.assert_array_equal(found, 0)
        return
    honest = np.abs(flat(updates)[BYZANTINE:present]).max()
    assert np.abs(found).max() <= (2 if "mixed" in name else 1) * honest
    needed = 2 * BYZANTINE + (3 if "krum" in name else 1)
    if present in (needed, NODES):
        rest = jax.tree.map(lambda leaf: leaf[:present], updates)
        np.testing.assert_allclose(found, alone(name, rest), rtol=1e-5, atol=1e-6)


def test_multi_krum_takes_no_more_than_may_be_honest():
    rows = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [1e3], [1e3]], np.float32)
    where = np.arange(11) < 7
    padded = np.concatenate([rows, np.zeros((4, 1), np.float32)])
    # 9 of 11 could be asked for, 5 of the 7 that take part are honest.
    found = TOLD["multi_krum"](padded, where=where, num_selected=9)
    np.testing.assert_allclose(found, [0.2], rtol=1e-5)
    # As few as one, where f of those who take part leave no more.
    few = np.arange(11) < 6
    assert 0 <= float(TOLD["multi_krum"](padded, where=few)[0]) <= 0.4


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_are_agreed_on(name):
    one = jax.tree.map(lambda leaf: leaf[0], make_updates())
    updates = jax.tree.map(lambda leaf: np.stack([leaf] * NODES), one)
    np.testing.assert_allclose(flat(TOLD[name](updates), 0), flat(one, 0), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_zeros_and_no_node_give_zeros(name):
    updates = make_updates()
    nothing = jax.tree.map(np.zeros_like, updates)
    for found in (
        TOLD[name](nothing),
        TOLD[name](updates, where=np.zeros(NODES, bool)),
    ):
        np.testing.assert_array_equal(flat(found, 0), 0)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"krum", "multi_krum"}))
def test_one_node_gets_its_own_update(name):
    if name in ARGS:  # which stand nobody, where there is one node
        updates = make_updates(num_nodes=1)
        found = rule_of(name, num_byzantine=0)(updates)
    else:
        updates = make_updates()
        found = TOLD[name](updates, where=np.arange(NODES) < 1)
    np.testing.assert_allclose(flat(found, 0), flat(updates)[0], rtol=1e-5)


# One of the rules that mix first will do: mixing is the same code in all.
@pytest.mark.parametrize(
    "name", [*(name for name in RULES if "mixed" not in name), "mixed_median"]
)
def test_low_precision_comes_back_as_float32(name):
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_updates())
    found = TOLD[name](low)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), low)
    np.testing.assert_allclose(
        flat(found, 0), flat(TOLD[name](wide), 0), rtol=1e-5, atol=1e-6
    )


def first_nan(rows):
    rows[..., :1] = np.nan
    return rows


LIES = {
    "nan": lambda leaf: leaf * np.nan,
    "inf": lambda leaf: leaf * np.inf,
    "one nan": first_nan,
    "1e6": lambda leaf: 1e6 * leaf,
    "1e15": lambda leaf: 1e15 * leaf,
    "1e30": lambda leaf: 1e30 * leaf,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_survive_liars(name, lie):
    updates = make_updates()
    corrupted = with_rows(updates, slice(2), LIES[lie])
    found = flat(TOLD[name](corrupted), 0)
    honest = flat(updates)[2:]
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    # Two nodes of nine pull by a norm each, where a rule bounds norms only.
    bound = np.median(np.linalg.norm(honest, axis=1)) if "clipping" in name else 0
    assert np.linalg.norm(found - honest.mean(0)) <= radius + bound


FAR = (1.0, 3.0, 10.0, 1e3, 1e6)


@pytest.mark.parametrize("dim", [1, 2, 50])
@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_krum_stays_by_honest_nodes_at_its_bound(name, dim):
    # As many liars as it stands, all in one place, in the fewest nodes.
    n, f = 2 * BYZANTINE + 3, BYZANTINE
    for seed in range(10):
        rng = np.random.default_rng(seed)
        honest = rng.normal(size=(n - f, dim))
        widest = max(np.linalg.norm(a - b) for a in honest for b in honest)
        bound = np.sqrt((n - f - 2) / (n - 2 * f - 1)) * widest
        for far in FAR:
            lies = np.tile(
                honest.mean(0) + far * rng.normal(size=dim) / dim**0.5, (f, 1)
            )
            rows = np.float32(np.concatenate([lies, honest]))
            wide, _ = padded(rows, n)
            found = np.asarray(TOLD[name](wide))[:dim]
            assert np.linalg.norm(honest - found, axis=1).min() <= bound + 1e-5


@pytest.mark.parametrize("share", [0.05, 0.25, 0.45])
@pytest.mark.parametrize("dim", [1, 2, 50])
@pytest.mark.parametrize("num_iters", [1, 8])
def test_the_geometric_median_withstands_less_than_half_of_the_weight(
    share, dim, num_iters
):
    # However many nodes share it: four honest nodes here, three to twelve liars.
    rule = with_defaults(rule_of("geometric_median", num_iters=num_iters))
    for seed, liars in enumerate((3, 12)):
        rng = np.random.default_rng(seed)
        honest = np.float32(rng.normal(size=(4, dim)))
        own = rng.uniform(1, 3, 4)
        own *= (1 - share) / own.sum()
        weights = np.float32([*own, *[share / liars] * liars])
        for far in FAR:
            lies = np.tile(far * rng.normal(size=dim), (liars, 1))
            rows = np.float32(np.concatenate([honest, lies]))
            wide, where = padded(rows, 16)
            heard = np.pad(weights, (0, 16 - len(weights)))
            found = np.asarray(rule(wide, weights=heard, where=where))[:dim]
            for row in honest:
                spread = own @ np.linalg.norm(honest - row, axis=1) / own.sum()
                bound = 2 * (1 - share) / (1 - 2 * share) * spread
                assert np.linalg.norm(found - row) <= bound * (1 + 1e-4)


def test_many_light_liars_do_not_hold_the_geometric_median():
    updates = np.array([[0.0, 0.0], [0.1, 0.0], *[[1e4, 1e4]] * 3])
    weights = np.array([45.0, 45.0, 1.0, 1.0, 1.0])
    found = TOLD["geometric_median"](updates, weights=weights)
    np.testing.assert_allclose(found, [0.1, 0.0], atol=1e-3)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_survive_liars_who_agree(name, far):
    updates = make_updates(3)
    corrupted = with_rows(updates, slice(2), lambda rows: far)
    found = flat(TOLD[name](corrupted), 0)
    honest = flat(updates)[2:]
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    bound = np.median(np.linalg.norm(honest, axis=1)) if "clipping" in name else 0
    assert np.linalg.norm(found - honest.mean(0)) <= radius + bound


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@pytest.mark.parametrize("lie", LIES)
def test_coordinates_stay_between_the_honest_ones(name, lie):
    updates = make_updates(1)
    corrupted = with_rows(updates, slice(2), LIES[lie])
    found, honest = flat(TOLD[name](corrupted), 0), flat(updates)[2:]
    assert (honest.min(0) <= found).all()
    assert (found <= honest.max(0)).all()


@pytest.mark.parametrize("name", sorted(ARGS))
def test_who_is_out_counts_as_byzantine(name):
    updates = make_updates(2)
    corrupted = with_rows(updates, 0, lambda row: np.nan)
    rest = jax.tree.map(lambda leaf: leaf[1:], updates)
    found = TOLD[name](corrupted)
    expected = alone(name, rest, byzantine=1)
    np.testing.assert_allclose(flat(found, 0), expected, rtol=1e-5, atol=1e-6)


def test_a_mean_does_not_survive_one_liar():
    updates = make_updates()
    corrupted = with_rows(updates, 0, lambda row: np.nan)
    assert np.isnan(flat(TOLD["mean"](corrupted), 0)).all()


def test_krum_near_a_common_offset_keeps_its_digits():
    # Honest nodes differ by 1e-3 around 1e3: the squares of raw values would not do.
    rng = np.random.default_rng(0)
    rows = 1e3 + 1e-3 * rng.normal(size=(7, 50))
    rows = np.float32(rows)
    expected = rows[krum_scores(np.float64(rows), 2).argmin()]
    found = TOLD["krum"](rows)
    np.testing.assert_array_equal(found, expected)


# Mixing hears how often a node comes, not how much it weighs.
@pytest.mark.parametrize("name", sorted(set(WEIGHTED) - set(ARGS)))
def test_weights_are_counted(name):
    updates = make_updates()
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), updates)
    args = {"radius": 2.0} if name == "centred_clipping" else {}
    args = {"max_norm": 2.0} if name == "norm_clipping" else args
    rule = with_defaults(rule_of(name, **args))
    # The last node is absent where the first counts twice.
    weights = np.float32([2.0] + [1.0] * NODES)
    found = flat(rule(twice, weights=weights, where=np.arange(10) < NODES), 0)
    np.testing.assert_allclose(found, flat(rule(twice), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30, 1e38])
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_size_of_all_weights_has_no_influence(name, size):
    updates = make_updates()
    weights = np.float32(np.random.default_rng(0).uniform(1, 3, NODES))
    np.testing.assert_allclose(
        flat(TOLD[name](updates, weights=np.float32(size * weights)), 0),
        flat(TOLD[name](updates, weights=weights), 0),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("weight", [-3.0, -1e38, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_that_is_none_counts_as_zero(name, weight):
    updates, weights = make_updates(), np.arange(1.0, NODES + 1)
    with_it, without = weights.copy(), weights.copy()
    with_it[4], without[4] = weight, 0
    np.testing.assert_array_equal(
        flat(TOLD[name](updates, weights=with_it), 0),
        flat(TOLD[name](updates, weights=without), 0),
    )


@pytest.mark.parametrize("name", sorted(set(RULES) - set(WEIGHTED)))
def test_other_rules_ignore_weights(name):
    updates = make_updates()
    weights = np.arange(1.0, NODES + 1)
    jax.tree.map(
        np.testing.assert_array_equal,
        TOLD[name](updates, weights=weights),
        TOLD[name](updates),
    )


def test_the_geometric_median_has_the_least_summed_distance():
    updates = make_updates()
    rows = flat(updates)
    centre = flat(rule_of("geometric_median", num_iters=100)(updates), 0)

    def cost(point):
        return np.linalg.norm(rows - point, axis=1).sum()

    for move in 0.01 * np.random.default_rng(0).normal(size=(50, rows.shape[1])):
        assert cost(centre) < cost(centre + move)


def test_a_large_radius_is_the_mean():
    updates = make_updates()
    found = rule_of("centred_clipping", radius=1e6, num_iters=1)(updates)
    np.testing.assert_allclose(
        flat(found, 0), flat(TOLD["mean"](updates), 0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("trimmed_mean", {"num_byzantine": 5}, "num_nodes >= 11"),
        ("krum", {"num_byzantine": 4}, "num_nodes >= 11"),
        ("multi_krum", {"num_byzantine": 4}, "num_nodes >= 11"),
        ("multi_krum", {"num_byzantine": 2, "num_selected": 8}, "num_selected in 1..7"),
        ("multi_krum", {"num_byzantine": 2, "num_selected": 0}, "num_selected in 1..7"),
        ("mixed_median", {"num_byzantine": 5}, "num_nodes >= 11"),
        ("krum", {"num_byzantine": -1}, "num_byzantine >= 0"),
        ("geometric_median", {"num_iters": 0}, "num_iters > 0"),
        ("geometric_median", {"smoothing": 0.0}, "smoothing > 0"),
        ("centred_clipping", {"radius": 0.0}, "radius > 0"),
        ("centred_clipping", {"num_iters": 0}, "num_iters > 0"),
        ("norm_clipping", {"max_norm": -1.0}, "max_norm > 0"),
        ("mean", {"weights": np.ones(3)}, r"weights.shape \(9,\)"),
        ("median", {"where": np.ones(3, bool)}, r"where.shape \(9,\)"),
    ],
)
def test_bad_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        AGGREGATORS[name](make_updates(), **args)


def test_leaves_must_agree_on_the_nodes():
    with pytest.raises(ValueError, match="one number of nodes"):
        aggregation.mean({"a": np.ones((2, 1)), "b": np.ones((3, 1))})


def test_mixing_first_brings_a_median_nearer_to_the_honest_mean():
    # Two nodes send what is within the honest spread, but always on one side.
    gaps = {"median": [], "mixed_median": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        honest = rng.normal(size=(6, 50))
        lies = np.tile(honest.mean(0) + 1.0, (2, 1))
        updates = np.float32(np.concatenate([lies, honest]))
        for name, found in gaps.items():
            result = np.asarray(TOLD[name](updates))
            found.append(np.linalg.norm(result - honest.mean(0)))
    assert np.mean(gaps["mixed_median"]) < 0.9 * np.mean(gaps["median"])
