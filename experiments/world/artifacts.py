"""The artifacts that arms of a scenario share: models, teacher outputs, prototypes.

Each function builds one of them, caches costly results in the workdir, and is cheap to
call again.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.runtime import Context, cached
from experiments.settings import Encoder, Settings
from experiments.world import scenarios
from experiments.world.scenarios import Scenario
from experiments.world.tasks import Task
from protojax import attacks, data, pipelines
from protojax.base import Examples, Prototypes, TeacherOutputs
from protojax.data.wordpiece import train_wordpiece
from protojax.distillation import teacher
from protojax.federated import communication, replicas
from protojax.models import Model, hf, saved
from protojax.models import settings as model_settings
from protojax.pipelines import FineTuning
from protojax.pipelines.students import layer_prototypes
from protojax.training import predict


class Transfer(NamedTuple):
    """The transfer set and the teacher's outputs, as the defender sees them."""

    examples: Examples
    logits: np.ndarray  # [rows, num_labels]
    features: np.ndarray  # [rows, layers, dim]

    @property
    def outputs(self) -> TeacherOutputs:
        """The teacher's outputs on the rows."""
        return TeacherOutputs(self.logits, self.features)


@cached
def _scratch_tokenizer(config: Settings, task: str, seed: int):
    """A tokenizer trained on clean text, as a public one would be."""
    splits = scenarios.task_data(config, task, seed).splits
    # Clean, so that poison gives a trigger word no token of its own.
    texts = [*splits.transfer.texts, *splits.references.texts]
    for part in (splits.transfer.pairs, splits.references.pairs):
        texts.extend(part or ())
    wordpiece = train_wordpiece(texts, vocab_size=config.data.vocab_size)
    return hf.wrap_tokenizer(
        wordpiece,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def build_model(config: Settings, section: Encoder, scenario: Scenario) -> Model:
    """An untrained (or pretrained) model from its section of the settings."""
    task = scenarios.task_data(config, scenario.task, scenario.seed).task
    model = model_settings.build(
        section,
        num_labels=task.num_labels,
        problem=task.problem,
        seed=scenario.seed,
        max_positions=config.data.buckets[-1],
        tokenizer=lambda: _scratch_tokenizer(config, scenario.task, scenario.seed),
    )
    # Training is for the task's classes, whatever a head stood for before.
    return model._replace(label_names=task.label_names)


def load_model(
    folder: pathlib.Path,
    section: Encoder,
    task: Task,
    *,
    run: pathlib.Path | None = None,
) -> Model:
    """A model of a study as it was saved.

    Args:
        folder: the model's.
        section: the model's section of the settings.
        task: the task that it was trained for.
        run: the folder of the run that trained it; by default the folder above.

    Raises:
        ValueError: if a file differs from what was written.
    """
    saved.check(folder, run=run or folder.parent)
    return hf.load_hf(
        folder,
        num_labels=task.num_labels,
        problem=task.problem,
        **section.computation,
    )


def student_model(context: Context, scenario: Scenario, arm: str) -> Model:
    """The student of an arm that this one needs, see `experiments.arms.Arm`."""
    task = scenarios.task_data(context.config, scenario.task, scenario.seed).task
    folder = context.workdir / scenario.folder / arm / "model"
    return load_model(folder, context.config.student, task)


Tuning = Callable[[Settings, Scenario], FineTuning]


def fine_tune(context: Context, tuning: Tuning, scenario: Scenario) -> None:
    """Trains a scenario's model side by side with those of the seeds beside its own.

    Args:
        context: the study.
        tuning: `(settings, scenario) -> FineTuning`, the training of its model.
        scenario: the scenario.
    """
    config = context.config
    seeds = replicas.seeds_beside(config.seeds, config.replicas, scenario.seed)
    wanted = [tuning(config, scenario._replace(seed=seed)) for seed in seeds]
    at_once = config.replicas
    pipelines.fine_tune(wanted, context.workdir, context.around, at_once=at_once)


def fine_tuned(
    context: Context, name: str, section: Encoder, scenario: Scenario
) -> Model:
    """A scenario's model as `fine_tune` saved it."""
    task = scenarios.task_data(context.config, scenario.task, scenario.seed).task
    return load_model(context.workdir / name / "model", section, task)


def teacher_scenario(config: Settings, scenario: Scenario) -> Scenario:
    """The scenario whose teacher this one uses: clean unless data are poisoned.

    All nodes share one teacher, trained on the rows of all.
    """
    scenario = scenario.whole
    # Attacks on the channel or on labels leave the teacher itself clean.
    if scenario.attack and config.attacks[scenario.attack].channel in ("data", "both"):
        return scenario
    return scenario.clean


def teacher_name(config: Settings, scenario: Scenario) -> str:
    """The folder of a scenario's teacher, below the workdir."""
    return f"{teacher_scenario(config, scenario).folder}/teacher"


def teacher_tuning(config: Settings, scenario: Scenario) -> FineTuning:
    """The training of a scenario's teacher, on the rows as the attack leaves them."""
    owner = teacher_scenario(config, scenario)
    return FineTuning(
        teacher_name(config, scenario),
        build_model(config, config.teacher, owner),
        config.teacher,
        scenarios.poisoned(config, owner).examples,
        owner.seed,
    )


@cached
def teacher_model(context: Context, scenario: Scenario) -> Model:
    """The teacher of a scenario."""
    config = context.config
    return fine_tuned(context, teacher_name(config, scenario), config.teacher, scenario)


def teacher_outputs(
    context: Context, scenario: Scenario, name: str, examples: Examples
) -> TeacherOutputs:
    """The outputs of a scenario's teacher over some rows, computed once.

    Args:
        context: the study.
        scenario: the scenario.
        name: of the rows, in the file's name.
        examples: the rows.
    """
    model = teacher_model(context, teacher_scenario(context.config, scenario))
    return predicted(context, f"{scenario.folder}/teacher_{name}", model, examples)


def predicted(
    context: Context, name: str, model: Model, examples: Examples
) -> TeacherOutputs:
    """The outputs of a frozen model over some rows, computed once and cached.

    Args:
        context: the study.
        name: of the file below the workdir, without key and suffix. The key is part of
            the file's name, so that variants with another model or other layers have
            files of their own.
        model: the model.
        examples: the rows.
    """
    lengths, features = context.config.lengths, context.config.features
    tokens = predict.tokenize(model, examples, lengths)
    fingerprint = teacher.cache_key(
        model.params,
        # Tokens, not texts: they depend on the tokenizer and maximum length too.
        data.fingerprint(tokens.input_ids, tokens.token_type_ids, tokens.lengths),
        repr((model.config, features.layers)),
        features.pooling,
    )
    return teacher.cached_outputs(
        context.workdir / f"{name}_{fingerprint[:16]}.safetensors",
        fingerprint,
        lambda: predict.predict(model, tokens, lengths, features),
    )


def transfer(context: Context, scenario: Scenario) -> Transfer:
    """The transfer set and the teacher's outputs as they arrive."""
    # Asked once for all nodes, which share one teacher.
    whole = _transfer(context, scenario.whole)
    if not scenario.federation:
        return whole
    rows = scenarios.rows_of(context.config, scenario)
    return Transfer(
        data.take(whole.examples, rows), whole.logits[rows], whole.features[rows]
    )


@cached
def _transfer(context: Context, scenario: Scenario) -> Transfer:
    """The transfer set of all nodes together."""
    examples = scenarios.poisoned(context.config, scenario).examples
    honest = honest_outputs(context, scenario)
    return Transfer(examples, *through_channel(context, scenario, honest))


def arriving(
    context: Context, scenario: Scenario, name: str, examples: Examples
) -> TeacherOutputs:
    """The teacher's outputs on a scenario's transfer rows, as the channel leaves them.

    Args:
        context: the study.
        scenario: the scenario.
        name: of the texts, in the names of files.
        examples: the rows, of which the texts may have been changed by the defender.
    """
    honest = teacher_outputs(context, scenario, name, examples)
    return through_channel(context, scenario, honest)


def honest_outputs(context: Context, scenario: Scenario) -> TeacherOutputs:
    """The teacher's outputs on a scenario's transfer rows, before the channel."""
    examples = scenarios.poisoned(context.config, scenario).examples
    return teacher_outputs(context, scenario, "transfer", examples)


def through_channel(
    context: Context, scenario: Scenario, outputs: TeacherOutputs
) -> TeacherOutputs:
    """The teacher's outputs on a scenario's transfer rows, as the channel leaves them.

    Args:
        context: the study.
        scenario: the scenario.
        outputs: of the honest teacher on all of its rows.
    """
    rows = scenarios.poisoned(context.config, scenario).rows
    logits, features = outputs
    attack = context.config.attacks[scenario.attack] if scenario.attack else None
    # Features first: their attack reads the logits of the honest teacher.
    if attack and attack.features:
        hide = attacks.FEATURE_ATTACKS[attack.features]
        # Poisoned rows copy the hidden states of clean rows that the target has.
        of_target = ~rows & (logits.argmax(-1) == attack.target)
        features = np.asarray(
            hide(features, rows, of_target, scenarios.key(scenario, "features"))
        )
    if attack and attack.channel in ("logits", "both"):
        corrupt = attacks.LOGIT_ATTACKS[attack.logits]
        logits = np.asarray(
            corrupt(logits, rows, target=attack.target, strength=attack.strength)
        )
    return TeacherOutputs(logits, features)


def reference_outputs(context: Context, scenario: Scenario) -> TeacherOutputs:
    """The outputs of the scenario's teacher on the references."""
    owner = scenarios.reference_scenario(context.config, scenario)
    if owner.attack is None:
        # Shared by all attacks with this teacher, so that it is asked once.
        owner = teacher_scenario(context.config, scenario)
    return _reference_outputs(context, owner)


@cached
def _reference_outputs(context: Context, owner: Scenario) -> TeacherOutputs:
    """The outputs of a teacher on the references that several scenarios share."""
    return teacher_outputs(
        context, owner, "references", scenarios.references(context.config, owner)
    )


@cached
def constraint_prototypes(context: Context, scenario: Scenario) -> Prototypes:
    """The teacher's prototypes on the references, one set per layer.

    A node's are fitted on its own share of the references.

    Returns:
        Prototypes with a leading `[layers]` axis.
    """
    labels = scenarios.references(context.config, scenario).labels
    rows = scenarios.own_references(context.config, scenario)
    outputs = reference_outputs(context, scenario).take(rows)
    return fitted_prototypes(context, scenario, outputs, labels[rows])


def fitted_prototypes(
    context: Context, scenario: Scenario, outputs: TeacherOutputs, labels: np.ndarray
) -> Prototypes:
    """The prototypes of the teacher's outputs on some references, a set per layer."""
    layers = range(outputs.features.shape[1])
    keys = [scenarios.key(scenario, f"prototypes{layer}") for layer in layers]
    return layer_prototypes(outputs, labels, context.config.prototypes, keys)


def held_prototypes(context: Context, scenario: Scenario) -> Prototypes:
    """The prototypes that constrain a student from its first step on.

    A node's are those that the server sends to all, as they arrive, or its own.
    """
    if not scenario.federation:
        return constraint_prototypes(context, scenario)
    section = context.config.federations[scenario.federation]
    if section.prototypes == "local":
        return constraint_prototypes(context, scenario)
    return _broadcast_prototypes(context, scenario._replace(node=0))


@functools.lru_cache(maxsize=2)
def _broadcast_prototypes(context: Context, scenario: Scenario) -> Prototypes:
    """The server's prototypes as they arrive at each node, verified by their hash."""
    section = context.config.federations[scenario.federation]
    sent = communication.encode(
        constraint_prototypes(context, scenario.whole),
        precision=section.prototype_precision,
    )
    return communication.decode(sent, expected_hash=sent.sha256)
