"""Losses of whole models and the defences around them, by contract."""

import functools

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
from tests.readers import reader_apply, reader_params
from tests.tiny import encoder_config
from tests.writers import sequence_batch, writer_apply, writer_head, writer_params

ENCODER = init_model(encoder_config(num_labels=3, num_layers=1), seed=0)
PROTOTYPES = Prototypes(
    vectors=np.random.default_rng(1).normal(size=(1, 6, 8)).astype(np.float32),
    labels=np.array([[0, 0, 1, 1, 2, 2]], np.int32),
    counts=np.ones((1, 6), np.float32),
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
        teacher_attention=rng.random((rows, 2, 12)).astype(np.float32),
    )


def base_loss(apply=reader_apply, **options):
    return distillation.distillation_loss(
        apply, hard_weight=0.3, hidden_weight=0.2, **options
    )


def encoder_loss():
    return base_loss(apply_fn(ENCODER.config))


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
    return TRANSFORMS["adversarial"](base_loss(), dim=8, norm=norm, **options)


LOSSES = {
    "supervised": distillation.supervised_loss(reader_apply),
    "attention": distillation.attention_loss(reader_apply, weight=2.0),
    **{
        f"distillation/{name}": base_loss(divergence=name)
        for name in losses.DIVERGENCES
    },
    # Each assignment with each metric is a loop over rows in test_losses.py.
    "prototype/nearest/cosine": constrained("nearest"),
    "prototype/label/l2": constrained("label", metric="l2"),
    "prototype/assigned/cosine": constrained("assigned"),
    **{f"adversarial/{norm}": adversarial(norm) for norm in NORMS},
    "adversarial/prototype": TRANSFORMS["adversarial"](constrained(), dim=8),
    # A true model, for all that is asked of one.
    "encoder/adversarial/prototype": TRANSFORMS["adversarial"](
        constrained(base=encoder_loss), dim=8
    ),
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
READER = distillation.student_params(reader_params())
PARAMS = {
    "encoder": distillation.student_params(ENCODER.params),
    "sequence": distillation.student_params(writer_params()),
}


def params_of(name):
    return PARAMS.get(name.split("/")[0], READER)


def writes(name):
    return name.startswith("sequence")


def batch_of(name, seed=0):
    return sequence_batch(seed=seed) if writes(name) else batch(seed=seed)


def evaluate(loss_fn, rows, key=None):
    params = PARAMS["sequence"] if isinstance(rows, SequenceBatch) else READER
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

    return functools.partial(found, params_of(name))


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
    params = params_of(name)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_and_shaped_like_the_parameters(name):
    assert_like_the_parameters(compiled(name)(batch_of(name))[2], name)


# The last one: the gradient of a row is that of its whole output.
@pytest.mark.parametrize("name", ["adversarial/prototype", "sequence/prototype"])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_rules_are_finite_and_shaped_like_the_parameters(name, rule):
    grad_fn = jax.jit(GRADIENTS[rule](LOSSES[name], **RULES[rule]))
    grads, metrics = grad_fn(
        params_of(name),
        batch_of(name),
        PROTOTYPES,
        jnp.int32(0),
        jax.random.key(0),
    )
    assert_like_the_parameters(grads, name)
    assert np.isfinite(metrics["loss"])


# Compositions of those that are compared.
COMPOSED = {
    *("adversarial/prototype", "encoder/adversarial/prototype"),
    *("sequence/prototype", "sequence/adversarial"),
}


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in COMPOSED])
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
    params = READER
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
    params = distillation.student_params(reader_params(), jnp.ones((8, 5)))
    loss_fn = distillation.distillation_loss(reader_apply)
    _, aux = loss_fn(params, batch(), None, 0, None)
    assert aux["features"].shape == (5, 1, 5)
    np.testing.assert_allclose(aux["features"][..., 0], aux["features"][..., 4])


