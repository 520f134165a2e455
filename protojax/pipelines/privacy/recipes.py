"""The recipes that are compared, by name: `RECIPES`."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from protojax import validate
from protojax.pipelines.privacy.settings import Recipe

# Passes of a teacher that is stopped early, as a share of a whole training.
EARLY = 0.2
# With this noise and 1,000 rows ε is above 100, which promises nothing.
VACUOUS = 0.1
_SHARDS = 4


def _shipping_teacher(base: Recipe, **changes) -> Recipe:
    """The recipe whose teacher is shipped."""
    return dataclasses.replace(base, shipped="teacher", **changes)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe whose teacher learns for so many epochs, with noise or without.

    Args:
        recipe: to change.
        epochs: passes over the private rows.

    >>> with_epochs(Recipe(), 3).teacher.epochs
    3
    """
    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(recipe.teacher, epochs=epochs),
        teacher_noise=dataclasses.replace(recipe.teacher_noise, epochs=epochs)
        if recipe.teacher_noise.used
        else recipe.teacher_noise,
    )


def _early(base: Recipe, **changes) -> Recipe:
    """The recipe with a teacher of fewer epochs."""
    recipe = with_epochs(base, max(1, round(EARLY * base.teacher.epochs)))
    return dataclasses.replace(recipe, **changes)


def _noisy(base: Recipe, field: str = "teacher_noise", **changes) -> Recipe:
    """The recipe with noise in the training of its teacher, or of its student."""
    none = {"epsilon": 0.0, "noise_multiplier": 0.0}
    noise = dataclasses.replace(getattr(base, field), **{**none, **changes})
    return dataclasses.replace(base, **{field: noise})


def _small(base: Recipe) -> Recipe:
    """The student's model trained on the members as the teacher is."""
    names = ("epochs", "learning_rate", "batch_size", "weight_decay", "warmup")
    train = {name: getattr(base.teacher, name) for name in names}
    return _shipping_teacher(base, teacher=dataclasses.replace(base.student, **train))


def _changed(**changes) -> Callable[[Recipe], Recipe]:
    """The function that changes fields of a recipe."""
    return lambda base: dataclasses.replace(base, **changes)


# name -> the recipe, of one that has all the settings they share.
RECIPES: dict[str, Callable[[Recipe], Recipe]] = {
    "teacher": _shipping_teacher,
    "early": lambda base: _shipping_teacher(_early(base)),
    "small": _small,
    "smooth": lambda base: _shipping_teacher(base, smoothing=0.2),
    "student": _changed(),
    "student_hot": _changed(temperature=4.0),
    "student_hard": _changed(answers="hard"),
    "student_early": _early,
    "student_early_hard": lambda base: _early(base, answers="hard"),
    "student_early_hard_written": lambda base: _early(
        base, answers="hard", transfer="written"
    ),
    "student_on_members": _changed(transfer="members"),
    "shards_mean": _changed(shards=_SHARDS),
    "shards_vote": _changed(shards=_SHARDS, answers="votes"),
    "dp_teacher_8": lambda base: _noisy(_shipping_teacher(base), epsilon=8.0),
    "dp_teacher_3": lambda base: _noisy(_shipping_teacher(base), epsilon=3.0),
    "dp_teacher_1": lambda base: _noisy(_shipping_teacher(base), epsilon=1.0),
    "dp_teacher_vacuous": lambda base: _noisy(
        _shipping_teacher(base), noise_multiplier=VACUOUS
    ),
    "student_of_dp_vacuous_hard": lambda base: _noisy(
        dataclasses.replace(base, answers="hard"), noise_multiplier=VACUOUS
    ),
    "student_of_dp_8": lambda base: _noisy(base, epsilon=8.0),
    "student_of_dp_3": lambda base: _noisy(base, epsilon=3.0),
    "student_of_dp_1": lambda base: _noisy(base, epsilon=1.0),
    "dp_student": lambda base: _noisy(base, "student_noise", epsilon=8.0),
}


def named(name: str, base: Recipe) -> Recipe:
    """The recipe of a name.

    Args:
        name: in `RECIPES`; with the number of the teacher's epochs behind a colon, if
            that is another.
        base: a recipe with the settings that all share: models and their training.

    Raises:
        ValueError: on another name, or epochs that are no positive number.

    >>> named("student_early_hard", Recipe()).teacher.epochs
    3
    >>> named("student_hard:6", Recipe()).teacher.epochs
    6
    """
    kind, epochs = parsed(recipe=name)
    recipe = RECIPES[kind](base)
    return recipe if epochs is None else with_epochs(recipe, epochs)


def parsed(**name: str) -> tuple[str, int | None]:
    """The name in `RECIPES`, and the number of epochs if there is one.

    Args:
        **name: see `named`; an error names the argument.

    Raises:
        ValueError: see `named`.

    >>> parsed(recipe="student_hard:6"), parsed(recipe="student")
    (('student_hard', 6), ('student', None))
    """
    ((argument, said),) = name.items()
    kind, colon, epochs = said.partition(":")
    validate.one_of(RECIPES, **{argument: kind})
    if not colon:
        return kind, None
    # One spelling, so that no recipe has two names.
    fits = re.fullmatch("[1-9][0-9]*", epochs)
    bound = f"{kind}, or {kind}:EPOCHS with EPOCHS >= 1"
    validate.require(bool(fits), argument, said, bound)
    return kind, int(epochs)


def families(recipes: Mapping[str, Recipe]) -> list[dict[str, Recipe]]:
    """The recipes in groups that share a teacher.

    Args:
        recipes: name -> recipe.

    >>> arms = {name: named(name, Recipe()) for name in ("teacher", "early", "student")}
    >>> [list(family) for family in families(arms)]
    [['teacher', 'student'], ['early']]
    """
    found: dict[Recipe, dict[str, Recipe]] = {}
    for name, recipe in recipes.items():
        found.setdefault(recipe.family, {})[name] = recipe
    return list(found.values())
