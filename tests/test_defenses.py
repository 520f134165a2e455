"""Losses of whole models and the defences around them, by contract."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import distillation
from protojax.base import Batch, Prototypes, SequenceBatch
from protojax.distillation import GRADIENTS, TRANSFORMS, losses
from protojax.distillation.adversarial import NORMS
from protojax.models import apply_fn, init_model
from tests.tiny import encoder_config
from tests.writers import sequence_batch, writer_apply, writer_head, writer_params

CONFIG = encoder_config(num_labels=3, num_layers=1)
MODEL = init_model(CONFIG, seed=0)
DEEP = init_model(encoder_config(num_labels=3), seed=0)  # two layers
PROTOTYPES = Prototypes(
    vectors=jax.random.normal(jax.random.key(1), (1, 6, 8)),
    labels=jnp.array([[0, 0, 1, 1, 2, 2]]),
    counts=jnp.ones((1, 6)),
)


def batch(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 30, (rows, 8)).astype(np.int32)
    mask = (np.arange(8) < rng.integers(2, 9, (rows, 1))).astype(np.int32)
    return Batch(
        input_ids=ids * mask,
        attention_mask=mask,
        token_type_ids=np.zeros_like(ids),
        labels=rng.integers(0, 3, rows).astype(np.int32),
        where=np.ones(rows, bool),
        teacher_logits=rng.normal(size=(rows, 3)).astype(np.float32),
        teacher_features=rng.normal(size=(rows, 1, 8)).astype(np.float32),
        assigned_class=rng.integers(0, 3, rows).astype(np.int32),
        teacher_attention=rng.random((rows, 1, 12)).astype(np.float32),
    )


def base_loss(**options):
    return distillation.distillation_loss(
        apply_fn(CONFIG), hard_weight=0.3, hidden_weight=0.2, **options
    )


def sequence_loss(**options):
    return distillation.sequence_loss(
        writer_apply, writer_head, hard_weight=0.3, hidden_weight=0.2, **options
    )


def constrained(
    assignment="assigned", weight=1.0, metric="cosine", margin=0.1, base=base_loss
):
    return TRANSFORMS["prototype"](
        base(),
        weight=optax.constant_schedule(weight),
        margin=optax.constant_schedule(margin),
        assignment=assignment,
        metric=metric,
    )


def adversarial(norm="linf", **options):
    return TRANSFORMS["adversarial"](
        base_loss(), dim=CONFIG.hidden_size, norm=norm, **options
    )


LOSSES = {
    "supervised": distillation.supervised_loss(apply_fn(CONFIG)),
    "attention": distillation.attention_loss(apply_fn(CONFIG), weight=2.0),
    **{
        f"distillation/{name}": base_loss(divergence=name)
        for name in losses.DIVERGENCES
    },
    **{
        f"prototype/{assignment}/{metric}": constrained(assignment, metric=metric)
        for assignment, metric in itertools.product(
            ("nearest", "label", "assigned"), ("cosine", "l2")
        )
    },
    **{f"adversarial/{norm}": adversarial(norm) for norm in NORMS},
    "adversarial/prototype": TRANSFORMS["adversarial"](constrained(), dim=8),
    # Of models that write: the same transforms, unchanged.
    "sequence": sequence_loss(divergence="jensen_shannon"),
    "sequence/prototype": constrained(base=sequence_loss),
    "sequence/consistent": distillation.consistent_loss(
        writer_apply, writer_head, dim=8, hard_weight=0.3
    ),
    "sequence/adversarial": TRANSFORMS["adversarial"](
        constrained(base=sequence_loss), dim=8, norm="l2"
    ),
}
PARAMS = {
    False: distillation.student_params(MODEL.params),
    True: distillation.student_params(writer_params()),
}


def writes(name):
    return name.startswith("sequence")


def batch_of(name, seed=0):
    return sequence_batch(seed=seed) if writes(name) else batch(seed=seed)


def evaluate(loss_fn, rows, key=None):
    params = PARAMS[isinstance(rows, SequenceBatch)]
    return loss_fn(params, rows, PROTOTYPES, jnp.int32(0), key)


@functools.cache
def compiled(name):
    """One program per loss and its gradient, which several tests run."""

    @jax.jit
    def found(params, rows):
        def loss_of(params):
            return LOSSES[name](params, rows, PROTOTYPES, jnp.int32(0), None)

        loss, pull, aux = jax.vjp(loss_of, params, has_aux=True)
        return loss, aux, pull(jnp.ones_like(loss))[0]

    return functools.partial(found, PARAMS[writes(name)])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_one_finite_value_a_row(name):
    loss, aux, _ = compiled(name)(batch_of(name))
    assert loss.shape == (5,)
    assert np.isfinite(loss).all()
    # Logits of every token of an output would be too many.
    assert writes(name) or aux["logits"].shape == (5, 3)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_never_mix(name):
    rows, other = batch_of(name), batch_of(name, seed=1)
    changed = jax.tree.map(lambda a, b: np.concatenate([a[:4], b[4:]]), rows, other)
    before, *_ = compiled(name)(rows)
    after, *_ = compiled(name)(changed)
    np.testing.assert_allclose(before[:4], after[:4], rtol=1e-6)
    assert abs(float(before[4] - after[4])) > 1e-4


PRIVATE = {"clip_norm": 0.5, "expected_rows": 4.0}
RULES = {
    "mean": {},
    "dp_sgd": {**PRIVATE, "noise_multiplier": 0.5},
}


def test_every_gradient_rule_is_under_contract():
    assert RULES.keys() == GRADIENTS.keys()


def assert_like_the_parameters(grads, name):
    params = PARAMS[writes(name)]
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_and_shaped_like_the_parameters(name):
    assert_like_the_parameters(compiled(name)(batch_of(name))[2], name)


# The last one: the gradient of a row is that of its whole output.
@pytest.mark.parametrize(
    "name", ["prototype/assigned/cosine", "adversarial/l2", "sequence/prototype"]
)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_rules_are_finite_and_shaped_like_the_parameters(name, rule):
    grad_fn = jax.jit(GRADIENTS[rule](LOSSES[name], **RULES[rule]))
    grads, metrics = grad_fn(
        PARAMS[writes(name)],
        batch_of(name),
        PROTOTYPES,
        jnp.int32(0),
        jax.random.key(0),
    )
    assert_like_the_parameters(grads, name)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", LOSSES)
def test_jit_equals_eager(name):
    eager, _ = evaluate(LOSSES[name], batch_of(name))
    jitted, *_ = compiled(name)(batch_of(name))
    np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)


def test_outputs_have_no_label_to_be_near_to():
    with pytest.raises(ValueError, match="labels for assignment='label'"):
        evaluate(constrained("label", base=sequence_loss), sequence_batch())


def test_weight_zero_leaves_the_loss_as_it_was():
    plain, _ = evaluate(base_loss(), batch())
    none, _ = evaluate(constrained(weight=0.0), batch())
    np.testing.assert_array_equal(plain, none)


def test_a_wide_margin_costs_nothing():
    _, aux = evaluate(constrained(margin=2.0), batch())
    np.testing.assert_array_equal(aux["margin_loss"], 0)


def test_schedules_follow_the_step():
    loss_fn = TRANSFORMS["prototype"](
        base_loss(),
        weight=optax.piecewise_constant_schedule(1.0, {10: 0.0}),
        margin=optax.constant_schedule(0.0),
    )
    params = distillation.student_params(MODEL.params)
    plain, _ = evaluate(base_loss(), batch())
    early, aux = loss_fn(params, batch(), PROTOTYPES, jnp.int32(0), None)
    late, _ = loss_fn(params, batch(), PROTOTYPES, jnp.int32(11), None)
    np.testing.assert_allclose(early, plain + aux["margin_loss"], rtol=1e-6)
    np.testing.assert_array_equal(late, plain)


def test_the_constraint_is_a_loop_over_prototypes():
    rows = batch()
    _, aux = evaluate(constrained("assigned", margin=0.1), rows)
    features = np.asarray(aux["features"])[:, 0]
    for row in range(5):
        distances = [
            1 - features[row] @ p / np.linalg.norm(features[row]) / np.linalg.norm(p)
            for p, label in zip(
                np.asarray(PROTOTYPES.vectors[0]), PROTOTYPES.labels[0], strict=True
            )
            if label == rows.assigned_class[row]
        ]
        expected = max(min(distances) - 0.1, 0)
        np.testing.assert_allclose(aux["margin_loss"][row], expected, atol=1e-5)


def test_distillation_adds_its_parts():
    rows = batch()
    loss, aux = evaluate(base_loss(temperature=2.0), rows)
    kl = losses.forward_kl(aux["logits"], rows.teacher_logits, temperature=2.0)
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(
        aux["logits"], rows.labels
    )
    hidden = losses.hidden_state_loss(aux["features"], rows.teacher_features)
    np.testing.assert_allclose(loss, 0.7 * kl + 0.3 * hard + 0.2 * hidden, rtol=1e-5)


def test_a_projection_takes_features_to_the_teachers_width():
    params = distillation.student_params(MODEL.params, jnp.ones((8, 5)))
    loss_fn = distillation.distillation_loss(apply_fn(CONFIG))
    _, aux = loss_fn(params, batch(), None, 0, None)
    assert aux["features"].shape == (5, 1, 5)
    np.testing.assert_allclose(aux["features"][..., 0], aux["features"][..., 4])


def test_regression_distils_a_score():
    config = dataclasses.replace(CONFIG, num_labels=1, problem="regression")
    model = init_model(config, seed=0)
    rows = batch()._replace(
        labels=np.ones(5, np.float32), teacher_logits=np.zeros((5, 1), np.float32)
    )
    loss_fn = distillation.distillation_loss(apply_fn(config), problem="regression")
    loss, aux = loss_fn({"model": model.params}, rows, None, 0, None)
    np.testing.assert_allclose(
        loss, losses.logit_mse(aux["logits"], rows.teacher_logits), rtol=1e-6
    )
    hard = distillation.hard_loss(aux["logits"], rows.labels, problem="regression")
    np.testing.assert_allclose(hard, (aux["logits"][:, 0] - 1) ** 2 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: constrained("farthest"), "assignment"),
        (lambda: base_loss(divergence="forward_k"), "forward_kl"),
        (lambda: base_loss(temperature=0), "temperature"),
        (
            lambda: distillation.distillation_loss(apply_fn(CONFIG), hard_weight=2),
            "hard_weight",
        ),
        (
            lambda: distillation.supervised_loss(apply_fn(CONFIG), problem="ranking"),
            "problem",
        ),
    ],
)
def test_errors_name_the_argument(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@jax.jit
@jax.value_and_grad
def climbed(perturbation, one, params):
    """The loss of one row and its slope."""
    moved = one._replace(perturbation=perturbation)
    return base_loss()(params, moved, PROTOTYPES, 0, None)[0][0]


def pgd_by_loop(rows, params, norm, *, epsilon, step_size, num_steps):
    """Climbs for one row at a time, in plain Python, from zero."""
    found = []
    for row in range(len(rows.labels)):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], rows)
        length = int(one.attention_mask.sum())
        moved = np.zeros((1, 8, 8))
        for _ in range(num_steps):
            _, slope = climbed(jnp.asarray(moved), one, params)
            slope = np.array(slope, np.float64)
            slope[:, length:] = 0
            if norm == "linf":
                moved = np.clip(moved + step_size * np.sign(slope), -epsilon, epsilon)
            else:
                moved = moved + step_size * slope / np.linalg.norm(slope)
                moved *= min(1, epsilon / np.linalg.norm(moved))
        found.append(float(climbed(jnp.asarray(moved), one, params)[0]))
    return np.array(found)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_equals_a_loop_over_rows(norm):
    params, rows = distillation.student_params(MODEL.params), batch(rows=3)
    steps = {"epsilon": 0.1, "step_size": 0.06, "num_steps": 3}
    found, _ = adversarial(norm, **steps)(params, rows, PROTOTYPES, 0, None)
    np.testing.assert_allclose(
        found, pgd_by_loop(rows, params, norm, **steps), rtol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_perturbed_loss_is_larger_and_grows_with_the_ball(norm):
    params, rows = distillation.student_params(MODEL.params), batch()
    losses_of = [
        adversarial(norm, epsilon=e, step_size=e / 2)(params, rows, None, 0, None)[0]
        for e in (0.0, 0.05, 0.2)
    ]
    clean, _ = base_loss()(params, rows, None, 0, None)
    np.testing.assert_allclose(losses_of[0], clean, rtol=1e-6)
    assert (losses_of[1] > losses_of[0]).all()
    assert (losses_of[2] > losses_of[1]).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("key", [None, 0])
def test_perturbations_stay_in_the_ball_and_off_the_padding(norm, key):
    seen = []

    def spy(params, rows, prototypes, step, key):
        seen.append(rows.perturbation)
        return base_loss()(params, rows, prototypes, step, key)

    loss_fn = TRANSFORMS["adversarial"](
        spy, dim=8, norm=norm, epsilon=0.3, step_size=9.0
    )
    params, rows = distillation.student_params(MODEL.params), batch()
    key = None if key is None else jax.random.key(key)
    loss_fn(params, rows, None, 0, key)
    worst = np.asarray(seen[-1])
    assert (worst[rows.attention_mask == 0] == 0).all()
    order = {"linf": np.inf, "l2": 2}[norm]
    lengths = np.linalg.norm(worst.reshape(5, -1), ord=order, axis=1)
    np.testing.assert_allclose(lengths, 0.3, rtol=1e-5)


def test_a_flat_loss_is_not_perturbed_into_nan():
    def flat(params, rows, prototypes, step, key):
        return jnp.sum(0 * rows.perturbation, axis=(1, 2)), {}

    for norm in NORMS:
        found, _ = TRANSFORMS["adversarial"](flat, dim=8, norm=norm)(
            None, batch(), None, 0, None
        )
        np.testing.assert_array_equal(found, np.zeros(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm one of linf, l2"),
        ({"epsilon": -0.1}, "epsilon >= 0"),
        ({"num_steps": 0}, "num_steps > 0"),
    ],
)
def test_adversarial_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        adversarial(**options)


def test_attention_loss_equals_a_loop_over_tokens():
    rows, params = batch(), distillation.student_params(DEEP.params)
    wanted = np.random.default_rng(3).random((5, 2, 12)).astype(np.float32)
    rows = rows._replace(teacher_attention=wanted)
    loss_fn = distillation.attention_loss(apply_fn(DEEP.config), weight=2.0)
    found, aux = loss_fn(params, rows, None, 0, None)
    output = apply_fn(DEEP.config)(DEEP.params, rows, hidden_states=True)
    for row in range(5):
        length, distances = int(rows.attention_mask[row].sum()), []
        for layer in (1, 2):
            state = np.asarray(output.hidden_states[layer][row, :length], np.float64)
            own = (state**2).mean(1)
            wanted = rows.teacher_attention[row, layer - 1, :length] ** 2
            gap = own / np.linalg.norm(own) - wanted / np.linalg.norm(wanted)
            distances.append((gap**2).sum())
        logits = np.asarray(output.logits[row], np.float64)
        hard = np.log(np.exp(logits).sum()) - logits[rows.labels[row]]
        np.testing.assert_allclose(
            found[row], hard + 2.0 * np.mean(distances), rtol=1e-5
        )
        np.testing.assert_allclose(
            aux["attention_loss"][row], np.mean(distances), rtol=1e-4
        )


def test_a_copy_of_itself_costs_no_attention():
    rows = batch()
    output = apply_fn(DEEP.config)(DEEP.params, rows, hidden_states=True)
    own = distillation.attention(output, rows.attention_mask)
    assert (np.asarray(own)[rows.attention_mask[:, None].repeat(2, 1) == 0] == 0).all()
    padded = np.pad(own, ((0, 0), (0, 0), (0, 4)))
    loss_fn = distillation.attention_loss(apply_fn(DEEP.config), weight=2.0)
    params = distillation.student_params(DEEP.params)
    found, aux = loss_fn(params, rows._replace(teacher_attention=padded), None, 0, None)
    np.testing.assert_allclose(aux["attention_loss"], 0, atol=1e-10)
    assert (found > 0).all()