def test_regression_distils_a_score():
    rows = batch()._replace(
        labels=np.ones(5, np.float32), teacher_logits=np.zeros((5, 1), np.float32)
    )
    loss_fn = distillation.distillation_loss(reader_apply, problem="regression")
    params = distillation.student_params(reader_params(num_labels=1))
    loss, aux = loss_fn(params, rows, None, 0, None)
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
            lambda: distillation.distillation_loss(reader_apply, hard_weight=2),
            "hard_weight",
        ),
        (
            lambda: distillation.supervised_loss(reader_apply, problem="ranking"),
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
    steps = {"epsilon": 0.1, "step_size": 0.06, "num_steps": 3}
    rows = batch(rows=3)
    found, _ = jax.jit(adversarial(norm, **steps))(READER, rows, PROTOTYPES, 0, None)
    np.testing.assert_allclose(
        found, pgd_by_loop(rows, READER, norm, **steps), rtol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_perturbed_loss_is_larger_and_grows_with_the_ball(norm):
    smaller = [adversarial(norm, epsilon=e, step_size=e / 2) for e in (0.0, 0.05)]

    @jax.jit
    def found(rows):
        return [loss_fn(READER, rows, PROTOTYPES, 0, None)[0] for loss_fn in smaller]

    (none, little), rows = found(batch()), batch()
    clean, *_ = compiled("distillation/forward_kl")(rows)
    much, *_ = compiled(f"adversarial/{norm}")(rows)  # epsilon=0.1
    np.testing.assert_allclose(none, clean, rtol=1e-6)
    assert (little > none).all()
    assert (much > little).all()


@pytest.mark.parametrize("norm", NORMS)
def test_perturbations_stay_in_the_ball_and_off_the_padding(norm):
    def spy(params, rows, prototypes, step, key):
        # Padding has a slope of its own, which a model's mask would hide.
        loss = jnp.square(rows.perturbation + 0.1).sum((1, 2))
        return loss, {"perturbation": rows.perturbation}

    loss_fn = TRANSFORMS["adversarial"](
        spy, dim=8, norm=norm, epsilon=0.3, step_size=9.0
    )

    @jax.jit
    def found(rows, key):
        starts = None, key
        given = [loss_fn(None, rows, None, 0, start)[1] for start in starts]
        return [aux["perturbation"] for aux in given]

    rows = batch()
    for worst in map(np.asarray, found(rows, jax.random.key(0))):
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


def states_of(rows):
    """The output of the reader with its states, in NumPy."""
    return jax.device_get(reader_apply(READER["model"], rows, hidden_states=True))


def test_attention_loss_equals_a_loop_over_tokens():
    rows, loss_fn = batch(), distillation.attention_loss(reader_apply, weight=2.0)
    found, aux = loss_fn(READER, rows, None, 0, None)
    output = states_of(rows)
    for row in range(5):
        length, distances = int(rows.attention_mask[row].sum()), []
        for layer in (1, 2):
            state = output.hidden_states[layer][row, :length].astype(np.float64)
            own = (state**2).mean(1)
            wanted = rows.teacher_attention[row, layer - 1, :length] ** 2
            gap = own / np.linalg.norm(own) - wanted / np.linalg.norm(wanted)
            distances.append((gap**2).sum())
        logits = output.logits[row].astype(np.float64)
        hard = np.log(np.exp(logits).sum()) - logits[rows.labels[row]]
        np.testing.assert_allclose(
            found[row], hard + 2.0 * np.mean(distances), rtol=1e-5
        )
        np.testing.assert_allclose(
            aux["attention_loss"][row], np.mean(distances), rtol=1e-4
        )


def test_a_copy_of_itself_costs_no_attention():
    rows = batch()
    own = distillation.attention(states_of(rows), rows.attention_mask)
    assert (np.asarray(own)[rows.attention_mask[:, None].repeat(2, 1) == 0] == 0).all()
    rows = rows._replace(teacher_attention=np.pad(own, ((0, 0), (0, 0), (0, 4))))
    loss_fn = distillation.attention_loss(reader_apply, weight=2.0)
    found, aux = loss_fn(READER, rows, None, 0, None)
    np.testing.assert_allclose(aux["attention_loss"], 0, atol=1e-10)
    assert (found > 0).all()
