"""Arms to compare with: plain distillation, other defences, other detectors."""

from collections.abc import Callable

import numpy as np

from experiments.arms.base import Recipe, distillation
from experiments.world import artifacts, trusted_model
from experiments.world.evidence import World
from protojax import data, pipelines
from protojax.base import Examples
from protojax.detection import DETECTORS
from protojax.detection.quarantine import as_they_arrived, with_references
from protojax.distillation import noise_multiplier_of
from protojax.training import plans, predict
from protojax.training.objective import Objective, Spec


def plain(world: World) -> Recipe:
    """Distillation from the teacher's outputs as they are."""
    evidence = world.evidence()
    rows = as_they_arrived(evidence.transfer, evidence.teacher)
    return Recipe(rows.examples, rows.columns, distillation(world.config))


def plain_references(world: World) -> Recipe:
    """Plain distillation that learns from the references too, as `defended` does."""
    recipe = plain(world)
    evidence, rows = world.evidence(), world.own_references
    return recipe.over(
        with_references(
            as_they_arrived(recipe.examples, evidence.teacher),
            data.take(evidence.references, rows),
            evidence.teacher_on_references.take(rows),
        )
    )


def prototype(world: World) -> Recipe:
    """The published constraint: hidden states near any prototype of the teacher's."""
    weight = world.config.nearest.weight
    return plain(world)._replace(
        objective=distillation(world.config, "nearest", weight),
        prototypes=world.prototypes,
    )


def adversarial(world: World) -> Recipe:
    """Distillation from the worst perturbation of each row's embeddings."""
    recipe = plain(world)
    worst = Spec("adversarial", vars(world.config.adversarial))
    objective = Objective(recipe.objective.loss, (worst,))
    return recipe._replace(objective=objective)


def dp_sgd(world: World) -> Recipe:
    """Distillation with clipped gradients and noise, which bound the effect of a row.

    (ε, δ)-private in the rows of the transfer set, as if the teacher were public,
    towards those who see the saved student and nothing else of the study's folder:
    losses in its `metrics.jsonl`, cached outputs and, until the student is saved, its
    checkpoints reveal rows. `trainer.train` draws batches and noise from the
    operating system; under `dp.reproducible` they follow from the seed, and ε is
    nominal.
    """
    recipe, config = plain(world), world.config.dp
    rows, epochs = len(recipe.examples.texts), config.epochs
    noise = noise_multiplier_of(
        epsilon=config.epsilon,
        delta=config.delta,
        # As in `plan_poisson`: what is accounted must be what is drawn.
        sampling_rate=config.batch_size / rows,
        num_steps=plans.poisson_steps(rows, epochs, config.batch_size),
    )
    rule = Spec(
        "dp_sgd",
        {
            "clip_norm": config.clip_norm,
            "noise_multiplier": noise,
            "expected_rows": config.batch_size,
            "microbatch": config.microbatch,
            "frozen": config.frozen,
        },
    )
    fields = ("epochs", "batch_size", "learning_rate")
    return recipe._replace(
        objective=Objective(recipe.objective.loss, gradient=rule),
        train={field: getattr(config, field) for field in fields},
    )


def references(world: World) -> Recipe:
    """Supervised learning from the references alone, which every defender has.

    For as many epochs as the trusted model, which learns from as few rows.
    """
    return Recipe(
        data.take(world.references, world.own_references),
        {},
        Objective(),
        train={"epochs": world.config.trusted_model.epochs},
    )


def fine_tuned(world: World) -> Recipe:
    """Fine-tuning of the plainly distilled student on the references alone.

    Sha et al., 2022 (arXiv:2212.09067), find it hard to beat with enough references.
    """
    config = world.config.fine_tuning
    train = {"epochs": config.epochs, "learning_rate": config.learning_rate}
    return references(world)._replace(train=train)


def nad(world: World) -> Recipe:
    """Fine-tuning of the plain student with the attention of the fine-tuned one."""
    recipe, lengths = fine_tuned(world), world.config.lengths
    # The trusted copy of the method: the same student after references alone.
    copy = world.student("fine_tuned")
    tokens = predict.tokenize(copy, recipe.examples, lengths)
    weight = world.config.fine_tuning.attention_weight
    return recipe._replace(
        columns={"teacher_attention": predict.predict_attention(copy, tokens, lengths)},
        objective=Objective(Spec("attention", {"weight": weight})),
    )


def without_rejected(detector: str, *options: str) -> Callable[[World], Recipe]:
    """The arm that leaves out the rows that a detector rejects.

    Args:
        detector: in `DETECTORS`.
        *options: the fields of `filters` that it is given.
    """

    def arm(world: World) -> Recipe:
        config, warm_up = world.config, None
        # ABL isolates rows by the losses of a briefly trained student.
        if "isolated_share" in options:
            warm_up = distillation(config)
        verdict = DETECTORS[detector](
            world.evidence(warm_up=warm_up),
            seed=world.scenario.seed,
            **{field: getattr(config.filters, field) for field in options},
        )
        # The verdict stays whole: its quality is measured over all rows.
        kept = plain(world).take(np.flatnonzero(~verdict.rejected))
        return kept._replace(verdict=verdict)

    return arm


def onion_arm(world: World) -> Recipe:
    """Distillation from texts without their outlier words.

    Qi et al., 2021 (ONION, arXiv:2011.10369). Departing from it, the transfer set is
    cleaned, and the teacher's outputs are those on the cleaned text; that teacher may
    have been trained on the original text, and labels stay as they are. The texts that
    the student reads after training are not cleaned.
    """
    examples = without_outlier_words(world)
    rows = as_they_arrived(examples, world.ask("without_outlier_words", examples))
    return Recipe(rows.examples, rows.columns, distillation(world.config))


def without_outlier_words(world: World) -> Examples:
    """The rows without the words that make them unlike trusted texts.

    A word is removed if at most a share `filters.outlier_share` of the words of
    held-out references has a higher score. The encoder is the trusted model's as it
    was pretrained: fine-tuning makes features class-oriented.

    Args:
        world: the interface to the scenario, whose references are trusted.
    """
    config, folds = world.config, world.folds()
    encoder = folds.models[0]
    # A model from scratch knows no words before it is tuned.
    if config.trusted_model.model != "scratch":
        encoder = artifacts.build_model(config, config.trusted_model, world.scenario)
    return pipelines.purify(
        encoder,
        world.evidence().transfer,
        world.references,
        trusted_model.held_out(folds),
        outlier_share=config.filters.outlier_share,
        num_neighbours=config.filters.outlier_neighbours,
        lengths=config.lengths,
    )


def oracle(world: World) -> Recipe:
    """Distillation without any poisoned row, which only the attacker could do."""
    return plain(world).take(np.flatnonzero(~world.ground_truth()))
