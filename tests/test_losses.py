import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from protojax.base import Prototypes
from protojax.distillation import losses
from protojax.distillation.margin import (
    ASSIGNMENTS,
    layerwise_margin_loss,
    prototype_margin_loss,
)

few = hypothesis.settings(max_examples=10, deadline=None)


def floats(*shape, bound=10.0):
    """Arrays whose entries are 0 or large enough for their squares to be numbers."""
    entries = st.floats(-bound, bound, width=32).map(lambda x: round(x, 3))
    return hnp.arrays(np.float32, shape, elements=entries)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax_reference(logits, temperature, where):
    """Probabilities by plain float64 arithmetic; 0 where a class does not exist."""
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max()) * where
    return weights / weights.sum()


def kl_reference(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def divergence_reference(name, student, teacher, temperature, where):
    if name == "logit_mse":
        return np.mean((np.asarray(student) - np.asarray(teacher))[where] ** 2)
    q = softmax_reference(student, temperature, where)
    p = softmax_reference(teacher, temperature, where)
    m = (p + q) / 2
    value = {
        "forward_kl": kl_reference(p, q),
        "reverse_kl": kl_reference(q, p),
        "jensen_shannon": (kl_reference(p, m) + kl_reference(q, m)) / 2,
    }[name]
    return temperature**2 * value


@functools.cache
def gradient_of(loss):
    """The gradient of a loss's sum, compiled once a loss."""
    return jax.jit(jax.grad(lambda arguments: jnp.sum(loss(*arguments))))


def assert_finite_gradient(loss, *arguments):
    for gradient in gradient_of(loss)(arguments):
        assert np.isfinite(gradient).all()


# --- divergences -------------------------------------------------------------------


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@pytest.mark.parametrize(("temperature", "masked"), [(1.0, False), (2.5, True)])
def test_divergence_matches_numpy_loop(name, temperature, masked):
    divergence = losses.DIVERGENCES[name]
    student, teacher = random(2, 3, 5), random(2, 3, 5, seed=1)
    where = np.ones((2, 3, 5), bool)
    where[..., 3:] = not masked
    found = jax.jit(functools.partial(divergence, temperature=temperature))(
        student, teacher, where=where if masked else None
    )
    assert found.shape == (2, 3)
    for at in np.ndindex(2, 3):
        expected = divergence_reference(
            name, student[at], teacher[at], temperature, where[at]
        )
        np.testing.assert_allclose(found[at], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward_kl", 0.5 * np.log(2) + 0.5 * np.log(2 / 3)),
        ("reverse_kl", 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)),
        ("logit_mse", np.mean(np.log([2, 2 / 3]) ** 2)),
    ],
)
def test_divergence_by_hand(name, expected):
    student, teacher = np.log(np.array([0.25, 0.75])), np.log(np.array([0.5, 0.5]))
    np.testing.assert_allclose(
        losses.DIVERGENCES[name](student, teacher), expected, atol=1e-6
    )


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_divergence_of_masked_classes_equals_that_of_a_slice(name):
    student, teacher = random(4, 6), random(4, 6, seed=1)
    where = np.arange(6) < 4
    garbage = np.where(where, student, np.nan)
    divergence = functools.partial(losses.DIVERGENCES[name], temperature=2.0)

    @jax.jit
    def pulled(student, teacher, where=None):
        loss, pull = jax.vjp(lambda s: divergence(s, teacher, where=where), student)
        return loss, pull(jnp.ones_like(loss))[0]

    loss, _ = pulled(garbage, teacher, where)
    _, gradient = pulled(student, teacher, where)
    of_slice, sliced = pulled(student[:, :4], teacher[:, :4])
    np.testing.assert_allclose(loss, of_slice, atol=1e-6)
    np.testing.assert_allclose(gradient[:, :4], sliced, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 4:], 0)


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_divergence_at_the_edges(name):
    divergence = losses.DIVERGENCES[name]

    def slopes(*pair, **options):
        loss = functools.partial(divergence, **options)
        return jax.grad(lambda pair: loss(*pair).sum())(pair)

    @jax.jit
    def edges(one, row, far):
        nothing = jnp.zeros((1, 3), bool)
        return {
            "zero": (divergence(one, one), divergence(row, -row, where=nothing)),
            "finite": (divergence(far, -far), slopes(far, -far)),
            "masked": slopes(row, -row, where=nothing),
            "low": divergence(row.astype(jnp.bfloat16), row),
        }

    one, far = np.array([[3.0]], np.float32), np.array([[1e4, 0.0, -1e4]], np.float32)
    found = edges(one, random(1, 3), far)
    assert not np.any(found["zero"])
    for leaf in jax.tree.leaves((found["finite"], found["masked"])):
        assert np.isfinite(leaf).all()
    assert found["low"].dtype == jnp.float32


