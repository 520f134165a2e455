"""The common part of pipelines: their rows, models before training, devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from protojax import data, validate
from protojax.base import Examples, PyTree
from protojax.data.tokens import Tokens
from protojax.models import EncoderConfig, Model
from protojax.models import settings as model_settings
from protojax.models.config import HEAD
from protojax.models.encoder import init_params, param_shapes
from protojax.models.settings import SCRATCH, ModelSettings
from protojax.pipelines.privacy import _replicas
from protojax.pipelines.privacy._replicas import Held, Machine
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.settings import Encoder
from protojax.pipelines.students import scratch_tokenizer
from protojax.training import predict
from protojax.training.predict import Lengths


class Rows(NamedTuple):
    """The rows of a study or a run.

    Attributes:
        private: those that membership is asked of, with labels.
        public: transfer rows; their labels are not read by any recipe.
        test: trusted rows, to measure accuracy on; may be none.
        num_labels: classes.
        written: transfer rows that a public language model wrote, without labels; None
            for none.
    """

    private: Examples
    public: Examples
    test: Examples
    num_labels: int
    written: Examples | None = None

    @property
    def all(self) -> Examples:
        """All rows: private, public, test, written."""
        last = () if self.written is None else (self.written,)
        return functools.reduce(data.concatenate, (*self[:3], *last))

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers of the private, the public and the test rows among all."""
        sizes = np.cumsum([len(part.texts) for part in self[:3]])
        return tuple(np.split(np.arange(sizes[-1]), sizes[:2]))

    def transfer(self, name: str) -> np.ndarray:
        """The numbers of the transfer rows of all pipelines among all rows.

        Args:
            name: "public" or "written".

        Raises:
            ValueError: where nothing was written.
        """
        if name == "public":
            return self.places[1]
        some = self.written is not None and len(self.written.texts) > 0
        validate.require(some, "transfer", name, "public, where nothing is written")
        return np.arange(len(self.written.texts)) + sum(map(len, self.places))


class Learner(NamedTuple):
    """A model before training, and all rows as its tokens.

    Attributes:
        model: with its tokenizer.
        tokens: of all rows.
        held: the same on the devices.
        fresh: whether each pipeline draws weights of its own; a pretrained model begins
            alike in all,
        head: but for these parts, which its checkpoint lacks and each pipeline draws.
    """

    model: Model
    tokens: Tokens
    held: Held
    fresh: bool
    head: tuple[str, ...] = ()


class Shared(NamedTuple):
    """The common part of pipelines.

    Attributes:
        rows: of all pipelines.
        learners: of each encoder of the recipes.
        machine: the devices that a group of pipelines is spread over.
        seed: of all draws that need not be secret.
        on_progress: called with the work done.
    """

    rows: Rows
    learners: Mapping[Encoder, Learner]
    machine: Machine
    seed: int
    on_progress: Callable[[float], None] = lambda units: None


def shared_of(
    rows: Rows,
    recipes: Sequence[Recipe],
    machine: Machine,
    *,
    lengths: Lengths,
    vocab_size: int,
    seed: int,
    on_progress: Callable[[float], None] = lambda units: None,
) -> Shared:
    """The common part of the pipelines of some recipes.

    Args:
        rows: of all pipelines.
        recipes: all recipes that will be run.
        machine: the devices.
        lengths: how rows are padded, all to the maximum.
        vocab_size: of the tokenizer of models from scratch.
        seed: of all draws that need not be secret.
        on_progress: called with the work done.
    """
    tokenizer = functools.cache(
        lambda: scratch_tokenizer(_all_texts(rows.public), vocab_size)
    )

    @functools.cache
    def learner_of(settings: ModelSettings) -> Learner:
        model = model_settings.build(
            settings,
            num_labels=rows.num_labels,
            problem="classification",
            seed=seed,
            max_positions=lengths.max_length,
            tokenizer=tokenizer,
        )
        tokens = predict.tokenize(model, rows.all, lengths)
        held = _replicas.held(tokens, machine.mesh)
        if settings.model == SCRATCH:
            return Learner(model, tokens, held, True)
        return Learner(model, tokens, held, False, fresh_head(model, seed))

    for transfer in {recipe.transfer for recipe in recipes} - {"members"}:
        rows.transfer(transfer)
    encoders = {encoder for recipe in recipes for encoder in encoders_of(recipe)}
    names = ModelSettings.__dataclass_fields__
    learners = {
        one: learner_of(ModelSettings(**{name: getattr(one, name) for name in names}))
        for one in encoders
    }
    return Shared(rows, learners, machine, seed, on_progress)


def drawn_head(config: EncoderConfig, names: Sequence[str], seed: int) -> PyTree:
    """Fresh parameters of parts of a head; parts that a model does not have are absent.

    Args:
        config: of the model.
        names: of the parts.
        seed: of the parameters.
    """
    # Of one layer: tracing many takes long, and the head is the same.
    shapes = param_shapes(dataclasses.replace(config, num_layers=1))
    return init_params(
        {name: shapes[name] for name in names if name in shapes}, seed=seed
    )


def fresh_head(model: Model, seed: int) -> tuple[str, ...]:
    """The parts of a model's head that were drawn from a seed, not read from a file.

    Args:
        model: as `model_settings.build` makes it.
        seed: that was given to it.
    """
    drawn = drawn_head(model.config, HEAD, seed)
    return tuple(
        name
        for name in HEAD
        if name in drawn
        and all(
            map(
                np.array_equal,
                jax.tree.leaves(drawn[name]),
                jax.tree.leaves(model.params[name]),
            )
        )
    )


def encoders_of(recipe: Recipe) -> tuple[Encoder, ...]:
    """The encoders that a recipe trains.

    >>> len(encoders_of(Recipe(shipped="teacher")))
    1
    """
    both = recipe.shipped == "student"
    return (recipe.teacher, recipe.student) if both else (recipe.teacher,)


def _all_texts(examples: Examples) -> list[str]:
    """First and second texts."""
    return [*examples.texts, *(examples.pairs or ())]
