"""Traps, alignment and values against loops and values by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.distillability import across, alignment, traps, values
from protojax.distillability.answers import answer_of, equations_hold, is_right
from protojax.distillability.long_horizon import OwnTexts, long_horizon_loss
from protojax.distillation import losses, sequence_loss
from tests.writers import sequence_batch, writer_apply, writer_head, writer_params

P, Q = np.log([0.7, 0.2, 0.1]), np.log([0.5, 0.25, 0.25])
FORWARD = (-0.2, 0.05, 0.15)
REVERSE = (-0.2265473, 0.0266303, 0.1999171)


@pytest.mark.parametrize(
    ("name", "options", "value", "slope"),
    [
        ("forward_kl", {}, 0.0992727822, FORWARD),
        ("reverse_kl", {}, 0.1166224525, REVERSE),
        ("jensen_shannon", {"beta": 0.1}, 0.0090228905, None),
        ("jensen_shannon", {"beta": 0.5}, 0.0263676882, None),
        ("jensen_shannon", {"beta": 0.9}, 0.0102391614, None),
    ],
)
def test_divergences_and_their_slopes(name, options, value, slope):
    loss = functools.partial(losses.DIVERGENCES[name], **options)
    found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float32(Q), jnp.float32(P))
    np.testing.assert_allclose(found, value, rtol=3e-6)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-7)
    if slope:
        np.testing.assert_allclose(gradient, slope, atol=2e-7)


@pytest.mark.parametrize(
    ("divergence", "slope"), [("forward_kl", FORWARD), ("reverse_kl", REVERSE)]
)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_share_of_the_tail_is_that_of_the_slope(divergence, slope, k):
    squares = np.square(slope)
    found = traps.tail_gradient_share(
        jnp.float32(Q), jnp.float32(P), k, divergence=divergence
    )
    np.testing.assert_allclose(found, squares[k:].sum() / squares.sum(), atol=1e-5)


def test_models_that_agree_have_no_slope():
    same = jnp.float32(P)
    assert traps.tail_gradient_share(same, same, 1) == 0
    np.testing.assert_allclose(traps.overlap(same, same), 1, rtol=1e-6)


def test_the_overlap_of_outcomes_that_were_drawn_is_that_of_all():
    p, q = np.exp(P), np.exp(Q)
    mean = p @ traps.sampled_overlap(P, Q)
    np.testing.assert_allclose(mean, np.minimum(p, q).sum())
    np.testing.assert_allclose(q @ traps.sampled_overlap(Q, P), mean)


def test_a_continuation_counts_where_the_text_is_that_long():
    right = np.array([[1, 1, 0], [1, 0, 1]], bool)
    reached = np.array([[1, 1, 1], [1, 0, 0]], bool)
    assert traps.continuation_success(right, reached).tolist() == [1, 1, 0]
    empty = traps.continuation_success(right, np.zeros((2, 3), bool))
    assert np.isnan(empty).all()


def test_executability_weights_what_the_teacher_would_write():
    right = [[True, False], [False, True], [True, True]]
    found = traps.executability(right, [[0.6, 0.2], [0.5, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(found, (0.75 + 0.5) / 2)
    with pytest.raises(ValueError, match="weights > 0"):
        traps.executability([[True]], [[0.0]])


def test_faithfulness_counts_right_answers_alone():
    assert traps.chain_faithfulness([True, True, True], [True, False, False]) == 1 / 3
    assert np.isnan(traps.chain_faithfulness([False], [True]))


def test_gaps_are_means_of_log_ratios():
    mean, error = traps.text_gap([-1.0, -2.0, -3.0], [-2.0, -4.0, -6.0])
    np.testing.assert_allclose([mean, error], [2, 1 / np.sqrt(3)])
    assert np.isnan(traps.mean_and_error([1.0])[1])


@pytest.mark.parametrize(
    ("first", "second", "groups"),
    [
        ([(0, 12)], [(0, 7), (7, 12)], [([0], [0, 1])]),
        # A token of the beginning or end stands for nothing and breaks nothing.
        ([(0, 0), (0, 7), (7, 12)], [(0, 7), (7, 12)], [([0, 1], [0]), ([2], [1])]),
        ([(0, 7), (7, 12), (12, 12)], [(0, 7), (7, 12)], [([0], [0]), ([1, 2], [1])]),
        # A letter of two bytes as two tokens that overlap, and as one.
        ([(0, 2), (0, 2), (2, 3)], [(0, 2), (2, 3)], [([0, 1], [0]), ([2], [1])]),
        ([(0, 1), (1, 2), (2, 3)], [(0, 2), (2, 3)], [([0, 1], [0]), ([2], [1])]),
        ([(0, 1), (1, 3)], [(0, 2), (2, 3)], [([0, 1], [0, 1])]),
    ],
)
def test_groups_end_where_both_have_a_cut(first, second, groups):
    found = alignment.common_boundaries(first, second)
    assert [(group.first, group.second) for group in found] == groups
    turned = alignment.common_boundaries(second, first)
    assert [(group.second, group.first) for group in turned] == groups


def test_spans_of_bytes():
    spans = alignment.byte_spans("é €a", [(0, 0), (0, 1), (0, 1), (2, 4), (0, 0)])
    assert spans.tolist() == [[0, 0], [0, 2], [0, 2], [2, 7], [7, 7]]
    with pytest.raises(ValueError, match=r"offsets\[0\]"):
        alignment.byte_spans("a", [(0, 2)])


def test_any_two_tokenisations_keep_all_tokens():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sides = []
        for _ in range(2):
            inner = rng.choice(np.arange(1, 9), rng.integers(0, 6), replace=False)
            edges = [0, *np.sort(inner), 9]
            sides.append(np.stack([edges[:-1], edges[1:]], axis=1))
        groups = alignment.common_boundaries(*sides)
        common = {*sides[0][:, 1].tolist()} & {*sides[1][:, 1].tolist()}
        assert len(groups) == len(common)
        for side, name in zip(sides, ("first", "second"), strict=True):
            joined = [place for group in groups for place in getattr(group, name)]
            assert joined == list(range(len(side)))


def test_sorted_distances_ignore_the_names_of_tokens():
    assert round(float(across.sorted_l1(Q, P)), 6) == 0.4
    assert float(across.sorted_l1(jnp.array(Q)[::-1], P)) == pytest.approx(0.4)
    wider = jnp.append(jnp.array(P), -1e9)
    assert float(across.sorted_l1(Q, wider)) == pytest.approx(0.4, rel=1e-5)


def test_a_cross_tokenizer_loss_has_two_parts():
    # The student's tokens 0 and 1 are the teacher's 2 and 0; the others match none.
    p, q = np.array([0.3, 0.25, 0.35, 0.1]), np.array([0.4, 0.2, 0.15, 0.15, 0.1])
    ids = np.array([0, 1]), np.array([2, 0])
    found = [
        across.cross_tokenizer_loss(
            jnp.log(q), jnp.log(p), *ids, unmatched_weight=weight
        )
        for weight in (0.0, 2.0)
    ]
    ours, theirs = np.array([0.4, 0.2, 0.4]), np.array([0.35, 0.3, 0.35])
    kl = (theirs * np.log(theirs / ours)).sum()
    rest = abs(0.25 - 0.15) + abs(0.1 - 0.15) + 0.1
    np.testing.assert_allclose(found, [kl, kl + 2 * rest], rtol=1e-4)


LOSS = jax.jit(
    lambda params, batch: sequence_loss(writer_apply, writer_head, hard_weight=1.0)(
        {"model": params}, batch, None, 0, None
    )[0]
)


def row_loss(params, batch, prototypes, step, key):
    return LOSS(params, batch), {}


def test_a_learning_value_is_a_product_of_slopes():
    params, rows = writer_params(), sequence_batch()
    trusted = sequence_batch(seed=1)
    direction = values.hold_out_direction(row_loss, params, trusted)
    found = values.learning_value(row_loss, params, rows, direction)
    slopes = jax.jacobian(lambda p: LOSS(p, rows))(params)
    expected = sum(
        np.einsum("rij,ij->r", np.asarray(slopes[name]), np.asarray(direction[name]))
        for name in params
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    # A step down the slope of a row lowers the trusted loss by its value.
    def trusted_loss(row, size):
        moved = jax.tree.map(lambda p, s: p - size * s[row], params, slopes)
        return float(LOSS(moved, trusted).astype(jnp.float32).mean())

    row, size = int(np.abs(expected).argmax()), 1e-3
    drop = (trusted_loss(row, -size) - trusted_loss(row, size)) / (2 * size)
    np.testing.assert_allclose(drop, found[row], rtol=2e-2)


def test_a_value_on_a_quadratic_is_exact():
    def loss_fn(params, batch, prototypes, step, key):
        return 0.5 * ((params - batch) ** 2).sum(-1), {}

    rows, params = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([3.0, 4.0])
    direction = jnp.array([1.0, -2.0])
    found = values.learning_value(loss_fn, params, rows, direction)
    np.testing.assert_allclose(found, (params - rows) @ direction, rtol=1e-6)


def test_a_token_gate_keeps_a_share():
    rng = np.random.default_rng(0)
    log_probs, where = rng.normal(size=(5, 8)), np.arange(8) < [[8], [4], [8], [0], [8]]
    found = values.token_gate(np.where(where, log_probs, np.nan), where, share=0.75)
    assert found.sum() == round(0.75 * where.sum())
    assert log_probs[found > 0].min() > log_probs[where & (found == 0)].max()
    assert values.token_gate(log_probs, np.zeros_like(where)).sum() == 0


def enumerated(params, teacher, batch):
    """KL(student ‖ teacher) over all texts of two tokens of one prompt, by sums."""
    first, second = student_tables(params, batch)
    total = jnp.sum(jnp.exp(first) * (first - teacher[0]))
    return total + jnp.sum(
        jnp.exp(first)[:, None] * jnp.exp(second) * (second - teacher[1])
    )


def student_tables(params, batch):
    """Log probabilities of the first token, and of the second behind each first."""
    size = params["head"].shape[1]
    rows = jax.tree.map(lambda x: jnp.repeat(x[:1], size, 0), batch)
    ids = jnp.stack([jnp.arange(size), jnp.zeros(size, int)], axis=1)
    states = writer_apply(params, rows._replace(output_ids=ids)).states
    logits = jax.nn.log_softmax(writer_head(params, states))
    return logits[0, 0], logits[:, 1]


def test_the_slope_of_own_texts_is_that_of_whole_texts():
    params, batch = writer_params(), sequence_batch(rows=1)
    params = {**params, "head": params["head"][:, :3], "words": params["words"] * 0.5}
    rng = np.random.default_rng(0)
    teacher = [np.log(rng.dirichlet(np.ones(3), n)) for n in (1, 3)]
    teacher = jnp.float32(teacher[0][0]), jnp.float32(teacher[1])
    batch = batch._replace(
        input_ids=batch.input_ids % 3, top_ids=None, top_log_probs=None,
        rest_log_prob=None, teacher_features=None, assigned_class=None,
    )  # fmt: skip
    firsts, seconds = np.divmod(np.arange(9), 3)
    log_p = jnp.stack([teacher[0][firsts], teacher[1][firsts, seconds]], axis=1)
    every = jax.tree.map(lambda x: jnp.repeat(x, 9, 0), batch)
    along = jnp.stack([jnp.broadcast_to(teacher[0], (9, 3)), teacher[1][firsts]], 1)
    every = every._replace(
        output_ids=jnp.stack([firsts, seconds], axis=1),
        output_weights=jnp.ones((9, 2)),
        top_ids=jnp.broadcast_to(jnp.arange(3), (9, 2, 3)),
        top_log_probs=along,
        rest_log_prob=jnp.full((9, 2), -1e29),
    )
    own = OwnTexts(every, log_p)

    @functools.partial(jax.jit, static_argnums=1)
    def slope(params, weight):
        first, second = student_tables(params, batch)
        chances = jnp.exp(first[firsts] + second[firsts, seconds])
        loss_fn = long_horizon_loss(writer_apply, writer_head, horizon_weight=weight)

        def mean(params):
            # Two tokens a text: the sum is twice the mean.
            return (
                2 * (chances * loss_fn({"model": params}, own, None, 0, None)[0]).sum()
            )

        return jax.grad(mean)(params), jax.grad(enumerated)(params, teacher, batch)

    found, exact = slope(params, 1.0)
    partial, _ = slope(params, 0.0)
    for name in params:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-3, atol=1e-5)
    # Without the rest of the text it is another slope.
    assert np.abs(partial["mix"] - exact["mix"]).max() > 1e-3


def test_own_texts_never_mix_and_padding_has_no_effect():
    batch = sequence_batch()
    log_p = np.log(np.random.default_rng(3).random(batch.output_ids.shape))
    loss = jax.jit(
        lambda params, own: long_horizon_loss(writer_apply, writer_head)(
            {"model": params}, own, None, 0, None
        )[0]
    )
    params = writer_params()
    found = loss(params, OwnTexts(batch, jnp.float32(log_p)))
    changed = np.where(batch.output_weights > 0, log_p, np.nan)
    changed[2] = -3
    again = loss(params, OwnTexts(batch, jnp.float32(changed)))
    kept = np.arange(5) != 2
    np.testing.assert_array_equal(found[kept], again[kept])
    assert found[2] != again[2]


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("7", "7.0", True),
        ("1,007 apples", "1007", True),
        ("17", "7", False),
        ("-7", "7", False),
        ("", "7", False),
        ("the answer: YES!", "yes", True),
        ("yesterday", "yes", False),
        ("anything", "?", False),
        ("It is 3.50.", "3.5", True),
        ("-0", "0", True),
        # A comma that is none of thousands stands between two numbers.
        ("one of 1,2,7", "7", True),
        ("12,5", "125", False),
        ("1,2,3.", "1,2,3", True),
        ("12,345,678 stars", "12345678", True),
        ("half of 7", "7 ", True),
        ("Infinity", "infinity", True),
        ("nan 3", "NaN", True),
        ("new   YORK.", "New York", True),
        ("york, new", "new york", False),
        ("anything", "", False),
        ("7", "seven", False),
    ],
)
def test_answers(text, answer, right):
    assert is_right(text, answer) == right


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("87+59=156", False),
        ("3 + 4 = 7, 7 - 2 = 5", True),
        ("2 + 3 * 4 = 14", True),
        ("10 / 4 = 2.5 and 1/3=0.33", True),
        ("10 / 4 = 3", False),
        ("1 / 0 = 0", False),
        ("-2 + 5 = 3", True),
        ("x = 3", None),
    ],
)
def test_equations(text, holds):
    assert equations_hold(text) is holds


def test_the_answer_of_a_text_is_its_end():
    assert [answer_of(text) for text in ("a 3 b 4.5 c", "x\n y \n", "")] == [
        "4.5",
        "y",
        "",
    ]