compiled_forward_kl = jax.jit(losses.forward_kl)
compiled_reverse_kl = jax.jit(losses.reverse_kl)


@few
@hypothesis.given(floats(3, 4), floats(3, 4))
def test_kl_is_non_negative_and_zero_only_for_equal_distributions(student, teacher):
    probs = [scipy.special.softmax(logits, axis=-1) for logits in (student, teacher)]
    gap = np.abs(probs[0] - probs[1]).sum(axis=-1)
    for kl in (compiled_forward_kl, compiled_reverse_kl):
        # Pinsker's inequality: a distance between distributions shows in their KL.
        assert (kl(student, teacher) >= gap**2 / 2 - 1e-6).all()
        # A constant added to all logits leaves the distribution as it was.
        np.testing.assert_allclose(kl(teacher + 3, teacher), 0, atol=1e-5)


compiled_jensen_shannon = jax.jit(losses.jensen_shannon, static_argnames="temperature")


@few
@hypothesis.given(floats(3, 4), floats(3, 4), st.sampled_from([0.5, 1.0, 3.0]))
def test_jensen_shannon_is_bounded_and_symmetric(student, teacher, temperature):
    divergence = functools.partial(compiled_jensen_shannon, temperature=temperature)
    found = divergence(student, teacher)
    assert (found >= -1e-6).all()
    assert (found <= temperature**2 * np.log(2) + 1e-5).all()
    np.testing.assert_allclose(found, divergence(teacher, student), atol=1e-5)


def test_jensen_shannon_goes_from_forward_to_reverse_kl():
    student, teacher = random(5, 4), random(5, 4, seed=1)
    low = losses.jensen_shannon(student, teacher, beta=1e-3) / 1e-3
    high = losses.jensen_shannon(student, teacher, beta=1 - 1e-3) / 1e-3
    np.testing.assert_allclose(low, losses.forward_kl(student, teacher), rtol=0.02)
    np.testing.assert_allclose(high, losses.reverse_kl(student, teacher), rtol=0.02)


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_divergence_names_bad_arguments(name):
    divergence = losses.DIVERGENCES[name]
    with pytest.raises(ValueError, match="temperature=0"):
        divergence(np.zeros(2), np.zeros(2), temperature=0)
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        divergence(np.zeros((1, 2)), np.zeros((1, 3)))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_jensen_shannon_names_bad_beta(beta):
    with pytest.raises(ValueError, match="beta"):
        losses.jensen_shannon(np.zeros(2), np.zeros(2), beta=beta)


@pytest.mark.parametrize("name", sorted(set(losses.DIVERGENCES) - {"logit_mse"}))
@pytest.mark.parametrize("masked", [False, True])
def test_the_largest_logits_have_finite_gradients(name, masked):
    largest = 3.4e38
    student = np.array(
        [[largest, -largest, 0], [-largest, largest, largest], [0, 1, 2]]
    )
    teacher = student[:, ::-1].copy()
    where = np.array([True, False, True]) if masked else None
    loss = functools.partial(losses.DIVERGENCES[name], where=where)

    @jax.jit
    def both(*pair):
        return loss(*pair), jax.grad(lambda pair: loss(*pair).sum())(pair)

    for pair in ((student, teacher), (teacher, student), (student, 0 * student)):
        found, gradients = jax.device_get(both(*pair))
        assert np.isfinite(found).all()
        assert (found >= -1e-6).all()
        assert np.isfinite(gradients).all()
    # Finite logits this far apart are one-hot, as those less far apart are.
    student, teacher = student[:2], teacher[:2]
    far = np.asarray(compiled_forward_kl(student / 1e34, teacher / 1e34))
    found = np.asarray(compiled_forward_kl(student, teacher))
    np.testing.assert_array_equal(found > 1, far > 1)


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_never_cheap(name, value):
    student, teacher = random(2, 3), random(2, 3, seed=1)
    divergence = jax.jit(losses.DIVERGENCES[name])
    for place in np.ndindex(2, 3):
        broken = student.copy()
        broken[place] = value
        for pair in ((broken, teacher), (teacher, broken)):
            finite = np.isfinite(divergence(*pair))
            np.testing.assert_array_equal(finite, np.arange(2) != place[0])


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (2,), (1,), (), (1, 3, 3)])
def test_a_mask_of_classes_is_not_broadcast(name, shape):
    row = random(3, 3)
    with pytest.raises(ValueError, match=r"where\.shape"):
        losses.DIVERGENCES[name](row, row, where=np.ones(shape, bool))
    by_class = losses.DIVERGENCES[name](row, -row, where=np.array([1, 0, 1]) > 0)
    full = np.broadcast_to(np.array([1, 0, 1]) > 0, (3, 3))
    np.testing.assert_array_equal(
        losses.DIVERGENCES[name](row, -row, where=full), by_class
    )


