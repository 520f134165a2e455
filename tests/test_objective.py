"""Objectives as data: every composition that the functions allow, and no other."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import distillation, models
from protojax.base import Batch, Prototypes
from protojax.distillation import GRADIENTS, TRANSFORMS, schedules
from protojax.training import objective as objectives
from protojax.training.objective import LOSSES, Objective, Spec
from protojax.training.step import init_state, make_step
from tests.tiny import encoder_config
from tests.writers import language_config

CONFIG = encoder_config(num_layers=1, hidden_size=4, num_labels=2)
PARAMS = distillation.student_params(models.init_model(CONFIG, seed=0).params)
PROTOTYPES = Prototypes(
    vectors=np.random.default_rng(1).normal(size=(1, 4, 4)).astype(np.float32),
    labels=np.array([[0, 0, 1, 1]], np.int32),
    counts=np.ones((1, 4), np.float32),
)

# Options with which each function can be called.
LOSS_OPTIONS = {
    "supervised": {},
    "distillation": {"hard_weight": 0.3, "hidden_weight": 0.2},
    "attention": {"weight": 2.0},
}
TRANSFORM_OPTIONS = {
    "prototype": {
        "weight": Spec("early", {"end_step": 10}, (0.5,)),
        "margin": Spec("constant", args=(0.05,)),
    },
    "adversarial": {"epsilon": 0.1, "num_steps": 1},
}
GRADIENT_OPTIONS = {
    "mean": {},
    "dp_sgd": {"clip_norm": 0.5, "noise_multiplier": 0.5, "expected_rows": 4.0},
}
# Losses whose aux has features, which the constraint is of.
WITH_FEATURES = ("distillation",)


def rows_of(rows=3):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30, (rows, 5)).astype(np.int32)
    mask = (np.arange(5) < [[5], [3], [4]]).astype(np.int32)
    return Batch(
        input_ids=ids * mask,
        attention_mask=mask,
        token_type_ids=0 * ids,
        labels=np.array([0, 1, 1], np.int32),
        where=np.array([True, True, False]),
        teacher_logits=rng.normal(size=(rows, 2)).astype(np.float32),
        teacher_features=rng.normal(size=(rows, 1, 4)).astype(np.float32),
        assigned_class=np.array([1, 0, 1], np.int32),
        teacher_attention=rng.random((rows, 1, 6)).astype(np.float32),
    )


BATCH = rows_of()
SUBSETS = [
    subset
    for size in range(len(TRANSFORMS) + 1)
    for subset in itertools.permutations(sorted(TRANSFORMS), size)
]


def objective_of(loss, transforms, gradient):
    return Objective(
        Spec(loss, LOSS_OPTIONS[loss]),
        tuple(Spec(name, TRANSFORM_OPTIONS[name]) for name in transforms),
        Spec(gradient, GRADIENT_OPTIONS[gradient]),
    )


def started(objective):
    """A step of an objective, not yet compiled, and the state before it."""
    optimizer = optax.sgd(0.1)
    step = make_step(objectives.build(objective, CONFIG), optimizer)
    state = init_state(PARAMS, optimizer, num_steps=1, seed=0, prototypes=PROTOTYPES)
    return step, state


def test_every_function_is_composed_here():
    assert LOSS_OPTIONS.keys() == LOSSES.keys()
    assert TRANSFORM_OPTIONS.keys() == TRANSFORMS.keys()
    assert GRADIENT_OPTIONS.keys() == GRADIENTS.keys()


# Every loss under every order of transforms. A gradient rule sees one function, however
# it is composed: the others are taken of every loss, and of all transforms at once.
OTHERS = sorted(GRADIENTS.keys() - {"mean"})
COMPOSED = [
    *itertools.product(sorted(LOSSES), SUBSETS, ("mean",)),
    *itertools.product(sorted(LOSSES), ((),), OTHERS),
    *itertools.product(WITH_FEATURES, SUBSETS[-1:], OTHERS),
]


@pytest.mark.parametrize(
    ("loss", "transforms", "gradient"),
    COMPOSED,
    ids=["-".join((a, "/".join(b), c)) for a, b, c in COMPOSED],
)
def test_every_composition_is_a_step_or_is_refused(loss, transforms, gradient):
    step, state = started(objective_of(loss, transforms, gradient))
    if "prototype" in transforms and loss not in WITH_FEATURES:
        message = "whose aux has 'features' under the prototype constraint, found"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(step, state, BATCH)
        return
    # Shapes alone: compiled, these would be minutes.
    after, metrics = jax.eval_shape(step, state, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    # A function that had been dropped would have left no trace.
    assert ("margin_loss" in metrics) == ("prototype" in transforms)
    assert ("attention_loss" in metrics) == (loss == "attention")


# In both orders, and under any rule, the transforms are compared with those by hand
# below, and of a tiny model they are run in test_defenses.py; the other rule is run on
# an encoder in test_private.py.
@pytest.mark.parametrize(
    ("loss", "transforms"),
    [("attention", ()), ("distillation", ("prototype", "adversarial"))],
)
def test_a_step_moves_the_parameters_and_is_finite(loss, transforms):
    step, state = started(objective_of(loss, transforms, "mean"))
    state, metrics = jax.device_get(jax.jit(step)(state, BATCH))
    chex.assert_tree_all_finite(state.params)
    chex.assert_tree_all_finite(metrics)
    assert int(state.step) == 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, PARAMS)
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    ("transforms", "gradient"),
    [
        (("prototype", "adversarial"), "mean"),
        (("adversarial", "prototype"), "mean"),
        ((), "dp_sgd"),
    ],
)
def test_the_gradient_is_that_of_the_functions_by_hand(transforms, gradient):
    """Whatever the order of the transforms, which is the one that is written."""
    loss_fn = distillation.distillation_loss(
        models.apply_fn(CONFIG), hard_weight=0.3, hidden_weight=0.2
    )
    by_hand = {
        "prototype": lambda inner: distillation.prototype_constraint(
            inner,
            weight=schedules.early_phase(0.5, end_step=10),
            margin=optax.constant_schedule(0.05),
        ),
        "adversarial": lambda inner: distillation.adversarial(
            inner, dim=4, epsilon=0.1, num_steps=1
        ),
    }
    rules = {
        "mean": distillation.mean_gradient,
        "dp_sgd": lambda loss_fn: distillation.dp_sgd(
            loss_fn, clip_norm=0.5, noise_multiplier=0.5, expected_rows=4.0
        ),
    }
    given = PARAMS, BATCH, PROTOTYPES, jnp.int32(3), jax.random.key(5)
    for transform in transforms:
        loss_fn = by_hand[transform](loss_fn)
    expected = rules[gradient](loss_fn)
    objective = objective_of("distillation", transforms, gradient)
    found = objectives.build(objective, CONFIG)
    # One program, so every result is the same; none need be compiled to know it.
    one, other = (jax.jit(f).lower(*given).as_text() for f in (found, expected))
    assert one == other


def test_a_schedule_is_asked_at_each_step():
    objective = objective_of("distillation", ("prototype",), "mean")
    grad_fn, key = jax.jit(objectives.build(objective, CONFIG)), jax.random.key(0)
    during, after = (
        grad_fn(PARAMS, BATCH, PROTOTYPES, jnp.int32(step), key)[1] for step in (9, 10)
    )
    distance = float(during["margin_loss"])
    assert distance > 1e-3
    # The weight is 0.5 before the step 10 and 0 from there on.
    expected = float(after["loss"]) + 0.5 * distance
    assert float(during["loss"]) == pytest.approx(expected, abs=1e-6)


def test_a_transform_that_names_a_width_is_given_the_models():
    given = []

    def recorded(loss_fn, *, dim, scale):
        given.append((dim, scale))
        return loss_fn

    def without(loss_fn, *, scale):
        given.append(scale)
        return loss_fn

    with pytest.MonkeyPatch.context() as patch:
        # A registry is there to be added to.
        patch.setitem(TRANSFORMS, "recorded", recorded)
        patch.setitem(TRANSFORMS, "without", without)
        specs = Spec("recorded", {"scale": 2}), Spec("without", {"scale": 3})
        objectives.build(Objective(transforms=specs), CONFIG)
    assert given == [(4, 2), 3]


def test_a_loss_is_given_the_models_problem():
    config = encoder_config(
        num_layers=1, hidden_size=4, num_labels=1, problem="regression"
    )
    params = distillation.student_params(models.init_model(config, seed=0).params)
    apply = jax.jit(models.apply_fn(config))
    score = apply(params["model"], BATCH).logits[:2, 0]
    rows = BATCH._replace(labels=np.array([0.5, -1.0, 0.0], np.float32))
    grad_fn = jax.jit(objectives.build(Objective(), config))
    _, metrics = grad_fn(params, rows, None, jnp.int32(0), None)
    expected = np.mean(np.square(score - rows.labels[:2])) / 2
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_spec_is_what_it_says():
    one = Spec("prototype", {"weight": Spec("early", {"end_step": 3}, (0.5,)), "a": 1})
    same = Spec("prototype", {"a": 1, "weight": Spec("early", {"end_step": 3}, (0.5,))})
    assert one == same
    assert hash(one) == hash(same)
    assert repr(one) == "prototype(a=1, weight=early(0.5, end_step=3))"
    for other in (
        Spec("prototype", {**one.options, "a": 2}),
        Spec("prototype", {"a": 1, "weight": Spec("early", {"end_step": 4}, (0.5,))}),
        Spec("adversarial", one.options),
        Spec("prototype", one.options, (1,)),
        Spec("prototype"),
    ):
        assert other != one


def test_objectives_are_equal_where_all_their_parts_are():
    base = objective_of("distillation", ("prototype", "adversarial"), "dp_sgd")
    again = objective_of("distillation", ("prototype", "adversarial"), "dp_sgd")
    assert base == again
    assert len({base, again}) == 1
    others = {
        objective_of("distillation", ("adversarial", "prototype"), "dp_sgd"),
        objective_of("distillation", ("prototype", "adversarial"), "mean"),
        objective_of("distillation", ("prototype",), "dp_sgd"),
        objective_of("attention", ("prototype", "adversarial"), "dp_sgd"),
    }
    assert len({base, *others}) == 5
    listed = Objective(base.loss, [*base.transforms], base.gradient)
    assert listed == base
    assert hash(listed) == hash(base)
    assert (base.private, objective_of("attention", (), "mean").private) == (
        True,
        False,
    )


def test_a_spec_does_not_change_with_what_it_was_made_of():
    options = {"weight": 1.0}
    spec = Spec("attention", options)
    options["weight"] = 2.0
    assert spec.options["weight"] == 1.0
    with pytest.raises(TypeError):
        spec.options["weight"] = 2.0


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Objective(Spec("distilation")), "loss one of .*mean 'distillation'"),
        (
            lambda: Objective(transforms=(Spec("adversarial"), Spec("protoype"))),
            "transforms one of .*mean 'prototype'",
        ),
        (lambda: Objective(gradient=Spec("dp-sgd")), "gradient one of dp_sgd, mean"),
        (
            lambda: objectives.build(
                Objective(
                    Spec("distillation"),
                    (Spec("prototype", {"weight": Spec("late"), "margin": 1}),),
                ),
                CONFIG,
            ),
            "schedule one of constant, relaxing, early, found schedule='late'",
        ),
        (
            lambda: objectives.build(
                Objective(Spec("distillation", {"temperature": 0})), CONFIG
            ),
            "temperature > 0",
        ),
        (
            lambda: objectives.build(
                Objective(transforms=(Spec("adversarial", {"norm": "l1"}),)), CONFIG
            ),
            "norm one of linf, l2",
        ),
        # A model that classifies has no sequences, and one that writes no labels.
        (
            lambda: objectives.build(Objective(Spec("sequence")), CONFIG),
            "loss one of attention, .*found loss='sequence'",
        ),
        (
            lambda: objectives.build(Objective(Spec("supervised")), language_config()),
            "loss one of consistent, sequence, found loss='supervised'",
        ),
    ],
    ids=[
        *("loss", "transform", "gradient", "schedule", "option", "option of transform"),
        *("loss of an encoder", "loss of a model that writes"),
    ],
)
def test_names_and_options_that_are_not_known_are_named(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize(
    "objective",
    [
        Objective(Spec("supervised", {"temperature": 1.0})),
        Objective(transforms=(Spec("adversarial", {"radius": 1.0}),)),
        Objective(gradient=Spec("mean", {"clip_norm": 1.0})),
    ],
    ids=["loss", "transform", "gradient"],
)
def test_an_option_that_a_function_does_not_have_is_an_error(objective):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        objectives.build(objective, CONFIG)