# --- hidden states -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pool_matches_numpy_loop(mode):
    hidden = random(3, 4, 2)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = jax.jit(functools.partial(losses.pool, mode=mode))(hidden, mask)
    for row, length in enumerate([2, 4]):
        tokens = np.asarray(hidden[row, :length])
        expected = tokens.mean(axis=0) if mode == "mean" else tokens[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pool_ignores_padding_even_where_it_is_not_a_number(mode):
    hidden, mask = random(2, 4, 3), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    garbage = np.where(mask[..., None] == 1, hidden, np.nan)
    pool = functools.partial(losses.pool, attention_mask=mask, mode=mode)
    np.testing.assert_array_equal(pool(garbage), pool(hidden))
    assert_finite_gradient(pool, garbage)
    assert_finite_gradient(lambda h: losses.pool(h, 0 * mask, mode=mode), garbage)


def test_pool_names_bad_mode():
    with pytest.raises(ValueError, match="mode='max'"):
        losses.pool(np.zeros((1, 1, 1)), np.ones((1, 1)), mode="max")


def hidden_reference(student, teacher, metric):
    """The loss of one vector."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if metric == "l2":
        return np.mean((student - teacher) ** 2)
    norms = np.linalg.norm(student) * np.linalg.norm(teacher)
    return 1 - student @ teacher / norms


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("projected", [False, True])
def test_hidden_state_loss_matches_numpy_loop(metric, projected):
    student, teacher = random(2, 3, 5 if projected else 4), random(2, 3, 4, seed=1)
    projection = random(5, 4, seed=2) if projected else None
    mapped = np.asarray(student) @ np.asarray(projection) if projected else student
    where = np.array([[1, 1, 0], [0, 0, 0]])
    loss = jax.jit(
        functools.partial(
            losses.hidden_state_loss, metric=metric, projection=projection
        )
    )
    by_position = np.array(
        [
            [hidden_reference(mapped[b, i], teacher[b, i], metric) for i in range(3)]
            for b in range(2)
        ]
    )
    np.testing.assert_allclose(
        loss(student, teacher), by_position.mean(axis=1), atol=5e-6
    )
    masked = loss(student, teacher, where=where)
    np.testing.assert_allclose(masked, [by_position[0, :2].mean(), 0], atol=5e-6)
    pooled = loss(student[:, 0], teacher[:, 0])
    np.testing.assert_allclose(pooled, by_position[:, 0], atol=5e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_hidden_state_loss_at_the_edges(metric):
    loss = jax.jit(functools.partial(losses.hidden_state_loss, metric=metric))
    zero, row = np.zeros((1, 2, 3)), random(1, 2, 3)
    empty = np.zeros((1, 2), bool)
    np.testing.assert_allclose(loss(row, row), 0, atol=1e-6)
    np.testing.assert_allclose(loss(zero, zero), float(metric == "cosine"), atol=1e-6)
    assert loss(row, zero, where=empty) == 0
    of_nothing = functools.partial(loss, where=empty)
    for pair in ((zero, zero), (zero, row), (row, row)):
        assert_finite_gradient(loss, *pair)
        assert_finite_gradient(of_nothing, *pair)


def test_hidden_state_loss_names_both_widths():
    with pytest.raises(ValueError, match=r"projection.*\(1, 5\).*\(1, 4\)"):
        losses.hidden_state_loss(np.zeros((1, 5)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="metric"):
        losses.hidden_state_loss(np.zeros((1, 4)), np.zeros((1, 4)), metric="dot")
    with pytest.raises(ValueError, match="where"):
        losses.hidden_state_loss(
            np.zeros((1, 4)), np.zeros((1, 4)), where=np.ones((1, 1))
        )


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2), (), (2, 2, 1)])
def test_a_mask_of_positions_is_not_broadcast(shape):
    hidden, where = random(2, 2, 4), np.ones(shape, bool)
    for loss in (losses.hidden_state_loss, losses.attention_transfer):
        with pytest.raises(ValueError, match=r"where\.shape \(2, 2\)"):
            loss(hidden, hidden, where=where)
    for mode in ("mean", "cls"):
        with pytest.raises(ValueError, match=r"attention_mask\.shape \(2, 2\)"):
            losses.pool(hidden, where, mode=mode)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite_are_never_cheap(value):
    hidden = random(2, 2, 4)
    broken = hidden.copy()
    broken[0, 1, 2] = value
    expected = [False, True]
    for function in (
        losses.hidden_state_loss,
        functools.partial(losses.hidden_state_loss, metric="l2"),
        losses.attention_transfer,
    ):
        loss = jax.jit(function)
        for pair in ((broken, hidden), (hidden, broken)):
            np.testing.assert_array_equal(np.isfinite(loss(*pair)), expected)
            seen = loss(*pair, where=np.array([[True, False], [True, True]]))
            assert np.isfinite(seen).all()


def test_attention_transfer_matches_numpy_loop():
    student, teacher = random(3, 4, 5), random(3, 4, 2, seed=1)
    lengths = [4, 2, 0]
    where = np.arange(4) < np.array(lengths)[:, None]
    found = jax.jit(losses.attention_transfer)(student, teacher, where=where)
    for row, length in enumerate(lengths[:2]):
        maps = []
        for hidden in (student, teacher):
            saliency = (np.asarray(hidden[row, :length], np.float64) ** 2).mean(axis=1)
            maps.append(saliency / np.linalg.norm(saliency))
        expected = np.sum((maps[0] - maps[1]) ** 2)
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
    assert found[2] == 0


def test_attention_transfer_at_the_edges():
    row, zero = random(1, 4, 5), np.zeros((1, 4, 2))
    assert losses.attention_transfer(row, 3 * row) == pytest.approx(0, abs=1e-6)
    assert losses.attention_transfer(zero, zero) == 0
    assert_finite_gradient(losses.attention_transfer, row, zero)
    empty = functools.partial(losses.attention_transfer, where=np.zeros((1, 4), bool))
    assert_finite_gradient(empty, row, zero)
    with pytest.raises(ValueError, match=r"\(1, 4, 5\).*\(1, 3, 5\)"):
        losses.attention_transfer(row, row[:, :3])


# --- prototype margin --------------------------------------------------------------


def prototypes_of(num=6, dim=4, num_classes=3, seed=7):
    return Prototypes(
        random(num, dim, seed=seed), np.arange(num) % num_classes, np.ones(num)
    )


def margin_reference(rows, prototypes, margin, metric, classes=None):
    """The margin loss by loops over rows and prototypes."""
    found = []
    for i, row in enumerate(np.asarray(rows, np.float64)):
        nearest = np.inf
        for vector, label, count in zip(*map(np.asarray, prototypes), strict=True):
            own = classes is None or (label == classes[i] and classes[i] >= 0)
            if count > 0 and own:
                if metric == "l2":
                    distance = np.linalg.norm(row - vector)
                else:
                    norms = np.linalg.norm(row) * np.linalg.norm(vector)
                    distance = 1 - (row @ vector / norms if norms else 0)
                nearest = min(nearest, distance)
        found.append(max(0, nearest - margin) if np.isfinite(nearest) else 0)
    return np.array(found)


@functools.cache
def compiled_margin_loss(assignment, metric):
    """One program a shape, in which the margin is traced as well."""

    def loss(rows, prototypes, margin, classes):
        return prototype_margin_loss(
            rows,
            prototypes,
            margin,
            assignment=assignment,
            metric=metric,
            labels=classes if assignment == "label" else None,
            assigned_class=classes if assignment == "assigned" else None,
        )

    return jax.jit(loss)


def margin_loss(prototypes, assignment, metric):
    loss = compiled_margin_loss(assignment, metric)
    return lambda rows, margin, classes: loss(rows, prototypes, margin, classes)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_margin_loss_matches_numpy_loop(assignment, metric):
    prototypes = prototypes_of()
    prototypes = prototypes._replace(
        counts=np.array([1, 0, 3, 1, 1, 2.0]), labels=np.array([0, 1, 2, 0, -1, 2])
    )
    rows = random(8, 4)
    rows[0] = 0
    classes = np.array([0, 1, 2, 0, -1, 1, 5, 2])  # only class 1 has no prototype

    @jax.jit
    def both(rows):
        loss = margin_loss(prototypes, assignment, metric)
        slope = jax.grad(lambda x: loss(x, 0.0, classes).sum())(rows)
        return loss(rows, 0.3, classes), slope

    found, slope = jax.device_get(both(rows))
    expected = margin_reference(
        rows, prototypes, 0.3, metric, None if assignment == "nearest" else classes
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.max() > 0
    if assignment != "nearest":
        np.testing.assert_array_equal(found[np.array([1, 4, 5, 6])], 0)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("metric", "expected"), [("cosine", 0.75), ("l2", 4.75)])
def test_margin_loss_by_hand(metric, expected):
    one = Prototypes(np.array([[4.0, 0.0]]), np.array([0]), np.ones(1))
    loss = margin_loss(one, "nearest", metric)(np.array([[0.0, 3.0]]), 0.25, None)
    np.testing.assert_allclose(loss, [expected], atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_margin_loss_where_no_prototype_stands_for_anything(metric):
    nothing = prototypes_of()._replace(counts=np.zeros(6))
    loss = margin_loss(nothing, "nearest", metric)
    np.testing.assert_array_equal(loss(random(3, 4), 0.1, None), 0)
    gradient = jax.jit(jax.grad(lambda x: loss(x, 0.1, None).sum()))(random(3, 4))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_never_within_the_margin(metric, assignment, value):
    prototypes, rows = prototypes_of(), random(3, 4)
    rows[0, 1] = value
    rows[2, 0] = value
    classes = np.array([0, 1, 7])  # class 7 has no prototype
    found = margin_loss(prototypes, assignment, metric)(rows, 0.1, classes)
    free = assignment != "nearest"
    np.testing.assert_array_equal(np.isfinite(found), [False, True, free])
    assert not free or found[2] == 0
    broken = prototypes._replace(vectors=np.full((6, 4), value))
    found = margin_loss(broken, assignment, metric)(random(3, 4), 0.1, classes)
    np.testing.assert_array_equal(np.isfinite(found), [False, False, free])


def test_a_distance_that_overflows_costs_more_than_any_other():
    rows = np.array([[1e25, 0, 0, 0]] * 3, np.float32)
    loss = margin_loss(prototypes_of(), "nearest", "l2")
    assert np.isposinf(loss(rows, 0.1, None)).all()
    cosine = margin_loss(prototypes_of(), "nearest", "cosine")(rows, 0.1, None)
    assert np.isfinite(cosine).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_margin_loss_gradient_is_finite_on_a_prototype_and_at_zero(metric, margin):
    prototypes = prototypes_of()
    rows = np.concatenate([np.zeros((1, 4), np.float32), prototypes.vectors[:2]])

    loss, slopes = slopes_of_margin(metric)(rows, prototypes, margin)
    np.testing.assert_allclose(loss[1:], 0, atol=1e-6)
    for slope in slopes:
        assert np.isfinite(slope).all()


@functools.cache
def slopes_of_margin(metric):
    """The loss, and its gradients by rows and by prototypes, as one program."""

    @jax.jit
    def both(rows, prototypes, margin):
        def loss(rows, vectors):
            moved = prototypes._replace(vectors=vectors)
            return prototype_margin_loss(rows, moved, margin, metric=metric)

        found, pull = jax.vjp(loss, rows, prototypes.vectors)
        return found, pull(jnp.ones_like(found))

    return both


@functools.partial(jax.jit, static_argnames=("assignment", "metric"))
def small_margin_loss(rows, prototypes, margin, assignment="nearest", metric="cosine"):
    """The loss of five rows of known classes, compiled once for all properties."""
    classes = np.array([0, 1, 0, 1, 2])
    return margin_loss(prototypes, assignment, metric)(rows, margin, classes)


@functools.partial(jax.jit, static_argnames="metric")
def small_margin_slope(rows, prototypes, margin, metric):
    def total(rows):
        return small_margin_loss(rows, prototypes, margin, metric=metric).sum()

    return jax.grad(total)(rows)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@few
@hypothesis.given(floats(5, 3), floats(4, 3), st.permutations(range(4)))
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_margin_loss_does_not_depend_on_the_order(metric, rows, vectors, order):
    prototypes = Prototypes(vectors, np.arange(4) % 2, np.ones(4))
    shuffled = Prototypes(*(leaf[np.array(order)] for leaf in prototypes))
    for assignment in ("nearest", "label"):
        loss = functools.partial(small_margin_loss, rows, margin=0.1, metric=metric)
        close(
            loss(prototypes=shuffled, assignment=assignment),
            loss(prototypes=prototypes, assignment=assignment),
        )


@few
@hypothesis.given(floats(5, 3), floats(4, 3), floats(2, 3))
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_padding_with_empty_prototypes_changes_nothing(metric, rows, vectors, padding):
    plain = Prototypes(vectors, np.arange(4) % 2, np.ones(4))
    padded = Prototypes(
        np.concatenate([vectors, padding]),
        np.arange(6) % 2,
        np.array([1.0] * 4 + [0] * 2),
    )
    for assignment in ("nearest", "assigned"):
        loss = functools.partial(small_margin_loss, rows, margin=0.1, metric=metric)
        close(
            loss(prototypes=padded, assignment=assignment),
            loss(prototypes=plain, assignment=assignment),
        )


@few
@hypothesis.given(floats(5, 3), floats(4, 3))
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_inside_the_margin_loss_and_gradient_are_zero(metric, rows, vectors):
    prototypes = Prototypes(vectors, np.zeros(4, int), np.ones(4))
    loss = functools.partial(small_margin_loss, prototypes=prototypes, metric=metric)
    widest = loss(rows, margin=0.0).max() + 1e-3
    np.testing.assert_array_equal(loss(rows, margin=widest), 0)
    gradient = small_margin_slope(rows, prototypes, widest, metric=metric)
    np.testing.assert_array_equal(gradient, 0)


def test_margin_loss_never_mixes_rows():
    loss = margin_loss(prototypes_of(), "label", "cosine")
    classes = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    rows = random(8, 4)
    kept = np.arange(8) != 1
    before = loss(rows, 0.1, classes)[kept]
    rows[1], classes[1] = 9, 2
    np.testing.assert_array_equal(loss(rows, 0.1, classes)[kept], before)


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_layerwise_loss_is_the_weighted_sum_over_layers(assignment, metric):
    layers = [prototypes_of(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    rows, weights, classes = (
        random(5, 3, 4),
        [0.5, 0.0, 2.0],
        np.array([0, 1, 2, -1, 0]),
    )

    @jax.jit
    def loss(rows, margin, weights):
        return layerwise_margin_loss(
            rows,
            stacked,
            margin,
            layer_weights=weights,
            assignment=assignment,
            labels=classes,
            assigned_class=classes,
            metric=metric,
        )

    found = loss(rows, 0.2, weights)
    expected = sum(
        weight
        * margin_reference(
            rows[:, i],
            layers[i],
            0.2,
            metric,
            None if assignment == "nearest" else classes,
        )
        for i, weight in enumerate(weights)
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_jit_equals_eager():
    a, b = random(3, 4, 4), random(3, 4, 4, seed=1)
    prototypes = prototypes_of()
    for loss in (
        losses.jensen_shannon,
        losses.attention_transfer,
        lambda x, y: prototype_margin_loss(x[0], prototypes, 0.1, metric="l2"),
    ):
        np.testing.assert_allclose(jax.jit(loss)(a, b), loss(a, b), atol=2e-6)


def test_margin_losses_name_bad_arguments():
    prototypes, rows = prototypes_of(), random(2, 4)
    loss = functools.partial(prototype_margin_loss, rows, prototypes, 0.1)
    with pytest.raises(ValueError, match="assignment='closest'"):
        loss(assignment="closest")
    with pytest.raises(ValueError, match="labels"):
        loss(assignment="label", assigned_class=np.array([0, 1]))
    with pytest.raises(ValueError, match="assigned_class"):
        loss(assignment="assigned", labels=np.array([0, 1]))
    with pytest.raises(ValueError, match="metric"):
        loss(metric="l1")
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(6, 4\)"):
        prototype_margin_loss(rows[:, :3], prototypes, 0.1)
    for margin in (np.ones(2), np.ones((2, 1)), [0.1]):
        with pytest.raises(ValueError, match=r"margin\.shape \(\)"):
            prototype_margin_loss(rows, prototypes, margin)
    stacked = jax.tree.map(lambda leaf: leaf[None], prototypes)
    with pytest.raises(ValueError, match=r"weights\.shape=\(1, 2\)"):
        layerwise_margin_loss(random(2, 1, 4), stacked, 0.1, layer_weights=[[1.0, 1.0]])
    with pytest.raises(ValueError, match=r"\(2, 2, 4\).*\(1, 6, 4\).*\(2,\)"):
        layerwise_margin_loss(random(2, 2, 4), stacked, 0.1, layer_weights=[1.0, 1.0])
